/* The floating-point environment of the arithmetic contract: round to nearest, denormals kept, nothing trapped.  A library built with
 * fast-math flushes denormals in every thread that loads it (llvm#57589); the result must not depend on that, nor the caller's flags on
 * us. */
#ifndef QKVC_FPENV_H
#define QKVC_FPENV_H

#include <stdint.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
static inline uint64_t qkvc_fp_enter(void)
{
    uint64_t before = _mm_getcsr();
    _mm_setcsr(0x1f80);
    return before;
}
static inline void qkvc_fp_leave(uint64_t before) { _mm_setcsr((unsigned)before); }
#elif defined(__aarch64__)
static inline void qkvc_fp_leave(uint64_t before) { __asm__ volatile("msr fpcr, %0" ::"r"(before)); }
static inline uint64_t qkvc_fp_enter(void)
{
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    qkvc_fp_leave(0);
    return before;
}
#else
#include <fenv.h>
static inline uint64_t qkvc_fp_enter(void)
{
    int before = fegetround();
    fesetround(FE_TONEAREST);
    return (uint64_t)before;
}
static inline void qkvc_fp_leave(uint64_t before) { fesetround((int)before); }
#endif

#endif
