/* AVX-512 (F, BW, DQ, VL), float: 16 lanes, 32 registers.
 * Tile: 4 rows x 3 vectors = 12 chains + 12 sums of chains + 3 panel vectors + 1 broadcast = 28 of 32 registers; 12 FMAs, which take 12
 * cycles, for 7 loads a step. */
#include <immintrin.h>

#define LANES 16
#define VREGS 32
#define VECS 3
#define ROWS 4
#define ROWS_1 8 /* with one vector; 8 chains are twice what the FMA's latency of 4 needs */

typedef __m512 vec;
typedef __mmask16 vmask;

static INLINE vec v_set1(float a) { return _mm512_set1_ps(a); }
static INLINE vec v_load(const float *p) { return _mm512_loadu_ps(p); }
static INLINE void v_store(float *p, vec a) { _mm512_storeu_ps(p, a); }
static INLINE vec v_load_n(const float *p, int n) { return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }
static INLINE void v_store_n(float *p, vec a, int n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), a); }
static INLINE vec v_load_bytes(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

static INLINE vec v_add(vec a, vec b) { return _mm512_add_ps(a, b); }
static INLINE vec v_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
static INLINE vec v_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
static INLINE vec v_div(vec a, vec b) { return _mm512_div_ps(a, b); }
static INLINE vec v_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
#define v_fma_once v_fma
static INLINE vec v_max(vec a, vec b) { return _mm512_max_ps(a, b); } /* b if either is NaN */

static INLINE vmask v_lt(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
static INLINE vmask v_le(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
static INLINE vmask v_eq(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
static INLINE vmask v_ne(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ); }
static INLINE vec v_select(vmask m, vec a, vec b) /* as integers: v_scale folds into a masked add, softmax 11.3 -> 11.1 cycles a vector */
{
    return _mm512_castsi512_ps(_mm512_mask_blend_epi32(m, _mm512_castps_si512(b), _mm512_castps_si512(a)));
}
static INLINE float v_sum(vec a) { return _mm512_reduce_add_ps(a); }
static INLINE int v_any(vmask m) { return m != 0; }

/* p * 2^n, where u = n + 1.5 * 2^23 has n in its low bits */
static INLINE vec v_scale(vec p, vec u)
{
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(u), 23)));
}

static INLINE void v_transpose(vec t[LANES])
{
    vec s[LANES];
    for (int i = 0; i < 16; i += 2) { /* pairs of floats */
        s[i] = _mm512_unpacklo_ps(t[i], t[i + 1]);
        s[i + 1] = _mm512_unpackhi_ps(t[i], t[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) { /* quads: t[i + c] holds column c of every 4x4 block of rows i .. i+3 */
        t[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(s[i]), _mm512_castps_pd(s[i + 2])));
        t[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(s[i]), _mm512_castps_pd(s[i + 2])));
        t[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(s[i + 1]), _mm512_castps_pd(s[i + 3])));
        t[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(s[i + 1]), _mm512_castps_pd(s[i + 3])));
    }
    for (int c = 0; c < 4; ++c) { /* 4x4 transpose of the 128-bit quarters */
        vec a = _mm512_shuffle_f32x4(t[c], t[c + 4], 0x88), b = _mm512_shuffle_f32x4(t[c], t[c + 4], 0xdd);
        vec d = _mm512_shuffle_f32x4(t[c + 8], t[c + 12], 0x88), e = _mm512_shuffle_f32x4(t[c + 8], t[c + 12], 0xdd);
        s[c] = _mm512_shuffle_f32x4(a, d, 0x88);
        s[c + 4] = _mm512_shuffle_f32x4(b, e, 0x88);
        s[c + 8] = _mm512_shuffle_f32x4(a, d, 0xdd);
        s[c + 12] = _mm512_shuffle_f32x4(b, e, 0xdd);
    }
    for (int i = 0; i < 16; ++i) t[i] = s[i];
}
