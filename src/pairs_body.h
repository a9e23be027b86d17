/* The kernels of a tile for bfloat16 query, key and value: the FMA of two floats becomes the dot product of two pairs.
 *
 *     scores   S[key][query] += K[key][d, d+1] . Q[d, d+1][query]     K where it is: a pair of neighbours is one broadcast of 32 bits
 *     values   O[c][query]   += V[j, j+1][c] . P[j, j+1][query]       V's rows by twos, a block at a time (`zip_next`)
 *
 * Scores, maxima, sums and outputs are the floats of every other set, so options and the store do not notice.  docs/arithmetic.md says
 * what differs.  Expects the vocabulary of vec_*_bf16.h behind kernels_body.h, and PAIR_UP.
 */

/* panel[0] = scale, panel[1 + d / 2] = the pairs d, d + 1; behind an odd last column comes 0.  Queries are not scaled: rounded to bfloat16
 * again they would be off by up to 2^-8. */
static void pack_pairs(const void *const *rows_, ptrdiff_t col, int cols, double scale, int vecs, void *panel)
{
    const uint16_t *const *rows = (const uint16_t *const *)rows_;
    for (int v = 0; v < vecs; ++v, rows += LANES) {
        pair *to = (pair *)panel + TILE + v * LANES;
        int c = 0;
        v_store((REAL *)panel + v * LANES, v_set1((REAL)scale));
        if (col == 1)
            for (; c + 2 * LANES <= cols; c += 2 * LANES) {
                vec t[LANES];
                UNROLL for (int i = 0; i < LANES; ++i) t[i] = v_load((const REAL *)(const void *)(rows[i] + c));
                v_transpose(t);
                UNROLL for (int i = 0; i < LANES; ++i) v_store((REAL *)(void *)(to + (c / 2 + i) * TILE), t[i]);
            }
        for (; c < cols; c += 2)
            for (int i = 0; i < LANES; ++i)
                to[c / 2 * TILE + i] = rows[i][c * col] | (c + 1 < cols ? (pair)rows[i][(c + 1) * col] << 16 : 0);
    }
}

/* Key rows side by side, an odd last column followed by 0 */
static void gather_pairs(const void *x_, ptrdiff_t row, ptrdiff_t col, int kind, int rows, int cols, void *to_)
{
    const uint16_t *x = x_;
    uint16_t *to = to_;
    (void)kind;
    for (int i = 0; i < rows; ++i, x += row, to += cols + cols % 2) {
        if (col == 1)
            __builtin_memcpy(to, x, sizeof *to * (size_t)cols);
        else
            for (int c = 0; c < cols; ++c) to[c] = x[c * col];
        if (cols % 2) to[cols] = 0;
    }
}

/* to[j / 2][c] = value rows j, j + 1, and 0 for the partner of an odd last row; j and c say how far that is */
struct zip {
    const uint16_t *x;
    ptrdiff_t row;
    int rows, cols, j, c;
    pair *to;
};

/* Two rows, 2 * LANES columns.  Masked stores, though of all lanes, would take three times as long between products. */
static INLINE void zip_next(struct zip *z)
{
    if (z->j >= z->rows) return;
    const int n = least(z->cols - z->c, 2 * LANES), odd = z->j + 1 < z->rows;
    const uint16_t *x = z->x + z->j * z->row + z->c;
    pair *to = z->to + z->j / 2 * z->cols + z->c;
    if (odd && n == 2 * LANES) {
        vpairs t[2];
        p_join(x, x + z->row, 2 * LANES, t);
        p_store(to, t[0]);
        p_store(to + LANES, t[1]);
    } else
        p_zip(x, odd ? x + z->row : NULL, n, to);
    z->c += 2 * LANES;
    if (z->c >= z->cols) z->c = 0, z->j += 2;
}

static void gather_values(const void *x_, ptrdiff_t row, ptrdiff_t col, int kind, int rows, int cols, void *to_)
{
    const uint16_t *x = x_;
    pair *to = to_;
    struct zip all = {x, row, col == 1 ? rows : 0, cols, 0, 0, to};
    (void)kind;
    while (all.j < all.rows) zip_next(&all);
    for (int j = 0; j < rows && col != 1; j += 2, x += 2 * row, to += cols)
        for (int c = 0; c < cols; ++c) to[c] = x[c * col] | (j + 1 < rows ? (pair)x[row + c * col] << 16 : 0);
}

static INLINE pair pair_at(const uint16_t *p)
{
    pair a;
    __builtin_memcpy(&a, p, sizeof a);
    return a;
}

/* acc[i][v] += A[i * rs + k * cs] . B[k][v] for k in [from, to), A's strides in halves of a pair */
static INLINE void dot_range(const int rows, const int first, const int vecs, const uint16_t *A, ptrdiff_t rs, ptrdiff_t cs, const pair *B,
                             int from, int to, vec acc[][VECS])
{
    for (int k = from; k < to; ++k) {
        vpairs b[VECS];
        UNROLL for (int v = first; v < vecs; ++v) b[v] = p_load(B + k * TILE + v * LANES);
        UNROLL for (int i = 0; i < rows; ++i) {
            const vpairs a = p_set1(pair_at(A + i * rs + k * cs));
            UNROLL for (int v = first; v < vecs; ++v) acc[i][v] = p_dot(acc[i][v], b[v], a);
        }
    }
}

/* One chain for all of k, here and for values: what segments would gain drowns in the inputs' 2^-8.  In a loop that waits for nothing but
 * VDPBF16PS a third of making pairs is left to see: 4.1 -> 1.4 % of the products' time. */
static INLINE void pair_scores_tile(const int rows, const int vecs, const uint16_t *K, ptrdiff_t row, int D, const void *QT, REAL *S,
                                    struct zip *V)
{
    enum { STEPS = 4 }; /* so that tiles have as many turns as V has pieces, if Dv = D */
    const int pairs = (D + 1) / 2;
    vec acc[PAIR_ROWS][VECS], scale[VECS];
    UNROLL for (int i = 0; i < rows; ++i)
        UNROLL for (int v = 0; v < vecs; ++v) acc[i][v] = v_set1(0);
    for (int k = 0; k < pairs; k += STEPS) {
        dot_range(rows, 0, vecs, K, row, 2, (const pair *)QT + TILE, k, least(k + STEPS, pairs), acc);
        zip_next(V);
    }
    UNROLL for (int v = 0; v < vecs; ++v) scale[v] = v_load((const REAL *)QT + v * LANES);
    UNROLL for (int i = 0; i < rows; ++i) /* as the sums end, so that the first stores need not wait for the last sum: 1 % */
        UNROLL for (int v = 0; v < vecs; ++v) v_store(S + i * TILE + v * LANES, v_mul(acc[i][v], scale[v]));
}

static INLINE void pair_values_tile(const int rows, const int vecs, const pair *V, ptrdiff_t row, const pair *P, const int *depth,
                                    const REAL *alpha, const REAL *beta, REAL *O)
{
    const uint16_t *A = (const uint16_t *)V;
    vec acc[PAIR_ROWS][VECS];
    UNROLL for (int i = 0; i < rows; ++i)
        UNROLL for (int v = 0; v < vecs; ++v) acc[i][v] = v_set1(0);
    dot_range(rows, 0, vecs, A, 2, 2 * row, P, 0, depth[0], acc);
    if (vecs > 1) dot_range(rows, 1, vecs, A, 2, 2 * row, P, depth[0], depth[1], acc);
    if (vecs > 2) dot_range(rows, 2, vecs, A, 2, 2 * row, P, depth[1], depth[2], acc);
    UNROLL for (int v = 0; v < vecs; ++v) {
        const vec a = v_load(alpha + v * LANES), b = v_load(beta + v * LANES);
        UNROLL for (int i = 0; i < rows; ++i) {
            REAL *o = O + i * TILE + v * LANES;
            v_store(o, v_fma(b, acc[i][v], v_mul(a, v_load(o))));
        }
    }
}

#define COVER_PAIRS(vecs, j, n, TILE_OF)                                                                                                   \
    switch (vecs) {                                                                                                                        \
    case 3: COVER(j, n, PAIR_ROWS, 3, TILE_OF); break;                                                                                     \
    case 2: COVER(j, n, PAIR_ROWS, 2, TILE_OF); break;                                                                                     \
    default: COVER(j, n, PAIR_ROWS, 1, TILE_OF);                                                                                           \
    }

static void pair_scores(const void *K_, ptrdiff_t row, int D, const void *QT_, const int *depth, int vecs, const void *V, ptrdiff_t V_row,
                        int Dv, void *pairs, void *S_)
{
    const uint16_t *K = K_;
    const REAL *QT = QT_;
    REAL *S = S_;
    int j = 0, n = depth[vecs - 1];
    struct zip values = {V, V_row, pairs ? n : 0, Dv, 0, 0, pairs};
    for (int first = 0; first < vecs; ++first, QT += LANES, S += LANES) {
        int end = first == vecs - 1 ? n : least(n, (depth[first] + PAIR_ROWS - 1) / PAIR_ROWS * PAIR_ROWS);
#define SCORES(rows, vecs) pair_scores_tile(rows, vecs, K + j * row, row, D, QT, S + j * TILE, &values)
        COVER_PAIRS(vecs - first, j, end, SCORES);
#undef SCORES
    }
    while (values.j < values.rows) zip_next(&values);
}

static void pair_values(const void *V_, ptrdiff_t row, int Dv, const void *P, const int *depth, int vecs, const void *alpha,
                        const void *beta, void *O_)
{
    const pair *V = V_;
    REAL *O = O_;
    int c = 0, pairs[QKVC_MAX_VECS];
    for (int v = 0; v < vecs; ++v) pairs[v] = (depth[v] + 1) / 2;
#define VALUES(rows, vecs) pair_values_tile(rows, vecs, V + c, row, P, pairs, alpha, beta, O + c * TILE)
    COVER_PAIRS(vecs, c, Dv, VALUES);
#undef VALUES
}

static void pair_values_selected(const void *V_, ptrdiff_t row, int Dv, const void *P_, const void *allowed_, const int *depth, int vecs,
                                 const void *alpha, const void *beta, void *O_)
{
    const pair *V = V_, *P = P_;
    const REAL *allowed = allowed_;
    const vec masked = v_set1(-INFINITE);
    for (int v = 0; v < vecs; ++v)
        for (int c = 0; c < Dv; ++c) {
            vec acc = v_set1(0);
            for (int j = 0; j < depth[v]; j += 2) {
                const REAL *at = allowed + j * TILE + v * LANES;
                const vec odd = j + 1 < depth[v] ? v_load(at + TILE) : masked; /* the partner of an odd last key is nobody's */
                const vpairs a = p_without(p_set1(V[j / 2 * row + c]), v_eq(v_load(at), masked), v_eq(odd, masked));
                acc = p_dot(acc, p_load(P + j / 2 * TILE + v * LANES), a);
            }
            REAL *o = (REAL *)O_ + c * TILE + v * LANES;
            v_store(o, v_fma(v_load((const REAL *)beta + v * LANES), acc, v_mul(v_load((const REAL *)alpha + v * LANES), v_load(o))));
        }
}

/* 2^x for x <= 0, off by 1.02e-4 at most (degree 3, minimax): P keeps 8 bits of it, and their rounding is off by up to 2^-8.  -inf gives 0;
 * what is below 2^-126 is rounded to 0 with its pair. */
static INLINE vec v_exp2_short(vec x)
{
    const vec n = v_nearest(x), r = v_sub(x, n);
    const vec p = v_fma(v_fma(v_set1(0.055008933f), r, v_set1(0.24221097f)), r, v_set1(0.6932829f));
    return v_times_power(v_fma(p, r, v_set1(1)), n);
}

/* As for floats, but P is rounded to pairs, over the scores that it came from, and l sums what was rounded: the value sum of a column of
 * ones, one chain. */
static void pair_softmax(void *S_, const int *depth, int vecs, void *m_, void *l_, void *alpha_, void *beta_)
{
    const vec lowest = v_set1(-INFINITE), zero = v_set1(0);
    const vpairs ones = p_set1(0x3f803f80);
    for (int v = 0; v < vecs; ++v) {
        REAL *S = (REAL *)S_ + v * LANES, *m = (REAL *)m_ + v * LANES, *l = (REAL *)l_ + v * LANES;
        pair *P = (pair *)S_ + v * LANES;
        const int n = depth[v];
        vec m0 = lowest, m1 = lowest, lb = zero;
        if (n % 2) v_store(S + n * TILE, lowest);
        for (int j = 0; j < n; j += 2) {
            m0 = v_max(m0, v_load(S + j * TILE));
            m1 = v_max(m1, v_load(S + (j + 1) * TILE));
        }
        const vec mb = v_max(m0, m1), low = v_select(v_eq(mb, lowest), zero, mb);
        for (int j = 0; j < n; j += 2) {
            const vec even = v_exp2_short(v_sub(v_load(S + j * TILE), low)), odd = v_exp2_short(v_sub(v_load(S + (j + 1) * TILE), low));
            const vpairs p = p_round(even, odd);
            p_store(P + j / 2 * TILE, p);
            lb = p_dot(lb, p, ones);
        }
        const vec before = v_load(m), now = v_max(before, mb), shift = v_select(v_eq(now, lowest), zero, now);
        const vec a = v_exp2(v_sub(before, shift)), b = v_exp2(v_sub(mb, shift));
        v_store(m, now);
        v_store(l, v_fma(b, lb, v_mul(a, v_load(l))));
        v_store((REAL *)alpha_ + v * LANES, a);
        v_store((REAL *)beta_ + v * LANES, b);
    }
}

#include "few_pairs_body.h"

/* The roof in pairs */
static double pair_loop(ptrdiff_t steps, void *sink)
{
    enum { CHAINS = PAIR_ROWS * VECS };
    vec acc[CHAINS];
    const vpairs a = p_set1(0x3f803f80), b = p_set1(0xbf803f80);
    UNROLL for (int i = 0; i < CHAINS; ++i) acc[i] = v_set1((REAL)i);
    for (ptrdiff_t k = 0; k < steps; ++k)
        UNROLL for (int i = 0; i < CHAINS; ++i) acc[i] = p_dot(acc[i], a, b);
    UNROLL for (int i = 1; i < CHAINS; ++i) acc[0] = v_add(acc[0], acc[i]);
    v_store(sink, acc[0]);
    return 4.0 * CHAINS * LANES * (double)steps;
}

/* A set of floats becomes one of pairs. */
void PAIR_UP(struct qkvc_kernels *set)
{
    set->dtype = "bfloat16";
    set->kind = QKVC_BFLOAT16;
    set->narrow = NULL;
    set->gather = gather_pairs;
    set->gather_values = gather_values;
    set->pack_queries = pack_pairs;
    set->scores = pair_scores;
    set->softmax = pair_softmax;
    set->values = pair_values;
    set->few_pack = few_pack_pairs;
    set->few_scores = few_pair_scores;
    set->few_softmax = few_pair_softmax;
    set->few_values = few_pair_values;
    set->values_selected = pair_values_selected;
    set->fma_loop = pair_loop;
}
