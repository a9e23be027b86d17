/* What AVX512_BF16 adds to AVX-512: pairs of bfloat16 in 32 bits, two products a lane and instruction.
 *
 * VDPBF16PS is two FMAs, the odd number of the pair first, denormals taken for 0 (tests/c/prototype_bf16.c).
 * Tile: 8 rows x 3 vectors = 24 chains + 3 panel vectors = 27 of 32 registers, the broadcast is an operand from memory. */

typedef uint32_t pair; /* the even one low */
typedef __m512bh vpairs;

#define PAIR_ROWS 8

static INLINE vpairs p_load(const pair *p) { return (vpairs)_mm512_loadu_si512(p); }
static INLINE void p_store(pair *p, vpairs a) { _mm512_storeu_si512(p, (__m512i)a); }
static INLINE vpairs p_set1(pair a) { return (vpairs)_mm512_set1_epi32((int)a); }
static INLINE vec p_dot(vec sum, vpairs a, vpairs b) { return _mm512_dpbf16_ps(sum, a, b); }

/* a without its even numbers where `even` says so, and without its odd ones where `odd` does */
static INLINE vpairs p_without(vpairs a, vmask even, vmask odd)
{
    const __m512i without = _mm512_mask_and_epi32((__m512i)a, even, (__m512i)a, _mm512_set1_epi32((int)0xffff0000));
    return (vpairs)_mm512_mask_and_epi32(without, odd, without, _mm512_set1_epi32(0xffff));
}

/* even, odd, even + 1, odd + 1, ...: the order that makes pairs */
static INLINE __m512i by_twos(int even, int odd)
{
    const __m512i steps = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_add_epi32(_mm512_mullo_epi32(steps, _mm512_set1_epi32(0x10001)), _mm512_set1_epi32(odd << 16 | even));
}

/* rounded to nearest even */
static INLINE vpairs p_round(vec even, vec odd)
{
    return (vpairs)_mm512_permutexvar_epi16(by_twos(0, 16), (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

/* rounded likewise: the lanes of low, then those of high */
static INLINE vpairs p_narrow(vec low, vec high) { return (vpairs)_mm512_cvtne2ps_pbh(high, low); }

/* Lane i of to[0], to[1] = (even[i], odd[i]) for i < n <= 2 * LANES, 0 behind; no odd ones: 0 */
static INLINE void p_join(const uint16_t *even, const uint16_t *odd, int n, vpairs to[2])
{
    const __mmask32 live = (__mmask32)((1ull << n) - 1);
    const __m512i a = _mm512_maskz_loadu_epi16(live, even), b = odd ? _mm512_maskz_loadu_epi16(live, odd) : _mm512_setzero_si512();
    to[0] = (vpairs)_mm512_permutex2var_epi16(a, by_twos(0, 32), b);
    to[1] = (vpairs)_mm512_permutex2var_epi16(a, by_twos(16, 48), b);
}

/* The same to memory, not a byte behind n */
static INLINE void p_zip(const uint16_t *even, const uint16_t *odd, int n, pair *to)
{
    vpairs t[2];
    p_join(even, odd, n, t);
    _mm512_mask_storeu_epi32(to, (__mmask16)((1ull << n) - 1), (__m512i)t[0]);
    _mm512_mask_storeu_epi32(to + LANES, (__mmask16)(((1ull << n) - 1) >> 16), (__m512i)t[1]);
}

/* Lane k of to[c] = pair c of rows[k], `at` bytes from its start, for c < n <= LANES / 2, 0 behind: a transpose that begins with loads */
static INLINE void p_columns(const char *const *rows, ptrdiff_t at, const int n, vec to[LANES / 2])
{
    const __mmask8 live = (__mmask8)((1u << n) - 1);
    vec s[8];
    UNROLL for (int i = 0; i < 8; ++i) {
        const char *a = rows[i / 4 * 8 + i % 4] + at, *b = rows[i / 4 * 8 + i % 4 + 4] + at;
        const __m256i low = n == 8 ? _mm256_loadu_si256((const void *)a) : _mm256_maskz_loadu_epi32(live, a);
        const __m256i high = n == 8 ? _mm256_loadu_si256((const void *)b) : _mm256_maskz_loadu_epi32(live, b);
        s[i] = (vec)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }
    UNROLL for (int i = 0; i < 8; i += 4) {
        const vec a = _mm512_unpacklo_ps(s[i], s[i + 1]), b = _mm512_unpackhi_ps(s[i], s[i + 1]);
        const vec c = _mm512_unpacklo_ps(s[i + 2], s[i + 3]), d = _mm512_unpackhi_ps(s[i + 2], s[i + 3]);
        s[i] = UNPACK(lo, a, c), s[i + 1] = UNPACK(hi, a, c), s[i + 2] = UNPACK(lo, b, d), s[i + 3] = UNPACK(hi, b, d);
    }
    UNROLL for (int c = 0; c < 4; ++c) to[c] = QUARTERS(s[c], s[c + 4], 0x88), to[c + 4] = QUARTERS(s[c], s[c + 4], 0xdd);
}

/* n + r = x with n the nearest integer, and p * 2^n: 0 for n = -inf whatever p is, which is what a masked score wants */
static INLINE vec v_nearest(vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static INLINE vec v_times_power(vec p, vec n) { return _mm512_scalef_ps(p, n); }
