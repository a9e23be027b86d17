/* What the kernels must know of float32. */
#define REAL float
#define DTYPE "float32"
#define REAL_SIZE 4
#define MANTISSA 23         /* bits that are stored */
#define LARGEST __FLT_MAX__
#define ROUNDER 12582912.0f /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits, where v_scale reads it */
#define LOWEST (-126)       /* 2^LOWEST is the smallest normal number */
#define VANISHING (-105)    /* below that e^x is less than half of the smallest denormal, 2^-149 */

/* log2(e) in two parts */
#define LOG2_E_HIGH 1.442695f
#define LOG2_E_LOW ((REAL)(1.4426950408889634 - 1.442695f))

/* (2^r - 1) / r for |r| <= 1/2, highest power first; the relative error of 2^r is 2.0e-9 before rounding, and exp2(0) is 1 exactly.  With
 * degree 5 it was 2.6 ULP off, with 6 it is 1 (minimax by Lawson's iteration; checked over every float by tests/c/exp2_all.c). */
#define EXP2_TAIL 1.5353362e-4f, 1.3398875e-3f, 9.618437e-3f, 5.5503324e-2f, 2.4022648e-1f, 6.931472e-1f
#define EXP2_ROUGH 0 /* coefficients that may be added with two roundings, where an FMA has to be imitated */
