/* The pieces of a layer that are neither attention nor a product.  Part of kernels_body.h. */

#ifdef GELU_SERIES
/* 1 / Phi(x), Phi a logistic function within 1.2e-7: 1 + exp(-2 x P(x^2)) (float32.h has P). */
static INLINE vec v_normal_odds(vec x)
{
    static const REAL c[] = {GELU_SERIES};
    const vec zero = v_set1(0), lowest = v_set1(LOWEST);
    vec t = v_sub(zero, v_max(v_set1(-GELU_LIMIT), v_sub(zero, v_mul(x, x)))), p = v_set1(c[0]);
    UNROLL for (int i = 1; i < (int)(sizeof c / sizeof *c); ++i) p = v_fma(p, t, v_set1(c[i]));
    vec y = v_mul(v_mul(x, p), v_set1((REAL)(-2 * 1.4426950408889634)));
    y = v_sub(zero, v_max(lowest, v_sub(zero, v_max(lowest, y))));
    vec u = v_add(y, v_set1(ROUNDER)), r = v_sub(y, v_sub(u, v_set1(ROUNDER)));
    return v_add(v_set1(1), v_scale(v_exp2_poly(r), u));
}

/* x Phi(x) within 1.2e-7 |x| */
static INLINE vec v_gelu(vec x) { return v_select(v_lt(x, v_set1(LOWEST)), v_mul(x, v_set1(0)), v_div(x, v_normal_odds(x))); }

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

/* Tokens lie in the lanes, so mean and variance are sums down a column.  Two passes for them: the variance of what is left of the mean
 * loses nothing. */
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

enum { PARTS = SEGMENT / LANES };

/* A sum along a row is SEGMENT chains, one for each index modulo SEGMENT, halved until one is left: the order of v_sum carried on to sets
 * of any number of lanes, so that all give the same bits. */
static INLINE REAL halved(vec part[PARTS])
{
    UNROLL for (int half = PARTS / 2; half; half /= 2)
        UNROLL for (int k = 0; k < half; ++k) part[k] = v_add(part[k], part[k + half]);
    return v_sum(part[0]);
}

static void scale_to_rms(REAL *x, int width, const REAL *weight, double eps)
{
    vec part[PARTS];
    UNROLL for (int k = 0; k < PARTS; ++k) part[k] = v_set1(0);
    int i = 0;
    for (; i + SEGMENT <= width; i += SEGMENT)
        UNROLL for (int k = 0; k < PARTS; ++k) {
            vec a = v_load(x + i + k * LANES);
            part[k] = v_fma(a, a, part[k]);
        }
    for (int k = 0; i < width; ++k, i += LANES) {
        vec a = v_load_n(x + i, least(LANES, width - i));
        part[k] = v_fma(a, a, part[k]);
    }
    const vec mean = v_div(v_set1(halved(part)), v_set1((REAL)width));
    const vec scale = v_div(v_set1(1), v_sqrt(v_add(mean, v_set1((REAL)eps))));
    for (i = 0; i + LANES <= width; i += LANES) v_store(x + i, v_mul(v_mul(v_load(x + i), scale), v_load(weight + i)));
    const int rest = width - i;
    if (rest) v_store_n(x + i, v_mul(v_mul(v_load_n(x + i, rest), scale), v_load_n(weight + i, rest)), rest);
}

/* Products and sums rounded apart: one text serves both orders of the pairs, the compiler finds the vectors, and no set has bits of its
 * own. */
static INLINE void turn_pairs(REAL *x, const int step, const ptrdiff_t other, int pairs, const REAL *cos, const REAL *sin)
{
#pragma GCC ivdep
    for (ptrdiff_t i = 0; i < pairs; ++i) {
        const REAL a = x[i * step], b = x[i * step + other];
        x[i * step] = a * cos[i] - b * sin[i];
        x[i * step + other] = b * cos[i] + a * sin[i];
    }
}

static void turn(void *x_, int width, const void *weight, double eps, int pairs, int interleaved, const void *cos, const void *sin)
{
    REAL *x = x_;
    if (weight) scale_to_rms(x, width, weight, eps);
    if (interleaved) turn_pairs(x, 2, 1, pairs, cos, sin);
    else turn_pairs(x, 1, pairs, pairs, cos, sin);
}
