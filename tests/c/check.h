/* What the C tests share: numbers of either size, the same on every run, and what is expected of them. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "kernels.h"

#define W QKVC_BLOCK
#define LOG2_E 1.4426950408889634

typedef struct qkvc_kernels Set;
typedef long double wide;

static int failures;
static double worst;

static double get(const Set *kn, const void *x, ptrdiff_t i) { return kn->size == 8 ? ((const double *)x)[i] : ((const float *)x)[i]; }

static void put(const Set *kn, void *x, ptrdiff_t i, double value)
{
    if (kn->size == 8)
        ((double *)x)[i] = value;
    else
        ((float *)x)[i] = (float)value;
}

static void *at(const Set *kn, const void *x, ptrdiff_t i) { return (char *)x + i * kn->size; }

static double epsilon(const Set *kn) { return kn->size == 8 ? 0x1p-52 : 0x1p-23; }

/* Uniform in [-range, range], float32 in either size, the same on every run (xorshift64, Marsaglia 2003) */
static void fill(const Set *kn, void *x, ptrdiff_t n, double range, uint64_t seed)
{
    seed = (seed + 1) * 0x9e3779b97f4a7c15u;
    for (ptrdiff_t i = 0; i < n; ++i) {
        seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
        put(kn, x, i, (float)(range * (int32_t)(seed >> 32) * 0x1p-31));
    }
}

/* Infinities must be met, everything else to within `allowed` */
static void expect(const Set *kn, const char *what, ptrdiff_t i, double got, wide want, wide allowed)
{
    if (isinf(want) ? got == (double)want : isnan(want) ? isnan(got) : fabsl(got - want) <= allowed) {
        if (allowed > 0 && isfinite(want) && fabsl(got - want) / allowed > worst) worst = (double)(fabsl(got - want) / allowed);
        return;
    }
    if (++failures < 20) printf("%s, %s: %s [%td]: got %.17g, expected %.17Lg\n", kn->name, kn->dtype, what, i, got, want);
}

static void expect_same(const Set *kn, const char *what, const void *got, const void *want, size_t n)
{
    if (memcmp(got, want, n * (size_t)kn->size) && ++failures < 20) printf("%s, %s: %s: other bits\n", kn->name, kn->dtype, what);
}
