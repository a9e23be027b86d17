"""What happens to the heads' queries and keys between projection and attention, in place and in one pass: RMS norm and rotation."""

from cpython.buffer cimport PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint64_t

import numpy as np

from qkvc._coerce import bad, shape_text

from qkvc._kernels cimport Kernels, kernels_in_use, threads_for, threads_worth
from qkvc._linear cimport MAX_AXES, Tokens, row_of, tokens_of
from qkvc._workers cimport Job, hire, interrupted, perform

cdef extern from "fpenv.h" nogil:
    uint64_t qkvc_fp_enter()
    void qkvc_fp_leave(uint64_t before)

cdef enum:
    CHUNK = 8192            # numbers of a task
    FLOPS = 8               # a number's work, in flops of the same time

cdef object FLOAT32 = np.dtype("float32")


cdef struct Problem:
    const Kernels *kernels
    Tokens x, table         # all axes before the last two of x, which are a row of vectors that a task walks along
    Py_ssize_t vectors, row, x_step, table_step, chunk
    int width, pairs
    bint interleaved
    const char *weight      # or NULL
    double eps


cdef void turn_some(void *context, Py_ssize_t task, int worker) noexcept nogil:
    cdef Job *job = <Job *>context
    cdef const Problem *p = <const Problem *>job.problem
    cdef uint64_t environment = qkvc_fp_enter()
    cdef Py_ssize_t at = task * p.chunk, end = min(at + p.chunk, p.vectors), first, _
    cdef Py_ssize_t sin = p.pairs * p.kernels.size
    cdef char *x
    cdef char *cos
    while at < end and not interrupted(job, worker):
        first = at % p.row
        x, cos = row_of(&p.x, at // p.row) + first * p.x_step, row_of(&p.table, at // p.row) + first * p.table_step
        for _ in range(min(p.row - first, end - at)):
            p.kernels.turn(x, p.width, p.weight, p.eps, p.pairs, p.interleaved, cos, cos + sin)
            x += p.x_step
            cos += p.table_step
            at += 1
    qkvc_fp_leave(environment)


cdef int stretch(Tokens *table, const Tokens *x) except -1:
    """Count the rows of a table as those of the vectors, to whose axes it broadcasts."""
    cdef int axis, missing = x.axes - table.axes
    for axis in range(x.axes - 1, -1, -1):
        table.stride[axis] = 0 if axis < missing or table.shape[axis - missing] == 1 else table.stride[axis - missing]
        table.shape[axis] = x.shape[axis]
    table.axes = x.axes
    return 0


def turn(x, table, bint interleaved=False, weight=None, double eps=0, source=None, num_threads=None):
    """Norm and turn vectors where they are.

    Parameters
    ----------
    x : ndarray of float32 or float64, shape (..., D)
        Two axes or more, the last with adjacent numbers.
    table : ndarray, shape (..., 2, n)
        The dtype of `x`; n cosines and n sines of each vector, adjacent, on leading axes that broadcast to those of `x`; 2 n <= D.
    interleaved : bool, default False
        Pairs are (0, 1), (2, 3) ..., not (0, n), (1, n + 1) ...
    weight : ndarray, shape (D,), default None
        If given, the dtype of `x` and contiguous: first every vector is divided by the root of its mean square, `eps` added to that, and
        multiplied by the weight (Zhang & Sennrich 2019).
    source : ndarray, shape of x, default None
        What is copied into `x` first, unless it is `x`.
    num_threads : int, default None
        At most this many threads; None: as many as the process may use.

    Raises
    ------
    ValueError
        More axes than are counted here.
    """
    cdef Problem p
    cdef Job job
    cdef Py_buffer[3] buffers
    cdef int held = 0, threads = threads_for(num_threads)
    if x.ndim > MAX_AXES:
        raise ValueError(bad("x", f"at most {MAX_AXES} axes", shape_text(x), "rope"))
    if source is not None and source is not x:
        x[...] = source
    if not x.size:
        return
    try:
        for array in (x, table) if weight is None else (x, table, weight):
            PyObject_GetBuffer(array, &buffers[held], PyBUF_STRIDES | (PyBUF_WRITABLE if array is x else 0))
            held += 1
        p.kernels = kernels_in_use() if x.dtype == FLOAT32 else kernels_in_use().float64
        tokens_of(&p.x, &buffers[0])
        tokens_of(&p.table, &buffers[1])
        p.table.axes -= 1
        stretch(&p.table, &p.x)
        p.x.axes = p.table.axes = p.x.axes - 1
        p.row, p.x_step, p.table_step = p.x.shape[p.x.axes], p.x.stride[p.x.axes], p.table.stride[p.x.axes]
        p.width, p.pairs, p.interleaved = x.shape[x.ndim - 1], table.shape[table.ndim - 1], interleaved
        p.weight, p.eps = <const char *>buffers[2].buf if held == 3 else NULL, eps
        p.vectors, p.chunk = x.size // p.width, max(1, CHUNK // p.width)
        threads = threads_worth(threads, <double>FLOPS * x.size)
        hire(&job, &p, NULL, threads, 64, <double>FLOPS * x.size, "turn")
        perform(&job, turn_some, (p.vectors + p.chunk - 1) // p.chunk, threads)
    finally:
        while held:
            held -= 1
            PyBuffer_Release(&buffers[held])
