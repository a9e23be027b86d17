/* The micro-kernels for float64 in AVX-512. */
#include "target.h"

#ifdef QKVC_X86 /* on other machines this file is empty */
TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#define NAME "avx512"
#define TABLE qkvc_avx512_f64
#define NARROW &qkvc_avx2_f64
#define FLOAT64 qkvc_avx512_f64
#include "float64.h"
#include "vec_avx512.h"
#include "kernels_body.h"
TARGET_END
#endif
