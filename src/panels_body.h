/* Between rows of arrays and panels of a tile, and the checks on the way out.  Part of kernels_body.h. */

/* Both directions move LANES x LANES squares through v_transpose: a scalar pack and store cost 20-25 % at 128 keys. */
static INLINE void square_in(const REAL *const *rows, ptrdiff_t c, vec scale, REAL *to)
{
    vec t[LANES];
    UNROLL for (int i = 0; i < LANES; ++i) t[i] = v_load(rows[i] + c);
    v_transpose(t);
    UNROLL for (int i = 0; i < LANES; ++i) v_store(to + i * TILE, v_mul(t[i], scale));
}

/* How many of these rows are neighbouring columns of a row-major array? */
static INLINE int neighbours(const REAL *const *rows, int n)
{
    int i = 1;
    while (i < n && rows[i] == rows[0] + i) ++i;
    return i;
}

/* Neighbouring columns are copied side by side, or their rows, pages apart, would be looked for once a vector: 7.4 -> 5.3 % of the time of
 * a weight's gradient. */
static void pack(const void *const *rows_, ptrdiff_t col, int cols, double scale_, int vecs, void *panel)
{
    const REAL *const *rows = (const REAL *const *)rows_;
    const vec scale = v_set1((REAL)scale_);
    for (int v = 0, n; v < vecs; v += n, rows += n * LANES) {
        REAL *to = (REAL *)panel + v * LANES;
        const int beside = col == 1 ? 0 : neighbours(rows, (vecs - v) * LANES) / LANES;
        int c = 0;
        n = larger(beside, 1);
        if (col == 1)
            for (; c + LANES <= cols; c += LANES) square_in(rows, c, scale, to + c * TILE);
        else if (beside)
            for (; c < cols; ++c) {
                const REAL *from = rows[0] + c * col;
                for (int i = 0; i < n; ++i) v_store(to + c * TILE + i * LANES, v_mul(v_load(from + i * LANES), scale));
            }
        for (; c < cols; ++c) {
            REAL t[LANES];
            for (int i = 0; i < LANES; ++i) t[i] = rows[i][c * col];
            v_store(to + c * TILE, v_mul(v_load(t), scale));
        }
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
        const int beside = col != 1 && neighbours((const REAL *const *)rows, live) == LANES;
        for (; c < Dv; ++c) {
            REAL column[LANES], *to = beside ? rows[0] + c * col : column;
            v_store(to, v_fma(v_load(O + c * TILE), factor, v_set1(0)));
            for (int i = 0; i < live && !beside; ++i) rows[i][c * col] = column[i];
        }
    }
}

/* to[c * to_row + r] = x[r * row + c], a square at a time */
static void transpose(const void *x_, ptrdiff_t row, int rows, int cols, void *to_, ptrdiff_t to_row)
{
    const REAL *x = x_;
    REAL *to = to_;
    int c = 0;
    for (; c + LANES <= cols; c += LANES) {
        int r = 0;
        for (; r + LANES <= rows; r += LANES) {
            vec t[LANES];
            UNROLL for (int i = 0; i < LANES; ++i) t[i] = v_load(x + (r + i) * row + c);
            v_transpose(t);
            UNROLL for (int i = 0; i < LANES; ++i) v_store(to + (c + i) * to_row + r, t[i]);
        }
        for (; r < rows; ++r)
            for (int i = 0; i < LANES; ++i) to[(c + i) * to_row + r] = x[r * row + c + i];
    }
    for (; c < cols; ++c)
        for (int r = 0; r < rows; ++r) to[c * to_row + r] = x[r * row + c];
}
