"""Y = X W^T + b, the projections around attention: tokens lie in the lanes, the weight is read where it lies.

A task is a tile of tokens times a range of the weight's rows, so that few tokens of a wide projection keep every thread busy too.  It packs
as many columns of x as L1 holds, lets every row of the range meet them, and goes on to the next.  docs/arithmetic.md, clause 7, fixes the
order of the sums, which none of that touches.
"""

from cpython.buffer cimport PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

import numpy as np

from qkvc._coerce import bad, check_out, shape_text

from qkvc._kernels cimport Kernels, fitted, kernels_in_use, run, threads_for, threads_worth

cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef extern from "fpenv.h" nogil:
    uint64_t qkvc_fp_enter()
    void qkvc_fp_leave(uint64_t before)

cdef enum:
    MAX_AXES = 32
    MAX_TILE = 64
    ITEM = sizeof(float)
    UNIT = 16           # rows of the weight that stay together: whole squares for `store`, whole tiles of rows
    COLUMNS = 1024      # of x that are packed at a time, whole blocks of clause 7, and
    MOST_ROWS = 1536    # of the weight for one task: what bounds scratch
    LEAST_ROWS = 64     # so that packing stays cheap beside the arithmetic
    TASKS = 4           # for each thread, so that none waits long for the last

cdef object FLOAT32 = np.dtype("float32")


cdef struct Tokens:  # the rows of an array (..., columns), counted in C order; strides in bytes, col in elements
    char *data
    int axes
    Py_ssize_t[MAX_AXES] shape, stride
    Py_ssize_t col


cdef struct Job:
    const Kernels *kernels
    Tokens x, out
    const char *W
    const char *bias   # contiguous, or NULL
    Py_ssize_t rs, cs, T, N, E
    Py_ssize_t vectors, tiles, ranges
    char *memory
    size_t per_worker


cdef struct Scratch:
    char *XT             # [COLUMNS][tile]
    char *YT             # [rows of a task][tile]
    const void *x[MAX_TILE]
    void *out[MAX_TILE]
    float[MAX_TILE] ones


cdef char *row_of(const Tokens *t, Py_ssize_t token) noexcept nogil:
    cdef char *at = t.data
    cdef int axis
    for axis in range(t.axes - 1, -1, -1):
        at += token % t.shape[axis] * t.stride[axis]
        token //= t.shape[axis]
    return at


cdef void multiply(void *context, Py_ssize_t task, int worker) noexcept nogil:
    """One task of the pool: a tile of tokens against a range of the weight's rows, all tiles of a range before the next range."""
    cdef const Job *job = <const Job *>context
    cdef const Kernels *kn = job.kernels
    cdef Scratch *s = <Scratch *>(job.memory + worker * job.per_worker)
    cdef uint64_t environment = qkvc_fp_enter()
    cdef Py_ssize_t lanes = kn.lanes, index = task % job.tiles, part = task // job.tiles, units = (job.N + UNIT - 1) // UNIT
    cdef Py_ssize_t first = job.vectors * index // job.tiles * lanes, last = job.vectors * (index + 1) // job.tiles * lanes
    cdef Py_ssize_t top = units * part // job.ranges * UNIT, rows = min(job.N, units * (part + 1) // job.ranges * UNIT) - top
    cdef Py_ssize_t vecs = (last - first) // lanes, tokens = min(last, job.T) - first, i, e, n, lane
    cdef const char *W = job.W + top * job.rs * ITEM
    cdef const char *bias = job.bias + top * ITEM if job.bias else NULL
    for i in range(last - first):
        s.x[i] = row_of(&job.x, min(first + i, job.T - 1))
        s.out[i] = row_of(&job.out, min(first + i, job.T - 1)) + top * job.out.col * ITEM
        s.ones[i] = 1
    memset(s.YT, 0, rows * lanes * kn.vecs * ITEM)
    for i in range(max(1, (job.E + COLUMNS - 1) // COLUMNS)):  # once even where E = 0: the bias is the result
        e = i * COLUMNS
        n = min(COLUMNS, job.E - e)
        kn.pack(s.x, job.x.col, <int>n, 1.0, <int>vecs, s.XT)
        kn.project(W + e * job.cs * ITEM, job.rs, job.cs, <int>rows, <int>n, s.XT, <int>vecs, bias if e + n == job.E else NULL, s.YT)
        for lane in range(last - first):
            s.x[lane] = <const char *>s.x[lane] + n * job.x.col * ITEM
    kn.store(s.YT, <int>rows, s.ones, <int>tokens, s.out, job.out.col)
    qkvc_fp_leave(environment)


cdef size_t padded(size_t bytes) noexcept nogil:
    return (bytes + 63) // 64 * 64


cdef int cut(Job *job, int threads) noexcept nogil:
    """Tiles of tokens and ranges of rows; how many threads are worth it.  None of these changes a bit."""
    cdef Py_ssize_t lanes
    job.kernels = fitted(job.kernels, job.T)
    lanes = job.kernels.lanes
    job.vectors = (job.T + lanes - 1) // lanes
    job.tiles = (job.vectors + job.kernels.vecs - 1) // job.kernels.vecs
    job.ranges = (job.N + MOST_ROWS - 1) // MOST_ROWS
    threads = threads_worth(threads, 2.0 * job.vectors * lanes * job.N * job.E)
    if threads > 1 and job.tiles * job.ranges < TASKS * threads:
        job.ranges = max(job.ranges, min((TASKS * threads + job.tiles - 1) // job.tiles, job.N // LEAST_ROWS))
    return threads


cdef size_t carve(const Job *job, char *memory) noexcept nogil:
    """Lay a worker's Scratch out in its share of the memory, and say how large that is; without memory, only say it."""
    cdef size_t row = job.kernels.lanes * job.kernels.vecs * ITEM, at = padded(sizeof(Scratch))
    cdef Py_ssize_t units = (job.N + UNIT - 1) // UNIT
    cdef Scratch *s = <Scratch *>memory
    if memory != NULL:
        s.XT = memory + at
    at += min(COLUMNS, job.E) * row
    if memory != NULL:
        s.YT = memory + at
    return at + padded((units + job.ranges - 1) // job.ranges * UNIT * row)


cdef int execute(Job *job, int threads) except -1:
    cdef Py_ssize_t tasks = job.tiles * job.ranges
    cdef int workers = <int>min(tasks, threads), i
    job.per_worker = carve(job, NULL)
    job.memory = <char *>aligned_alloc(64, workers * job.per_worker)
    if job.memory == NULL:
        raise MemoryError(f"project: {workers * job.per_worker} bytes of scratch")
    with nogil:
        for i in range(workers):
            carve(job, job.memory + i * job.per_worker)
        run(multiply, NULL, job, tasks, threads)
        free(job.memory)
    return 0


# ------------------------------------------------------------------------------------------------------------------------------ the door

cdef int tokens_of(Tokens *t, Py_buffer *b) except -1:
    cdef int axis
    t.data, t.axes, t.col = <char *>b.buf, b.ndim - 1, b.strides[b.ndim - 1] // ITEM
    for axis in range(t.axes):
        t.shape[axis], t.stride[axis] = b.shape[axis], b.strides[axis]
    return 0


cdef object readable(object x):
    """The array itself, or a copy where C may not read its numbers in place."""
    odd = not x.flags.aligned or any([stride % ITEM for stride in x.strides])
    return x.copy() if odd else x


def project(x, weight, bias=None, out=None, num_threads=None):
    """Project the last axis: ``x @ weight.T + bias``, without a copy of the weight.

    Parameters
    ----------
    x : ndarray, shape (..., E)
        float32, any strides.
    weight : ndarray, shape (N, E)
        The dtype of `x`, any strides: rows as torch.nn.Linear keeps them, or the transpose of GPT-2's (E, N).
    bias : ndarray, shape (N,), default None
        The dtype of `x`.
    out : ndarray, shape (..., N), default None
        Where to write, through any strides; it may not overlap the rest.
    num_threads : int, default None
        At most this many threads; None: as many as the process may use.

    Returns
    -------
    ndarray, shape (..., N)
        `out`, or a new C-contiguous array.

    Raises
    ------
    ValueError
        Shapes that do not fit; an `out` of another shape or dtype, or one that overlaps an input.
    TypeError
        Operands of different dtypes, or of one without kernels.
    """
    cdef Job job
    cdef Py_buffer[4] buffers
    cdef int held = 0, threads = threads_for(num_threads)
    cdef object array
    if not 0 < x.ndim <= MAX_AXES:
        raise ValueError(bad("x", f"1 to {MAX_AXES} axes", shape_text(x), "project"))
    *leading, E = x.shape
    if weight.ndim != 2 or weight.shape[1] != E:
        raise ValueError(bad("weight", f"shape (N, {E}) for x of {shape_text(x)}", shape_text(weight), "project"))
    N = weight.shape[0]
    if bias is not None and bias.shape != (N,):
        raise ValueError(bad("bias", f"shape {(N,)}", shape_text(bias), "project"))
    for name, array in (("x", x), ("weight", weight), ("bias", bias)):
        if array is not None and array.dtype is not FLOAT32:
            raise TypeError(bad(name, "float32", str(array.dtype), "project"))
    shape = (*leading, N)
    if out is None:
        out = np.empty(shape, FLOAT32)
    else:
        check_out(out, shape, {"x": x, "weight": weight, "bias": bias}, "project")
    if out.size == 0:
        return out
    try:
        for array in (readable(x), readable(weight), out, bias if bias is None else np.ascontiguousarray(bias)):
            if array is not None:
                PyObject_GetBuffer(array, &buffers[held], PyBUF_STRIDES | PyBUF_WRITABLE if array is out else PyBUF_STRIDES)
                held += 1
        job.kernels = kernels_in_use()
        tokens_of(&job.x, &buffers[0])
        tokens_of(&job.out, &buffers[2])
        job.N, job.E, job.T = N, E, out.size // N
        job.W, job.rs, job.cs = <const char *>buffers[1].buf, buffers[1].strides[0] // ITEM, buffers[1].strides[1] // ITEM
        job.bias = <const char *>buffers[3].buf if held == 4 else NULL
        execute(&job, cut(&job, threads))
    finally:
        while held:
            held -= 1
            PyBuffer_Release(&buffers[held])
    return out
