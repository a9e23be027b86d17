/* The micro-kernels for float32 in AVX-512, and what AVX512_BF16 and AVX512_VNNI make of them. */
#include "target.h"

#ifdef QKVC_X86 /* on other machines this file is empty */
TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#define NAME "avx512"
#define TABLE qkvc_avx512_f32
#define NARROW &qkvc_avx2_f32
#define FLOAT64 qkvc_avx512_f64
#include "float32.h"
#include "vec_avx512.h"
#include "kernels_body.h"
TARGET_END

TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
#define PAIR_UP qkvc_avx512_bf16
#include "vec_avx512_bf16.h"
#include "pairs_body.h"
TARGET_END

TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")
#define BYTES_UP qkvc_avx512_vnni
#include "vec_avx512_vnni.h"
#include "few_bytes_body.h"
TARGET_END
#endif
