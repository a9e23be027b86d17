/* The pieces of a layer that are neither attention nor a product.  Part of kernels_body.h. */

#ifdef GELU_SERIES
/* x Phi(x) within 1.2e-7 |x|: Phi(x) = 1 / (1 + exp(-2 x P(x^2))), a logistic function (float32.h has P). */
static INLINE vec v_gelu(vec x)
{
    static const REAL c[] = {GELU_SERIES};
    const vec zero = v_set1(0), lowest = v_set1(LOWEST);
    vec t = v_sub(zero, v_max(v_set1(-GELU_LIMIT), v_sub(zero, v_mul(x, x)))), p = v_set1(c[0]);
    UNROLL for (int i = 1; i < (int)(sizeof c / sizeof *c); ++i) p = v_fma(p, t, v_set1(c[i]));
    vec y = v_mul(v_mul(x, p), v_set1((REAL)(-2 * 1.4426950408889634)));
    y = v_sub(zero, v_max(lowest, v_sub(zero, v_max(lowest, y))));
    vec u = v_add(y, v_set1(ROUNDER)), r = v_sub(y, v_sub(u, v_set1(ROUNDER)));
    vec power = v_scale(v_exp2_poly(r), u);
    return v_select(v_lt(x, lowest), v_mul(x, zero), v_div(x, v_add(v_set1(1), power)));
}

static void gelu(const void *x, ptrdiff_t n, void *out)
{
    ptrdiff_t i = 0;
    for (; i + LANES <= n; i += LANES) v_store((REAL *)out + i, v_gelu(v_load((const REAL *)x + i)));
    if (i < n) v_store_n((REAL *)out + i, v_gelu(v_load_n((const REAL *)x + i, (int)(n - i))), (int)(n - i));
}
#define GELU gelu
#else
#define GELU NULL
#endif

/* Tokens lie in the lanes, so mean and variance are sums down a column.  Two passes for them: the variance of what is left of the mean loses
 * nothing. */
static void norm(void *Y_, const void *R_, int rows, int vecs, double eps, const void *weight_, const void *bias_)
{
    const REAL *weight = weight_, *bias = bias_;
    const vec zero = v_set1(0), count = v_set1((REAL)rows);
    for (int v = 0; v < vecs; ++v) {
        REAL *Y = (REAL *)Y_ + v * LANES;
        const REAL *R = R_ ? (const REAL *)R_ + v * LANES : NULL;
        vec sum = zero, square = zero;
        for (int i = 0; i < rows;) {
            vec part = zero;
            for (const int end = least(rows, i + SEGMENT); i < end; ++i) {
                vec y = v_load(Y + i * TILE);
                if (R) v_store(Y + i * TILE, y = v_add(y, v_load(R + i * TILE)));
                part = v_add(part, y);
            }
            sum = v_add(sum, part);
        }
        const vec mean = v_div(sum, count);
        for (int i = 0; i < rows;) {
            vec part = zero;
            for (const int end = least(rows, i + SEGMENT); i < end; ++i) {
                vec d = v_sub(v_load(Y + i * TILE), mean);
                v_store(Y + i * TILE, d);
                part = v_fma(d, d, part);
            }
            square = v_add(square, part);
        }
        const vec scale = v_div(v_set1(1), v_sqrt(v_add(v_div(square, count), v_set1((REAL)eps))));
        for (int i = 0; i < rows; ++i) {
            REAL *y = Y + i * TILE;
            v_store(y, v_fma(v_mul(v_load(y), scale), v_set1(weight[i]), v_set1(bias[i])));
        }
    }
}
