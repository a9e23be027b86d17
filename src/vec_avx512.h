/* AVX-512 (F, BW, DQ, VL): 16 floats or 8 doubles, 32 registers.
 * Tile: 4 rows x 3 vectors = 12 chains + 12 sums of chains + 3 panel vectors + 1 broadcast = 28 of 32 registers; 12 FMAs, which take 12
 * cycles, for 7 loads a step. */
#include <immintrin.h>

#if REAL_SIZE == 4
typedef __m512 vec;
typedef __mmask16 vmask;
#define V(op) _mm512_##op##_ps
#define V_MASK(op) _mm512_##op##_ps_mask
#define V_INT(op) _mm512_##op##_epi32
#else
typedef __m512d vec;
typedef __mmask8 vmask;
#define V(op) _mm512_##op##_pd
#define V_MASK(op) _mm512_##op##_pd_mask
#define V_INT(op) _mm512_##op##_epi64
#endif

#define LANES (64 / REAL_SIZE)
#define VREGS 32
#define VECS 3
#define ROWS 4
#define ROWS_1 8 /* with one vector; 8 chains are twice what the FMA's latency of 4 needs */

static INLINE vec v_set1(REAL a) { return V(set1)(a); }
static INLINE vec v_load(const REAL *p) { return V(loadu)(p); }
static INLINE void v_store(REAL *p, vec a) { V(storeu)(p, a); }
static INLINE vec v_load_n(const REAL *p, int n) { return V(maskz_loadu)((vmask)((1u << n) - 1), p); }
static INLINE void v_store_n(REAL *p, vec a, int n) { V(mask_storeu)(p, (vmask)((1u << n) - 1), a); }
static INLINE vec v_load_bytes(const int8_t *p)
{
#if REAL_SIZE == 4
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#else
    return _mm512_cvtepi32_pd(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#endif
}

#if REAL_SIZE == 4
static INLINE vec v_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
static INLINE void v_store_f16(uint16_t *p, vec a)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#endif

static INLINE vec v_add(vec a, vec b) { return V(add)(a, b); }
static INLINE vec v_sub(vec a, vec b) { return V(sub)(a, b); }
static INLINE vec v_mul(vec a, vec b) { return V(mul)(a, b); }
static INLINE vec v_div(vec a, vec b) { return V(div)(a, b); }
static INLINE vec v_sqrt(vec a) { return V(sqrt)(a); }
static INLINE vec v_fma(vec a, vec b, vec c) { return V(fmadd)(a, b, c); }
#define v_fma_once v_fma
static INLINE vec v_max(vec a, vec b) { return V(max)(a, b); } /* b if either is NaN */

static INLINE vmask v_lt(vec a, vec b) { return V_MASK(cmp)(a, b, _CMP_LT_OQ); }
static INLINE vmask v_le(vec a, vec b) { return V_MASK(cmp)(a, b, _CMP_LE_OQ); }
static INLINE vmask v_eq(vec a, vec b) { return V_MASK(cmp)(a, b, _CMP_EQ_OQ); }
static INLINE vmask v_ne(vec a, vec b) { return V_MASK(cmp)(a, b, _CMP_NEQ_UQ); }
static INLINE vec v_select(vmask m, vec a, vec b) /* as integers: v_scale folds into a masked add, softmax 11.3 -> 11.1 cycles a vector */
{
    return (vec)V_INT(mask_blend)(m, (__m512i)b, (__m512i)a);
}
static INLINE REAL v_sum(vec a) { return V(reduce_add)(a); }
static INLINE int v_any(vmask m) { return m != 0; }

/* p * 2^n, where u = n + ROUNDER has n in its low bits */
static INLINE vec v_scale(vec p, vec u) { return (vec)V_INT(add)((__m512i)p, V_INT(slli)((__m512i)u, MANTISSA)); }

#define UNPACK(half, a, b) (vec)_mm512_unpack##half##_pd((__m512d)(a), (__m512d)(b))
#define QUARTERS(a, b, which) (vec)_mm512_shuffle_f32x4((__m512)(a), (__m512)(b), which)

static INLINE void v_transpose(vec t[LANES])
{
    enum { STEP = LANES / 4 };
    vec s[LANES];
#if REAL_SIZE == 4
    for (int i = 0; i < 16; i += 2) { /* pairs of floats */
        s[i] = _mm512_unpacklo_ps(t[i], t[i + 1]);
        s[i + 1] = _mm512_unpackhi_ps(t[i], t[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) { /* quads: t[i + c] holds column c of every 4x4 block of rows i .. i+3 */
        t[i] = UNPACK(lo, s[i], s[i + 2]);
        t[i + 1] = UNPACK(hi, s[i], s[i + 2]);
        t[i + 2] = UNPACK(lo, s[i + 1], s[i + 3]);
        t[i + 3] = UNPACK(hi, s[i + 1], s[i + 3]);
    }
#else
    for (int i = 0; i < 8; i += 2) { /* pairs of doubles */
        vec first = UNPACK(lo, t[i], t[i + 1]);
        t[i + 1] = UNPACK(hi, t[i], t[i + 1]);
        t[i] = first;
    }
#endif
    for (int c = 0; c < STEP; ++c) { /* 4x4 transpose of the 128-bit quarters */
        vec a = QUARTERS(t[c], t[c + STEP], 0x88), b = QUARTERS(t[c], t[c + STEP], 0xdd);
        vec d = QUARTERS(t[c + 2 * STEP], t[c + 3 * STEP], 0x88), e = QUARTERS(t[c + 2 * STEP], t[c + 3 * STEP], 0xdd);
        s[c] = QUARTERS(a, d, 0x88);
        s[c + STEP] = QUARTERS(b, e, 0x88);
        s[c + 2 * STEP] = QUARTERS(a, d, 0xdd);
        s[c + 3 * STEP] = QUARTERS(b, e, 0xdd);
    }
    for (int i = 0; i < LANES; ++i) t[i] = s[i];
}

#define V_PRODUCT(a, b) _mm512_mul_epu32((__m512i)(a), (__m512i)(b)) /* of the lower halves of 64 bits */

static INLINE vec v_load_halves(const REAL *a, const REAL *b)
{
    return (vec)_mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps((const float *)a)), _mm256_loadu_ps((const float *)b), 1);
}
static INLINE void v_join(uint16_t *to, const uint16_t *a, const uint16_t *b) /* stored at once: pieces are not forwarded to a load */
{
    _mm256_storeu_si256((__m256i *)to, _mm256_loadu2_m128i((const __m128i *)b, (const __m128i *)a));
}
static INLINE void v_zip(vec *a, vec *b) { const vec x = *a; *a = V(unpacklo)(x, *b), *b = V(unpackhi)(x, *b); }
static INLINE void v_trade(vec *a, vec *b) { const vec x = *a; *a = QUARTERS(x, *b, 0x88), *b = QUARTERS(x, *b, 0xdd); }
