/* few_body.h for int8 rows, which are read where they lie: keys and values are bytes, queries and weights two bytes each, and their
 * products are summed exactly.  A row is followed by the float that 1 stands for.
 *
 *     S[i][key] = unit of query * unit of key * sum over d of q[i][d] * k[key][d]           four columns in 32 bits
 *     O[i][c]   = unit of weights * sum over j of p[i][j] * v[j][c]                         four rows in 32 bits
 *
 * q is up to 127 * 257 and p up to 65535, for the largest |Q| of a query and the largest P * unit of value of a block.  The instruction
 * takes unsigned bytes times signed ones: keys become k + 128, and 128 times the sum of q is taken back.  A piece of columns is 64 of
 * them, or up to 16 at the end.  Expects the vocabulary of vec_*_vnni.h behind kernels_body.h, and BYTES_UP. */

enum { MOST_Q = 127 * 257, MOST_P = 65535, PIECE = 4 * LANES, QUARTER = 16, GROUPS = QKVC_BLOCK / 4 };

static const REAL SMALLEST = 2e-34f; /* 65535 over less than this is no float */

static INLINE int piece_of(int cols) { return cols >= PIECE ? PIECE : QUARTER; }

static INLINE int32_t word_at(const void *p)
{
    int32_t a;
    __builtin_memcpy(&a, p, sizeof a);
    return a;
}

/* What 1 stands for in LANES rows of `cols` bytes, of which n are there: 0 behind them.  Those of the next block are fetched, for a row may
 * end in a line where none begins: one line in 17 at D = 64 (memory, cycles a key, one and four queries: 40 -> 25, 60 -> 43). */
static INLINE vec units_of(const char *x, ptrdiff_t row, int cols, int n)
{
    UNROLL for (int j = 0; j < LANES; ++j) __builtin_prefetch(x + (QKVC_BLOCK + j) * row + cols, 0, 2);
    if (n < LANES) {
        REAL unit[LANES] = {0};
        for (int j = 0; j < n; ++j) __builtin_memcpy(unit + j, x + j * row + cols, sizeof *unit);
        return v_load(unit);
    }
#define UNIT(j) ((const union { int32_t bits; REAL real; }){word_at(x + (j) * row + cols)}).real
    return (vec){UNIT(0), UNIT(1), UNIT(2), UNIT(3), UNIT(4), UNIT(5), UNIT(6), UNIT(7),
                 UNIT(8), UNIT(9), UNIT(10), UNIT(11), UNIT(12), UNIT(13), UNIT(14), UNIT(15)};
#undef UNIT
}

/* The units of the queries; then piece by piece, -128 times the sum of each query's numbers, and for each the high bytes and the low */
static void few_pack_bytes(const void *const *rows, ptrdiff_t col, int D, double scale, int queries, void *Q_)
{
    REAL *unit = Q_;
    char *Q = (char *)(unit + queries);
    for (int i = 0; i < queries; ++i) {
        REAL largest = SMALLEST, sum = 0;
        for (int d = 0; d < D; ++d) {
            const REAL x = __builtin_fabsf(((const REAL *)rows[i])[d * col] * (REAL)scale);
            largest = x > largest ? x : largest;
            sum += x * 0; /* NaN, if x is not finite */
        }
        unit[i] = largest / MOST_Q + sum;
    }
    for (int d = 0, cols; d < D; d += cols) {
        char *less = Q;
        cols = piece_of(D - d);
        Q += queries * (ptrdiff_t)sizeof(int32_t);
        for (int i = 0; i < queries; ++i, Q += 2 * cols) {
            int32_t sum = 0;
            for (int c = 0; c < cols; ++c) {
                const REAL x = d + c < D && unit[i] == unit[i] ? ((const REAL *)rows[i])[(d + c) * col] * (REAL)scale / unit[i] : 0;
                const int32_t q = (int32_t)__builtin_lrintf(x);
                Q[cols + c] = (char)q;
                Q[c] = (char)((q - (int8_t)q) / 256);
                sum += q;
            }
            sum *= -128;
            __builtin_memcpy(less + i * (ptrdiff_t)sizeof sum, &sum, sizeof sum);
        }
    }
}

/* S[i] = or += q[i] . k of LANES keys, over a piece of `cols` columns from d on */
static INLINE void few_bytes_dot(const int rows, const int cols, const char *Q, const char *less, const char *const *K, ptrdiff_t ahead,
                                 ptrdiff_t d, int n, REAL *S)
{
    vints t[LANES], low[FEW_ROWS], high[FEW_ROWS];
    if (cols == PIECE) b_square(K, d, t);
    else b_quarter(K, d, n, t);
    UNROLL for (int i = 0; i < rows; ++i) high[i] = b_set1(0), low[i] = b_set1(word_at(less + 4 * i));
    UNROLL for (int c = 0; c < cols / 4; ++c) {
        const vints k = b_flip(t[c]);
        if (ahead)
            UNROLL for (int r = 0; r < 4 * LANES / cols; ++r) __builtin_prefetch(K[r * cols / 4 + c] + d + ahead, 0, 2);
        UNROLL for (int i = 0; i < rows; ++i) {
            high[i] = b_dot(high[i], k, b_set1(word_at(Q + i * 2 * cols + 4 * c)));
            low[i] = b_dot(low[i], k, b_set1(word_at(Q + i * 2 * cols + cols + 4 * c)));
        }
    }
    UNROLL for (int i = 0; i < rows; ++i) {
        REAL *s = S + i * QKVC_BLOCK;
        const vec sum = b_floats(high[i] * 256 + low[i]);
        v_store(s, d ? v_add(v_load(s), sum) : sum);
    }
}

static INLINE void few_bytes_keys(const int rows, const char *Q, int queries, int first, const REAL *units, vec unit, const char *const *K,
                                  ptrdiff_t ahead, int D, REAL *S)
{
    ptrdiff_t d = 0;
    for (; d + PIECE <= D; d += PIECE, Q += queries * (4 + 2 * PIECE))
        few_bytes_dot(rows, PIECE, Q + 4 * queries + first * 2 * PIECE, Q + 4 * first, K, ahead, d, PIECE, S);
    for (; d < D; d += QUARTER, Q += queries * (4 + 2 * QUARTER))
        few_bytes_dot(rows, QUARTER, Q + 4 * queries + first * 2 * QUARTER, Q + 4 * first, K, ahead, d, least(D - (int)d, QUARTER), S);
    UNROLL for (int i = 0; i < rows; ++i) v_store(S + i * QKVC_BLOCK, v_mul(v_load(S + i * QKVC_BLOCK), v_mul(unit, v_set1(units[i]))));
}

static void few_scores_bytes(const void *Q, int queries, int D, const void *K, ptrdiff_t row, int n, void *S)
{
    const REAL *units = Q;
    for (int j = 0; j < n; j += LANES) {
        const char *keys[LANES];
        const int live = least(LANES, n - j);
        for (int k = 0; k < LANES; ++k) keys[k] = (const char *)K + (j + least(k, live - 1)) * row;
        const vec unit = units_of(keys[0], row, D, live);
        for (int i = 0; i < queries; i += FEW_ROWS) {
            const ptrdiff_t ahead = i ? 0 : QKVC_BLOCK * row;
#define SCORES(rows)                                                                                                                       \
    few_bytes_keys(rows, (const char *)(units + queries), queries, i, units + i, unit, keys, ahead, D,                            \
                   (REAL *)S + i * QKVC_BLOCK + j)
            ONE_TO_FEW(least(queries - i, FEW_ROWS), SCORES)
#undef SCORES
        }
    }
}

/* P takes the place of S: P * unit of value in 65535ths of their largest, the low bytes, the high bytes, what 1 stands for.  Where P is 0
 * the unit says nothing: a masked row's may be NaN. */
static void few_softmax_bytes(void *S, int queries, const void *V, ptrdiff_t row, int Dv, int n, void *m, void *l)
{
    const vec zero = v_set1(0), lowest = v_set1(-INFINITE);
    vec unit[QKVC_BLOCK / LANES];
    REAL top[QKVC_FEW_BYTES];
    for (int j = 0; j < n; j += LANES) unit[j / LANES] = units_of((const char *)V + j * row, row, Dv, least(LANES, n - j));
    for (int i = 0; i < queries; ++i) {
        REAL *P = (REAL *)S + i * QKVC_BLOCK;
        vec largest = lowest;
        for (int j = n; j % LANES; ++j) P[j] = -INFINITE;
        for (int j = 0; j < n; j += LANES) largest = v_max(largest, v_load(P + j));
        ((REAL *)m)[i] = v_largest(largest);
    }
    for (int i = 0; i < queries; ++i) {
        REAL *P = (REAL *)S + i * QKVC_BLOCK;
        const REAL mb = ((REAL *)m)[i];
        const vec shift = v_set1(mb == -INFINITE ? 0 : mb);
        vec largest = v_set1(SMALLEST), sum = zero, bad = zero;
        for (int j = 0; j < n; j += LANES) {
            const vec p = v_exp2(v_sub(v_load(P + j), shift)), a = v_select(v_eq(p, zero), zero, v_mul(p, unit[j / LANES]));
            sum = v_add(sum, p);
            largest = v_max(a, largest);
            bad = v_fma(a, zero, bad);
            v_store(P + j, a);
        }
        ((REAL *)l)[i] = v_sum(sum);
        top[i] = v_largest(largest) + v_sum(bad);
    }
    for (int i = 0; i < queries; ++i) {
        REAL *P = (REAL *)S + i * QKVC_BLOCK;
        const vec most = v_set1(MOST_P / top[i]);
        vints p[QKVC_BLOCK / LANES];
        for (int j = 0; j < n; j += LANES) p[j / LANES] = b_nearest(v_mul(v_load(P + j), most));
        for (int j = 0; j < n; j += LANES) b_split(p[j / LANES], (char *)P + j, (char *)P + QKVC_BLOCK + j);
        P[QKVC_BLOCK / 2] = top[i] / MOST_P;
    }
}

/* Rows j to j + 3 of V joined, in a piece of `cols` columns; the last row stands for those behind it, whose weights are 0.  The same rows
 * of the next block are fetched. */
static INLINE void few_bytes_join(const int cols, const char *V, ptrdiff_t row, int live, int j, int n, vints *joined)
{
    const char *r[4];
    UNROLL for (int k = 0; k < 4; ++k) {
        r[k] = V + least(j + k, n - 1) * row;
        __builtin_prefetch(r[k] + QKVC_BLOCK * row, 0, 2);
    }
    if (cols == PIECE) b_join(r[0], r[1], r[2], r[3], joined);
    else joined[0] = b_join_quarter(r[0], r[1], r[2], r[3], live);
}

/* O[i] = p[i] . V in a piece of columns.  The first queries join the rows, the others find them joined. */
static INLINE void few_bytes_strip(const int rows, const int cols, const int first, const REAL *P, const char *V, ptrdiff_t row, int live,
                                   int n, vints *joined, REAL *O, int width)
{
    const int vecs = cols / LANES;
    vints low[8][4], high[8][4];
    UNROLL for (int i = 0; i < rows; ++i)
        UNROLL for (int v = 0; v < vecs; ++v) low[i][v] = high[i][v] = b_set1(0);
    for (int j = 0; j < n; j += 4, joined += vecs) {
        vints b[4];
        if (first) few_bytes_join(cols, V, row, live, j, n, b);
        UNROLL for (int v = 0; v < vecs; ++v)
            if (first) joined[v] = b[v];
            else b[v] = joined[v];
        UNROLL for (int i = 0; i < rows; ++i) {
            const char *p = (const char *)(P + i * QKVC_BLOCK) + j;
            const vints l = b_set1(word_at(p)), h = b_set1(word_at(p + QKVC_BLOCK));
            UNROLL for (int v = 0; v < vecs; ++v) low[i][v] = b_dot(low[i][v], l, b[v]), high[i][v] = b_dot(high[i][v], h, b[v]);
        }
    }
    UNROLL for (int i = 0; i < rows; ++i) {
        vec sum[4];
        const vec unit = v_set1(P[i * QKVC_BLOCK + QKVC_BLOCK / 2]);
        UNROLL for (int v = 0; v < vecs; ++v) sum[v] = v_mul(b_floats(high[i][v] * 256 + low[i][v]), unit);
        if (vecs == 4) b_unjoin(sum);
        UNROLL for (int v = 0; v < vecs; ++v) v_store(O + i * width + v * LANES, sum[v]);
    }
}

static INLINE void few_bytes_values(const int cols, const REAL *P, int queries, const char *V, ptrdiff_t row, int live, int n, REAL *O,
                                    int width)
{
    vints joined[GROUPS * 4];
#define FIRST(rows) few_bytes_strip(rows, cols, 1, P, V, row, live, n, joined, O, width)
    if (queries == 1) FIRST(1);
    else FIRST(2);
#undef FIRST
    for (int i = 2; i < queries; i += 3) {
#define NEXT(rows) few_bytes_strip(rows, cols, 0, P + i * QKVC_BLOCK, V, row, live, n, joined, O + i * width, width)
        ONE_TO_4(least(queries - i, 3), NEXT)
#undef NEXT
    }
}

static void few_values_bytes(const void *P, int queries, const void *V, ptrdiff_t row, int Dv, int n, void *O)
{
    const int width = whole_vectors(Dv);
    int c = 0;
    for (; c + PIECE <= Dv; c += PIECE) few_bytes_values(PIECE, P, queries, (const char *)V + c, row, PIECE, n, (REAL *)O + c, width);
    for (; c < Dv; c += QUARTER)
        few_bytes_values(QUARTER, P, queries, (const char *)V + c, row, least(Dv - c, QUARTER), n, (REAL *)O + c, width);
}

/* A set of floats learns to read bytes where they lie. */
void BYTES_UP(struct qkvc_kernels *set)
{
    set->few_pack_bytes = few_pack_bytes;
    set->few_scores_bytes = few_scores_bytes;
    set->few_softmax_bytes = few_softmax_bytes;
    set->few_values_bytes = few_values_bytes;
}
