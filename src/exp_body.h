/* Exponentials: exp2 of the attention kernels, and softmax of one long row.  Part of kernels_body.h, in the vocabulary of vec_*.h. */

/* (2^r - 1) / r for |r| <= 1/2 */
static INLINE vec v_exp2_tail(vec r)
{
    static const REAL c[] = {EXP2_TAIL};
    vec p = v_set1(c[0]);
    UNROLL for (int i = 1; i < (int)(sizeof c / sizeof *c); ++i)
        p = i < EXP2_ROUGH ? v_fma(p, r, v_set1(c[i])) : v_fma_once(p, r, v_set1(c[i]));
    return p;
}
static INLINE vec v_exp2_poly(vec r) { return v_fma_once(v_exp2_tail(r), r, v_set1(1)); }
static INLINE vec v_exp2m1_poly(vec r) { return v_mul(v_exp2_tail(r), r); }

/* 2^x for LOWEST <= x <= 0; +0 below; NaN stays NaN, whatever its payload: v_scale would add the payload to the exponent, so lanes that
 * are not in the domain take max(0, x), which is 0 for numbers and x for NaN. */
static INLINE vec v_exp2(vec x)
{
    vec u = v_add(x, v_set1(ROUNDER));
    vec r = v_sub(x, v_sub(u, v_set1(ROUNDER)));
    return v_select(v_le(v_set1(LOWEST), x), v_scale(v_exp2_poly(r), u), v_max(v_set1(0), x));
}

static void exp2_array(const void *x, ptrdiff_t n, void *out)
{
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        int k = n - i < LANES ? (int)(n - i) : LANES;
        v_store_n((REAL *)out + i, v_exp2(v_load_n((const REAL *)x + i, k)), k);
    }
}

/* ------------------------------------------------------------------------------------------------- softmax of one long row */

/* e^(x - max) = 2^n p.  x - max is kept to its last bit (TwoDiff, Knuth 1969) and log2(e) is two numbers, because an error of half an
 * ulp of x - max, at 80 in float32, would be 30 ULP of the result. */
static INLINE vec exp_parts(vec x, vec max, vec *n)
{
    const vec high = v_set1(LOG2_E_HIGH), rest = v_set1(LOG2_E_LOW);
    vec d = v_sub(x, max), back = v_sub(d, x);
    vec error = v_sub(v_sub(x, v_sub(d, back)), v_add(max, back));
    vec t = v_mul(d, high);
    vec low = v_fma_once(d, rest, v_fma_once(error, high, v_fma_once(d, high, v_sub(v_set1(0), t))));
    *n = v_sub(v_add(t, v_set1(ROUNDER)), v_set1(ROUNDER));
    return v_exp2_poly(v_add(v_sub(t, *n), low));
}

/* e^(x - max) * factor; denormal results are rounded, not flushed, and a NaN in any of the three comes out */
static INLINE vec exp_scaled(vec x, vec max, vec factor)
{
    vec n, p = v_mul(exp_parts(x, max, &n), factor);
    vec normal = v_max(v_set1(LOWEST), n), rest = v_sub(n, normal); /* 2^n in two steps: the first is a normal number */
    vec y = v_mul(v_mul(p, v_scale(v_set1(1), v_add(normal, v_set1(ROUNDER)))), v_scale(v_set1(1), v_add(rest, v_set1(ROUNDER))));
    return v_select(v_lt(v_sub(x, max), v_set1(VANISHING)), v_mul(v_set1(0), factor), y);
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
