/* few_body.h for bfloat16: keys lie in the lanes as pairs of columns, values as pairs of rows.  Part of pairs_body.h.
 *
 * One chain of p_dot from nothing for all of D and for all keys of a block, as in a tile, and so the tile's bits. */

enum { PAIRS = LANES / 2 }; /* of columns that are transposed at once */

/* The scale, then Q[PAIRS of columns][query][PAIRS], zero behind D */
static void few_pack_pairs(const void *const *rows, ptrdiff_t col, int D, double scale, int queries, void *Q_)
{
    uint16_t *Q = (uint16_t *)Q_ + 2 * LANES;
    v_store(Q_, v_set1((REAL)scale));
    for (int d = 0; d < D; d += 2 * PAIRS)
        for (int i = 0; i < queries; ++i, Q += 2 * PAIRS)
            for (int c = 0; c < 2 * PAIRS; ++c) Q[c] = d + c < D ? ((const uint16_t *)rows[i])[(d + c) * col] : 0;
}

/* acc[i] += Q[i] . K of LANES keys, over n pairs of columns from d on.  Eight pairs, half a square, leave registers in which the next ones
 * are transposed while these are multiplied.  Lines of the next keys are fetched out of L2, where those of the next block are fetched to;
 * more than four queries need no touch beside that.  (8 queries, D = 64 / 80 / 128, cycles a key in cache: 27 / 41 / 53 -> 22 / 26 / 41) */
static INLINE void few_dot(const int rows, const pair *Q, const char *const *K, ptrdiff_t next, ptrdiff_t ahead, ptrdiff_t d,
                           const int n, vec acc[])
{
    vec t[PAIRS];
    p_columns(K, d * 2, n, t);
    UNROLL for (int c = 0; c < PAIRS; ++c) {
        if (ahead && d % 32 == 0) { /* of the columns in a line */
            const char *low = K[c] + d * 2, *high = K[c + PAIRS] + d * 2;
            __builtin_prefetch(low + ahead, 0, 2), __builtin_prefetch(high + ahead, 0, 2);
            __builtin_prefetch(low + next, 0, 3), __builtin_prefetch(high + next, 0, 3);
        }
        UNROLL for (int i = 0; i < rows; ++i) acc[i] = p_dot(acc[i], (vpairs)t[c], p_set1(Q[i * PAIRS + c]));
    }
}

static INLINE void few_pair_scores_keys(const int rows, const pair *Q, ptrdiff_t next, vec scale, const char *const *K, ptrdiff_t row,
                                        ptrdiff_t ahead, int D, REAL *S)
{
    vec acc[FEW_ROWS];
    ptrdiff_t d = 0;
    UNROLL for (int i = 0; i < rows; ++i) acc[i] = v_set1(0);
    for (; d + 2 * PAIRS <= D; d += 2 * PAIRS, Q += next) few_dot(rows, Q, K, LANES * row, ahead, d, PAIRS, acc);
    if (d < D) few_dot(rows, Q, K, LANES * row, ahead, d, (D - (int)d + 1) / 2, acc);
    UNROLL for (int i = 0; i < rows; ++i) v_store(S + i * QKVC_BLOCK, v_mul(acc[i], scale));
}

static void few_pair_scores(const void *Q_, int queries, int D, const void *K, ptrdiff_t row, int kind, int n, void *S)
{
    const pair *Q = (const pair *)Q_ + LANES;
    const vec scale = v_load(Q_);
    (void)kind;
    for (int j = 0; j < n; j += LANES) {
        const char *keys[LANES];
        const int live = least(LANES, n - j);
        REAL *s = (REAL *)S + j;
        for (int k = 0; k < LANES; ++k) keys[k] = (const char *)K + (j + least(k, live - 1)) * row * 2;
        if (queries <= 4 && !crowded(row * 2)) touch(keys[0], row * 2, live, D * 2);
        for (int i = 0; i < queries; i += FEW_ROWS) {
            const ptrdiff_t ahead = i ? 0 : rows_ahead(row * 2) * row * 2;
#define SCORES(rows) few_pair_scores_keys(rows, Q + i * PAIRS, queries * PAIRS, scale, keys, row * 2, ahead, D, s + i * QKVC_BLOCK)
            ONE_TO_FEW(least(queries - i, FEW_ROWS), SCORES)
#undef SCORES
        }
    }
}

/* P is rounded to pairs, at the start of the scores' rows.  l sums them transposed, queries in the lanes: chains along the rows wait for
 * their last product, 6 cycles of 64 pairs each (8 queries: 14.6 cycles a key, 11.0 so). */
static void few_pair_softmax(void *S_, int queries, int n, void *m_, void *l)
{
    REAL *S = S_, *m = m_;
    const vpairs ones = p_set1(0x3f803f80);
    vec sum = v_set1(0);
    if (queries > LANES) few_pair_softmax(S + LANES * QKVC_BLOCK, queries - LANES, n, m + LANES, (REAL *)l + LANES), queries = LANES;
    for (int i = 0; i < queries; ++i) m[i] = few_largest(S + i * QKVC_BLOCK, n, 2 * LANES);
    for (int j = 0; j < n; j += 2 * LANES) {
        vec t[LANES];
        for (int i = 0; i < queries; ++i) {
            const vec shift = v_set1(m[i] == -INFINITE ? 0 : m[i]);
            const REAL *s = S + i * QKVC_BLOCK + j;
            const vec low = v_exp2_short(v_sub(v_load(s), shift)), high = v_exp2_short(v_sub(v_load(s + LANES), shift));
            p_store((pair *)(void *)S + i * QKVC_BLOCK + j / 2, p_narrow(low, high));
        }
        UNROLL for (int k = 0; k < LANES; ++k) t[k] = v_load(S + least(k, queries - 1) * QKVC_BLOCK + j / 2);
        v_transpose(t);
        UNROLL for (int c = 0; c < LANES; ++c) sum = p_dot(sum, (vpairs)t[c], ones);
    }
    v_store(l, sum);
}

/* O[i] += P[i] . V over pairs of value rows, joined on the way: 2 * vecs * LANES columns from c on, or the last `part` of two vectors.  The
 * chain goes on in O from step to step: a step of 16 keys is a quarter slower in cache than the whole block (8 queries, D = 64, cycles a
 * key: 25 with 4 x 4 chains and such steps, 19 with 8 x 2 chains, for which rows are joined once). */
static INLINE void few_pair_values_strip(const int rows, const int vecs, const int part, const pair *P, const char *V, ptrdiff_t row,
                                         ptrdiff_t ahead, ptrdiff_t c, int n, REAL *O, int width)
{
    vec acc[FEW_ROWS][FEW_VECS];
    UNROLL for (int i = 0; i < rows; ++i)
        UNROLL for (int v = 0; v < vecs; ++v) acc[i][v] = v_load(O + i * width + c + v * LANES);
    for (int j = 0; j < n; j += 2, V += 2 * row) {
        vpairs b[FEW_VECS]; /* always two at once */
        UNROLL for (int v = 0; v < vecs; v += 2) {
            const void *even = V + (c + v * LANES) * 2, *odd = (const char *)even + row;
            p_join(even, j + 1 < n ? odd : NULL, part ? part : 2 * LANES, b + v);
            if (ahead) __builtin_prefetch((const char *)even + ahead, 0, 2), __builtin_prefetch((const char *)odd + ahead, 0, 2);
        }
        UNROLL for (int i = 0; i < rows; ++i) {
            const vpairs p = p_set1(P[i * QKVC_BLOCK + j / 2]);
            UNROLL for (int v = 0; v < vecs; ++v) acc[i][v] = p_dot(acc[i][v], b[v], p);
        }
    }
    UNROLL for (int i = 0; i < rows; ++i)
        UNROLL for (int v = 0; v < vecs; ++v) v_store(O + i * width + c + v * LANES, acc[i][v]);
}

static INLINE void few_pair_values_rows(const int rows, const pair *P, const char *V, ptrdiff_t row, ptrdiff_t ahead, int Dv, int n,
                                        REAL *O, int width)
{
    ptrdiff_t c = 0;
#define STRIP(vecs, part) few_pair_values_strip(rows, vecs, part, P, V, row, ahead, c, n, O, width)
    if (rows <= 4)
        for (; c + FEW_VECS * LANES <= Dv; c += FEW_VECS * LANES) STRIP(FEW_VECS, 0);
    for (; c + 2 * LANES <= Dv; c += 2 * LANES) STRIP(2, 0);
    if (c < Dv && Dv - c <= LANES) STRIP(1, Dv - (int)c);
    else if (c < Dv) STRIP(2, Dv - (int)c);
#undef STRIP
}

static void few_pair_values(const void *P_, int queries, const void *V_, ptrdiff_t row, int kind, int Dv, int n, void *O_)
{
    const pair *P = P_;
    const char *V = V_;
    REAL *O = O_;
    const int width = whole_vectors(Dv);
    /* What waits for memory rather than for arithmetic reads whole rows in address order (1 and 4 queries, D = 128: 0.92 of the time). */
    const int in_order = queries <= 4 && Dv > FEW_VECS * LANES, step = in_order ? SEGMENT : QKVC_BLOCK;
    (void)kind;
    for (int c = 0; c < queries * width; c += LANES) v_store(O + c, v_set1(0));
    for (int j = 0; j < n; j += step, P += step / 2, V += 2 * step * row) {
        const int live = least(step, n - j);
        if (in_order && !crowded(2 * row)) touch(V, 2 * row, live, 2 * Dv);
        for (int i = 0; i < queries; i += FEW_ROWS) {
            const ptrdiff_t ahead = i ? 0 : rows_ahead(2 * row) * 2 * row;
#define VALUES(rows) few_pair_values_rows(rows, P + i * QKVC_BLOCK, V, 2 * row, ahead, Dv, live, O + i * width, width)
            ONE_TO_FEW(least(queries - i, FEW_ROWS), VALUES)
#undef VALUES
        }
    }
}
