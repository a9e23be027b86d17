/* The micro-kernels: one text for every instruction set, written in the vocabulary of vec_*.h.
 *
 * Queries lie in the lanes.  Then keys, values and weights are read where they are, one number at a time, as broadcasts; the softmax runs
 * down the columns without a horizontal step; and scores and values are the same product (`product_range` below is the hot loop):
 *
 *     C[i][lane] = sum over k of A[i, k] * B[k][lane]
 *
 * The order of every sum is part of the contract: docs/arithmetic.md.  Contraction is off, an FMA is spelled v_fma.
 *
 * Expects NAME, TABLE, NARROW and FLOAT64, then float32.h or float64.h, and one vec_*.h.
 */
#include "kernels.h"

#define TILE (VECS * LANES)
enum { SEGMENT = 16, LINE = 64 / sizeof(REAL) }; /* terms a chain: docs/arithmetic.md; numbers a cache line */

#ifdef __clang__ /* which knows the other pragma too, and does not always obey it: 27 % of the FMA peak */
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

_Static_assert(ROWS * VECS + VECS + 1 <= VREGS && ROWS_1 + 2 <= VREGS, "the tile spills");
_Static_assert(VECS <= QKVC_MAX_VECS && ROWS == 4 && (ROWS_1 == 8 || ROWS_1 == 4), "COVER expects these");

static const REAL INFINITE = (REAL)__builtin_huge_val();

static INLINE int least(int a, int b) { return a < b ? a : b; }
static INLINE int larger(int a, int b) { return a > b ? a : b; }

#include "exp_body.h"
#include "panels_body.h"
#include "storage_body.h"
#include "scores_body.h"
#include "layers_body.h"
#include "learn_body.h"
#include "dropout_body.h"

/* ---------------------------------------------------------------------------------------------------------------- the product */

/* THE LOOP: acc[i][v] += A[i * rs + k * cs] * B[k * bs][v] for k in [from, to), one FMA a number and step. */
static INLINE void product_range(const int rows, const int first, const int vecs, const REAL *A, ptrdiff_t rs, ptrdiff_t cs,
                                 const REAL *B, ptrdiff_t bs, int from, int to, vec acc[][VECS])
{
    for (int k = from; k < to; ++k) {
        vec b[VECS];
        UNROLL for (int v = first; v < vecs; ++v) b[v] = v_load(B + k * bs + v * LANES);
        UNROLL for (int i = 0; i < rows; ++i) {
            vec a = v_set1(A[i * rs + k * cs]);
            UNROLL for (int v = first; v < vecs; ++v) acc[i][v] = v_fma(a, b[v], acc[i][v]);
        }
    }
}

/* sum[i][v] = sum over k < depth[v] of A[i * rs + k * cs] * B[k][v]: one chain of FMAs from zero for every SEGMENT of k, the chains added
 * in ascending order.  One chain for all of k would be half as accurate; the chains' sums wait in registers, or on the stack where
 * registers are few, outside the loop.  depth ascends with v, so the vectors drop out from the left.  rows and vecs are constants where
 * this is inlined.  `next`, unless it is NULL, is what A will be then: it is fetched a segment at a time, because all of it at once would
 * keep the misses of this A waiting. */
static INLINE void product(const int rows, const int vecs, const REAL *A, ptrdiff_t rs, ptrdiff_t cs, const REAL *B, const int *depth,
                           vec sum[][VECS], const REAL *next)
{
    UNROLL for (int i = 0; i < rows; ++i)
        UNROLL for (int v = 0; v < vecs; ++v) sum[i][v] = v_set1(0);
    for (int k = 0; k < depth[vecs - 1]; k += SEGMENT) {
        const int end = k + SEGMENT;
        vec acc[ROWS_1][VECS];
        if (next)
            UNROLL for (int i = 0; i < rows; ++i)
                for (int c = k; c < end; c += LINE) __builtin_prefetch(next + i * rs + c * cs, 0, 2);
        UNROLL for (int i = 0; i < rows; ++i)
            UNROLL for (int v = 0; v < vecs; ++v) acc[i][v] = v_set1(0);
        product_range(rows, 0, vecs, A, rs, cs, B, TILE, k, least(depth[0], end), acc);
        if (vecs > 1 && depth[1] > depth[0]) product_range(rows, 1, vecs, A, rs, cs, B, TILE, larger(k, depth[0]), least(depth[1], end), acc);
        if (vecs > 2 && depth[2] > depth[1]) product_range(rows, 2, vecs, A, rs, cs, B, TILE, larger(k, depth[1]), least(depth[2], end), acc);
        UNROLL for (int i = 0; i < rows; ++i)
            UNROLL for (int v = 0; v < vecs; ++v) sum[i][v] = v_add(sum[i][v], acc[i][v]);
    }
}

/* S[i][v] = K[i] . Q[v] */
static INLINE void scores_tile(const int rows, const int vecs, const REAL *K, ptrdiff_t row, int D, const REAL *QT, REAL *S)
{
    vec sum[ROWS_1][VECS];
    product(rows, vecs, K, row, 1, QT, (const int[]){D, D, D}, sum, NULL);
    UNROLL for (int i = 0; i < rows; ++i)
        UNROLL for (int v = 0; v < vecs; ++v) v_store(S + i * TILE + v * LANES, sum[i][v]);
}

/* O[i][v] = alpha * O + beta * (V[:, i] . P[v]) */
static INLINE void values_tile(const int rows, const int vecs, const REAL *V, ptrdiff_t row, const REAL *P, const int *depth,
                               const REAL *alpha, const REAL *beta, REAL *O)
{
    vec sum[ROWS_1][VECS];
    product(rows, vecs, V, 1, row, P, depth, sum, NULL);
    UNROLL for (int v = 0; v < vecs; ++v) {
        vec a = v_load(alpha + v * LANES), b = v_load(beta + v * LANES);
        UNROLL for (int i = 0; i < rows; ++i) {
            REAL *o = O + i * TILE + v * LANES;
            v_store(o, v_fma(b, sum[i][v], v_mul(a, v_load(o))));
        }
    }
}

/* Y[i][v] += W[i] . X[v], block by block; then the bias.  The rows of the tile after the next are fetched:
 * 88 -> 94 % of the FMA peak with a weight in L3. */
static INLINE void project_tile(const int rows, const int vecs, const REAL *W, ptrdiff_t rs, ptrdiff_t cs, int E, const REAL *XT,
                                const REAL *bias, REAL *Y)
{
    for (int e = 0; e < E; e += QKVC_BLOCK) {
        const int n = least(E - e, QKVC_BLOCK);
        vec sum[ROWS_1][VECS];
        product(rows, vecs, W + e * cs, rs, cs, XT + e * TILE, (const int[]){n, n, n}, sum, W + 2 * rows * rs + e * cs);
        UNROLL for (int i = 0; i < rows; ++i)
            UNROLL for (int v = 0; v < vecs; ++v) {
                REAL *y = Y + i * TILE + v * LANES;
                v_store(y, v_add(v_load(y), sum[i][v]));
            }
    }
    if (bias)
        UNROLL for (int i = 0; i < rows; ++i)
            UNROLL for (int v = 0; v < vecs; ++v) {
                REAL *y = Y + i * TILE + v * LANES;
                v_store(y, v_add(v_load(y), v_set1(bias[i])));
            }
}

/* Cover the rows from j to n with tiles of `most` rows and, at the end, of 4, 2 and 1: no row is padded, none is read twice. */
#define COVER(j, n, most, vecs, TILE_OF)                                                                                                   \
    do {                                                                                                                                   \
        for (; (n) - (j) >= (most); (j) += (most)) TILE_OF(most, vecs);                                                                    \
        if ((most) > 4 && (n) - (j) >= 4) { TILE_OF(4, vecs); (j) += 4; }                                                                  \
        if ((n) - (j) >= 2) { TILE_OF(2, vecs); (j) += 2; }                                                                                \
        if ((n) - (j) >= 1) { TILE_OF(1, vecs); (j) += 1; }                                                                                \
    } while (0)

#if VECS == 3
#define COVER_VECS(vecs, j, n, TILE_OF)                                                                                                    \
    switch (vecs) {                                                                                                                        \
    case 3: COVER(j, n, ROWS, 3, TILE_OF); break;                                                                                          \
    case 2: COVER(j, n, ROWS, 2, TILE_OF); break;                                                                                          \
    default: COVER(j, n, ROWS_1, 1, TILE_OF);                                                                                              \
    }
#else
#define COVER_VECS(vecs, j, n, TILE_OF)                                                                                                    \
    switch (vecs) {                                                                                                                        \
    case 2: COVER(j, n, ROWS, 2, TILE_OF); break;                                                                                          \
    default: COVER(j, n, ROWS_1, 1, TILE_OF);                                                                                              \
    }
#endif

/* Rows that will be read soon, towards L2.  Value rows, because `values` reads them in strips that no hardware prefetcher follows (64
 * queries against 1500 keys: 61 -> 75 % of the FMA peak).  Key rows only in tiles that are not full, which compute for too short a time
 * to hide them (75 -> 79 %; one query: 7 -> 11 GB/s); a full tile would pay 2 % for nothing. */
static __attribute__((noinline)) void fetch_rows(const REAL *x, ptrdiff_t row, int rows, int cols)
{
    for (int i = 0; i < rows; ++i)
        for (int c = 0; c < cols; c += LINE) __builtin_prefetch(x + i * row + c, 0, 2);
}

static void scores(const void *K_, ptrdiff_t row, int D, const void *QT_, const int *depth, int vecs, const void *V_,
                   ptrdiff_t V_row, int Dv, void *pairs, void *S_)
{
    enum { AHEAD = 16 };
    const REAL *K = K_, *QT = QT_, *V = V_;
    REAL *S = S_;
    int j = 0, n = depth[vecs - 1];
    (void)pairs;
    for (int first = 0; first < vecs; ++first, QT += LANES, S += LANES) { /* the first vectors need no keys beyond their step */
        int end = first == vecs - 1 ? n : depth[first] + ROWS - 1 < n ? (depth[first] + ROWS - 1) / ROWS * ROWS : n;
#define SCORES(rows, vecs)                                                                                                                 \
    do {                                                                                                                                   \
        fetch_rows(V + j * V_row, V_row, rows, Dv);                                                                                        \
        if (vecs < VECS) fetch_rows(K + (j + AHEAD) * row, row, rows, D);                                                                  \
        scores_tile(rows, vecs, K + j * row, row, D, QT, S + j * TILE);                                                                    \
    } while (0)
        COVER_VECS(vecs - first, j, end, SCORES);
#undef SCORES
    }
}

static void values(const void *V_, ptrdiff_t row, int Dv, const void *P, const int *depth, int vecs, const void *alpha, const void *beta,
                   void *O_)
{
    const REAL *V = V_;
    REAL *O = O_;
    int c = 0;
#define VALUES(rows, vecs) values_tile(rows, vecs, V + c, row, P, depth, alpha, beta, O + c * TILE)
    COVER_VECS(vecs, c, Dv, VALUES);
#undef VALUES
}

static void values_selected(const void *V_, ptrdiff_t row, int Dv, const void *P_, const void *allowed_, const int *depth, int vecs,
                            const void *alpha, const void *beta, void *O_)
{
    const REAL *V = V_, *P = P_, *allowed = allowed_;
    REAL *O = O_;
    for (int v = 0; v < vecs; ++v)
        for (int c = 0; c < Dv; ++c) {
            vec sum = v_set1(0);
            for (int j = 0; j < depth[v];) {
                vec acc = v_set1(0);
                for (const int end = least(depth[v], j + SEGMENT); j < end; ++j) {
                    ptrdiff_t at = j * TILE + v * LANES;
                    vec next = v_fma(v_set1(V[j * row + c]), v_load(P + at), acc);
                    acc = v_select(v_eq(v_load(allowed + at), v_set1(-INFINITE)), acc, next);
                }
                sum = v_add(sum, acc);
            }
            REAL *o = O + c * TILE + v * LANES;
            v_store(o, v_fma(v_load((const REAL *)beta + v * LANES), sum, v_mul(v_load((const REAL *)alpha + v * LANES), v_load(o))));
        }
}

static void project(const void *W_, ptrdiff_t rs, ptrdiff_t cs, int N, int E, const void *XT, int vecs, const void *bias_, void *YT_)
{
    const REAL *W = W_, *bias = bias_;
    REAL *YT = YT_;
    int n = 0;
#define PROJECT(rows, vecs) project_tile(rows, vecs, W + n * rs, rs, cs, E, XT, bias ? bias + n : NULL, YT + n * TILE)
    COVER_VECS(vecs, n, N, PROJECT);
#undef PROJECT
}

/* --------------------------------------------------------------------------------------------------------------------- softmax */

/* Down each column of the block, from zero; then (m, l) takes (m_b, l_b) in (docs/arithmetic.md, clause 3; Milakov & Gimelshein 2018).
 * An empty column has m_b = -inf, l_b = 0 and beta = 0, alpha = 1: it changes no bit. */
static void softmax(void *S_, const int *depth, int vecs, void *m_, void *l_, void *alpha_, void *beta_)
{
    const vec lowest = v_set1(-INFINITE), zero = v_set1(0);
    for (int v = 0; v < vecs; ++v) {
        REAL *S = (REAL *)S_ + v * LANES, *m = (REAL *)m_ + v * LANES, *l = (REAL *)l_ + v * LANES;
        int n = depth[v], j = 0;
        vec m0 = lowest, m1 = lowest; /* two chains: the order of a maximum changes nothing, its latency does */
        for (; j + 2 <= n; j += 2) {
            m0 = v_max(m0, v_load(S + j * TILE));
            m1 = v_max(m1, v_load(S + (j + 1) * TILE));
        }
        if (j < n) m0 = v_max(m0, v_load(S + j * TILE));
        vec mb = v_max(m0, m1), lb = zero;
        vec shift = v_select(v_eq(mb, lowest), zero, mb); /* -inf - -inf would be NaN */
        for (j = 0; j < n;) {
            vec sum = zero;
            for (const int end = least(n, j + SEGMENT); j < end; ++j) {
                vec p = v_exp2(v_sub(v_load(S + j * TILE), shift));
                v_store(S + j * TILE, p);
                sum = v_add(sum, p);
            }
            lb = v_add(lb, sum);
        }
        vec before = v_load(m), now = v_max(before, mb);
        shift = v_select(v_eq(now, lowest), zero, now);
        vec a = v_exp2(v_sub(before, shift)), b = v_exp2(v_sub(mb, shift));
        v_store(m, now);
        v_store(l, v_fma(b, lb, v_mul(a, v_load(l))));
        v_store((REAL *)alpha_ + v * LANES, a);
        v_store((REAL *)beta_ + v * LANES, b);
    }
}

#include "few_body.h"
#include "backward_body.h"

/* ------------------------------------------------------------------------------------------------------------------- the roofs */

static double fma_loop(ptrdiff_t steps, void *sink)
{
    enum { CHAINS = ROWS * VECS < VREGS - 4 ? ROWS * VECS : VREGS - 4 }; /* at least latency x issue width: 4 x 2 */
    vec acc[CHAINS], a = v_load(sink), b = v_load((REAL *)sink + LANES);
    UNROLL for (int i = 0; i < CHAINS; ++i) acc[i] = v_set1((REAL)i);
    for (ptrdiff_t k = 0; k < steps; ++k)
        UNROLL for (int i = 0; i < CHAINS; ++i) acc[i] = v_fma(acc[i], a, b);
    UNROLL for (int i = 1; i < CHAINS; ++i) acc[0] = v_add(acc[0], acc[i]);
    v_store(sink, acc[0]);
    return 2.0 * CHAINS * LANES * (double)steps;
}

/* One core of a Zen 4 reads 22 GB/s in one stream, 25 in two, 26 in four, 24 in eight. */
static double read_loop(const void *x, ptrdiff_t n)
{
    enum { STREAMS = 4, LOADS = 2 * STREAMS };
    const ptrdiff_t part = n / STREAMS;
    vec sum[LOADS];
    UNROLL for (int i = 0; i < LOADS; ++i) sum[i] = v_set1(0);
    for (ptrdiff_t k = 0; k < part; k += 2 * LANES)
        UNROLL for (int i = 0; i < LOADS; ++i) sum[i] = v_add(sum[i], v_load((const REAL *)x + i / 2 * part + k + i % 2 * LANES));
    UNROLL for (int i = 1; i < LOADS; ++i) sum[0] = v_add(sum[0], sum[i]);
    return v_sum(sum[0]);
}

/* ----------------------------------------------------------------------------------------------------------------- the contract */

const struct qkvc_kernels TABLE = {
    .name = NAME,
    .dtype = DTYPE,
    .size = REAL_SIZE,
    .lanes = LANES,
    .vecs = VECS,
    .narrow = NARROW,
    .float64 = &FLOAT64,
    .gather = gather,
    .gather_values = gather,
    .shorten = SHORTEN,
    .pack = pack,
    .transpose = transpose,
    .pack_queries = pack,
    .mask = mask,
    .scores = scores,
    .add_bias = add_bias,
    .clip = clip,
    .soften = soften,
    .add_slope = add_slope,
    .weigh = weigh,
    .summarise = summarise,
    .back_delta = back_delta,
    .back_softmax = back_softmax,
    .back_soften = back_soften,
    .back_rows = back_rows,
    .back_rows_selected = back_rows_selected,
    .back_sum = back_sum,
    .softmax = softmax,
    .draw = draw,
    .drop = drop,
    .values = values,
    .values_selected = values_selected,
    .project = project,
    .gelu = GELU,
    .norm = norm,
    .turn = turn,
    .norm_grad = norm_grad,
    .gelu_grad = GELU_GRAD,
    .swiglu = swiglu,
    .swiglu_grad = swiglu_grad,
    .square_sum = square_sum,
    .adamw = adamw,
    .few_pack = few_pack,
    .few_scores = few_scores,
    .few_softmax = few_softmax,
    .few_values = few_values,
    .few_merge = few_merge,
    .few_project = few_project,
    .few_store = few_store,
    .finite = every_finite,
    .store = store,
    .row_max = row_max,
    .row_sum = row_sum,
    .row_exp = row_exp,
    .exp2 = exp2_array,
    .fma_loop = fma_loop,
    .read_loop = read_loop,
};
