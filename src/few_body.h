/* Few queries against many keys, as in decoding: the roles are swapped.  Part of kernels_body.h.
 *
 * One query would fill one lane of a tile.  So here queries are the numbers that are broadcast, and in the lanes lie keys, then columns:
 *
 *     S[i][key] = sum over d of Q[i][d] * KT[d][key]         keys, transposed in registers, a square at a time
 *     O[i][c]   = sum over j of P[i][j] * V[j][c]            rows of V, which are vectors where they lie
 *
 * Rows of S are QKVC_BLOCK numbers long, rows of O the next multiple of LANES after Dv.  Every sum has the tile's order, and so its bits.
 * Keys and values of 16 bits are widened as they are loaded.
 *
 * What bounds it is memory, so the next piece must be on its way while this one is computed (Zen 4, D = 128, K and V of 128 MB, one core of
 * two at work, one / four / eight queries, GB/s):
 *   rows as the squares want them                                                    5 /  5 /  5
 *   rows touched in address order first: hardware fetches ahead of nothing else     18 / 12 /  9
 *   ... and the same square of the next block fetched between the FMAs of this one  26 / 24 / 17
 * Fetched in one go instead, the lines would fill the miss buffers and the FMAs wait behind them: no gain at all. */

#ifdef QKVC_X86
#define KEEP(x) __asm__ volatile("" ::"x"(x))
#elif defined __aarch64__
#define KEEP(x) __asm__ volatile("" ::"w"(x))
#else
#define KEEP(x) (void)(x)
#endif

/* Keys are transposed by halves of a square, whose steps stand between the FMAs of the half before: both halves and the sums of 8 rows are
 * in registers, 8 + 8 + 8, and as a half is loaded with two keys to a vector it takes 24 shuffles, where a square takes 64.  Squares that
 * were transposed in one go took their time beside the FMAs (D = 64, keys in L2, 1 / 4 / 8 queries: 26 / 34 / 52 cycles a key, so 22 / 29 /
 * 42; 15 / 21 / 38 without touching), squares that wait in memory that of 16 stores, which cost more than an FMA each. */
enum { HALF = LANES / 2, KEYS_APART = HALF < 16 / REAL_SIZE ? HALF : 16 / REAL_SIZE, CROSSINGS = HALF == 8 ? 12 : HALF * HALF / 4 };

enum { FEW_ROWS = VREGS / 4, FEW_VECS = VREGS / 8 }; /* 32 registers: 16 + 8 + 1 in scores, 4 x 4 + 4 + 1 in values */

/* How many rows go together is a constant of the text: a square is transposed, a value loaded, once for all of them. */
#define ONE_TO_4(rows, DO) switch (rows) { case 1: DO(1); break; case 2: DO(2); break; case 3: DO(3); break; default: DO(4); }
#if VREGS == 32
#define ONE_TO_FEW(rows, DO)                                                                                                               \
    switch (rows) { case 5: DO(5); break; case 6: DO(6); break; case 7: DO(7); break; case 8: DO(8); break; default: ONE_TO_4(rows, DO) }
#else
#define ONE_TO_FEW ONE_TO_4
#endif

static INLINE int whole_vectors(int n) { return (n + LANES - 1) / LANES * LANES; }

static INLINE int size_of(const int kind) { return kind == QKVC_REAL ? sizeof(REAL) : 2; }

/* Number i of an array of that kind, and its neighbours; then of no more than n of them, zero behind */
static INLINE vec load_of(const int kind, const void *x, ptrdiff_t i)
{
#if REAL_SIZE == 4
    if (kind == QKVC_FLOAT16) return v_load_f16((const uint16_t *)x + i);
    if (kind == QKVC_BFLOAT16) return v_load_bf16((const uint16_t *)x + i);
#endif
    (void)kind;
    return v_load((const REAL *)x + i);
}

static INLINE vec load_n_of(const int kind, const void *x, ptrdiff_t i, int n)
{
    uint16_t t[LANES] = {0};
    if (kind == QKVC_REAL) return v_load_n((const REAL *)x + i, n);
    for (int k = 0; k < n; ++k) t[k] = ((const uint16_t *)x)[i + k];
    return load_of(kind, t, 0);
}

/* Load n rows and drop them; all in bytes.  Whole vectors, of which no compiler knows that they are dropped: scalar loads, one a cache
 * line, run at half the speed. */
static INLINE void touch(const char *x, ptrdiff_t row, int n, int cols)
{
    enum { VECTOR = sizeof(vec) };
    if (row == cols) cols *= n, n = 1;
    for (int i = 0; i < n; ++i, x += row) {
        int c = (int)(-(uintptr_t)x % 64);
        for (; c + 8 * VECTOR <= cols; c += 8 * VECTOR)
            UNROLL for (int k = 0; k < 8; ++k) KEEP(v_load((const REAL *)(const void *)(x + c + k * VECTOR)));
        for (; c + VECTOR <= cols; c += VECTOR) KEEP(v_load((const REAL *)(const void *)(x + c)));
    }
}

/* Rows a multiple of 4096 bytes apart, as where heads lie side by side, share a few sets of L1 and of L2.  There a block ahead is too far,
 * and rows that are touched push each other out (8 heads of D = 128, one / four / eight queries from memory, cycles a key: copied block by
 * block 379 / 387 / 484, in place like others 367 / 352 / 369, not touched and half a block ahead 284 / 297 / 358). */
static INLINE int crowded(ptrdiff_t row) { return row % 4096 == 0; }

static INLINE int rows_ahead(ptrdiff_t row) { return crowded(row) ? QKVC_BLOCK / 2 : QKVC_BLOCK; }

/* Q[segment of d][query][SEGMENT], zero behind D.  As a panel a query would take a cache line for each d: 98 cycles a key for 91. */
static void few_pack(const void *const *rows, ptrdiff_t col, int D, double scale, int queries, void *Q_)
{
    REAL *Q = Q_;
    for (int d = 0; d < D; d += SEGMENT)
        for (int i = 0; i < queries; ++i, Q += SEGMENT)
            if (col == 1 && d + SEGMENT <= D)
                for (int c = 0; c < SEGMENT; c += LANES) v_store(Q + c, v_mul(v_load((const REAL *)rows[i] + d + c), v_set1((REAL)scale)));
            else
                for (int c = 0; c < SEGMENT; ++c) Q[c] = d + c < D ? ((const REAL *)rows[i])[(d + c) * col] * (REAL)scale : 0;
}

/* HALF numbers of row a, then of row b, from d on, of which n are there, zero behind them */
static INLINE vec load_halves_of(const int kind, const void *a, const void *b, ptrdiff_t d, ptrdiff_t n)
{
    REAL both[HALF + LANES];
#if REAL_SIZE == 4
    uint16_t t[LANES];
    if (kind != QKVC_REAL && n >= HALF) {
        v_join(t, (const uint16_t *)a + d, (const uint16_t *)b + d);
        return load_of(kind, t, 0);
    }
#endif
    if (n >= HALF) return v_load_halves((const REAL *)a + d, (const REAL *)b + d);
    v_store(both, load_n_of(kind, a, d, n > 0 ? (int)n : 0));
    v_store(both + HALF, load_n_of(kind, b, d, n > 0 ? (int)n : 0));
    return v_load(both);
}

/* HALF columns of LANES keys: two keys to a vector, a quarter apart, as few_cross wants them */
static INLINE void few_load(const int kind, const char *const *K, ptrdiff_t d, ptrdiff_t n, vec t[HALF])
{
    UNROLL for (int k = 0; k < HALF; ++k) {
        const int key = k + k / KEYS_APART * KEYS_APART;
        t[k] = load_halves_of(kind, K[key], K[key + KEYS_APART], d, n);
    }
}

/* Step x of CROSSINGS, after which the columns are the vectors */
static INLINE void few_cross(vec t[HALF], const int x)
{
    enum { COUPLES = HALF > 1 ? HALF / 2 : 1 };
    const int within = KEYS_APART / 2 >> x / COUPLES, apart = within ? within : KEYS_APART, k = x % COUPLES;
    const int i = k / apart * 2 * apart + k % apart;
    if (within) v_zip(t + i, t + i + apart);
    else v_trade(t + i, t + i + apart);
}

/* S[i] += Q[i] . K of LANES keys, over a segment of d whose first columns lie in T.  Between the FMAs the columns behind those are
 * transposed, at last the first ones of K2 from d2 on, and what lies `ahead` bytes behind is fetched. */
static INLINE void few_scores_segment(const int rows, const int kind, const REAL *Q, const char *const *K, ptrdiff_t ahead, ptrdiff_t d,
                                      const char *const *K2, ptrdiff_t d2, ptrdiff_t D, vec T[HALF], REAL *S)
{
    const int line = 64 / size_of(kind);
    vec acc[FEW_ROWS];
    UNROLL for (int i = 0; i < rows; ++i) acc[i] = v_set1(0);
    UNROLL for (int s = 0; s < SEGMENT; s += HALF) {
        const int last = s + HALF == SEGMENT;
        const ptrdiff_t next = last ? d2 : d + s + HALF;
        vec t[HALF];
        few_load(kind, last ? K2 : K, next, D - next, t);
        UNROLL for (int c = 0; c < HALF; ++c) {
            if (s % line < LANES && (line <= SEGMENT || d % line == 0))
                __builtin_prefetch(K[s % line + c] + (d + s - s % line) * size_of(kind) + ahead, 0, 2);
            UNROLL for (int x = c * CROSSINGS / HALF; x < (c + 1) * CROSSINGS / HALF; ++x) few_cross(t, x);
            UNROLL for (int i = 0; i < rows; ++i) acc[i] = v_fma(v_set1(Q[i * SEGMENT + s + c]), T[c], acc[i]);
        }
        UNROLL for (int c = 0; c < HALF; ++c) T[c] = t[c];
    }
    UNROLL for (int i = 0; i < rows; ++i) v_store(S + i * QKVC_BLOCK, v_add(v_load(S + i * QKVC_BLOCK), acc[i]));
}

/* LANES keys from j on, of n; the last stands for those behind it */
static INLINE void few_keys(const char *K, ptrdiff_t row, int j, int n, const char *keys[LANES])
{
    for (int k = 0; k < LANES; ++k) keys[k] = K + least(j + k, n - 1) * row;
}

static INLINE void few_scores_rows(const int rows, const int kind, const REAL *Q, ptrdiff_t next, int D, const char *K, ptrdiff_t row,
                                   int n, REAL *S)
{
    const int touched = rows <= 4 && !crowded(row); /* for more, the FMAs take as long as the fetching */
    const ptrdiff_t ahead = rows_ahead(row) * row;
    const char *keys[2][LANES];
    vec T[HALF];
    few_keys(K, row, 0, n, keys[0]);
    if (touched) touch(K, row, least(LANES, n), D * size_of(kind));
    few_load(kind, keys[0], 0, D, T);
    UNROLL for (int x = 0; x < CROSSINGS; ++x) few_cross(T, x);
    for (int j = 0, now = 0; j < n; j += LANES, now = !now) {
        const REAL *q = Q;
        few_keys(K, row, j + LANES, n, keys[!now]);
        UNROLL for (int i = 0; i < rows; ++i) v_store(S + i * QKVC_BLOCK + j, v_set1(0));
        for (ptrdiff_t d = 0; d < D; d += SEGMENT, q += next) {
            const int more = d + SEGMENT < D;
            if (touched && !more && j + LANES < n) touch(keys[!now][0], row, least(LANES, n - j - LANES), D * size_of(kind));
            few_scores_segment(rows, kind, q, keys[now], ahead, d, keys[more ? now : !now], more ? d + SEGMENT : 0, D, T, S + j);
        }
    }
}

static INLINE void few_scores_of(const int kind, const REAL *Q, int queries, int D, const char *K, ptrdiff_t row, int n, REAL *S)
{
    for (int i = 0; i < queries; i += FEW_ROWS) {
#define SCORES(rows) few_scores_rows(rows, kind, Q + i * SEGMENT, queries * SEGMENT, D, K, row, n, S + i * QKVC_BLOCK)
        ONE_TO_FEW(least(queries - i, FEW_ROWS), SCORES)
#undef SCORES
    }
}

/* One text for each kind of number; a set of float64 takes reals only. */
#if REAL_SIZE == 4
#define EACH_KIND(kind, DO)                                                                                                                \
    switch (kind) { case QKVC_FLOAT16: DO(QKVC_FLOAT16); break; case QKVC_BFLOAT16: DO(QKVC_BFLOAT16); break; default: DO(QKVC_REAL); }
#else
#define EACH_KIND(kind, DO) (void)kind, DO(QKVC_REAL);
#endif

static void few_scores(const void *Q, int queries, int D, const void *K, ptrdiff_t row, int kind, int n, void *S)
{
#define SCORES(kind) few_scores_of(kind, Q, queries, D, K, row * size_of(kind), n, S)
    EACH_KIND(kind, SCORES)
#undef SCORES
}

/* The largest of a row's n scores.  What lies behind them, up to a multiple of `whole`, becomes -inf. */
static INLINE REAL few_largest(REAL *S, int n, int whole)
{
    REAL lane[LANES], largest = -INFINITE;
    vec top = v_set1(-INFINITE);
    for (int j = n; j % whole; ++j) S[j] = -INFINITE;
    for (int j = 0; j < n; j += LANES) top = v_max(top, v_load(S + j));
    v_store(lane, top);
    for (int k = 0; k < LANES; ++k) largest = lane[k] > largest ? lane[k] : largest;
    return largest;
}

/* The sum of each segment of P, LANES of them side by side: one after the other the additions would wait for one another. */
static INLINE void few_segment_sums(const REAL *P, int segments, REAL *sums)
{
    for (int s = 0; s < segments; s += LANES) {
        vec sum = v_set1(0);
        UNROLL for (int c = 0; c < SEGMENT; c += LANES) {
            vec t[LANES];
            UNROLL for (int k = 0; k < LANES; ++k) t[k] = v_load(P + (s + k) * SEGMENT + c);
            v_transpose(t);
            UNROLL for (int k = 0; k < LANES; ++k) sum = v_add(sum, t[k]);
        }
        v_store(sums + s, sum);
    }
}

/* Along the rows, from nothing. */
static void few_softmax(void *S_, int queries, int n, void *m, void *l)
{
    enum { SEGMENTS = QKVC_BLOCK / SEGMENT };
    REAL sums[QKVC_FEW * SEGMENTS];
    for (int i = 0; i < queries; ++i) {
        REAL *S = (REAL *)S_ + i * QKVC_BLOCK;
        const REAL mb = few_largest(S, n, SEGMENT);
        const vec shift = v_set1(mb == -INFINITE ? 0 : mb);
        for (int j = 0; j < n; j += SEGMENT)
            UNROLL for (int c = j; c < j + SEGMENT; c += LANES) v_store(S + c, v_exp2(v_sub(v_load(S + c), shift)));
        ((REAL *)m)[i] = mb;
    }
    few_segment_sums(S_, queries * SEGMENTS, sums);
    for (int i = 0; i < queries; ++i) {
        REAL total = 0;
        for (int s = 0; s * SEGMENT < n; ++s) total += sums[i * SEGMENTS + s];
        ((REAL *)l)[i] = total;
    }
}

/* O[i] += P[i] . V over a segment of n keys, in vecs * LANES columns from c on; or in the last `part` of them, if it is not 0 */
static INLINE void few_values_strip(const int rows, const int vecs, const int kind, const int part, const REAL *P, const int apart,
                                    const char *V, ptrdiff_t row, ptrdiff_t ahead, ptrdiff_t c, int n, REAL *O, int width)
{
    vec acc[4][2 * FEW_VECS];
    UNROLL for (int i = 0; i < rows; ++i)
        UNROLL for (int v = 0; v < vecs; ++v) acc[i][v] = v_set1(0);
    for (int j = 0; j < n; ++j, V += row) {
        vec b[2 * FEW_VECS];
        UNROLL for (int v = 0; v < vecs; ++v) b[v] = part ? load_n_of(kind, V, c, part) : load_of(kind, V, c + v * LANES);
        UNROLL for (int v = 0; v < vecs; ++v)
            if (ahead && v * LANES * size_of(kind) % 64 == 0) __builtin_prefetch(V + (c + v * LANES) * size_of(kind) + ahead, 0, 2);
        UNROLL for (int i = 0; i < rows; ++i) {
            vec p = v_set1(P[i * apart + j]);
            UNROLL for (int v = 0; v < vecs; ++v) acc[i][v] = v_fma(b[v], p, acc[i][v]);
        }
    }
    UNROLL for (int i = 0; i < rows; ++i)
        UNROLL for (int v = 0; v < vecs; ++v) {
            REAL *o = O + i * width + c + v * LANES;
            v_store(o, v_add(v_load(o), acc[i][v]));
        }
}

static INLINE void few_values_rows(const int rows, const int kind, const REAL *P, const int apart, const char *V, ptrdiff_t row,
                                   ptrdiff_t ahead, int Dv, int n, REAL *O, int width)
{
    ptrdiff_t c = 0;
#define STRIP(vecs, part) few_values_strip(rows, vecs, kind, part, P, apart, V, row, ahead, c, n, O, width)
    if (rows == 1) /* as many chains as hide the FMA's latency */
        for (; c + 2 * FEW_VECS * LANES <= Dv; c += 2 * FEW_VECS * LANES) STRIP(2 * FEW_VECS, 0);
    for (; c + FEW_VECS * LANES <= Dv; c += FEW_VECS * LANES) STRIP(FEW_VECS, 0);
    for (; c + LANES <= Dv; c += LANES) STRIP(1, 0);
    if (c < Dv) STRIP(1, Dv - (int)c);
#undef STRIP
}

/* A segment of P has its queries `apart`, the next segment `next` behind it.  Rows of V may be touched first, and are fetched so many rows
 * `ahead`; 0: they are not. */
static INLINE void few_values_of(const int kind, const REAL *P, const int apart, ptrdiff_t next, int queries, const char *V, ptrdiff_t row,
                                 const int touched, const int ahead, int Dv, int n, REAL *O)
{
    const int width = whole_vectors(Dv);
    for (int c = 0; c < queries * width; c += LANES) v_store(O + c, v_set1(0));
    for (int j = 0; j < n; j += SEGMENT, V += SEGMENT * row, P += next) {
        const int live = least(SEGMENT, n - j);
        if (touched) touch(V, row, live, Dv * size_of(kind));
        for (int i = 0; i < queries; i += 4) {
            const ptrdiff_t fetched = i ? 0 : ahead * row;
#define VALUES(rows) few_values_rows(rows, kind, P + i * apart, apart, V, row, fetched, Dv, live, O + i * width, width)
            ONE_TO_4(least(queries - i, 4), VALUES)
#undef VALUES
        }
    }
}

static void few_values(const void *P, int queries, const void *V, ptrdiff_t row, int kind, int Dv, int n, void *O)
{
    /* A single strip is in address order itself: touched, 128 columns of one query take 73 cycles a key for 60. */
    const int strips = Dv > FEW_VECS * LANES && (queries > 1 || Dv != 2 * FEW_VECS * LANES);
    const int close = crowded(row * size_of(kind)), ahead = strips || close ? rows_ahead(row * size_of(kind)) : 0;
#define VALUES(kind)                                                                                                                       \
    few_values_of(kind, P, QKVC_BLOCK, SEGMENT, queries, V, row * size_of(kind), strips && !close, ahead, Dv, n, O)
    EACH_KIND(kind, VALUES)
#undef VALUES
}

/* (m, l, O) takes (m_b, l_b, O_b) in, as `softmax` and `values` do it for a tile. */
static void few_merge(const void *m_b, const void *l_b, const void *O_b, int queries, int Dv, void *m_, void *l_, void *O_)
{
    const int width = whole_vectors(Dv);
    for (int i = 0; i < queries; i += LANES) {
        REAL *m = (REAL *)m_ + i, *l = (REAL *)l_ + i, a[LANES], b[LANES];
        const vec before = v_load(m), mb = v_load((const REAL *)m_b + i), now = v_max(before, mb);
        const vec shift = v_select(v_eq(now, v_set1(-INFINITE)), v_set1(0), now);
        const vec alpha = v_exp2(v_sub(before, shift)), beta = v_exp2(v_sub(mb, shift));
        v_store(m, now);
        v_store(l, v_fma(beta, v_load((const REAL *)l_b + i), v_mul(alpha, v_load(l))));
        v_store(a, alpha);
        v_store(b, beta);
        for (int k = 0; k < least(LANES, queries - i); ++k) {
            REAL *O = (REAL *)O_ + (i + k) * width;
            const REAL *part = (const REAL *)O_b + (i + k) * width;
            for (int c = 0; c < width; c += LANES)
                v_store(O + c, v_fma(v_set1(b[k]), v_load(part + c), v_mul(v_set1(a[k]), v_load(O + c))));
        }
    }
}

/* rows[i][c * col] = O[i][c] * factor[i], with the fused +0 of `store`; was every number finite? */
static int few_store(const void *O_, int Dv, const void *factor_, int queries, void *const *rows, ptrdiff_t col)
{
    const REAL *O = O_, *factor = factor_;
    const vec zero = v_set1(0);
    vec bad = zero;
    for (int i = 0; i < queries; ++i, O += whole_vectors(Dv))
        for (int c = 0; c < Dv; c += LANES) {
            const vec x = v_load(O + c), y = v_fma(x, v_set1(factor[i]), zero);
            REAL *out = (REAL *)rows[i] + c * col;
            bad = v_fma(x, zero, bad); /* 0 * x is 0, or NaN where x is not finite */
            if (col == 1) v_store_n(out, y, least(LANES, Dv - c));
            else {
                REAL lane[LANES];
                v_store(lane, y);
                for (int k = 0; k < least(LANES, Dv - c); ++k) out[k * col] = lane[k];
            }
        }
    return !v_any(v_ne(bad, bad));
}

/* ------------------------------------------------------------------------------------------------------- projections of few tokens */

/* sum[i] += Q[i] . T over the n columns of a segment */
static INLINE void few_project_segment(const int tokens, const REAL *Q, const vec *T, const int n, vec *sum)
{
    vec acc[FEW_ROWS];
    UNROLL for (int i = 0; i < tokens; ++i) acc[i] = v_set1(0);
    UNROLL for (int c = 0; c < n; ++c)
        UNROLL for (int i = 0; i < tokens; ++i) acc[i] = v_fma(v_set1(Q[i * SEGMENT + c]), T[c], acc[i]);
    UNROLL for (int i = 0; i < tokens; ++i) sum[i] = v_add(sum[i], acc[i]);
}

/* LANES columns of LANES rows, from e on, of which n are there; zero behind them */
static INLINE void few_square(const char *const *W, ptrdiff_t e, const int n, vec square[LANES])
{
    UNROLL for (int k = 0; k < LANES; ++k) {
        const REAL *x = (const REAL *)(const void *)W[k] + e;
        square[k] = n >= LANES ? v_load(x) : v_load_n(x, n);
    }
    v_transpose(square);
}

/* Y[i] += Q[i] . W of LANES rows, block by block: they lie in the lanes, as keys do.
 *
 * Squares begin where a cache line does.  Rows that are a multiple of 4096 bytes apart share a set of L1, which holds half of them: a line
 * that two squares want would be read twice (1 token, 4096 -> 4096: 51 -> 70 % of the read bandwidth).  So columns wait in T until
 * their segment is complete.  Lines two blocks ahead are fetched a segment at a time (768 -> 2304: 66 -> 90 %; a block ahead 75 %, all 16
 * rows in address order 57 %, touching those of the next squares 39 %). */
static INLINE void few_project_rows(const REAL *Q, int tokens, int E, const char *const *W, ptrdiff_t next, REAL *Y, int width)
{
    enum { AHEAD = 2 * QKVC_BLOCK };
    vec T[QKVC_BLOCK + LANES];
    int done = 0; /* columns of the block that T has */
    for (int e = 0; e < E; e += QKVC_BLOCK, done -= QKVC_BLOCK) {
        const int cols = least(E - e, QKVC_BLOCK);
        const ptrdiff_t ahead = e + AHEAD + (e + AHEAD < E ? 0 : next - E); /* behind their end the next rows begin */
        vec sum[QKVC_FEW_BYTES];
        if (e) UNROLL for (int c = 0; c < LANES; ++c) T[c] = T[QKVC_BLOCK + c];
        for (int i = 0; i < tokens; ++i) sum[i] = v_set1(0);
        for (int d = 0; d < cols; d += SEGMENT) {
            const REAL *q = Q + (e + d) * tokens;
            UNROLL for (int k = 0; k < LANES; ++k)
                for (int c = 0; c < SEGMENT; c += LINE) __builtin_prefetch((const REAL *)(const void *)W[k] + ahead + d + c, 0, 2);
            while (done < least(d + SEGMENT, cols)) {
                if (e + done + LANES <= E) few_square(W, e + done, LANES, T + done);
                else few_square(W, e + done, E - e - done, T + done);
                done += LANES - (e + done ? 0 : (int)((uintptr_t)W[0] / sizeof(REAL) % LANES));
            }
            for (int i = 0; i < tokens; i += FEW_ROWS, q += FEW_ROWS * SEGMENT) {
#define WHOLE(tokens) few_project_segment(tokens, q, T + d, SEGMENT, sum + i)
#define PART(tokens) few_project_segment(tokens, q, T + d, cols - d, sum + i)
                if (d + SEGMENT <= cols) ONE_TO_FEW(least(tokens - i, FEW_ROWS), WHOLE)
                else ONE_TO_FEW(least(tokens - i, FEW_ROWS), PART)
#undef WHOLE
#undef PART
            }
        }
        for (int i = 0; i < tokens; ++i) v_store(Y + i * width, v_add(v_load(Y + i * width), sum[i]));
    }
}

/* The same for N rows whose numbers of one column are adjacent: they lie in the lanes as columns of V do, and the next segment's are
 * fetched (1 token, 768 -> 2304: 88 % of the read bandwidth; touched instead 38 %). */
static INLINE void few_project_columns(const REAL *Q, int tokens, int E, const char *W, ptrdiff_t col, int N, REAL *sum, REAL *Y)
{
    const int all = tokens * whole_vectors(N);
    for (int e = 0; e < E; e += QKVC_BLOCK) {
        const int n = least(E - e, QKVC_BLOCK);
        few_values_of(QKVC_REAL, Q + e * tokens, SEGMENT, tokens * SEGMENT, tokens, W + e * col, col, 0, SEGMENT, N, n, sum);
        for (int c = 0; c < all; c += LANES) v_store(Y + c, v_add(v_load(Y + c), v_load(sum + c)));
    }
}

static void few_project(const void *Q, int tokens, int E, const void *W, ptrdiff_t rs, ptrdiff_t cs, int N, const void *bias, void *sum,
                        void *Y_)
{
    REAL *Y = Y_;
    const int width = whole_vectors(N);
    if (cs != 1) few_project_columns(Q, tokens, E, W, cs * (ptrdiff_t)sizeof(REAL), N, sum, Y);
    else
        for (int n = 0; n < N; n += LANES) {
            const char *rows[LANES];
            for (int k = 0; k < LANES; ++k) rows[k] = (const char *)W + least(n + k, N - 1) * rs * (ptrdiff_t)sizeof(REAL);
            few_project_rows(Q, tokens, E, rows, LANES * rs, Y + n, width);
        }
    if (bias)
        for (int i = 0; i < tokens; ++i, Y += width)
            for (int n = 0; n < N; n += LANES)
                v_store(Y + n, v_add(v_load(Y + n), v_load_n((const REAL *)bias + n, least(LANES, N - n))));
}
