"""What stands between the products of a layer, in one pass where NumPy takes many: the norm of tokens after a residual.

Its tokens lie in the lanes, as everywhere, so that its bits depend on the width and the dtype alone.
"""

from libc.stdint cimport uint64_t

import numpy as np

from qkvc._coerce import bad, shape_text

from qkvc._kernels cimport Kernels, fitted, kernels_in_use, threads_for, threads_worth
from qkvc._workers cimport Job, data_of, hire, interrupted, perform, share_of, slot

cdef extern from "fpenv.h" nogil:
    uint64_t qkvc_fp_enter()
    void qkvc_fp_leave(uint64_t before)

cdef enum:
    MAX_TILE = 64
    NORM_FLOPS = 12          # a number's work, in flops of the same time

cdef object FLOAT32 = np.dtype("float32")
cdef object FLOAT64 = np.dtype("float64")


cdef struct Problem:
    const Kernels *kernels
    const char *x
    const char *residual    # or NULL
    const char *weight
    const char *bias
    char *out
    Py_ssize_t item, tokens, width, vectors
    double eps


cdef struct Scratch:
    char *Y                 # [width][tile]
    char *R
    const void *row[MAX_TILE]
    void *out[MAX_TILE]
    double[MAX_TILE] ones   # or floats


cdef size_t carve(const Problem *p, char *memory) noexcept nogil:
    """item tile width bytes, twice with a residual, and some lines."""
    cdef Scratch measured
    cdef Scratch *s = <Scratch *>memory if memory != NULL else &measured
    cdef size_t panel = p.kernels.lanes * p.kernels.vecs * p.width * p.item, at = 0
    slot(memory, &at, sizeof(Scratch))
    s.Y = slot(memory, &at, panel)
    s.R = slot(memory, &at, panel if p.residual else 0)
    return at


cdef void norm_tile(void *context, Py_ssize_t task, int worker) noexcept nogil:
    cdef Job *job = <Job *>context
    cdef const Problem *p = <const Problem *>job.problem
    cdef const Kernels *kn = p.kernels
    cdef Scratch *s = <Scratch *>share_of(job, worker)
    cdef Py_ssize_t lanes = kn.lanes, first = task * lanes * kn.vecs, last = min(first + lanes * kn.vecs, p.vectors * lanes), lane, at
    cdef int vecs = <int>((last - first) // lanes), width = <int>p.width
    cdef uint64_t environment
    if interrupted(job, worker):
        return
    environment = qkvc_fp_enter()
    carve(p, <char *>s)
    for lane in range(last - first):  # lanes beyond the last token repeat it
        at = min(first + lane, p.tokens - 1) * p.width * p.item
        s.row[lane], s.out[lane] = p.x + at, p.out + at
        if p.item == sizeof(float):
            (<float *>s.ones)[lane] = 1
        else:
            s.ones[lane] = 1
    kn.pack(s.row, 1, width, 1.0, vecs, s.Y)
    if p.residual:
        for lane in range(last - first):
            s.row[lane] = p.residual + min(first + lane, p.tokens - 1) * p.width * p.item
        kn.pack(s.row, 1, width, 1.0, vecs, s.R)
    kn.norm(s.Y, s.R if p.residual else NULL, width, vecs, p.eps, p.weight, p.bias)
    kn.store(s.Y, width, s.ones, <int>(min(last, p.tokens) - first), s.out, 1)
    qkvc_fp_leave(environment)


def layer_norm(x, weight, bias, double eps=1e-5, residual=None, num_threads=None):
    """Mean 0 and variance 1 along the last axis of ``x + residual``, then ``* weight + bias`` (Ba, Kiros & Hinton 2016).

    Parameters
    ----------
    x : ndarray of float32 or float64, shape (..., E)
    weight, bias : ndarray, shape (E,)
        The dtype of `x`, as is `residual`.
    eps : float, default 1e-5
        Added to the variance.
    residual : ndarray, shape of x, default None
    num_threads : int, default None
        At most this many threads; None: as many as the process may use.

    Returns
    -------
    ndarray, shape (..., E)

    Raises
    ------
    ValueError
        Shapes that do not fit.
    TypeError
        Operands of different dtypes, or of another than float32 and float64.
    """
    cdef Problem p
    cdef Job job
    cdef int threads = threads_for(num_threads)
    if x.dtype != FLOAT32 and x.dtype != FLOAT64:
        raise TypeError(bad("x", "float32 or float64", str(x.dtype), "layer_norm"))
    row = tuple(x.shape[max(0, x.ndim - 1):])
    wanted = {"weight": (weight, row), "bias": (bias, row), "residual": (residual, x.shape)}
    for name, (array, shape) in wanted.items():
        if array is None and name == "residual":
            continue
        if x.ndim == 0 or array.shape != shape:
            raise ValueError(bad(name, f"shape {shape} for x of {shape_text(x)}", shape_text(array), "layer_norm"))
        if array.dtype != x.dtype:
            raise TypeError(bad(name, f"{x.dtype}, the dtype of x", str(array.dtype), "layer_norm"))
    x, weight, bias = np.ascontiguousarray(x), np.ascontiguousarray(weight), np.ascontiguousarray(bias)
    result = np.empty(x.shape, x.dtype)
    if not x.size:
        return result
    p.width = x.shape[x.ndim - 1]
    p.tokens, p.item, p.eps = x.size // p.width, x.itemsize, eps
    p.kernels = fitted(kernels_in_use() if p.item == sizeof(float) else kernels_in_use().float64, p.tokens)
    p.vectors = (p.tokens + p.kernels.lanes - 1) // p.kernels.lanes
    p.x, p.weight, p.bias, p.out, p.residual = data_of(x), data_of(weight), data_of(bias), <char *>data_of(result), NULL
    if residual is not None:
        residual = np.ascontiguousarray(residual)
        p.residual = data_of(residual)
    tasks = (p.vectors + p.kernels.vecs - 1) // p.kernels.vecs
    threads = <int>min(threads_worth(threads, <double>NORM_FLOPS * x.size), <Py_ssize_t>tasks)
    hire(&job, &p, NULL, threads, carve(&p, NULL), <double>NORM_FLOPS * x.size, "layer_norm")
    perform(&job, norm_tile, tasks, threads)
    return result
