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

/* P of the normal distribution function, (1 + tanh(x P(x^2))) / 2, highest power first: minimax over |x| <= 5.5, 1.2e-8 off (the familiar
 * tanh-GELU is this with two terms, 2e-4 off).  float64 would need some hundred terms: it has none. */
#define GELU_LIMIT 30.25f /* 5.5^2 */
#define GELU_SERIES                                                                                                                        \
    -3.69646901e-12f, 2.40165492e-10f, -4.1523767e-09f, -6.14828611e-08f, 3.52320834e-06f, -5.38847831e-05f, -3.47881384e-05f,             \
        3.63344466e-02f, 0.797884723f
