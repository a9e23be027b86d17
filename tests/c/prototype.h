/* What both prototypes share: numbers to compute with, the clock, the frequency of the core, and the float32 tile path of the product. */
#ifndef QKVC_PROTOTYPE_H
#define QKVC_PROTOTYPE_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "kernels.h"

#define W QKVC_BLOCK
#define LOG2_E 1.4426950408889634

enum { MAX_LANES = 48, MAX_D = 128 };

/* Zeros, on huge pages where the system gives them, as NumPy asks for its own arrays. */
static inline void *allocate(size_t bytes)
{
    enum { PAGE = 2 << 20 };
    const size_t whole = (bytes + PAGE - 1) / PAGE * PAGE;
    void *p = aligned_alloc(PAGE, whole);
    if (!p) {
        fprintf(stderr, "no memory for %zu bytes\n", bytes);
        exit(2);
    }
#ifdef MADV_HUGEPAGE
    madvise(p, whole, MADV_HUGEPAGE);
#endif
    return memset(p, 0, bytes);
}

/* Uniform in [-1, 1], the same on every run (xorshift64, Marsaglia 2003). */
static inline void fill(float *x, size_t n, uint64_t seed)
{
    seed = (seed + 1) * 0x9e3779b97f4a7c15u;
    for (size_t i = 0; i < n; ++i) {
        seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
        x[i] = (float)(int32_t)(seed >> 32) * 0x1p-31f;
    }
}

static inline double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Cycles per nanosecond: a chain of products of integers, 3 cycles each on every core since 2011.  The time-stamp counter ticks at another
 * rate than the core. */
static inline double gigahertz(void)
{
    double best = 0;
#ifdef __x86_64__
    for (int round = 0; round < 10; ++round) {
        uint64_t x = 1;
        double from = seconds();
        for (int i = 0; i < 50000; ++i) __asm__ volatile("imul %0, %0\n\timul %0, %0" : "+r"(x));
        double rate = 300000e-9 / (seconds() - from);
        if (rate > best) best = rate;
    }
#endif
    return best;
}

static inline const struct qkvc_kernels *kernel_set(const char *name)
{
    int count;
    const struct qkvc_kernels *const *sets = qkvc_kernel_sets(&count);
    for (int i = 0; i < count; ++i)
        if (!strcmp(sets[i]->name, name)) return sets[i];
    return NULL;
}

/* The tile loop of qkvc/_attention.pyx for one tile, without masks: out[i], m[i], l[i] of `queries` queries against n keys. */
static inline void attend_tile(const struct qkvc_kernels *kn, const float *Q, const float *K, const float *V, ptrdiff_t n, int D,
                               float scale, int queries, float *out, float *m, float *l)
{
    static float QT[MAX_D * MAX_LANES], S[W * MAX_LANES], O[MAX_D * MAX_LANES], alpha[MAX_LANES], beta[MAX_LANES], factor[MAX_LANES];
    const int vecs = (queries + kn->lanes - 1) / kn->lanes, tile = kn->lanes * kn->vecs;
    const void *query[MAX_LANES];
    void *rows[MAX_LANES];
    for (int i = 0; i < vecs * kn->lanes; ++i) query[i] = Q + (i < queries ? i : queries - 1) * D;
    for (int i = 0; i < queries; ++i) rows[i] = out + i * D;
    for (int i = 0; i < tile; ++i) m[i] = -INFINITY, l[i] = 0;
    memset(O, 0, sizeof(float) * (size_t)(D * tile));
    kn->pack(query, 1, D, (double)scale * LOG2_E, vecs, QT);
    for (ptrdiff_t j = 0; j < n; j += W) {
        int keys = n - j < W ? (int)(n - j) : W, depth[QKVC_MAX_VECS] = {keys, keys, keys};
        kn->scores(K + j * D, D, D, QT, depth, vecs, V + j * D, D, D, NULL, S);
        kn->softmax(S, depth, vecs, m, l, alpha, beta);
        kn->values(V + j * D, D, D, S, depth, vecs, alpha, beta, O);
    }
    for (int i = 0; i < tile; ++i) factor[i] = 1 / l[i];
    kn->store(O, D, factor, queries, rows, 1);
}

#endif
