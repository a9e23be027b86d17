/* The backward of a tile before a block of keys.  Part of kernels_body.h.
 *
 *     S[j][lane]  = K[j] . Q[lane]      `scores`, as in the forward           P  = exp2(S - lse)
 *     dP[j][lane] = V[j] . dO[lane]     `scores` of other operands            dS = P (dP - delta)
 *     dQ[d][lane] += sum over keys of K[j][d] dS[j][lane]                     `values`
 *     dV[j][c] += sum over queries of P[j][lane] dO[lane][c], dK of dS and Q  `back_rows`: columns in the lanes, rows of P broadcast
 *
 * Rows of dO and Q lie side by side there, `width` apart, a multiple of LANES with zero behind the last column. */

_Static_assert(QKVC_WHOLE % TILE == 0, "a stripe would begin inside a tile");

/* delta[lane] = sum over c of A[c][lane] B[c][lane], in segments */
static void back_delta(const void *A, const void *B, int n, int vecs, void *delta)
{
    for (int v = 0; v < vecs; ++v) {
        const REAL *a = (const REAL *)A + v * LANES, *b = (const REAL *)B + v * LANES;
        vec sum = v_set1(0);
        for (int c = 0; c < n;) {
            vec acc = v_set1(0);
            for (const int end = least(n, c + SEGMENT); c < end; ++c) acc = v_fma(v_load(a + c * TILE), v_load(b + c * TILE), acc);
            sum = v_add(sum, acc);
        }
        v_store((REAL *)delta + v * LANES, sum);
    }
}

/* Where no score is, dP may be anything: a masked value's NaN ends here.  A shift of -inf is a query without keys. */
static void back_softmax(void *S_, void *dP_, const void *shift_, const void *delta_, const int *depth, int vecs)
{
    const vec zero = v_set1(0), lowest = v_set1(-INFINITE);
    for (int v = 0; v < vecs; ++v) {
        REAL *S = (REAL *)S_ + v * LANES, *dP = (REAL *)dP_ + v * LANES;
        const vec delta = v_load((const REAL *)delta_ + v * LANES), lse = v_load((const REAL *)shift_ + v * LANES);
        const vec shift = v_select(v_eq(lse, lowest), zero, lse);
        for (int j = 0; j < depth[v]; ++j) {
            const vec s = v_load(S + j * TILE), p = v_exp2(v_sub(s, shift));
            const vmask none = v_eq(s, lowest);
            v_store(S + j * TILE, v_select(none, zero, p));
            v_store(dP + j * TILE, v_select(none, zero, v_mul(p, v_sub(v_load(dP + j * TILE), delta))));
        }
    }
}

/* tanh' = (1 - tanh)(1 + tanh) */
static void back_soften(void *dS_, const void *S_, double cap, const int *depth, int vecs)
{
    const vec one = v_set1(1), inner = v_set1((REAL)(1 / cap));
    for (int v = 0; v < vecs; ++v)
        for (int j = 0; j < depth[v]; ++j) {
            REAL *dS = (REAL *)dS_ + j * TILE + v * LANES;
            const vec t = v_mul(v_load((const REAL *)S_ + j * TILE + v * LANES), inner);
            v_store(dS, v_mul(v_load(dS), v_mul(v_sub(one, t), v_add(one, t))));
        }
}

/* C carries on where the tile before left it: one chain over all queries of a stripe, whatever the tiles that it is cut into. */
static INLINE void back_tile(const int rows, const int vecs, const REAL *P, const REAL *X, ptrdiff_t width, int from, int to, REAL *C,
                             ptrdiff_t pitch)
{
    vec acc[ROWS_1][VECS];
    UNROLL for (int i = 0; i < rows; ++i)
        UNROLL for (int v = 0; v < vecs; ++v) acc[i][v] = v_load(C + i * pitch + v * LANES);
    product_range(rows, 0, vecs, P, TILE, 1, X, width, from, to, acc);
    UNROLL for (int i = 0; i < rows; ++i)
        UNROLL for (int v = 0; v < vecs; ++v) v_store(C + i * pitch + v * LANES, acc[i][v]);
}

/* The first vectors do not reach all keys: below their step P is undefined.  Columns go in strips of nearly the same width.  Rows ahead are
 * fetched a few at a time: all at once they wait for each other (4 x 6 x 256 x 64: 0.97 of the time, with the next head's first tile 0.95). */
static void back_rows(const void *P_, const void *X_, int width, int queries, const int *depth, int vecs, void *C_, ptrdiff_t pitch,
                      const void *const *ahead, int rows, int bytes)
{
    const REAL *P = P_, *X = X_;
    REAL *C = C_;
    const int strips = (width + TILE - 1) / TILE, columns = width / LANES;
    int at = 0;
    for (int v = 0, reached = 0; v < vecs; reached = larger(reached, depth[v++]))
        for (int i = 0; i < strips; ++i) {
            const int first = columns * i / strips, n = columns * (i + 1) / strips - first, c = first * LANES;
            int j = reached;
#define BACK(n, vecs)                                                                                                                      \
    do {                                                                                                                                   \
        for (int end = least(at + n, rows); at < end; ++at) fetch_rows(ahead[at], 0, 1, bytes / REAL_SIZE);                                \
        back_tile(n, vecs, P + j * TILE, X + c, width, v * LANES, queries, C + j * pitch + c, pitch);                                      \
    } while (0)
            COVER_VECS(n, j, depth[v], BACK);
#undef BACK
        }
}

/* The same bits, but a query adds nothing to a key that it may not see, not even 0 * NaN */
static void back_rows_selected(const void *P_, const void *allowed_, const void *X_, int width, int queries, const int *depth, int vecs,
                               void *C_, ptrdiff_t pitch)
{
    const REAL *P = P_, *allowed = allowed_, *X = X_;
    for (int v = 0, j = 0; v < vecs; ++v)
        for (; j < depth[v]; ++j)
            for (int c = 0; c < width; c += LANES) {
                REAL *to = (REAL *)C_ + j * pitch + c;
                vec acc = v_load(to);
                for (int q = v * LANES; q < queries; ++q)
                    if (allowed[j * TILE + q] != -INFINITE) acc = v_fma(v_set1(P[j * TILE + q]), v_load(X + q * width + c), acc);
                v_store(to, acc);
            }
}

/* to[c] = scale * (parts[0][c] + parts[1][c] + ...) for c < n */
static void back_sum(const void *const *parts, int count, int n, double scale_, void *to)
{
    const vec scale = v_set1((REAL)scale_);
    for (int c = 0; c < n; c += LANES) {
        vec sum = v_set1(0);
        for (int i = 0; i < count; ++i) sum = v_add(sum, v_load((const REAL *)parts[i] + c));
        sum = v_fma(sum, scale, v_set1(0));
        if (n - c >= LANES)
            v_store((REAL *)to + c, sum);
        else
            v_store_n((REAL *)to + c, sum, n - c);
    }
}
