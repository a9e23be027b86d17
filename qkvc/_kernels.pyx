"""The kernel sets, the thread pool and their controls.  All of src/ is linked into this extension and no other."""

from libc.stdint cimport uint16_t, uint64_t

import os
from time import perf_counter

import numpy as np

from qkvc._cpu import available_cpus

cdef extern from "<fenv.h>" nogil:
    ctypedef struct fenv_t:
        pass
    int fegetenv(fenv_t *environment)
    int fesetenv(const fenv_t *environment)

cdef extern from "fpenv.h" nogil:
    uint64_t qkvc_fp_enter()

cdef extern from "pool.h" nogil:
    enum:
        QKVC_MAX_THREADS
    void qkvc_pool_run(Task task, Idle idle, void *context, Py_ssize_t tasks, int threads)
    int qkvc_pool_started()
    int qkvc_get_num_threads()
    void qkvc_set_num_threads(int n)

cdef int count = 0
cdef const Kernels *const *sets = qkvc_kernel_sets(&count)
cdef const Kernels *active = sets[0]


cdef const Kernels *kernels_in_use() noexcept nogil:
    return active


# Kernels of half the lanes run at 88 % of the speed; they win when they leave fewer lanes empty than that.  Seven of their vectors, three
# tiles, are no faster than two tiles of four (from memory 13.2 for 11.1 ms), so 7 / 8 does not.
cdef double NARROW_PAYS = 0.87

# A call takes as many threads as it has this much work for: a wake costs 5 to 10 us, which is about 0.5 MFLOP of one core.
cdef double FLOPS_PER_THREAD = 0.5e6


cdef const Kernels *fitted(const Kernels *kernels, Py_ssize_t rows) noexcept nogil:
    cdef Py_ssize_t lanes = kernels.lanes, half
    if kernels.narrow == NULL:
        return kernels
    half = kernels.narrow.lanes
    return kernels.narrow if (rows + half - 1) // half * half < NARROW_PAYS * ((rows + lanes - 1) // lanes * lanes) else kernels


cdef int threads_worth(int threads, double flops) noexcept nogil:
    return <int>max(1.0, min(<double>threads, flops / FLOPS_PER_THREAD))


cdef void run(Task task, Idle idle, void *context, Py_ssize_t tasks, int threads) noexcept nogil:
    qkvc_pool_run(task, idle, context, tasks, threads)


def undisturbed(function, *arguments):
    """Call what computes with NumPy under the kernels' rounding and denormals, and with NumPy's errors off, whatever the caller's."""
    cdef fenv_t before  # all of it: on x86 NumPy's exp reports underflow by feraiseexcept, which raises the flag of x87
    fegetenv(&before)
    qkvc_fp_enter()
    try:
        with np.errstate(all="ignore"):
            return function(*arguments)
    finally:
        fesetenv(&before)


# ------------------------------------------------------------------------------------------------------------------ kernel sets

def kernels():
    return tuple(sets[i].name.decode() for i in range(count))


def active_kernels():
    return active.name.decode()


def select_kernels(name):
    global active
    cdef int i
    if not isinstance(name, str):
        raise TypeError(f"use_kernels: name: expected a string, one of {', '.join(kernels())}, got {type(name).__name__}")
    for i in range(count):
        if sets[i].name.decode() == name:
            active = sets[i]
            return
    raise ValueError(f"use_kernels: name: expected one of {', '.join(kernels())} (what this CPU can run), got {name!r}")


def tile_shape():
    """(lanes, most vectors, keys per block) of the set in use."""
    return active.lanes, active.vecs, QKVC_BLOCK


# ---------------------------------------------------------------------------------------------------------------------- threads

cdef int as_threads(object n, str who) except -1:
    cdef object value
    if isinstance(n, bool):
        raise TypeError(f"{who}: expected an integer of 1 or more, got a bool")
    try:
        value = n.__index__()
    except AttributeError:
        raise TypeError(f"{who}: expected an integer of 1 or more, got {type(n).__name__}") from None
    if value < 1:
        raise ValueError(f"{who}: expected an integer of 1 or more, got {value}")
    return <int>min(value, QKVC_MAX_THREADS)


cdef int threads_for(object num_threads) except -1:
    return qkvc_get_num_threads() if num_threads is None else as_threads(num_threads, "attention: num_threads")


def set_num_threads(n):
    qkvc_set_num_threads(as_threads(n, "set_num_threads: n"))


def get_num_threads():
    return qkvc_get_num_threads()


def pool_started():
    """Threads the pool keeps, the callers' own not counted."""
    return qkvc_pool_started()


# ------------------------------------------------------------------------------------------------------------- tests and benchmarks

cdef const Kernels *kernels_of(dtype) except NULL:
    """The set in use, for float32, float64 or bfloat16."""
    if dtype == "bfloat16" and active.bfloat16 != NULL:
        return active.bfloat16
    return active.float64 if dtype in (np.float64, "float64") else active


def exp2(x):
    """The exp2 of the set in use over a contiguous float32 or float64 array, for the tests."""
    result = np.empty(x.shape, x.dtype)
    cdef const unsigned char[::1] source = x.view(np.uint8)
    cdef unsigned char[::1] out = result.view(np.uint8)
    if x.size:
        kernels_of(x.dtype).exp2(&source[0], x.size, &out[0])
    return result


cdef struct Roof:
    const Kernels *kernels
    Py_ssize_t steps
    double flops[256]


cdef void roof_task(void *context, Py_ssize_t task, int worker) noexcept nogil:
    cdef Roof *roof = <Roof *>context
    cdef double[32] sink
    cdef int i
    for i in range(32):
        if roof.kernels.size == sizeof(double):
            sink[i] = 1e-3
        else:
            (<float *>sink)[i] = <float>1e-3
    roof.flops[task] = roof.kernels.fma_loop(roof.steps, sink)


def fma_peak(int num_threads, double seconds=0.1, dtype=np.float32):
    """GFLOP/s of FMAs that touch no memory, by the set in use: the roof that speeds are measured against."""
    cdef Roof roof
    cdef int threads = as_threads(num_threads, "fma_peak: num_threads")
    cdef double start, end
    roof.kernels = kernels_of(dtype)
    roof.steps = 1 << 12
    while True:
        start = perf_counter()
        with nogil:
            run(roof_task, NULL, &roof, threads, threads)
        end = perf_counter()
        if end - start >= seconds:
            return sum(roof.flops[i] for i in range(threads)) / (end - start) / 1e9
        roof.steps = <Py_ssize_t>(roof.steps * min(8.0, max(1.5, 1.1 * seconds / max(end - start, 1e-6))))


cdef struct Reading:
    const Kernels *kernels
    const float *x
    Py_ssize_t n
    double *sums


cdef void reading_task(void *context, Py_ssize_t task, int worker) noexcept nogil:
    cdef Reading *reading = <Reading *>context
    reading.sums[task] = reading.kernels.read_loop(reading.x + task * reading.n, reading.n)


def read_rate(const float[::1] x, int num_threads):
    """GB/s at which threads load a large array, by the set in use, and the sum of what they loaded: all but the last few numbers."""
    cdef Reading reading
    cdef int threads = as_threads(num_threads, "read_rate: num_threads")
    cdef Py_ssize_t tasks = 4 * threads, unit = 8 * active.lanes  # four each, so that one who is held up leaves work to the others
    cdef double[::1] sums = np.zeros(tasks)
    cdef double start, end
    reading.kernels, reading.x, reading.sums = active, &x[0], &sums[0]
    reading.n = x.shape[0] // tasks // unit * unit
    start = perf_counter()
    with nogil:
        run(reading_task, NULL, &reading, tasks, threads)
    end = perf_counter()
    return tasks * reading.n * sizeof(float) / (end - start) / 1e9, sum(sums)


# ------------------------------------------------------------------------------------------------------------------------ bfloat16

cdef enum:
    ROUNDED = 1 << 14   # numbers of a task, 96 KB


cdef struct Rounding:
    const Kernels *kernels
    const float *x
    uint16_t *bits
    Py_ssize_t n


cdef void rounding_task(void *context, Py_ssize_t task, int worker) noexcept nogil:
    cdef Rounding *r = <Rounding *>context
    cdef Py_ssize_t first = task * ROUNDED
    r.kernels.shorten(r.x + first, <int>min(ROUNDED, r.n - first), QKVC_BFLOAT16, r.bits + first, 1)


def bfloat16_bits(const float[::1] x, num_threads):
    """x rounded to bfloat16, as its bits, so that ml_dtypes need not be there; NumPy would take longer for it than attention takes."""
    cdef Rounding rounding
    cdef int threads = threads_for(num_threads)
    cdef uint16_t[::1] bits
    out = np.empty(x.shape[0], np.uint16)
    if x.shape[0]:
        bits = out
        rounding.kernels, rounding.x, rounding.bits, rounding.n = active, &x[0], &bits[0], x.shape[0]
        with nogil:
            run(rounding_task, NULL, &rounding, (rounding.n + ROUNDED - 1) // ROUNDED, threads)
    return out


# ----------------------------------------------------------------------------------------------------------------------- at import

cdef int _configure() except -1:
    cdef object isa = os.environ.get("QKVC_ISA"), threads = os.environ.get("QKVC_NUM_THREADS")
    if isa:
        try:
            select_kernels(isa)
        except ValueError:
            raise ImportError(f"QKVC_ISA: expected one of {', '.join(kernels())} (what this CPU can run), got {isa!r}") from None
    qkvc_set_num_threads(available_cpus())
    if threads:
        if not threads.isdecimal() or int(threads) < 1:
            raise ImportError(f"QKVC_NUM_THREADS: expected an integer of 1 or more, got {threads!r}")
        qkvc_set_num_threads(min(int(threads), QKVC_MAX_THREADS))
    return 0


_configure()
