/* What training adds to a layer: gradients of what stands between products, and the step of the weights.  Part of kernels_body.h.
 *
 * Sums run along a row, as in scale_to_rms: SEGMENT chains, one for each index modulo SEGMENT, halved until one is left. */

/* The n lanes from i on, a segment's vectors at a time so that k, the chain, is a constant */
#define ALONG(width, i, k, n)                                                                                                              \
    for (int from_ = 0; from_ < (width); from_ += SEGMENT)                                                                                 \
        UNROLL for (int k = 0, i = from_, n; k < PARTS; ++k, i += LANES)                                                                   \
            if ((n = least(LANES, (width) - i)) > 0)

static INLINE vec load_some(const REAL *p, int n) { return n == LANES ? v_load(p) : v_load_n(p, n); }
static INLINE void store_some(REAL *p, vec a, int n)
{
    if (n == LANES) v_store(p, a);
    else v_store_n(p, a, n);
}
static INLINE vec zero_behind(vec a, int n) /* n lanes, which a sum may take */
{
    REAL t[LANES];
    if (n == LANES) return a;
    v_store(t, a);
    return v_load_n(t, n);
}

/* With y = (x - mean) r, r = 1 / sqrt(variance + eps) and g the gradient of y * weight + bias (mean = 0 where it is not centred):
 *     dx = r (w g - [mean of w g] - y * mean of w g y) + also     dweight += g y     dbias += g */
static void norm_grad(const void *x_, const void *g_, const void *weight_, const void *also_, int width, double eps, int centred,
                      void *dx_, void *dweight_, void *dbias_)
{
    const REAL *x = x_, *g = g_, *weight = weight_, *also = also_;
    REAL *dx = dx_, *dweight = dweight_, *dbias = dbias_;
    const vec zero = v_set1(0), count = v_set1((REAL)width);
    vec mean = zero, a[PARTS], b[PARTS];
    UNROLL for (int k = 0; k < PARTS; ++k) a[k] = b[k] = zero;
    if (centred) {
        ALONG(width, i, k, n) a[k] = v_add(a[k], load_some(x + i, n));
        mean = v_div(v_set1(halved(a)), count);
    }
    ALONG(width, i, k, n)
    {
        vec d = zero_behind(v_sub(load_some(x + i, n), mean), n);
        b[k] = v_fma(d, d, b[k]);
    }
    const vec r = v_div(v_set1(1), v_sqrt(v_add(v_div(v_set1(halved(b)), count), v_set1((REAL)eps))));
    UNROLL for (int k = 0; k < PARTS; ++k) a[k] = b[k] = zero;
    ALONG(width, i, k, n)
    {
        const vec y = v_mul(v_sub(load_some(x + i, n), mean), r), up = load_some(g + i, n), wg = v_mul(load_some(weight + i, n), up);
        a[k] = v_add(a[k], wg);
        b[k] = v_fma(wg, y, b[k]);
        store_some(dweight + i, v_fma(up, y, load_some(dweight + i, n)), n);
        if (centred) store_some(dbias + i, v_add(load_some(dbias + i, n), up), n);
    }
    const vec level = centred ? v_div(v_set1(halved(a)), count) : zero, slope = v_div(v_set1(halved(b)), count);
    ALONG(width, i, k, n)
    {
        const vec y = v_mul(v_sub(load_some(x + i, n), mean), r), wg = v_mul(load_some(weight + i, n), load_some(g + i, n));
        const vec d = v_mul(r, v_sub(v_sub(wg, level), v_mul(y, slope)));
        store_some(dx + i, also ? v_add(d, load_some(also + i, n)) : d, n);
    }
}

#ifdef GELU_SERIES
/* (x Phi(x))' = Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi) */
static void gelu_grad(const void *x_, const void *g, ptrdiff_t count, void *dx)
{
    for (ptrdiff_t i = 0; i < count; i += LANES) {
        const int n = count - i < LANES ? (int)(count - i) : LANES;
        const vec x = load_some((const REAL *)x_ + i, n), bell = v_exp2(v_mul(v_mul(x, x), v_set1((REAL)(-0.5 * 1.4426950408889634))));
        const vec slope = v_fma(v_mul(x, bell), v_set1((REAL)0.3989422804014327), v_div(v_set1(1), v_normal_odds(x)));
        store_some((REAL *)dx + i, v_mul(slope, load_some((const REAL *)g + i, n)), n);
    }
}
#define GELU_GRAD gelu_grad
#else
#define GELU_GRAD NULL
#endif

/* 1 / (1 + exp(-x)), from exp(-|x|), which cannot overflow */
static INLINE vec v_logistic(vec x)
{
    const vec zero = v_set1(0), one = v_set1(1), e = exp_scaled(v_sub(zero, v_max(x, v_sub(zero, x))), zero, one);
    return v_div(v_select(v_lt(x, zero), e, one), v_add(one, e));
}

/* x silu(gate), silu(a) = a / (1 + exp(-a)) */
static void swiglu(const void *gate, const void *x, ptrdiff_t count, void *out)
{
    for (ptrdiff_t i = 0; i < count; i += LANES) {
        const int n = count - i < LANES ? (int)(count - i) : LANES;
        const vec a = load_some((const REAL *)gate + i, n);
        store_some((REAL *)out + i, v_mul(v_mul(a, v_logistic(a)), load_some((const REAL *)x + i, n)), n);
    }
}

/* silu'(a) = s (1 + a (1 - s)) */
static void swiglu_grad(const void *gate, const void *x, const void *g, ptrdiff_t count, void *dgate, void *dx)
{
    const vec one = v_set1(1);
    for (ptrdiff_t i = 0; i < count; i += LANES) {
        const int n = count - i < LANES ? (int)(count - i) : LANES;
        const vec a = load_some((const REAL *)gate + i, n), s = v_logistic(a), up = load_some((const REAL *)g + i, n);
        store_some((REAL *)dgate + i, v_mul(v_mul(up, load_some((const REAL *)x + i, n)), v_mul(s, v_fma(a, v_sub(one, s), one))), n);
        store_some((REAL *)dx + i, v_mul(up, v_mul(a, s)), n);
    }
}

static double square_sum(const void *x, int width)
{
    vec sum[PARTS];
    UNROLL for (int k = 0; k < PARTS; ++k) sum[k] = v_set1(0);
    ALONG(width, i, k, n)
    {
        const vec a = load_some((const REAL *)x + i, n);
        sum[k] = v_fma(a, a, sum[k]);
    }
    return halved(sum);
}

/* One pass: m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, w = keep w - step m / (root sqrt(v) + eps), g = clip grad */
static void adamw(void *w, const void *grad, void *m_, void *v_, ptrdiff_t count, const struct qkvc_adamw *c)
{
    const vec clip = v_set1((REAL)c->clip), keep = v_set1((REAL)c->keep), step = v_set1((REAL)-c->step);
    const vec beta1 = v_set1((REAL)c->beta1), rest1 = v_set1((REAL)(1 - c->beta1)), root = v_set1((REAL)c->root);
    const vec beta2 = v_set1((REAL)c->beta2), rest2 = v_set1((REAL)(1 - c->beta2)), eps = v_set1((REAL)c->eps);
    for (ptrdiff_t i = 0; i < count; i += LANES) {
        const int n = count - i < LANES ? (int)(count - i) : LANES;
        const vec g = v_mul(load_some((const REAL *)grad + i, n), clip);
        const vec m = v_fma(beta1, load_some((REAL *)m_ + i, n), v_mul(rest1, g));
        const vec v = v_fma(beta2, load_some((REAL *)v_ + i, n), v_mul(rest2, v_mul(g, g)));
        store_some((REAL *)m_ + i, m, n);
        store_some((REAL *)v_ + i, v, n);
        const vec kept = v_mul(keep, load_some((REAL *)w + i, n));
        store_some((REAL *)w + i, v_fma(step, v_div(m, v_fma(root, v_sqrt(v), eps)), kept), n);
    }
}
