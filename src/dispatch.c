/* Which kernel sets this CPU and operating system can run.  The only file that names a CPU feature. */
#include "kernels.h"
#include "target.h"

#ifdef QKVC_X86
#include <cpuid.h>

/* The operating system must save the registers too: XCR0 bits 1-2 are xmm and ymm, 5-7 the masks and zmm. */
static uint64_t saved_registers(void)
{
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
    __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return (uint64_t)d << 32 | a;
}

static int has_avx2(uint64_t xcr0)
{
    const uint32_t wanted = bit_FMA | bit_F16C;
    uint32_t a, b, c, d;
    if ((xcr0 & 0x06) != 0x06 || !__get_cpuid(1, &a, &b, &c, &d) || (c & wanted) != wanted) return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX2);
}

static int has_avx512(uint64_t xcr0)
{
    const uint32_t wanted = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    uint32_t a, b, c, d;
    if ((xcr0 & 0xe6) != 0xe6 || !has_avx2(xcr0)) return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & wanted) == wanted;
}

/* VNNI with it, as every CPU that has BF16 */
static int has_bf16(void)
{
    uint32_t a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(c & bit_AVX512VNNI)) return 0;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 5);
}

/* AVX-512's own kernels, with others beside them for bfloat16, and for int8 */
static const struct qkvc_kernels *with_bf16(void)
{
    static struct qkvc_kernels floats, doubles, pairs;
    pairs = floats = qkvc_avx512_f32;
    doubles = qkvc_avx512_f64;
    qkvc_avx512_bf16(&pairs);
    qkvc_avx512_vnni(&floats);
    floats.name = doubles.name = pairs.name = "avx512bf16";
    floats.bfloat16 = &pairs;
    floats.float64 = doubles.float64 = &doubles;
    return &floats;
}
#endif

const struct qkvc_kernels *const *qkvc_kernel_sets(int *count)
{
    static const struct qkvc_kernels *sets[5];
    const struct qkvc_kernels *better[4];
    int n = 0, m = 0;
    better[m++] = &qkvc_portable_f32;
#ifdef QKVC_X86
    const uint64_t xcr0 = saved_registers();
    if (has_avx2(xcr0)) better[m++] = &qkvc_avx2_f32;
    if (has_avx512(xcr0)) better[m++] = &qkvc_avx512_f32;
    if (has_avx512(xcr0) && has_bf16()) better[m++] = with_bf16();
#endif
#ifdef QKVC_NEON
    better[m++] = &qkvc_neon_f32;
#endif
    while (m > 0) sets[n++] = better[--m]; /* best first; every caller writes the same values */
    *count = n;
    return sets;
}
