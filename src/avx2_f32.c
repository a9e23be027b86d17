/* The micro-kernels for float32 in AVX2, FMA and F16C. */
#include "target.h"

#ifdef QKVC_X86 /* on other machines this file is empty */
TARGET_BEGIN("avx2,fma,f16c")
#define NAME "avx2"
#define TABLE qkvc_avx2_f32
#define NARROW NULL
#define FLOAT64 qkvc_avx2_f64
#include "float32.h"
#include "vec_avx2.h"
#include "kernels_body.h"
TARGET_END
#endif
