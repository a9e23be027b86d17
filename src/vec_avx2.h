/* AVX2 + FMA, float: 8 lanes, 16 registers.
 * Tile: 4 rows x 3 vectors = 12 chains + 3 panel vectors + 1 broadcast = 16 of 16 registers, the sums of chains wait on the stack;
 * 12 FMAs, which take 6 cycles, for 7 loads a step. */
#include <immintrin.h>

#define LANES 8
#define VREGS 16
#define VECS 3
#define ROWS 4
#define ROWS_1 8 /* with one vector: 8 chains hide the FMA's latency of 4 at two a cycle */

typedef __m256 vec;
typedef __m256 vmask;

static INLINE __m256i v_first(int n) /* lanes below n */
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static INLINE vec v_set1(float a) { return _mm256_set1_ps(a); }
static INLINE vec v_load(const float *p) { return _mm256_loadu_ps(p); }
static INLINE void v_store(float *p, vec a) { _mm256_storeu_ps(p, a); }
static INLINE vec v_load_n(const float *p, int n) { return _mm256_maskload_ps(p, v_first(n)); }
static INLINE void v_store_n(float *p, vec a, int n) /* not vmaskmov: 18 to 42 micro-operations on Zen */
{
    float t[LANES];
    _mm256_storeu_ps(t, a);
    for (int i = 0; i < n; ++i) p[i] = t[i];
}
static INLINE vec v_load_bytes(const uint8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

static INLINE vec v_add(vec a, vec b) { return _mm256_add_ps(a, b); }
static INLINE vec v_sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
static INLINE vec v_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
static INLINE vec v_div(vec a, vec b) { return _mm256_div_ps(a, b); }
static INLINE vec v_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
#define v_fma_once v_fma
static INLINE vec v_max(vec a, vec b) { return _mm256_max_ps(a, b); } /* b if either is NaN */

static INLINE vmask v_lt(vec a, vec b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
static INLINE vmask v_le(vec a, vec b) { return _mm256_cmp_ps(a, b, _CMP_LE_OQ); }
static INLINE vmask v_eq(vec a, vec b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
static INLINE vmask v_ne(vec a, vec b) { return _mm256_cmp_ps(a, b, _CMP_NEQ_UQ); }
static INLINE vec v_select(vmask m, vec a, vec b) { return _mm256_blendv_ps(b, a, m); }
static INLINE float v_sum(vec a)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
static INLINE int v_any(vmask m) { return _mm256_movemask_ps(m) != 0; }

/* p * 2^n, where u = n + 1.5 * 2^23 has n in its low bits */
static INLINE vec v_scale(vec p, vec u)
{
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(u), 23)));
}

static INLINE void v_transpose(vec t[LANES])
{
    vec s[LANES];
    for (int i = 0; i < 8; i += 2) {
        s[i] = _mm256_unpacklo_ps(t[i], t[i + 1]);
        s[i + 1] = _mm256_unpackhi_ps(t[i], t[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        t[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
        t[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xee);
        t[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
        t[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        s[i] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x20);
        s[i + 4] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x31);
    }
    for (int i = 0; i < 8; ++i) t[i] = s[i];
}
