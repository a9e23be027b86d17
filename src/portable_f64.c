/* The micro-kernels for float64 in plain C. */
#include "target.h"

#define NAME "portable"
#define TABLE qkvc_portable_f64
#define NARROW NULL
#define FLOAT64 qkvc_portable_f64
#include "float64.h"
#include "vec_portable.h"
#include "kernels_body.h"
