/* What a file of kernels is compiled for: a region of the file, not a flag of the build, so that any build system works and nothing else
 * of the object can pick the instructions up.  Set before any header that declares functions. */
#include <stdint.h>

#define INLINE inline __attribute__((always_inline))

#if defined(__x86_64__)
#define QKVC_X86 1
#endif
