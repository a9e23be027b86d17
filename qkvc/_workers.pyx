"""Scratch memory for the workers of a call and for its results, and an ear for Ctrl-C while they work."""

from cpython.ref cimport PyObject
from libc.stdint cimport int64_t
from libc.stdlib cimport free
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

import sys
from threading import get_ident, main_thread

import numpy as np

from qkvc._kernels cimport Task, run

cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject *x)

cdef extern from *:
    """
    static void *qkvc_swap(void **slot, void *mine) { return __atomic_exchange_n(slot, mine, __ATOMIC_ACQ_REL); }
    static int qkvc_signals(void) { return PyErr_CheckSignals(); }
    static int qkvc_pending(void) { return PyErr_Occurred() ? -1 : 0; }
    """
    void *qkvc_swap(void **slot, void *mine) nogil
    int qkvc_signals()            # -1: a Python signal handler raised, and the exception is set
    int qkvc_pending() except -1  # raises what qkvc_signals left set

cdef enum:
    FRESH = 1 << 17  # bytes: of fewer, malloc keeps the pages (M_MMAP_THRESHOLD)
    KEPT = 1 << 26

cdef int64_t POLL_NS = 50_000_000  # Ctrl-C is looked for this often; the promise is 200 ms
cdef double LONG_JOB = 1e9         # flops: shorter ones end before anybody notices


# -------------------------------------------------------------------------------------------------------------------- time and signals

cdef int64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1_000_000_000 + t.tv_nsec


cdef void poll(Job *job) noexcept nogil:
    cdef int64_t now = now_ns()
    if now - job.polled < POLL_NS:
        return
    job.polled = now
    with gil:
        if qkvc_signals() != 0:
            job.cancelled = True


cdef bint interrupted(Job *job, int worker) noexcept nogil:
    if worker == 0 and job.pollable:
        poll(job)
    return job.cancelled


cdef void idle(void *context) noexcept nogil:
    cdef Job *job = <Job *>context
    if job.pollable and not job.cancelled:
        poll(job)


# ------------------------------------------------------------------------------------------------------------------------------- memory

cdef size_t padded(size_t bytes) noexcept nogil:
    return (bytes + 63) // 64 * 64


cdef char *slot(char *memory, size_t *at, size_t bytes) noexcept nogil:
    cdef char *start = memory + at[0]
    at[0] += padded(bytes)
    return start


# One piece of scratch is kept between calls: fresh pages would cost a small call more than its arithmetic.  Who finds it takes it; others
# allocate.  Its first 64 bytes hold its size.
cdef void *spare = NULL


cdef char *take_memory(size_t bytes) noexcept nogil:
    """64-byte aligned, or NULL."""
    cdef char *memory = <char *>qkvc_swap(&spare, NULL)
    if memory != NULL and (<size_t *>memory)[0] >= bytes:
        return memory
    free(memory)
    memory = <char *>aligned_alloc(64, padded(bytes + 64))
    if memory != NULL:
        (<size_t *>memory)[0] = bytes
    return memory


cdef void return_memory(char *memory) noexcept nogil:
    free(qkvc_swap(&spare, memory))


# Memory of results is kept too, for later ones of nearly that size, when nobody has them any more: of an array for itself malloc gives the
# pages back, and to touch fresh ones took 17 % of the time of the gradients of 4 x 6 x 256 x 64 on one core, 9 % of 2 x 12 x 512 x 64.
cdef list kept = []
cdef object empty = np.empty
cdef bint counted = getattr(sys, "_is_gil_enabled", lambda: True)()


cdef object result(tuple shape, object dtype):
    """An array with anything in it, 64-byte aligned if it is large."""
    cdef size_t bytes = dtype.itemsize, n
    cdef object memory
    for n in shape:
        bytes *= n
    # Three gradients, and those that are still looked at while the next are computed; without a GIL others may count at the same time.
    if not counted or not FRESH <= bytes <= KEPT // 6:
        return empty(shape, dtype)
    for memory in kept:
        # Ours and the list's: whoever has an array of it has a reference more, and so has another thread that is just here.  Who froze an
        # array may have frozen its base with it.
        if Py_REFCNT(<PyObject *>memory) == 2 and bytes + 64 <= <size_t>memory.size < 2 * bytes and memory.flags.writeable:
            break
    else:
        memory = empty(bytes + 64, np.uint8)
        kept.append(memory)
        while sum([x.size for x in kept]) > KEPT:
            del kept[0]
    return np.ndarray(shape, dtype, memory, -<size_t>data_of(memory) % 64)


cdef char *share_of(const Job *job, int worker) noexcept nogil:
    return job.memory + worker * job.share


# ------------------------------------------------------------------------------------------------------------------------------ the door

cdef int hire(Job *job, const void *problem, void *extra, int workers, size_t share, double flops, str who) except -1:
    job.problem, job.extra, job.share = problem, extra, padded(share)
    job.memory = take_memory(workers * job.share)
    if job.memory == NULL:
        raise MemoryError(f"{who}: {workers * job.share} bytes of scratch")
    job.memory += 64
    job.cancelled = False
    job.pollable = flops > LONG_JOB and get_ident() == main_thread().ident
    job.polled = now_ns() if job.pollable else 0
    return 0


cdef int perform(Job *job, Task task, Py_ssize_t tasks, int threads) except -1:
    with nogil:
        run(task, idle, job, tasks, threads)
        return_memory(job.memory - 64)
    if job.cancelled:
        qkvc_pending()
    return 0
