/* Plain C, float: 4 lanes in a GCC/Clang vector, which every target has or imitates (SSE2 on x86-64, 16 registers).
 * Without a fused multiply-add v_fma rounds twice: the one place where this set's bits differ from the others'.
 * Tile: 4 rows x 2 vectors = 8 chains + 2 panel vectors + 1 broadcast + 1 product = 12 of 16 registers. */
#include <string.h>

#define LANES 4
#define VREGS 16
#define VECS 2
#define ROWS 4
#define ROWS_1 8

typedef float vec __attribute__((vector_size(16)));
typedef double vwide __attribute__((vector_size(32)));
typedef int32_t vmask __attribute__((vector_size(16)));
typedef uint32_t vbits __attribute__((vector_size(16)));

static INLINE vec v_set1(float a) { return (vec){a, a, a, a}; }
static INLINE vec v_load(const float *p)
{
    vec a;
    memcpy(&a, p, sizeof a);
    return a;
}
static INLINE void v_store(float *p, vec a) { memcpy(p, &a, sizeof a); }
static INLINE vec v_load_n(const float *p, int n)
{
    float t[LANES] = {0};
    for (int i = 0; i < n; ++i) t[i] = p[i];
    return v_load(t);
}
static INLINE void v_store_n(float *p, vec a, int n)
{
    for (int i = 0; i < n; ++i) p[i] = a[i];
}
static INLINE vec v_load_bytes(const uint8_t *p) { return (vec){p[0], p[1], p[2], p[3]}; }

static INLINE vec v_add(vec a, vec b) { return a + b; }
static INLINE vec v_sub(vec a, vec b) { return a - b; }
static INLINE vec v_mul(vec a, vec b) { return a * b; }
static INLINE vec v_div(vec a, vec b) { return a / b; }
static INLINE vec v_fma(vec a, vec b, vec c) { return a * b + c; }
static INLINE vec v_fma_once(vec a, vec b, vec c) /* rounded once, nearly: for exp2, which is 1.23 ULP off without it and 0.95 with */
{
    vwide sum = __builtin_convertvector(a, vwide) * __builtin_convertvector(b, vwide) + __builtin_convertvector(c, vwide);
    return __builtin_convertvector(sum, vec);
}

static INLINE vmask v_lt(vec a, vec b) { return a < b; }
static INLINE vmask v_le(vec a, vec b) { return a <= b; }
static INLINE vmask v_eq(vec a, vec b) { return a == b; }
static INLINE vmask v_ne(vec a, vec b) { return a != b; }
static INLINE vec v_select(vmask m, vec a, vec b) { return (vec)(((vmask)a & m) | ((vmask)b & ~m)); }
static INLINE vec v_max(vec a, vec b) { return v_select(a > b, a, b); } /* b if either is NaN */
static INLINE float v_sum(vec a) { return (a[0] + a[2]) + (a[1] + a[3]); }
static INLINE int v_any(vmask m) { return (m[0] | m[1] | m[2] | m[3]) != 0; }

/* p * 2^n, where u = n + 1.5 * 2^23 has n in its low bits */
static INLINE vec v_scale(vec p, vec u) { return (vec)((vbits)p + ((vbits)u << 23)); }

static INLINE void v_transpose(vec t[LANES])
{
    vec s[LANES];
    for (int i = 0; i < LANES; ++i) s[i] = (vec){t[0][i], t[1][i], t[2][i], t[3][i]};
    for (int i = 0; i < LANES; ++i) t[i] = s[i];
}
