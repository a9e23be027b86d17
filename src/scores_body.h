/* What happens to a block of scores between the two products, and to weights that somebody wants to see.  Part of kernels_body.h.
 *
 * In the order of docs/arithmetic.md, clause 2: softcap, ALiBi, bias, masks.  Masks select -inf; they are never added. */

/* tanh x = e / (e + 2), e = exp(2x) - 1 = 2^n (p - 1) + (2^n - 1): nothing cancels near 0, where scores mostly are.  From |x| = 20 on it is
 * 1 in either precision. */
static void soften(void *S_, double cap, const int *depth, int vecs)
{
    const vec size = v_set1((REAL)cap), inner = v_set1((REAL)(2 * 1.4426950408889634 / cap)), most = v_set1(58), zero = v_set1(0);
    for (int v = 0; v < vecs; ++v)
        for (int j = 0; j < depth[v]; ++j) {
            REAL *s = (REAL *)S_ + j * TILE + v * LANES;
            vec x = v_load(s), t = v_mul(x, inner);
            vec y = v_max(t, v_sub(zero, t)); /* of a NaN: NaN, whichever way */
            y = v_sub(zero, v_max(v_sub(zero, most), v_sub(zero, y)));
            vec u = v_add(y, v_set1(ROUNDER)), r = v_sub(y, v_sub(u, v_set1(ROUNDER)));
            vec power = v_scale(v_set1(1), u);
            vec e = v_fma(power, v_exp2m1_poly(r), v_sub(power, v_set1(1)));
            vec capped = v_mul(size, v_div(e, v_add(e, v_set1(2))));
            capped = v_select(v_lt(x, zero), v_sub(zero, capped), capped);
            v_store(s, v_select(v_ne(x, x), x, capped));
        }
}

/* S -= slope |position - j|, one rounding */
static void add_slope(void *S_, const void *slope, const void *position, const int *depth, int vecs)
{
    const vec zero = v_set1(0);
    for (int v = 0; v < vecs; ++v) {
        const vec fall = v_sub(zero, v_load((const REAL *)slope + v * LANES)), here = v_load((const REAL *)position + v * LANES);
        for (int j = 0; j < depth[v]; ++j) {
            REAL *s = (REAL *)S_ + j * TILE + v * LANES;
            vec d = v_sub(here, v_set1((REAL)j));
            v_store(s, v_fma(fall, v_max(d, v_sub(zero, d)), v_load(s)));
        }
    }
}

/* bias comes in natural units.  Times log2(e), the unit of scores, a number near the end of the range, such as finfo.min, would become
 * infinite, and -inf means masked: it stays finite. */
static void add_bias(void *S_, const void *bias_, double unit_, const int *depth, int vecs)
{
    const vec unit = v_set1((REAL)unit_);
    const vec masked = v_set1(-INFINITE), largest = v_set1(LARGEST), lowest = v_set1(-LARGEST), zero = v_set1(0);
    for (int v = 0; v < vecs; ++v)
        for (int j = 0; j < depth[v]; ++j) {
            REAL *s = (REAL *)S_ + j * TILE + v * LANES;
            vec b = v_load((const REAL *)bias_ + j * TILE + v * LANES);
            vec x = v_max(lowest, v_mul(b, unit));
            x = v_sub(zero, v_max(lowest, v_sub(zero, x)));
            x = v_select(v_lt(largest, b), b, x); /* +inf stays +inf */
            v_store(s, v_select(v_eq(b, masked), b, v_add(v_load(s), x)));
        }
}

static void mask(void *S_, const uint8_t *const *rows, ptrdiff_t col, const int *depth, int vecs)
{
    const vec masked = v_set1(-INFINITE), zero = v_set1(0);
    for (int v = 0; v < vecs; ++v, rows += LANES) {
        REAL *S = (REAL *)S_ + v * LANES;
        int shared = 1;
        for (int i = 1; i < LANES; ++i) shared &= rows[i] == rows[0];
        if (shared) { /* a mask of keys, such as padding */
            for (int j = 0; j < depth[v]; ++j)
                if (!rows[0][j * col]) v_store(S + j * TILE, masked);
            continue;
        }
        for (int c = 0; c < depth[v]; c += LANES) {
            int n = least(depth[v] - c, LANES);
            vec t[LANES];
            for (int i = 0; i < LANES; ++i) {
                int8_t bytes[LANES] = {0};
                if (col == 1 && n == LANES)
                    t[i] = v_load_bytes((const int8_t *)rows[i] + c);
                else {
                    for (int k = 0; k < n; ++k) bytes[k] = rows[i][(c + k) * col];
                    t[i] = v_load_bytes(bytes);
                }
            }
            v_transpose(t);
            for (int k = 0; k < n; ++k) {
                REAL *s = S + (c + k) * TILE;
                v_store(s, v_select(v_eq(t[k], zero), masked, v_load(s)));
            }
        }
    }
}

static void clip(void *S_, const void *first, const void *limit, const int *depth, int vecs)
{
    for (int v = 0; v < vecs; ++v) {
        const REAL *begin = (const REAL *)first + v * LANES, *end = (const REAL *)limit + v * LANES;
        const int n = depth[v], shut = begin[LANES - 1] > 0 ? least(n, (int)begin[LANES - 1]) : 0, open = end[0] > 0 ? (int)end[0] : 0;
        for (int j = 0; j < n; ++j) {
            if (j == shut) j = larger(j, least(n, open)); /* between the two edges every lane sees every key */
            if (j == n) break;
            REAL *s = (REAL *)S_ + j * TILE + v * LANES;
            vec at = v_set1((REAL)j), inside = v_select(v_le(v_load(begin), at), v_load(s), v_set1(-INFINITE));
            v_store(s, v_select(v_lt(at, v_load(end)), inside, v_set1(-INFINITE)));
        }
    }
}

/* ------------------------------------------------------------------------------------------------------------------ a look inside */

/* S becomes exp2(S - shift); a score of -inf gives 0 whatever the shift, and a shift of -inf (no key at all) gives 0 */
static void weigh(void *S_, const void *shift_, const int *depth, int vecs)
{
    const vec zero = v_set1(0), lowest = v_set1(-INFINITE);
    for (int v = 0; v < vecs; ++v) {
        vec shift = v_load((const REAL *)shift_ + v * LANES);
        shift = v_select(v_eq(shift, lowest), zero, shift);
        for (int j = 0; j < depth[v]; ++j) {
            REAL *s = (REAL *)S_ + j * TILE + v * LANES;
            vec x = v_load(s);
            v_store(s, v_select(v_eq(x, lowest), zero, v_exp2(v_sub(x, shift))));
        }
    }
}

/* The sums over keys are in segments, as everywhere. */
static void summarise(const void *S_, const void *shift_, const void *factor_, const void *position_, const int *depth, int vecs,
                      void *spread, void *distance, void *most, void *mass_)
{
    const vec zero = v_set1(0), lowest = v_set1(-INFINITE);
    REAL *mass = mass_;
    for (int j = 0; j < depth[vecs - 1]; ++j) mass[j] = 0;
    for (int v = 0; v < vecs; ++v) {
        const REAL *S = (const REAL *)S_ + v * LANES;
        const vec factor = v_load((const REAL *)factor_ + v * LANES), here = v_load((const REAL *)position_ + v * LANES);
        vec shift = v_load((const REAL *)shift_ + v * LANES), total = zero, way = zero, top = v_load((const REAL *)most + v * LANES);
        shift = v_select(v_eq(shift, lowest), zero, shift);
        for (int j = 0; j < depth[v];) {
            vec t = zero, w = zero;
            for (const int end = least(depth[v], j + SEGMENT); j < end; ++j) {
                vec s = v_load(S + j * TILE), x = v_sub(s, shift), d = v_sub(here, v_set1((REAL)j));
                vmask none = v_eq(s, lowest);
                vec p = v_select(none, zero, v_mul(v_exp2(x), factor));
                t = v_fma(p, v_select(none, zero, v_sub(zero, x)), t);
                w = v_fma(p, v_max(d, v_sub(zero, d)), w);
                top = v_max(s, top);
                mass[j] += v_sum(p);
            }
            total = v_add(total, t);
            way = v_add(way, w);
        }
        REAL *to = (REAL *)spread + v * LANES, *from = (REAL *)distance + v * LANES;
        v_store(to, v_add(v_load(to), total));
        v_store(from, v_add(v_load(from), way));
        v_store((REAL *)most + v * LANES, top);
    }
}
