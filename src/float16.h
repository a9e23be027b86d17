/* float16 in integers, for sets whose instructions do not know it. */

static INLINE float widen_f16(uint16_t x)
{
    const uint32_t rest = (uint32_t)(x & 0x7fff) << 13, sign = (uint32_t)(x & 0x8000) << 16;
    float f;
    memcpy(&f, &rest, sizeof f);
    f *= 0x1p112f; /* the difference of the exponents' biases; exact, and denormals become normal */
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if (rest >= 0x0f800000) u |= 0x7f800000; /* infinity or NaN */
    u |= sign;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* to nearest even; NaN stays NaN and is made quiet, as F16C does */
static INLINE uint16_t round_f16(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    const uint32_t sign = u >> 16 & 0x8000;
    u &= 0x7fffffff;
    if (u > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (u >> 13 & 0x1ff));
    if (u >= 0x47800000) return (uint16_t)(sign | 0x7c00); /* 2^16 */
    if (u < 0x38800000) { /* 2^-14: adding 1/2 leaves a multiple of the smallest denormal, 2^-24, in the low bits */
        x = __builtin_fabsf(x) + 0.5f;
        memcpy(&u, &x, sizeof u);
        return (uint16_t)(sign | (u - 0x3f000000));
    }
    return (uint16_t)(sign | ((u - 0x38000000 + 0xfff + (u >> 13 & 1)) >> 13));
}
