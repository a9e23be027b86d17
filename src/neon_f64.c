/* The micro-kernels for float64 in NEON. */
#include "target.h"

#ifdef QKVC_NEON /* on other machines this file is empty */
#define NAME "neon"
#define TABLE qkvc_neon_f64
#define NARROW NULL
#define FLOAT64 qkvc_neon_f64
#include "float64.h"
#include "vec_neon.h"
#include "kernels_body.h"
#endif
