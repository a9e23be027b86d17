/* What the kernels must know of float64; float32.h says what each of it is. */
#define REAL double
#define DTYPE "float64"
#define REAL_SIZE 8
#define MANTISSA 52
#define LARGEST __DBL_MAX__
#define ROUNDER 6755399441055744.0 /* 1.5 * 2^52 */
#define LOWEST (-1022)
#define VANISHING (-746) /* 2^-1074 */

#define LOG2_E_HIGH 1.4426950408889634
#define LOG2_E_LOW 2.0355273740931033e-17

/* The error is 3.4e-18, or 0.03 ULP, before rounding (degree 10 of 2^r: 2 ULP) and 0.945 ULP after it (tests/test_kernels.py). */
#define EXP2_TAIL                                                                                                                          \
    4.4347708103775016e-10, 7.073783285402063e-09, 1.017819957530679e-07, 1.3215435282068187e-06, 1.5252733493118439e-05,                  \
        1.5403530457112641e-04, 1.3333558146774631e-03, 9.618129107594119e-03, 5.5504108664820084e-02, 2.402265069591013e-01,              \
        6.931471805599453e-01
#define EXP2_ROUGH 9 /* the last two must not: portable C 38 -> 11 ns a number, and no ULP lost */
