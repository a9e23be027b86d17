/* Numbers as arrays keep them, and the reals that kernels compute with.  Part of kernels_body.h. */

static void gather_reals(const REAL *x, ptrdiff_t row, ptrdiff_t col, int rows, int cols, REAL *to)
{
    for (int i = 0; i < rows; ++i, x += row, to += cols)
        if (col == 1)
            __builtin_memcpy(to, x, sizeof(REAL) * (size_t)cols);
        else
            for (int c = 0; c < cols; ++c) to[c] = x[c * col];
}

#if REAL_SIZE == 4
#define SHORTEN shorten

/* bfloat16 is the upper half of a float32: integers do for every set */
typedef uint16_t vhalves __attribute__((vector_size(2 * LANES)));
typedef uint32_t vwords __attribute__((vector_size(4 * LANES)));

static INLINE vec v_load_bf16(const uint16_t *p)
{
    vhalves h;
    __builtin_memcpy(&h, p, sizeof h);
    return (vec)(__builtin_convertvector(h, vwords) << 16);
}

static INLINE void v_store_bf16(uint16_t *p, vec a)
{
    const vwords u = (vwords)a, rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16, quiet = u >> 16 | 0x40;
    const vhalves h = __builtin_convertvector((vwords)v_select(v_ne(a, a), (vec)quiet, (vec)rounded), vhalves);
    __builtin_memcpy(p, &h, sizeof h);
}

static INLINE void gather_halves(const int kind, const uint16_t *x, ptrdiff_t row, ptrdiff_t col, int rows, int cols, REAL *to)
{
    for (int i = 0; i < rows; ++i, x += row, to += cols)
        for (int c = 0; c < cols; c += LANES) {
            const int n = least(cols - c, LANES);
            const uint16_t *from = x + c;
            uint16_t t[LANES] = {0};
            if (col != 1 || n < LANES) {
                for (int k = 0; k < n; ++k) t[k] = x[(c + k) * col];
                from = t;
            }
            const vec wide = kind == QKVC_FLOAT16 ? v_load_f16(from) : v_load_bf16(from);
            if (n == LANES)
                v_store(to + c, wide);
            else
                v_store_n(to + c, wide, n);
        }
}

/* int8, whose row is followed by the float that 1 stands for.  The next block's rows are fetched meanwhile. */
static void gather_bytes(const int8_t *x, ptrdiff_t row, int rows, int cols, REAL *to)
{
    for (int i = 0; i < rows; ++i, x += row, to += cols) {
        float one;
        __builtin_memcpy(&one, x + cols, sizeof one);
        const vec unit = v_set1(one);
        int c;
        for (c = 0; c < cols; c += 64) __builtin_prefetch(x + QKVC_BLOCK * row + c, 0, 1);
        for (c = 0; c + LANES <= cols; c += LANES) v_store(to + c, v_mul(v_load_bytes(x + c), unit));
        if (c < cols) {
            int8_t t[LANES] = {0};
            __builtin_memcpy(t, x + c, (size_t)(cols - c));
            v_store_n(to + c, v_mul(v_load_bytes(t), unit), cols - c);
        }
    }
}

static INLINE void shorten_to(const int kind, const REAL *x, int n, uint16_t *to, ptrdiff_t col)
{
    for (int c = 0; c < n; c += LANES) {
        const int live = least(n - c, LANES);
        const vec a = live == LANES ? v_load(x + c) : v_load_n(x + c, live);
        uint16_t t[LANES], *p = col == 1 && live == LANES ? to + c : t;
        if (kind == QKVC_FLOAT16)
            v_store_f16(p, a);
        else
            v_store_bf16(p, a);
        if (p == t)
            for (int k = 0; k < live; ++k) to[(c + k) * col] = t[k];
    }
}

static void shorten(const void *x, int n, int kind, void *to, ptrdiff_t col)
{
    if (kind == QKVC_FLOAT16)
        shorten_to(QKVC_FLOAT16, x, n, to, col);
    else
        shorten_to(QKVC_BFLOAT16, x, n, to, col);
}

#else
#define SHORTEN NULL
#endif

static void gather(const void *x, ptrdiff_t row, ptrdiff_t col, int kind, int rows, int cols, void *to)
{
    if (kind == QKVC_REAL) gather_reals(x, row, col, rows, cols, to);
#if REAL_SIZE == 4
    if (kind == QKVC_FLOAT16) gather_halves(QKVC_FLOAT16, x, row, col, rows, cols, to);
    if (kind == QKVC_BFLOAT16) gather_halves(QKVC_BFLOAT16, x, row, col, rows, cols, to);
    if (kind == QKVC_INT8) gather_bytes(x, row, rows, cols, to);
#endif
}
