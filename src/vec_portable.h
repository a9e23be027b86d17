/* Plain C: 4 floats or 2 doubles in a GCC/Clang vector, which every target has or imitates (SSE2 on x86-64, 16 registers).
 * Without a fused multiply-add v_fma rounds twice: the one place where this set's bits differ from the others'.
 * Tile: 4 rows x 2 vectors = 8 chains + 2 panel vectors + 1 broadcast + 1 product = 12 of 16 registers. */
#include <string.h>

#if REAL_SIZE == 4
#define EACH(x) {x(0), x(1), x(2), x(3)}
typedef int32_t vmask __attribute__((vector_size(16)));
typedef uint32_t vbits __attribute__((vector_size(16)));
#else
#define EACH(x) {x(0), x(1)}
typedef int64_t vmask __attribute__((vector_size(16)));
typedef uint64_t vbits __attribute__((vector_size(16)));
#endif
typedef REAL vec __attribute__((vector_size(16)));

#define LANES (16 / REAL_SIZE)
#define VREGS 16
#define VECS 2
#define ROWS 4
#define ROWS_1 8

static INLINE vec v_load(const REAL *p)
{
    vec a;
    memcpy(&a, p, sizeof a);
    return a;
}
static INLINE void v_store(REAL *p, vec a) { memcpy(p, &a, sizeof a); }
#define SAME(i) a
static INLINE vec v_set1(REAL a) { return (vec)EACH(SAME); }
static INLINE vec v_load_n(const REAL *p, int n)
{
    REAL t[LANES] = {0};
    for (int i = 0; i < n; ++i) t[i] = p[i];
    return v_load(t);
}
static INLINE void v_store_n(REAL *p, vec a, int n)
{
    for (int i = 0; i < n; ++i) p[i] = a[i];
}
#define BYTE(i) p[i]
static INLINE vec v_load_bytes(const int8_t *p) { return (vec)EACH(BYTE); }

#if REAL_SIZE == 4
#include "float16.h"
#define WIDE(i) widen_f16(p[i])
static INLINE vec v_load_f16(const uint16_t *p) { return (vec)EACH(WIDE); }
static INLINE void v_store_f16(uint16_t *p, vec a)
{
    for (int i = 0; i < LANES; ++i) p[i] = round_f16(a[i]);
}
#endif

static INLINE vec v_add(vec a, vec b) { return a + b; }
static INLINE vec v_sub(vec a, vec b) { return a - b; }
static INLINE vec v_mul(vec a, vec b) { return a * b; }
static INLINE vec v_div(vec a, vec b) { return a / b; }
static INLINE vec v_sqrt(vec a)
{
    for (int i = 0; i < LANES; ++i) a[i] = (REAL)__builtin_sqrt(a[i]);
    return a;
}
static INLINE vec v_fma(vec a, vec b, vec c) { return a * b + c; }

/* rounded once, nearly: for exp2, which in float32 is 1.23 ULP off without it and 0.95 with */
#if REAL_SIZE == 4
typedef double vwide __attribute__((vector_size(32)));
static INLINE vec v_fma_once(vec a, vec b, vec c)
{
    vwide sum = __builtin_convertvector(a, vwide) * __builtin_convertvector(b, vwide) + __builtin_convertvector(c, vwide);
    return __builtin_convertvector(sum, vec);
}
#else
static INLINE vec v_upper(vec a) { return a * 0x1.0000002p27 - (a * 0x1.0000002p27 - a); } /* 26 bits of 53 */
static INLINE vec v_fma_once(vec a, vec b, vec c) /* product and sum with their errors (Dekker 1971, Knuth 1969) */
{
    vec p = a * b, ah = v_upper(a), al = a - ah, bh = v_upper(b), bl = b - bh;
    vec s = p + c, back = s - p;
    return s + (((p - (s - back)) + (c - back)) + (al * bl - (((p - ah * bh) - al * bh) - ah * bl)));
}
#endif

static INLINE vmask v_lt(vec a, vec b) { return a < b; }
static INLINE vmask v_le(vec a, vec b) { return a <= b; }
static INLINE vmask v_eq(vec a, vec b) { return a == b; }
static INLINE vmask v_ne(vec a, vec b) { return a != b; }
static INLINE vec v_select(vmask m, vec a, vec b) { return (vec)(((vmask)a & m) | ((vmask)b & ~m)); }
static INLINE vec v_max(vec a, vec b) { return v_select(a > b, a, b); } /* b if either is NaN */
#if REAL_SIZE == 4
static INLINE REAL v_sum(vec a) { return (a[0] + a[2]) + (a[1] + a[3]); }
#else
static INLINE REAL v_sum(vec a) { return a[0] + a[1]; }
#endif
static INLINE int v_any(vmask m)
{
    vmask none = {0};
    return memcmp(&m, &none, sizeof m) != 0;
}

/* p * 2^n, where u = n + ROUNDER has n in its low bits */
static INLINE vec v_scale(vec p, vec u) { return (vec)((vbits)p + ((vbits)u << MANTISSA)); }

static INLINE void v_transpose(vec t[LANES])
{
    vec s[LANES];
#define COLUMN(k) t[k][i]
    for (int i = 0; i < LANES; ++i) s[i] = (vec)EACH(COLUMN);
    for (int i = 0; i < LANES; ++i) t[i] = s[i];
}

#define HALVES(i) (i < LANES / 2 ? a : b)[i % (LANES / 2)]
static INLINE vec v_load_halves(const REAL *a, const REAL *b) { return (vec)EACH(HALVES); }
static INLINE void v_join(uint16_t *to, const uint16_t *a, const uint16_t *b)
{
    for (int i = 0; i < LANES / 2; ++i) to[i] = a[i], to[i + LANES / 2] = b[i];
}
#define EVEN(i) (*(i % 2 ? b : a))[i & ~1]
#define ODD(i) (*(i % 2 ? b : a))[i | 1]
static INLINE void v_zip(vec *a, vec *b) { const vec x = EACH(EVEN), y = EACH(ODD); *a = x, *b = y; }
#define v_trade v_zip /* wanted by nobody: half a vector is a quarter of a square */
