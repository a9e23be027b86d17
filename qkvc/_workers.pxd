"""What the workers of a call share: scratch memory, an ear for Ctrl-C, and arrays for results."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t

from qkvc._kernels cimport Task

# What a task of the pool finds as its context.
ctypedef struct Job:
    const void *problem
    void *extra        # what a kind of task wants besides
    char *memory       # a share for each worker, 64-byte aligned
    size_t share
    bint pollable      # the caller is Python's main thread, and the job is long
    int64_t polled
    bint cancelled

# Lay scratch out: `at` grows by bytes, rounded up to whole cache lines.  Without memory only the size is learnt.
cdef size_t padded(size_t bytes) noexcept nogil
cdef char *slot(char *memory, size_t *at, size_t bytes) noexcept nogil

# An array for a result, in memory of an earlier one if that is gone.
cdef object result(tuple shape, object dtype)

cdef inline char *data_of(object array) except NULL:
    """Where a C-contiguous array's numbers lie, in a tenth of the microsecond that its `ctypes` takes."""
    cdef Py_buffer buffer
    PyObject_GetBuffer(array, &buffer, PyBUF_SIMPLE)
    PyBuffer_Release(&buffer)
    return <char *>buffer.buf

# Take memory for so many workers; then run the tasks, each of which gets the job as its context, and give the memory back.
cdef int hire(Job *job, const void *problem, void *extra, int workers, size_t share, double flops, str who) except -1
cdef int perform(Job *job, Task task, Py_ssize_t tasks, int threads) except -1

# Of the tasks: a worker's own memory; and has the user pressed Ctrl-C?  Then do no more.
cdef char *share_of(const Job *job, int worker) noexcept nogil
cdef bint interrupted(Job *job, int worker) noexcept nogil
