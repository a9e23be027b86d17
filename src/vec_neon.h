/* NEON (the base of AArch64): 4 floats or 2 doubles, 32 registers.
 * Tile: 4 rows x 3 vectors = 12 chains + 12 sums of chains + 3 panel vectors + 1 broadcast = 28 of 32 registers. */
#include <arm_neon.h>

#if REAL_SIZE == 4
typedef float32x4_t vec;
typedef uint32x4_t vmask;
typedef int32x4_t vbits;
#define V(op) op##_f32
#define V_INT(op) op##_s32
#else
typedef float64x2_t vec;
typedef uint64x2_t vmask;
typedef int64x2_t vbits;
#define V(op) op##_f64
#define V_INT(op) op##_s64
#endif

#define LANES (16 / REAL_SIZE)
#define VREGS 32
#define VECS 3
#define ROWS 4
#define ROWS_1 8 /* with one vector: 8 chains hide a latency of 4 at two FMAs a cycle */

static INLINE vec v_set1(REAL a) { return V(vdupq_n)(a); }
static INLINE vec v_load(const REAL *p) { return V(vld1q)(p); }
static INLINE void v_store(REAL *p, vec a) { V(vst1q)(p, a); }
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
static INLINE vec v_load_bytes(const int8_t *p)
{
    REAL t[LANES];
    for (int i = 0; i < LANES; ++i) t[i] = p[i];
    return v_load(t);
}

#if REAL_SIZE == 4
static INLINE vec v_load_f16(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
static INLINE void v_store_f16(uint16_t *p, vec a) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a))); }
#endif

static INLINE vec v_add(vec a, vec b) { return V(vaddq)(a, b); }
static INLINE vec v_sub(vec a, vec b) { return V(vsubq)(a, b); }
static INLINE vec v_mul(vec a, vec b) { return V(vmulq)(a, b); }
static INLINE vec v_div(vec a, vec b) { return V(vdivq)(a, b); }
static INLINE vec v_sqrt(vec a) { return V(vsqrtq)(a); }
static INLINE vec v_fma(vec a, vec b, vec c) { return V(vfmaq)(c, a, b); }
#define v_fma_once v_fma

static INLINE vmask v_lt(vec a, vec b) { return V(vcltq)(a, b); }
static INLINE vmask v_le(vec a, vec b) { return V(vcleq)(a, b); }
static INLINE vmask v_eq(vec a, vec b) { return V(vceqq)(a, b); }
static INLINE vmask v_ne(vec a, vec b) { return ~V(vceqq)(a, b); }
static INLINE vec v_select(vmask m, vec a, vec b) { return V(vbslq)(m, a, b); }
static INLINE vec v_max(vec a, vec b) { return v_select(v_lt(b, a), a, b); } /* b if either is NaN, where FMAX gives NaN */
#if REAL_SIZE == 4
static INLINE REAL v_sum(vec a) { return (a[0] + a[2]) + (a[1] + a[3]); }
#else
static INLINE REAL v_sum(vec a) { return a[0] + a[1]; }
#endif
static INLINE int v_any(vmask m) { return vmaxvq_u32((uint32x4_t)m) != 0; }

/* p * 2^n, where u = n + ROUNDER has n in its low bits */
static INLINE vec v_scale(vec p, vec u) { return (vec)V_INT(vaddq)((vbits)p, V_INT(vshlq)((vbits)u, V_INT(vdupq_n)(MANTISSA))); }

#define PAIRS(which, a, b) (vec) vtrn##which##q_f64((float64x2_t)(a), (float64x2_t)(b))

static INLINE void v_transpose(vec t[LANES])
{
    vec s[LANES];
#if REAL_SIZE == 4
    for (int i = 0; i < 4; i += 2) {
        s[i] = vtrn1q_f32(t[i], t[i + 1]);
        s[i + 1] = vtrn2q_f32(t[i], t[i + 1]);
    }
    for (int i = 0; i < 4; ++i) t[i] = s[i];
#endif
    for (int i = 0; i < LANES / 2; ++i) {
        s[i] = PAIRS(1, t[i], t[i + LANES / 2]);
        s[i + LANES / 2] = PAIRS(2, t[i], t[i + LANES / 2]);
    }
    for (int i = 0; i < LANES; ++i) t[i] = s[i];
}

#define V_PRODUCT(a, b) vmull_u32(vmovn_u64(a), vmovn_u64(b)) /* of the lower halves of 64 bits */

static INLINE vec v_load_halves(const REAL *a, const REAL *b) { return V(vcombine)(V(vld1)(a), V(vld1)(b)); }
static INLINE void v_join(uint16_t *to, const uint16_t *a, const uint16_t *b)
{
    for (int i = 0; i < LANES / 2; ++i) to[i] = a[i], to[i + LANES / 2] = b[i];
}
static INLINE void v_zip(vec *a, vec *b) { const vec x = *a; *a = V(vtrn1q)(x, *b), *b = V(vtrn2q)(x, *b); }
#define v_trade v_zip /* wanted by nobody: half a vector is a quarter of a square */
