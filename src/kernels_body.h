/* The micro-kernels: one text for every instruction set, written in the vocabulary of vec_*.h.
 *
 * Queries lie in the lanes.  Then keys, values and weights are read where they are, one number at a time, as broadcasts; the softmax runs
 * down the columns without a horizontal step; and scores and values are the same product (`product_range` below is the hot loop):
 *
 *     C[i][lane] = sum over k of A[i, k] * B[k][lane]
 *
 * The order of every sum is part of the contract: docs/arithmetic.md.  Contraction is off, an FMA is spelled v_fma.
 *
 * Expects REAL, TABLE, NAME and one vec_*.h.
 */
#include "kernels.h"

#define TILE (VECS * LANES)
enum { SEGMENT = 16 };
#define UNROLL _Pragma("GCC unroll 32")

_Static_assert(ROWS * VECS + VECS + 1 <= VREGS && ROWS_1 + 2 <= VREGS, "the tile spills");
_Static_assert(VECS <= QKVC_MAX_VECS && ROWS == 4 && (ROWS_1 == 8 || ROWS_1 == 4), "COVER expects these");

static const REAL INFINITE = (REAL)__builtin_huge_val(), LARGEST = __FLT_MAX__;

/* ------------------------------------------------------------------------------------------------------------------------- exp2 */

/* 2^r for |r| <= 1/2, relative error 2.0e-9 before rounding; c0 is 1, so that exp2(0) is 1 exactly.  Degree 5 reached 2.6 ULP, 6 reaches
 * 1 (minimax by Lawson's iteration with c0 held; checked over every float by tests/c/exp2_all.c). */
static INLINE vec v_exp2_poly(vec r)
{
    vec p = v_set1(1.5353362e-4f);
    p = v_fma_once(p, r, v_set1(1.3398875e-3f));
    p = v_fma_once(p, r, v_set1(9.618437e-3f));
    p = v_fma_once(p, r, v_set1(5.5503324e-2f));
    p = v_fma_once(p, r, v_set1(2.4022648e-1f));
    p = v_fma_once(p, r, v_set1(6.931472e-1f));
    return v_fma_once(p, r, v_set1(1.0f));
}

#define ROUNDER 12582912.0f /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits, where v_scale reads it */

/* 2^x for -126 <= x <= 0; +0 below; NaN stays NaN, whatever its payload: v_scale would add the payload to the exponent, so lanes that
 * are not in the domain take max(0, x), which is 0 for numbers and x for NaN. */
static INLINE vec v_exp2(vec x)
{
    vec u = v_add(x, v_set1(ROUNDER));
    vec r = v_sub(x, v_sub(u, v_set1(ROUNDER)));
    return v_select(v_le(v_set1(-126.0f), x), v_scale(v_exp2_poly(r), u), v_max(v_set1(0), x));
}

static void exp2_array(const void *x, ptrdiff_t n, void *out)
{
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        int k = n - i < LANES ? (int)(n - i) : LANES;
        v_store_n((REAL *)out + i, v_exp2(v_load_n((const REAL *)x + i, k)), k);
    }
}

/* ---------------------------------------------------------------------------------------------------------------- the product */

/* THE LOOP: acc[i][v] += A[i * rs + k * cs] * B[k][v] for k in [from, to), one FMA a number and step. */
static INLINE void product_range(const int rows, const int first, const int vecs, const REAL *A, ptrdiff_t rs, ptrdiff_t cs,
                                 const REAL *B, int from, int to, vec acc[][VECS])
{
    for (int k = from; k < to; ++k) {
        vec b[VECS];
        UNROLL for (int v = first; v < vecs; ++v) b[v] = v_load(B + k * TILE + v * LANES);
        UNROLL for (int i = 0; i < rows; ++i) {
            vec a = v_set1(A[i * rs + k * cs]);
            UNROLL for (int v = first; v < vecs; ++v) acc[i][v] = v_fma(a, b[v], acc[i][v]);
        }
    }
}

static INLINE int least(int a, int b) { return a < b ? a : b; }

/* sum[i][v] = sum over k < depth[v] of A[i * rs + k * cs] * B[k][v]: one chain of FMAs from zero for every SEGMENT of k, the chains added
 * in ascending order.  One chain for all of k would be half as accurate; the chains' sums wait in registers, or on the stack where registers are few, outside the loop.
 * depth ascends with v, so the vectors drop out from the left.  rows and vecs are constants where this is inlined. */
static INLINE void product(const int rows, const int vecs, const REAL *A, ptrdiff_t rs, ptrdiff_t cs, const REAL *B, const int *depth,
                           vec sum[][VECS])
{
    UNROLL for (int i = 0; i < rows; ++i)
        UNROLL for (int v = 0; v < vecs; ++v) sum[i][v] = v_set1(0);
    for (int k = 0; k < depth[vecs - 1]; k += SEGMENT) {
        const int end = k + SEGMENT;
        vec acc[ROWS_1][VECS];
        UNROLL for (int i = 0; i < rows; ++i)
            UNROLL for (int v = 0; v < vecs; ++v) acc[i][v] = v_set1(0);
        product_range(rows, 0, vecs, A, rs, cs, B, k, least(depth[0], end), acc);
        if (vecs > 1 && depth[1] > depth[0]) product_range(rows, 1, vecs, A, rs, cs, B, k > depth[0] ? k : depth[0], least(depth[1], end), acc);
        if (vecs > 2 && depth[2] > depth[1]) product_range(rows, 2, vecs, A, rs, cs, B, k > depth[1] ? k : depth[1], least(depth[2], end), acc);
        UNROLL for (int i = 0; i < rows; ++i)
            UNROLL for (int v = 0; v < vecs; ++v) sum[i][v] = v_add(sum[i][v], acc[i][v]);
    }
}

/* S[i][v] = K[i] . Q[v] */
static INLINE void scores_tile(const int rows, const int vecs, const REAL *K, ptrdiff_t row, int D, const REAL *QT, REAL *S)
{
    vec sum[ROWS_1][VECS];
    product(rows, vecs, K, row, 1, QT, (const int[]){D, D, D}, sum);
    UNROLL for (int i = 0; i < rows; ++i)
        UNROLL for (int v = 0; v < vecs; ++v) v_store(S + i * TILE + v * LANES, sum[i][v]);
}

/* O[i][v] = alpha * O + beta * (V[:, i] . P[v]) */
static INLINE void values_tile(const int rows, const int vecs, const REAL *V, ptrdiff_t row, const REAL *P, const int *depth,
                               const REAL *alpha, const REAL *beta, REAL *O)
{
    vec sum[ROWS_1][VECS];
    product(rows, vecs, V, 1, row, P, depth, sum);
    UNROLL for (int v = 0; v < vecs; ++v) {
        vec a = v_load(alpha + v * LANES), b = v_load(beta + v * LANES);
        UNROLL for (int i = 0; i < rows; ++i) {
            REAL *o = O + i * TILE + v * LANES;
            v_store(o, v_fma(b, sum[i][v], v_mul(a, v_load(o))));
        }
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
        for (int c = 0; c < cols; c += 64 / (int)sizeof(REAL)) __builtin_prefetch(x + i * row + c, 0, 2);
}

static void scores(const void *K_, ptrdiff_t row, int D, const void *QT_, const int *depth, int vecs, const void *V_, ptrdiff_t V_row, int Dv,
                   void *S_)
{
    enum { AHEAD = 16 };
    const REAL *K = K_, *QT = QT_, *V = V_;
    REAL *S = S_;
    int j = 0, n = depth[vecs - 1];
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

/* bias comes in natural units.  Times log2(e) a number near the end of the range, such as finfo.min, would become infinite, and -inf
 * means masked: it stays finite. */
static void add_bias(void *S_, const void *bias_, const int *depth, int vecs)
{
    const vec masked = v_set1(-INFINITE), largest = v_set1(LARGEST), lowest = v_set1(-LARGEST), zero = v_set1(0);
    for (int v = 0; v < vecs; ++v)
        for (int j = 0; j < depth[v]; ++j) {
            REAL *s = (REAL *)S_ + j * TILE + v * LANES;
            vec b = v_load((const REAL *)bias_ + j * TILE + v * LANES);
            vec x = v_max(lowest, v_mul(b, v_set1((REAL)1.4426950408889634)));
            x = v_sub(zero, v_max(lowest, v_sub(zero, x)));
            x = v_select(v_lt(largest, b), b, x); /* +inf stays +inf */
            v_store(s, v_select(v_eq(b, masked), b, v_add(v_load(s), x)));
        }
}

static void clip(void *S_, const void *limit, const int *depth, int vecs)
{
    for (int v = 0; v < vecs; ++v) {
        const REAL *end = (const REAL *)limit + v * LANES;
        for (int j = end[0] > 0 ? (int)end[0] : 0; j < depth[v]; ++j) {
            REAL *s = (REAL *)S_ + j * TILE + v * LANES;
            v_store(s, v_select(v_lt(v_set1((REAL)j), v_load(end)), v_load(s), v_set1(-INFINITE)));
        }
    }
}

/* ----------------------------------------------------------------------------------------------------- between rows and panels */

/* Both directions move LANES x LANES squares through v_transpose: a scalar pack and store cost 20-25 % at 128 keys. */
static INLINE void square_in(const REAL *const *rows, ptrdiff_t c, vec scale, REAL *to)
{
    vec t[LANES];
    UNROLL for (int i = 0; i < LANES; ++i) t[i] = v_load(rows[i] + c);
    v_transpose(t);
    UNROLL for (int i = 0; i < LANES; ++i) v_store(to + i * TILE, v_mul(t[i], scale));
}

static void pack(const void *const *rows_, ptrdiff_t col, int cols, double scale_, int vecs, void *panel)
{
    const REAL *const *rows = (const REAL *const *)rows_;
    const vec scale = v_set1((REAL)scale_);
    for (int v = 0; v < vecs; ++v, rows += LANES) {
        REAL *to = (REAL *)panel + v * LANES;
        int c = 0;
        if (col == 1)
            for (; c + LANES <= cols; c += LANES) square_in(rows, c, scale, to + c * TILE);
        for (; c < cols; ++c) {
            REAL t[LANES];
            for (int i = 0; i < LANES; ++i) t[i] = rows[i][c * col];
            v_store(to + c * TILE, v_mul(v_load(t), scale));
        }
    }
}

static void pack_mask(const uint8_t *const *rows, ptrdiff_t col, int cols, int vecs, void *panel)
{
    for (int v = 0; v < vecs; ++v, rows += LANES)
        for (int c = 0; c < cols; c += LANES) {
            int n = cols - c < LANES ? cols - c : LANES;
            vec t[LANES];
            for (int i = 0; i < LANES; ++i) {
                uint8_t bytes[LANES] = {0};
                for (int k = 0; k < n; ++k) bytes[k] = rows[i][(c + k) * col];
                t[i] = v_load_bytes(bytes);
            }
            v_transpose(t);
            for (int k = 0; k < n; ++k)
                v_store((REAL *)panel + (c + k) * TILE + v * LANES, v_select(v_eq(t[k], v_set1(0)), v_set1(-INFINITE), v_set1(0)));
        }
}

static int every_finite(const void *O, int Dv, const void *l_, int vecs)
{
    for (int v = 0; v < vecs; ++v) {
        const REAL *o = (const REAL *)O + v * LANES;
        vec l = v_load((const REAL *)l_ + v * LANES), zero = v_set1(0);
        vec bad[4] = {v_mul(l, zero), zero, zero, zero}; /* 0 * x is 0, or NaN where x is not finite; four chains hide the latency */
        if (v_any(v_le(l, zero))) return 0;
        int c = 0;
        for (; c + 4 <= Dv; c += 4)
            UNROLL for (int i = 0; i < 4; ++i) bad[i] = v_fma(v_load(o + (c + i) * TILE), zero, bad[i]);
        for (; c < Dv; ++c) bad[0] = v_fma(v_load(o + c * TILE), zero, bad[0]);
        vec sum = v_add(v_add(bad[0], bad[1]), v_add(bad[2], bad[3]));
        if (v_any(v_ne(sum, sum))) return 0;
    }
    return 1;
}

/* fma(O, factor, +0) instead of a product: -0 would tell whether a masked block had been looked at */
static INLINE void square_out(const REAL *O, vec factor, vec t[LANES])
{
    UNROLL for (int i = 0; i < LANES; ++i) t[i] = v_fma(v_load(O + i * TILE), factor, v_set1(0));
    v_transpose(t);
}

static void store(const void *O_, int Dv, const void *factor_, int queries, void *const *rows_, ptrdiff_t col)
{
    REAL *const *rows = (REAL *const *)rows_;
    for (int q = 0; q < queries; q += LANES, rows += LANES) {
        const REAL *O = (const REAL *)O_ + q;
        const vec factor = v_load((const REAL *)factor_ + q);
        int live = queries - q < LANES ? queries - q : LANES, c = 0;
        vec t[LANES];
        if (col == 1)
            for (; c + LANES <= Dv; c += LANES) {
                square_out(O + c * TILE, factor, t);
                if (live == LANES)
                    UNROLL for (int i = 0; i < LANES; ++i) v_store(rows[i] + c, t[i]);
                else
                    for (int i = 0; i < live; ++i) v_store(rows[i] + c, t[i]);
            }
        for (; c < Dv; ++c) {
            REAL column[LANES];
            v_store(column, v_fma(v_load(O + c * TILE), factor, v_set1(0)));
            for (int i = 0; i < live; ++i) rows[i][c * col] = column[i];
        }
    }
}

/* ------------------------------------------------------------------------------------------------- softmax of one long row */

/* e^(x - max) = 2^n p.  x - max is kept to its last bit (TwoDiff, Knuth 1969) and log2(e) is two floats, because an error of half an ulp
 * of x - max, at 80, would be 30 ULP of the result. */
static INLINE vec exp_parts(vec x, vec max, vec *n)
{
    vec d = v_sub(x, max), back = v_sub(d, x);
    vec error = v_sub(v_sub(x, v_sub(d, back)), v_add(max, back));
    vec t = v_mul(d, v_set1(1.442695f));
    vec low = v_fma(d, v_set1(1.4426950408889634 - 1.442695f), v_fma(error, v_set1(1.442695f), v_fma(d, v_set1(1.442695f), v_sub(v_set1(0), t))));
    *n = v_sub(v_add(t, v_set1(ROUNDER)), v_set1(ROUNDER));
    return v_exp2_poly(v_add(v_sub(t, *n), low));
}

static INLINE vec exp_scaled(vec x, vec max, vec factor)
{
    vec n, p = v_mul(exp_parts(x, max, &n), factor);
    vec normal = v_max(v_set1(-126), n); /* 2^n in two steps, so that denormal results round once */
    vec y = v_mul(v_mul(p, v_scale(v_set1(1), v_add(normal, v_set1(ROUNDER)))), v_scale(v_set1(1), v_add(v_sub(n, normal), v_set1(ROUNDER))));
    return v_select(v_lt(v_sub(x, max), v_set1(-105)), v_set1(0), y);
}

static void row_max(const void *x, ptrdiff_t n, void *partial)
{
    vec m = v_load(partial), nan = v_set1(0);
    ptrdiff_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        vec a = v_load((const REAL *)x + i);
        m = v_max(a, m);
        nan = v_add(nan, v_select(v_ne(a, a), a, v_set1(0)));
    }
    for (; i < n; ++i) {
        vec a = v_set1(((const REAL *)x)[i]);
        m = v_max(a, m);
        nan = v_add(nan, v_select(v_ne(a, a), a, v_set1(0)));
    }
    v_store(partial, v_add(m, nan));
}

static void row_sum(const void *x, ptrdiff_t n, double max_, void *partial)
{
    const vec max = v_set1((REAL)max_), one = v_set1(1);
    vec sum = v_load(partial), lost = v_load((REAL *)partial + LANES);
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        int k = n - i < LANES ? (int)(n - i) : LANES;
        vec e = k == LANES ? exp_scaled(v_load((const REAL *)x + i), max, one)
                           : exp_scaled(v_load_n((const REAL *)x + i, k), max, one);
        if (k < LANES) {
            REAL t[LANES] = {0};
            v_store_n(t, e, k);
            e = v_load(t);
        }
        vec next = v_add(sum, e), back = v_sub(next, sum); /* TwoSum: a million terms lose nothing */
        lost = v_add(lost, v_add(v_sub(sum, v_sub(next, back)), v_sub(e, back)));
        sum = next;
    }
    v_store(partial, sum);
    v_store((REAL *)partial + LANES, lost);
}

static void row_exp(const void *x, ptrdiff_t n, double max_, double factor_, void *out)
{
    const vec max = v_set1((REAL)max_), factor = v_set1((REAL)factor_);
    ptrdiff_t i = 0;
    for (; i + LANES <= n; i += LANES) v_store((REAL *)out + i, exp_scaled(v_load((const REAL *)x + i), max, factor));
    if (i < n) v_store_n((REAL *)out + i, exp_scaled(v_load_n((const REAL *)x + i, (int)(n - i)), max, factor), (int)(n - i));
}

/* -------------------------------------------------------------------------------------------------------------------- the roof */

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

/* ----------------------------------------------------------------------------------------------------------------- the contract */

const struct qkvc_kernels TABLE = {
    .name = NAME,
    .dtype = DTYPE,
    .lanes = LANES,
    .vecs = VECS,
    .narrow = NARROW,
    .pack = pack,
    .pack_mask = pack_mask,
    .scores = scores,
    .add_bias = add_bias,
    .clip = clip,
    .softmax = softmax,
    .values = values,
    .values_selected = values_selected,
    .finite = every_finite,
    .store = store,
    .row_max = row_max,
    .row_sum = row_sum,
    .row_exp = row_exp,
    .exp2 = exp2_array,
    .fma_loop = fma_loop,
};
