/* The micro-kernels for float32 in plain C. */
#include "target.h"

#define NAME "portable"
#define TABLE qkvc_portable_f32
#define NARROW NULL
#define FLOAT64 qkvc_portable_f64
#include "float32.h"
#include "vec_portable.h"
#include "kernels_body.h"
