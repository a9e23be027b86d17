/* A bfloat16 tile against the arithmetic contract (docs/arithmetic.md): 48 queries in the lanes, VDPBF16PS in place of the FMA.
 *
 *   scores   S[key][query] += K[key][d, d+1] . Q[d, d+1][query]      K read where it is: a pair of neighbours is one 32-bit broadcast
 *   values   O[c][query]   += V[j, j+1][c] . P[j, j+1][query]        V's rows interleaved by twos, once per block
 *
 * Blocks, maximum, exp2 and merge are those of float32, sums are float32.  It checks that
 *   - VDPBF16PS is two FMAs, the odd number of the pair first, denormals taken for 0: the order can be written down, and kept without it;
 *   - a tile gives, to the bit, what the contract gives written out for one query in scalar C: so neither the width of the tile nor the
 *     lane nor the other queries matter;
 *   - the error against float64 keeps within the bound of `bounds`.
 */
#include "target.h"

#ifdef QKVC_X86
#include <cpuid.h>

TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
#define NAME "prototype"
#define NARROW NULL
#define FLOAT64 qkvc_avx512_f64
#define TABLE prototype_f32
#include "float32.h"
#include "vec_avx512.h"
#include "kernels_body.h"
#include "prototype.h" /* last: its W is a name in the kernels */

enum { HIGH = 8 /* 8 rows x 3 vectors = 24 sums, 3 panel vectors: 27 of 32 registers, the broadcast is an operand from memory */ };

typedef uint16_t bf16;
typedef uint32_t pair; /* two bf16, the even one low */

static INLINE __m512bh load_pairs(const pair *p) { return (__m512bh)_mm512_loadu_si512(p); }
static INLINE __m512bh broadcast(pair x) { return (__m512bh)_mm512_set1_epi32((int)x); }

static INLINE pair pair_at(const bf16 *p)
{
    pair x;
    memcpy(&x, p, sizeof x);
    return x;
}

/* QP[d / 2][lane]: queries, transposed as pairs.  Not scaled: rounded to bf16 again, scaled queries would be off by up to 2^-8. */
static void pack_pairs(const bf16 *const *rows, int D, int vecs, pair *QP)
{
    for (int v = 0; v < vecs; ++v)
        for (int d = 0; d < D / 2; d += LANES) {
            vec t[LANES];
            for (int i = 0; i < LANES; ++i) t[i] = v_load((const float *)(const void *)(rows[v * LANES + i] + 2 * d));
            v_transpose(t);
            for (int i = 0; i < LANES; ++i) v_store((float *)(void *)(QP + (d + i) * TILE + v * LANES), t[i]);
        }
}

/* even, odd, even + 1, odd + 1, ...: the order that makes pairs of two rows */
static INLINE __m512i by_twos(int even, int odd)
{
    const __m512i steps = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_add_epi32(_mm512_mullo_epi32(steps, _mm512_set1_epi32(0x10001)), _mm512_set1_epi32(odd << 16 | even));
}

/* VP[j / 2][c]: rows by twos; behind an odd last row come zeros. */
static void interleave(const bf16 *V, int D, int n, pair *VP)
{
    const __m512i first = by_twos(0, 32), second = by_twos(16, 48);
    for (int j = 0; j < n; j += 2)
        for (int c = 0; c < D; c += 32) {
            const __m512i even = _mm512_loadu_si512(V + j * D + c);
            const __m512i odd = j + 1 < n ? _mm512_loadu_si512(V + (j + 1) * D + c) : _mm512_setzero_si512();
            _mm512_storeu_si512(VP + j / 2 * D + c, _mm512_permutex2var_epi16(even, first, odd));
            _mm512_storeu_si512(VP + j / 2 * D + c + 16, _mm512_permutex2var_epi16(even, second, odd));
        }
}

/* acc[i][v] = sum over pairs of A[i * rs + k * cs] . B[k][v], one chain from zero */
static INLINE void product_pairs(const int rows, const int vecs, const bf16 *A, ptrdiff_t rs, ptrdiff_t cs, const pair *B, int n,
                                 vec acc[][VECS])
{
    UNROLL for (int i = 0; i < rows; ++i)
        UNROLL for (int v = 0; v < vecs; ++v) acc[i][v] = v_set1(0);
    for (int k = 0; k < n; ++k) {
        __m512bh b[VECS];
        UNROLL for (int v = 0; v < vecs; ++v) b[v] = load_pairs(B + k * TILE + v * LANES);
        UNROLL for (int i = 0; i < rows; ++i) {
            const __m512bh a = broadcast(pair_at(A + i * rs + k * cs));
            UNROLL for (int v = 0; v < vecs; ++v) acc[i][v] = _mm512_dpbf16_ps(acc[i][v], b[v], a);
        }
    }
}

static INLINE void scores_of(const int rows, const int vecs, const bf16 *K, int D, const pair *QP, float scale, float *S)
{
    vec acc[HIGH][VECS];
    product_pairs(rows, vecs, K, D, 2, QP, D / 2, acc);
    UNROLL for (int i = 0; i < rows; ++i)
        UNROLL for (int v = 0; v < vecs; ++v) v_store(S + i * TILE + v * LANES, v_mul(acc[i][v], v_set1(scale)));
}

static INLINE void values_of(const int rows, const int vecs, const pair *VP, int D, const pair *P, int pairs, const vec *alpha,
                             const vec *beta, float *O)
{
    vec acc[HIGH][VECS];
    product_pairs(rows, vecs, (const bf16 *)VP, 2, 2 * D, P, pairs, acc);
    UNROLL for (int i = 0; i < rows; ++i)
        UNROLL for (int v = 0; v < vecs; ++v) {
            float *o = O + i * TILE + v * LANES;
            v_store(o, v_fma(beta[v], acc[i][v], v_mul(alpha[v], v_load(o))));
        }
}

/* As in float32, but P is rounded to bf16, to nearest even, and l is the sum of the rounded P: the value sum of a column of ones.
 * An odd last key has a partner with P = 0. */
static INLINE void softmax_pairs(int n, int vecs, float *S, pair *P, vec *m, vec *l, vec *alpha, vec *beta)
{
    const __m512i by_lane = by_twos(0, 16);
    const __m512bh ones = broadcast(0x3f803f80);
    const vec lowest = v_set1(-INFINITE), zero = v_set1(0);
    for (int v = 0; v < vecs; ++v) {
        float *s = S + v * LANES;
        vec mb = lowest, lb = zero;
        if (n % 2) v_store(s + n * TILE, lowest);
        for (int j = 0; j < n; ++j) mb = v_max(mb, v_load(s + j * TILE));
        vec shift = v_select(v_eq(mb, lowest), zero, mb);
        for (int j = 0; j < n; j += 2) {
            vec even = v_exp2(v_sub(v_load(s + j * TILE), shift)), odd = v_exp2(v_sub(v_load(s + (j + 1) * TILE), shift));
            __m512i p = _mm512_permutexvar_epi16(by_lane, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
            _mm512_storeu_si512(P + j / 2 * TILE + v * LANES, p);
            lb = _mm512_dpbf16_ps(lb, (__m512bh)p, ones);
        }
        vec now = v_max(m[v], mb);
        shift = v_select(v_eq(now, lowest), zero, now);
        alpha[v] = v_exp2(v_sub(m[v], shift)), beta[v] = v_exp2(v_sub(mb, shift));
        m[v] = now;
        l[v] = v_fma(beta[v], lb, v_mul(alpha[v], l[v]));
    }
}

/* out[i] of vecs * 16 queries, float32, against n keys */
static INLINE void attend_vecs(const int vecs, const bf16 *const *queries, const bf16 *K, const bf16 *V, int n, int D, float scale,
                               float *const *out)
{
    static float S[W * TILE], O[MAX_D * TILE], factor[TILE];
    static pair QP[MAX_D / 2 * TILE], P[W / 2 * TILE], VP[W / 2 * MAX_D];
    const float factor_of_scores = (float)((double)scale * LOG2_E);
    vec m[VECS], l[VECS], alpha[VECS], beta[VECS];
    for (int v = 0; v < vecs; ++v) m[v] = v_set1(-INFINITE), l[v] = v_set1(0);
    memset(O, 0, sizeof(float) * (size_t)(D * TILE));
    pack_pairs(queries, D, vecs, QP);
    for (int first = 0; first < n; first += W, K += W * D, V += W * D) {
        const int keys = least(n - first, W), pairs = (keys + 1) / 2;
        int j = 0, c = 0;
#define SCORES(rows, vecs) scores_of(rows, vecs, K + j * D, D, QP, factor_of_scores, S + j * TILE)
        COVER(j, keys, HIGH, vecs, SCORES);
        softmax_pairs(keys, vecs, S, P, m, l, alpha, beta);
        interleave(V, D, keys, VP);
#define VALUES(rows, vecs) values_of(rows, vecs, VP + c, D, P, pairs, alpha, beta, O + c * TILE)
        COVER(c, D, HIGH, vecs, VALUES);
    }
    for (int v = 0; v < vecs; ++v) v_store(factor + v * LANES, _mm512_div_ps(v_set1(1), l[v]));
    qkvc_avx512_f32.store(O, D, factor, vecs * LANES, (void *const *)out, 1);
}

static void attend_pairs(int vecs, const bf16 *const *queries, const bf16 *K, const bf16 *V, int n, int D, float scale, float *const *out)
{
    if (vecs == 3) attend_vecs(3, queries, K, V, n, D, scale, out);
    else if (vecs == 2) attend_vecs(2, queries, K, V, n, D, scale, out);
    else attend_vecs(1, queries, K, V, n, D, scale, out);
}

static void multiply_pairs(const pair *a, const pair *b, float *sum)
{
    v_store(sum, _mm512_dpbf16_ps(v_load(sum), load_pairs(a), load_pairs(b)));
}

/* The roof: steps x 24 VDPBF16PS from registers into registers; returns how many flops. */
static double pair_loop(int steps, float *sink)
{
    vec acc[HIGH * VECS];
    const __m512bh a = broadcast(0x3f803f80), b = broadcast(0xbf803f80);
    UNROLL for (int i = 0; i < HIGH * VECS; ++i) acc[i] = v_set1((float)i);
    for (int k = 0; k < steps; ++k)
        UNROLL for (int i = 0; i < HIGH * VECS; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], a, b);
    UNROLL for (int i = 1; i < HIGH * VECS; ++i) acc[0] = v_add(acc[0], acc[i]);
    v_store(sink, acc[0]);
    return 4.0 * HIGH * VECS * LANES * steps;
}
TARGET_END

/* ---------------------------------------------------------------------------------------------- the contract, written in scalar C */

enum { QUERIES = 48 };

static float from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static float widen(bf16 x) { return from_bits((uint32_t)x << 16); }

static bf16 round_even(float x) /* of finite numbers */
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return (bf16)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static float flush(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x; }

/* sum + a . b as VDPBF16PS does it */
static float add_pair(float sum, bf16 a_even, bf16 a_odd, bf16 b_even, bf16 b_odd)
{
    sum = flush(fmaf(flush(widen(a_odd)), flush(widen(b_odd)), flush(sum)));
    return flush(fmaf(flush(widen(a_even)), flush(widen(b_even)), sum));
}

static float exp2_of(float x)
{
    qkvc_avx512_f32.exp2(&x, 1, &x);
    return x;
}

static void attend_scalar(const bf16 *query, const bf16 *K, const bf16 *V, int n, int D, float scale, float *out)
{
    const float factor = (float)((double)scale * LOG2_E);
    float m = -INFINITY, l = 0, O[MAX_D] = {0};
    for (int first = 0; first < n; first += W, K += W * D, V += W * D) {
        const int keys = n - first < W ? n - first : W;
        float S[W], mb = -INFINITY, lb = 0;
        bf16 P[W + 1] = {0};
        for (int j = 0; j < keys; ++j) {
            float sum = 0;
            for (int d = 0; d < D; d += 2) sum = add_pair(sum, query[d], query[d + 1], K[j * D + d], K[j * D + d + 1]);
            S[j] = sum * factor;
            mb = S[j] > mb ? S[j] : mb;
        }
        for (int j = 0; j < keys; ++j) P[j] = round_even(exp2_of(S[j] - mb));
        for (int j = 0; j < keys; j += 2) lb = add_pair(lb, P[j], P[j + 1], 0x3f80, 0x3f80);
        const float now = mb > m ? mb : m, alpha = exp2_of(m - now), beta = exp2_of(mb - now);
        m = now;
        l = fmaf(beta, lb, alpha * l);
        for (int c = 0; c < D; ++c) {
            float sum = 0;
            for (int j = 0; j < keys; j += 2) sum = add_pair(sum, P[j], P[j + 1], V[j * D + c], j + 1 < keys ? V[(j + 1) * D + c] : 0);
            O[c] = fmaf(beta, sum, alpha * O[c]);
        }
    }
    for (int c = 0; c < D; ++c) out[c] = fmaf(O[c], 1 / l, 0.0f);
}

/* exact[c] in float64, and how far from it the contract may be.  With u = 2^-24, h = 2^-8, weights w and the score s in units of log2:
 * a weight errs by h for its rounding, by 2 u for exp2 and by ln 2 times its score's error, which is (D + 2) u times the sum of
 * |q k| for the chain, the scale and its product, and 2 u |s - max| for the difference; as l sums the same rounded weights, they move
 * the mean by at most their error times w |v - mean|.  Sums add (128 + 3 blocks) u of their terms' magnitude, for O and for l.
 * 1 % for products of errors. */
static void bounds(const bf16 *query, const bf16 *K, const bf16 *V, int n, int D, float scale, double *exact, double *bound)
{
    const double u = 0x1p-24, h = 0x1p-8, ln2 = 0.6931471805599453, factor = (double)scale * LOG2_E;
    double *w = allocate(2 * sizeof(double) * (size_t)n), *e = w + n, max = -INFINITY, sum = 0;
    for (int j = 0; j < n; ++j) {
        w[j] = e[j] = 0;
        for (int d = 0; d < D; ++d) {
            const double term = factor * (double)widen(query[d]) * (double)widen(K[j * D + d]);
            w[j] += term, e[j] += fabs(term);
        }
        if (w[j] > max) max = w[j];
    }
    for (int j = 0; j < n; ++j) {
        e[j] = h + 2 * u + ln2 * u * ((D + 2) * e[j] + 2 * (max - w[j]));
        w[j] = exp2(w[j] - max);
        sum += w[j];
    }
    for (int c = 0; c < D; ++c) {
        double mean = 0, moved = 0, size = 0;
        for (int j = 0; j < n; ++j) {
            const double term = w[j] / sum * (double)widen(V[j * D + c]);
            mean += term, size += fabs(term);
        }
        for (int j = 0; j < n; ++j) moved += w[j] / sum * e[j] * fabs((double)widen(V[j * D + c]) - mean);
        exact[c] = mean;
        bound[c] = 1.01 * (moved + (W + 3 * ((n + W - 1) / W) + 3) * u * (size + fabs(mean)));
    }
    free(w);
}

/* -------------------------------------------------------------------------------------------------------------------- checks */

/* Random pairs over 30 powers of two, and sums that cancel them or dwarf them. */
static int check_instruction(void)
{
    enum { ROUNDS = 20000 };
    float noise[7 * 16], sum[16], before[16];
    for (int round = 0; round < ROUNDS; ++round) {
        bf16 a[32], b[32];
        fill(noise, 7 * 16, (uint64_t)round);
        for (int i = 0; i < 32; ++i) {
            a[i] = round_even(ldexpf(noise[i], (int)(7 * noise[80 + i])));
            b[i] = round_even(ldexpf(noise[32 + i], (int)(7 * noise[111 - i])));
        }
        for (int i = 0; i < 16; ++i) before[i] = sum[i] = ldexpf(noise[64 + i], (int)(15 * noise[95 - i]));
        multiply_pairs((const pair *)(const void *)a, (const pair *)(const void *)b, sum);
        for (int i = 0; i < 16; ++i)
            if (sum[i] != add_pair(before[i], a[2 * i], a[2 * i + 1], b[2 * i], b[2 * i + 1])) {
                printf("VDPBF16PS is not two FMAs, the odd one first: %a + %a * %a + %a * %a gave %a\n", before[i], widen(a[2 * i]),
                       widen(b[2 * i]), widen(a[2 * i + 1]), widen(b[2 * i + 1]), sum[i]);
                return 1;
            }
    }
    printf("VDPBF16PS is two FMAs, the odd number of the pair first: %d random sums, none differs\n", 16 * ROUNDS);
    return 0;
}

static int check_tiles(const bf16 *Q, const bf16 *K, const bf16 *V)
{
    static const int lengths[] = {1, 2, 3, 31, 127, 128, 129, 255, 300, 1000};
    static const float scales[] = {0.125f, -0.125f, 4};
    static float out[QUERIES][MAX_D], expected[QUERIES][MAX_D];
    static double exact[MAX_D], bound[MAX_D];
    double worst = 0, error = 0;
    int numbers = 0;
    for (int a = 0; a < 10 * 2 * 3; ++a) {
        const int n = lengths[a / 6], D = a % 2 ? 128 : 64;
        const float scale = scales[a / 2 % 3];
        for (int i = 0; i < QUERIES; ++i) attend_scalar(Q + i * D, K, V, n, D, scale, expected[i]);
        for (int vecs = 1; vecs <= 3; ++vecs)
            for (int turn = 0; turn < QUERIES; turn += 23) { /* other lanes and other neighbours */
                const bf16 *rows[QUERIES];
                float *to[QUERIES];
                for (int i = 0; i < vecs * 16; ++i) rows[i] = Q + (i + turn) % QUERIES * D, to[i] = out[(i + turn) % QUERIES];
                attend_pairs(vecs, rows, K, V, n, D, scale, to);
                for (int i = 0; i < vecs * 16; ++i)
                    if (memcmp(to[i], expected[(i + turn) % QUERIES], sizeof(float) * (size_t)D)) {
                        printf("the tile is not the contract: query %d in lane %d of %d, %d keys, D = %d, scale %g\n", (i + turn) % QUERIES,
                               i, 16 * vecs, n, D, (double)scale);
                        return 1;
                    }
            }
        for (int i = 0; i < QUERIES; i += 7) {
            bounds(Q + i * D, K, V, n, D, scale, exact, bound);
            for (int c = 0; c < D; ++c, ++numbers) {
                const double off = fabs((double)expected[i][c] - exact[c]);
                if (!(off <= bound[c])) {
                    printf("error %g beyond its bound %g: query %d, %d keys, D = %d, scale %g\n", off, bound[c], i, n, D, (double)scale);
                    return 1;
                }
                if (off > error) error = off;
                if (bound[c] > 0 && off / bound[c] > worst) worst = off / bound[c];
            }
        }
    }
    printf("tiles of 16, 32 and 48 lanes give the bits of the scalar text; of %d numbers the largest error is %.2g (values in [-1, 1]), "
           "at most %.2f of its bound\n",
           numbers, error, worst);
    return 0;
}

/* --------------------------------------------------------------------------------------------------------------------- costs */

static void measure(const bf16 *Q, const bf16 *K, const bf16 *V, const float *Qf, const float *Kf, const float *Vf)
{
    static float out[QUERIES][MAX_D], m[QUERIES], l[QUERIES];
    static pair VP[W / 2 * MAX_D];
    for (int D = 64; D <= 128; D *= 2)
        for (int n = 128; n <= 1024; n *= 8) {
            const bf16 *rows[QUERIES];
            float *to[QUERIES];
            double peak = 0, best = 1, single = 1, zipped = 1;
            const double flops = 4.0 * QUERIES * n * D;
            for (int i = 0; i < QUERIES; ++i) rows[i] = Q + i * D, to[i] = out[i];
            for (int round = 0; round < 200; ++round) { /* in turns */
                double at[5] = {seconds()}, rate = pair_loop(4000, m);
                at[1] = seconds();
                for (int i = 0; i < 1024 / n; ++i) attend_pairs(3, rows, K, V, n, D, 0.125f, to);
                at[2] = seconds();
                for (int i = 0; i < 1024 / n; ++i) attend_tile(&qkvc_avx512_f32, Qf, Kf, Vf, n, D, 0.125f, QUERIES, out[0], m, l);
                at[3] = seconds();
                for (int j = 0; j < 1024; j += W) interleave(V + j * D, D, W, VP);
                at[4] = seconds();
                peak = fmax(peak, rate / (at[1] - at[0]));
                best = fmin(best, at[2] - at[1]);
                single = fmin(single, at[3] - at[2]);
                zipped = fmin(zipped, at[4] - at[3]);
            }
            best /= 1024 / n, single /= 1024 / n, zipped /= 1024 / n;
            printf("D %3d  %4d keys: %5.1f GFLOP/s, %4.1f %% of the %.0f of VDPBF16PS alone (%.1f %% of the time interleaves V); "
                   "float32 tile %5.1f, so %.2f times\n",
                   D, n, flops / best * 1e-9, 100 * flops / best / peak, peak * 1e-9, 100 * zipped / best, flops / single * 1e-9,
                   single / best);
        }
}

int main(void)
{
    enum { MOST = 1024 * MAX_D };
    unsigned a = 0, b, c, d;
    if (!kernel_set("avx512") || !__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & 1u << 5)) {
        puts("prototype_bf16: nothing to run, this CPU has no AVX-512 BF16");
        return 0;
    }
    const size_t sizes[3] = {QUERIES * MAX_D, MOST, MOST};
    float *x[3];
    bf16 *y[3];
    for (int i = 0; i < 3; ++i) {
        x[i] = allocate(sizeof(float) * sizes[i]);
        y[i] = allocate(sizeof(bf16) * sizes[i]);
        fill(x[i], sizes[i], (uint64_t)i);
        for (size_t k = 0; k < sizes[i]; ++k) y[i][k] = round_even(x[i][k]);
    }
    const int failed = check_instruction() || check_tiles(y[0], y[1], y[2]);
    if (!failed) measure(y[0], y[1], y[2], x[0], x[1], x[2]);
    for (int i = 0; i < 3; ++i) free(x[i]), free(y[i]);
    return failed;
}

#else
#include <stdio.h>
int main(void)
{
    puts("prototype_bf16: nothing to run, this is not x86-64");
    return 0;
}
#endif
