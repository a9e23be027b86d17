/* The calling thread's floating-point control word, to be hostile with: test_environment.py compiles and loads this. */
#include <fenv.h>

#if defined(__x86_64__)
#include <immintrin.h>

/* Flush-to-zero, denormals-are-zero and the rounding mode; the flags of past exceptions are bits 0 to 5. */
unsigned get_control(void) { return _mm_getcsr(); }
void set_control(unsigned word) { _mm_setcsr(word); }
#elif defined(__aarch64__)
unsigned get_control(void) {
    unsigned long word;
    __asm__ volatile("mrs %0, fpcr" : "=r"(word));
    return (unsigned)word;
}
void set_control(unsigned word) {
    unsigned long wide = word;
    __asm__ volatile("msr fpcr, %0" ::"r"(wide));
}
#else
#error "no access to the control word of this machine"
#endif

/* The flags that finite work must not raise; inexact is no news, and Python raises it all the time. */
enum { WATCHED = FE_INVALID | FE_DIVBYZERO | FE_OVERFLOW | FE_UNDERFLOW };

int raised(void) { return fetestexcept(WATCHED); }
void clear(void) { feclearexcept(WATCHED); }
void raise_all(void) { feraiseexcept(WATCHED); }
int watched(void) { return WATCHED; }
