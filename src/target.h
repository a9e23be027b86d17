/* What a file of kernels is compiled for: a region of the file, not a flag of the build, so that nothing else of the object can pick the
 * instructions up.  TARGET_BEGIN stands before any header that declares functions, TARGET_END behind the last of them. */
#include <stdint.h>

#define INLINE inline __attribute__((always_inline))

#define QKVC_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define TARGET_BEGIN(features) QKVC_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define TARGET_END QKVC_PRAGMA(clang attribute pop)
#else
#define TARGET_BEGIN(features) QKVC_PRAGMA(GCC push_options) QKVC_PRAGMA(GCC target(features))
#define TARGET_END QKVC_PRAGMA(GCC pop_options)
#endif

#if defined(__x86_64__)
#define QKVC_X86 1
#elif defined(__aarch64__) /* where NEON is part of the base, so that its files need no region */
#define QKVC_NEON 1
#endif
