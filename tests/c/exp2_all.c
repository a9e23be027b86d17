/* Every float32 argument of exp2, on every kernel set this CPU can run, against double precision:
 * error at most 1 ULP on [-126, -0], exp2(-0) = exp2(0) = 1, +0 everywhere below, NaN from every NaN.
 * `make test-full` runs it (2.2e9 arguments, a minute a set); prints the largest error found, and how often neighbours are out of order
 * (by the last bit: an error below 1 ULP does not make a function monotone). */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "kernels.h"

enum { CHUNK = 1 << 16 };

static float from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static int fail(const struct qkvc_kernels *kernels, const char *what, float x, float y)
{
    printf("%s: %s at %a (%.9g): got %a\n", kernels->name, what, x, x, y);
    return 1;
}

static int check(const struct qkvc_kernels *kernels)
{
    static float x[CHUNK], y[CHUNK];
    double worst = 0, at = 0;
    long disordered = 0;
    float last = 1;
    kernels->exp2((const float[]){0.0f}, 1, y);
    if (y[0] != 1) return fail(kernels, "exp2(0)", 0, y[0]);
    /* bit patterns from -0 on: magnitudes ascend */
    for (uint64_t first = 0x80000000u; first < 0x100000000u; first += CHUNK) {
        for (int i = 0; i < CHUNK; ++i) x[i] = from_bits((uint32_t)(first + i));
        kernels->exp2(x, CHUNK, y);
        for (int i = 0; i < CHUNK; ++i) {
            if (isnan(x[i])) {
                if (!isnan(y[i])) return fail(kernels, "NaN lost", x[i], y[i]);
            } else if (x[i] < -126) {
                uint32_t bits;
                memcpy(&bits, &y[i], sizeof bits);
                if (bits != 0) return fail(kernels, "not +0", x[i], y[i]);
            } else {
                double exact = exp2((double)x[i]);
                double ulp = ldexp(1, ilogb(exact) - 23), error = fabs(y[i] - exact) / ulp;
                if (error > worst) worst = error, at = x[i];
                disordered += y[i] > last;
                last = y[i];
            }
        }
    }
    for (uint64_t bits = 0x7f800001u; bits < 0x80000000u; bits += CHUNK) { /* NaN without the sign */
        for (int i = 0; i < CHUNK; ++i) x[i] = from_bits((uint32_t)(bits + i < 0x80000000u ? bits + i : 0x7fffffffu));
        kernels->exp2(x, CHUNK, y);
        for (int i = 0; i < CHUNK; ++i)
            if (!isnan(y[i])) return fail(kernels, "NaN lost", x[i], y[i]);
    }
    printf("%-8s exp2: largest error %.4f ULP, at %.9g; %ld neighbours out of order\n", kernels->name, worst, at, disordered);
    return worst > 1.0;
}

int main(void)
{
    int count, failed = 0;
    const struct qkvc_kernels *const *sets = qkvc_kernel_sets(&count);
    for (int i = 0; i < count; ++i) failed |= check(sets[i]);
    return failed;
}
