/* What AVX512_VNNI adds to AVX-512: four bytes in 32 bits, four products a lane and instruction, summed exactly. */

/* LANES integers, or four bytes in the place of each.  Not __m512i, which gcc 12 copies before and after every product. */
typedef int32_t vints __attribute__((vector_size(64)));

static INLINE vints b_set1(int32_t a) { return (vints)_mm512_set1_epi32(a); }
static INLINE vints b_load(const void *p) { return (vints)_mm512_loadu_si512(p); }
static INLINE vints b_flip(vints a) { return a ^ b_set1((int32_t)0x80808080); } /* -128 .. 127 as 0 .. 255 */
static INLINE vec b_floats(vints a) { return _mm512_cvtepi32_ps((__m512i)a); }
static INLINE vints b_nearest(vec a) { return (vints)_mm512_cvtps_epi32(a); }
static INLINE vints b_dot(vints sum, vints unsigned_bytes, vints signed_bytes)
{
    return (vints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)unsigned_bytes, (__m512i)signed_bytes);
}

/* The lowest byte of each, and the one above it */
static INLINE void b_split(vints a, void *low, void *high)
{
    _mm_storeu_si128(low, _mm512_cvtepi32_epi8((__m512i)a));
    _mm_storeu_si128(high, _mm512_cvtepi32_epi8((__m512i)(a >> 8)));
}

/* to[c] lane k = four bytes of x[k] from d + 4 c on: a square of 64 columns */
static INLINE void b_square(const char *const *x, ptrdiff_t d, vints to[LANES])
{
    vec t[LANES];
    UNROLL for (int k = 0; k < LANES; ++k) t[k] = (vec)b_load(x[k] + d);
    v_transpose(t);
    UNROLL for (int c = 0; c < LANES; ++c) to[c] = (vints)t[c];
}

static INLINE __m128i b_sixteen(const char *x, int n) { return _mm_maskz_loadu_epi8((__mmask16)((1u << n) - 1), x); }

/* The same of n <= 16 columns */
static INLINE void b_quarter(const char *const *x, ptrdiff_t d, int n, vints to[4])
{
    vec t[4];
    UNROLL for (int k = 0; k < 4; ++k) {
        __m512i a = _mm512_castsi128_si512(b_sixteen(x[k] + d, n));
        a = _mm512_inserti32x4(a, b_sixteen(x[k + 4] + d, n), 1);
        a = _mm512_inserti32x4(a, b_sixteen(x[k + 8] + d, n), 2);
        t[k] = (vec)_mm512_inserti32x4(a, b_sixteen(x[k + 12] + d, n), 3);
    }
    const vec a = _mm512_unpacklo_ps(t[0], t[1]), b = _mm512_unpackhi_ps(t[0], t[1]);
    const vec c = _mm512_unpacklo_ps(t[2], t[3]), e = _mm512_unpackhi_ps(t[2], t[3]);
    to[0] = (vints)UNPACK(lo, a, c), to[1] = (vints)UNPACK(hi, a, c);
    to[2] = (vints)UNPACK(lo, b, e), to[3] = (vints)UNPACK(hi, b, e);
}

/* Four rows joined: of 64 columns, to[i] has those that 4 i, 4 i + 16, .. begin, four each */
static INLINE void b_join(const char *a, const char *b, const char *c, const char *d, vints to[4])
{
    const __m512i A = _mm512_loadu_si512(a), B = _mm512_loadu_si512(b), C = _mm512_loadu_si512(c), D = _mm512_loadu_si512(d);
    const __m512i ab = _mm512_unpacklo_epi8(A, B), AB = _mm512_unpackhi_epi8(A, B);
    const __m512i cd = _mm512_unpacklo_epi8(C, D), CD = _mm512_unpackhi_epi8(C, D);
    to[0] = (vints)_mm512_unpacklo_epi16(ab, cd), to[1] = (vints)_mm512_unpackhi_epi16(ab, cd);
    to[2] = (vints)_mm512_unpacklo_epi16(AB, CD), to[3] = (vints)_mm512_unpackhi_epi16(AB, CD);
}

/* ... and that order undone */
static INLINE void b_unjoin(vec t[4])
{
    const vec a = QUARTERS(t[0], t[1], 0x88), b = QUARTERS(t[0], t[1], 0xdd);
    const vec c = QUARTERS(t[2], t[3], 0x88), d = QUARTERS(t[2], t[3], 0xdd);
    t[0] = QUARTERS(a, c, 0x88), t[2] = QUARTERS(a, c, 0xdd), t[1] = QUARTERS(b, d, 0x88), t[3] = QUARTERS(b, d, 0xdd);
}

/* Of n <= 16 columns, in order */
static INLINE vints b_join_quarter(const char *a, const char *b, const char *c, const char *d, int n)
{
    const __m128i A = b_sixteen(a, n), B = b_sixteen(b, n), C = b_sixteen(c, n), D = b_sixteen(d, n);
    const __m128i ab = _mm_unpacklo_epi8(A, B), AB = _mm_unpackhi_epi8(A, B), cd = _mm_unpacklo_epi8(C, D), CD = _mm_unpackhi_epi8(C, D);
    __m512i t = _mm512_castsi128_si512(_mm_unpacklo_epi16(ab, cd));
    t = _mm512_inserti32x4(t, _mm_unpackhi_epi16(ab, cd), 1);
    t = _mm512_inserti32x4(t, _mm_unpacklo_epi16(AB, CD), 2);
    return (vints)_mm512_inserti32x4(t, _mm_unpackhi_epi16(AB, CD), 3);
}

static INLINE REAL v_largest(vec a) { return _mm512_reduce_max_ps(a); }
