/* AVX2 + FMA: 8 floats or 4 doubles, 16 registers.
 * Tile: 4 rows x 3 vectors = 12 chains + 3 panel vectors + 1 broadcast = 16 of 16 registers, the sums of chains wait on the stack;
 * 12 FMAs, which take 6 cycles, for 7 loads a step. */
#include <immintrin.h>

#if REAL_SIZE == 4
typedef __m256 vec;
#define V(op) _mm256_##op##_ps
#define V_INT(op) _mm256_##op##_epi32
#else
typedef __m256d vec;
#define V(op) _mm256_##op##_pd
#define V_INT(op) _mm256_##op##_epi64
#endif
typedef vec vmask;

#define LANES (32 / REAL_SIZE)
#define VREGS 16
#define VECS 3
#define ROWS 4
#define ROWS_1 8 /* with one vector: 8 chains hide the FMA's latency of 4 at two a cycle */

static INLINE vec v_set1(REAL a) { return V(set1)(a); }
static INLINE vec v_load(const REAL *p) { return V(loadu)(p); }
static INLINE void v_store(REAL *p, vec a) { V(storeu)(p, a); }
static INLINE vec v_load_n(const REAL *p, int n)
{
#if REAL_SIZE == 4
    return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)));
#else
    return _mm256_maskload_pd(p, _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3)));
#endif
}
static INLINE void v_store_n(REAL *p, vec a, int n) /* not vmaskmov: 18 to 42 micro-operations on Zen */
{
    REAL t[LANES];
    v_store(t, a);
    for (int i = 0; i < n; ++i) p[i] = t[i];
}
static INLINE vec v_load_bytes(const int8_t *p)
{
#if REAL_SIZE == 4
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
    return _mm256_cvtepi32_pd(_mm_cvtepi8_epi32(_mm_loadu_si32(p)));
#endif
}

#if REAL_SIZE == 4
static INLINE vec v_load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
static INLINE void v_store_f16(uint16_t *p, vec a) { _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT)); }
#endif

static INLINE vec v_add(vec a, vec b) { return V(add)(a, b); }
static INLINE vec v_sub(vec a, vec b) { return V(sub)(a, b); }
static INLINE vec v_mul(vec a, vec b) { return V(mul)(a, b); }
static INLINE vec v_div(vec a, vec b) { return V(div)(a, b); }
static INLINE vec v_sqrt(vec a) { return V(sqrt)(a); }
static INLINE vec v_fma(vec a, vec b, vec c) { return V(fmadd)(a, b, c); }
#define v_fma_once v_fma
static INLINE vec v_max(vec a, vec b) { return V(max)(a, b); } /* b if either is NaN */

static INLINE vmask v_lt(vec a, vec b) { return V(cmp)(a, b, _CMP_LT_OQ); }
static INLINE vmask v_le(vec a, vec b) { return V(cmp)(a, b, _CMP_LE_OQ); }
static INLINE vmask v_eq(vec a, vec b) { return V(cmp)(a, b, _CMP_EQ_OQ); }
static INLINE vmask v_ne(vec a, vec b) { return V(cmp)(a, b, _CMP_NEQ_UQ); }
static INLINE vec v_select(vmask m, vec a, vec b) { return V(blendv)(b, a, m); }
static INLINE REAL v_sum(vec a)
{
#if REAL_SIZE == 4
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    return (s[0] + s[2]) + (s[1] + s[3]);
#else
    __m128d s = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return s[0] + s[1];
#endif
}
static INLINE int v_any(vmask m) { return V(movemask)(m) != 0; }

/* p * 2^n, where u = n + ROUNDER has n in its low bits */
static INLINE vec v_scale(vec p, vec u) { return (vec)V_INT(add)((__m256i)p, V_INT(slli)((__m256i)u, MANTISSA)); }

static INLINE void v_transpose(vec t[LANES])
{
    enum { HALF = LANES / 2 };
    vec s[LANES];
    for (int i = 0; i < LANES; i += 2) {
        s[i] = V(unpacklo)(t[i], t[i + 1]);
        s[i + 1] = V(unpackhi)(t[i], t[i + 1]);
    }
#if REAL_SIZE == 4
    for (int i = 0; i < 8; i += 4) {
        t[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
        t[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xee);
        t[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
        t[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xee);
    }
    for (int i = 0; i < 8; ++i) s[i] = t[i];
#endif
    for (int i = 0; i < HALF; ++i) { /* 2x2 transpose of the 128-bit halves */
        t[i] = (vec)_mm256_permute2f128_ps((__m256)s[i], (__m256)s[i + HALF], 0x20);
        t[i + HALF] = (vec)_mm256_permute2f128_ps((__m256)s[i], (__m256)s[i + HALF], 0x31);
    }
}

#define V_PRODUCT(a, b) _mm256_mul_epu32((__m256i)(a), (__m256i)(b)) /* of the lower halves of 64 bits */

static INLINE vec v_load_halves(const REAL *a, const REAL *b) { return (vec)_mm256_loadu2_m128((const float *)b, (const float *)a); }
static INLINE void v_join(uint16_t *to, const uint16_t *a, const uint16_t *b) /* stored at once: pieces are not forwarded to a load */
{
    _mm_storeu_si128((__m128i *)to, _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i *)a), _mm_loadl_epi64((const __m128i *)b)));
}
static INLINE void v_zip(vec *a, vec *b) { const vec x = *a; *a = V(unpacklo)(x, *b), *b = V(unpackhi)(x, *b); }
#define v_trade v_zip /* wanted by nobody: half a vector is a quarter of a square */
