/* The micro-kernels for float32 in plain C. */
#include "target.h"

#define REAL float
#define DTYPE "float32"
#define NAME "portable"
#define NARROW NULL
#define FLOAT64 0
#define TABLE qkvc_portable_f32
#include "vec_portable.h"
#include "kernels_body.h"
