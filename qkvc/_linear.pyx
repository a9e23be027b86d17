"""Y = X W^T + b, or GELU of that, the projections around attention: tokens lie in the lanes, the weight is read where it lies.

A task is a tile of tokens times a range of the weight's rows, so that few tokens of a wide projection keep every thread busy too.  It packs
columns of x, lets every row of the range meet them, and goes on to the next columns.  Where tokens would leave most lanes empty the rows of
the weight lie in them instead.  docs/arithmetic.md, clause 8, fixes the order of the sums, which none of that touches.
"""

from cpython.buffer cimport PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset

import numpy as np

from qkvc._coerce import bad, check_out, shape_text

from qkvc._kernels cimport Kernels, fitted, kernels_in_use, threads_for, threads_worth
from qkvc._workers cimport Job, hire, interrupted, perform, share_of, slot

cdef extern from "fpenv.h" nogil:
    uint64_t qkvc_fp_enter()
    void qkvc_fp_leave(uint64_t before)

cdef enum:
    MAX_TILE = 64
    UNIT = 16           # rows of the weight that stay together: whole squares for `store`, whole tiles of rows
    COLUMNS = 1024      # of x that are packed at a time, whole blocks of clause 8; 256 where the weight's columns are not adjacent, for so
    DOWNWARDS = 256     # many lines stay in L2 until the next rows want the rest (16 tokens, 768 -> 2304: 69 -> 85 % of the FMA peak)
    MOST_ROWS = 1536    # of the weight for one task: what bounds scratch, with COLUMNS
    LEAST_ROWS = 96     # so that packing stays cheap beside the arithmetic: 5 % of it; 384 rows are four tasks
    TASKS = 2           # for each thread, so that none waits long for the last

cdef object FLOAT32 = np.dtype("float32")
cdef object FLOAT64 = np.dtype("float64")


cdef struct Problem:
    const Kernels *kernels
    Tokens x, out
    const char *W
    const char *bias   # contiguous, or NULL
    Py_ssize_t item, rs, cs, T, N, E
    Py_ssize_t vectors, tiles, ranges, columns
    Py_ssize_t rows            # most that a panel of results has
    bint gelu
    bint few                   # tokens, and so the roles swap; they are
    Py_ssize_t x_row, out_row  # so far apart


cdef struct Scratch:
    char *XT             # [columns][tile]
    char *YT             # [rows of a task][tile]
    const void *x[MAX_TILE]
    void *out[MAX_TILE]
    double[MAX_TILE] ones  # or floats


cdef char *row_of(const Tokens *t, Py_ssize_t token) noexcept nogil:
    cdef char *at = t.data
    cdef int axis
    for axis in range(t.axes - 1, -1, -1):
        at += token % t.shape[axis] * t.stride[axis]
        token //= t.shape[axis]
    return at


cdef Py_ssize_t row_at(const Problem *p, Py_ssize_t part) noexcept nogil:
    """Where a range of the weight's rows begins: at a multiple of UNIT."""
    return min(p.N, (p.N + UNIT - 1) // UNIT * part // p.ranges * UNIT)


cdef size_t carve(const Problem *p, char *memory) noexcept nogil:
    """Lay a worker's Scratch out in its share of the memory, and say how large that is; without memory, only say it.

    item tile (E + N) bytes and some lines, where E counts at most COLUMNS and N at most MOST_ROWS.
    """
    cdef Scratch measured
    cdef Scratch *s = <Scratch *>memory if memory != NULL else &measured
    cdef size_t row = p.kernels.lanes * p.kernels.vecs * p.item, at = 0
    slot(memory, &at, sizeof(Scratch))
    s.XT = slot(memory, &at, max(1, min(p.E, p.columns)) * row)
    s.YT = slot(memory, &at, p.rows * row)
    return at


cdef void fill_ones(Scratch *s, Py_ssize_t item) noexcept nogil:
    cdef int lane
    for lane in range(MAX_TILE):
        if item == sizeof(float):
            (<float *>s.ones)[lane] = 1
        else:
            s.ones[lane] = 1


cdef void bend(const Problem *p, Scratch *s, Py_ssize_t rows, int vecs) noexcept nogil:
    """GELU of a panel of results, while it is in L1."""
    cdef Py_ssize_t i, row = p.kernels.lanes * p.kernels.vecs * p.item
    for i in range(rows):
        p.kernels.gelu(s.YT + i * row, vecs * p.kernels.lanes, s.YT + i * row)


cdef void multiply(void *context, Py_ssize_t task, int worker) noexcept nogil:
    """One task of the pool: a tile of tokens against a range of the weight's rows, all tiles of a range before the next range."""
    cdef Job *job = <Job *>context
    cdef const Problem *p = <const Problem *>job.problem
    cdef const Kernels *kn = p.kernels
    cdef Scratch *s = <Scratch *>share_of(job, worker)
    cdef Py_ssize_t lanes = kn.lanes, item = p.item, index = task % p.tiles, part = task // p.tiles
    cdef Py_ssize_t first = index * lanes * kn.vecs, last = min(first + lanes * kn.vecs, p.vectors * lanes)
    cdef Py_ssize_t top = row_at(p, part), rows = row_at(p, part + 1) - top, i, e, n, lane
    cdef int vecs = <int>((last - first) // lanes), tokens = <int>(min(last, p.T) - first)
    cdef uint64_t environment = qkvc_fp_enter()
    carve(p, <char *>s)
    fill_ones(s, item)
    for lane in range(last - first):  # lanes beyond the last token begin again with the first
        s.x[lane] = row_of(&p.x, first + lane)
        s.out[lane] = row_of(&p.out, first + lane) + top * p.out.col * item
    memset(s.YT, 0, rows * lanes * kn.vecs * item)
    for i in range(max(1, (p.E + p.columns - 1) // p.columns)):  # once even where E = 0: the bias is the result
        if interrupted(job, worker):
            break
        e = i * p.columns
        n = min(p.columns, p.E - e)
        kn.pack(s.x, p.x.col, <int>n, 1.0, vecs, s.XT)
        kn.project(p.W + (top * p.rs + e * p.cs) * item, p.rs, p.cs, <int>rows, <int>n, s.XT, vecs,
                   p.bias + top * item if p.bias and e + n == p.E else NULL, s.YT)
        for lane in range(last - first):
            s.x[lane] = <const char *>s.x[lane] + n * p.x.col * item
    if p.gelu:
        bend(p, s, rows, vecs)
    if not job.cancelled:
        kn.store(s.YT, <int>rows, s.ones, tokens, s.out, p.out.col)
    qkvc_fp_leave(environment)


cdef void multiply_few(void *context, Py_ssize_t task, int worker) noexcept nogil:
    """The same sums with the roles swapped, for tokens that would leave most lanes empty: the weight's rows lie in the lanes, packed as
    they are read, and x is the operand of broadcasts (1 token, 768 -> 2304: 19 -> 33 GB/s of the weight on one core)."""
    cdef Job *job = <Job *>context
    cdef const Problem *p = <const Problem *>job.problem
    cdef const Kernels *kn = p.kernels
    cdef Scratch *s = <Scratch *>share_of(job, worker)
    cdef Py_ssize_t lanes = kn.lanes, tile = lanes * kn.vecs, item = p.item, panels = (p.N + tile - 1) // tile, top, rows
    cdef Py_ssize_t i, k, e, n, lane
    cdef int vecs
    cdef uint64_t environment = qkvc_fp_enter()
    carve(p, <char *>s)
    fill_ones(s, item)
    for i in range(panels * task // p.ranges, panels * (task + 1) // p.ranges):
        top = i * tile
        rows = min(tile, p.N - top)
        vecs = <int>((rows + lanes - 1) // lanes)
        memset(s.YT, 0, p.T * tile * item)
        for k in range((p.E + p.columns - 1) // p.columns):
            if interrupted(job, worker):
                break
            e = k * p.columns
            n = min(p.columns, p.E - e)
            if p.rs == 1:  # columns of rows that are adjacent already
                for lane in range(n):
                    memcpy(s.XT + lane * tile * item, p.W + (top + (e + lane) * p.cs) * item, rows * item)
            else:
                for lane in range(vecs * lanes):
                    s.x[lane] = p.W + ((top + min(lane, rows - 1)) * p.rs + e * p.cs) * item
                kn.pack(s.x, p.cs, <int>n, 1.0, vecs, s.XT)
            kn.project(p.x.data + e * p.x.col * item, p.x_row, p.x.col, <int>p.T, <int>n, s.XT, vecs, NULL, s.YT)
        if job.cancelled:
            break
        if p.bias:  # one more block, of one column: 1 * bias
            memcpy(s.XT, p.bias + top * item, rows * item)
            kn.project(s.ones, 0, 0, <int>p.T, 1, s.XT, vecs, NULL, s.YT)
        if p.gelu:
            bend(p, s, p.T, vecs)
        for lane in range(rows):
            s.out[lane] = p.out.data + (top + lane) * p.out.col * item
        kn.store(s.YT, <int>p.T, s.ones, <int>rows, s.out, p.out_row)
    qkvc_fp_leave(environment)


cdef bint steady(const Tokens *t, Py_ssize_t tokens, Py_ssize_t item, Py_ssize_t *row) noexcept nogil:
    """Are so many tokens equally far apart, and how far?"""
    cdef Py_ssize_t i
    row[0] = (row_of(t, 1) - row_of(t, 0)) // item if tokens > 1 else 0
    for i in range(2, tokens):
        if row_of(t, i) - row_of(t, i - 1) != row[0] * item:
            return False
    return True


cdef int cut(Problem *p, int threads) noexcept nogil:
    """Tiles of tokens and ranges of rows; how many threads are worth it.  None of these changes a bit."""
    cdef const Kernels *widest = p.kernels
    cdef Py_ssize_t lanes, panels
    p.kernels = fitted(p.kernels, p.T)
    lanes = p.kernels.lanes
    p.vectors = (p.T + lanes - 1) // lanes
    threads = threads_worth(threads, 2.0 * p.vectors * lanes * p.N * p.E)
    p.columns = COLUMNS if p.cs == 1 else DOWNWARDS
    p.few = 2 * p.T <= lanes and steady(&p.x, p.T, p.item, &p.x_row) and steady(&p.out, p.T, p.item, &p.out_row)
    if p.few:
        p.kernels = widest
        panels = (p.N + widest.lanes * widest.vecs - 1) // (widest.lanes * widest.vecs)
        p.tiles, p.rows = 1, p.T
        p.ranges = min(panels, TASKS * threads if threads > 1 else 1)
        return threads
    p.tiles = (p.vectors + p.kernels.vecs - 1) // p.kernels.vecs
    p.ranges = (p.N + MOST_ROWS - 1) // MOST_ROWS
    if threads > 1 and p.tiles * p.ranges < TASKS * threads:
        p.ranges = max(p.ranges, min((TASKS * threads + p.tiles - 1) // p.tiles, p.N // LEAST_ROWS))
    p.rows = ((p.N + UNIT - 1) // UNIT + p.ranges - 1) // p.ranges * UNIT
    return threads


# ------------------------------------------------------------------------------------------------------------------------------ the door

cdef int tokens_of(Tokens *t, Py_buffer *b) except -1:
    cdef int axis
    t.data, t.axes, t.col = <char *>b.buf, b.ndim - 1, b.strides[b.ndim - 1] // b.itemsize
    for axis in range(t.axes):
        t.shape[axis], t.stride[axis] = b.shape[axis], b.strides[axis]
    return 0


cdef object readable(object x):
    """The array itself, or a copy where C may not read its numbers in place."""
    odd = not x.flags.aligned or any([stride % x.itemsize for stride in x.strides])
    return x.copy() if odd else x


def project(x, weight, bias=None, out=None, num_threads=None, bint gelu=False):
    """Project the last axis: ``x @ weight.T + bias``, without a copy of the weight.

    Parameters
    ----------
    x : ndarray, shape (..., E)
        float32 or float64, any strides.
    weight : ndarray, shape (N, E)
        The dtype of `x`, any strides: rows as torch.nn.Linear keeps them, or the transpose of GPT-2's (E, N).
    bias : ndarray, shape (N,), default None
        The dtype of `x`.
    out : ndarray, shape (..., N), default None
        Where to write, through any strides; it may not overlap the rest.
    num_threads : int, default None
        At most this many threads; None: as many as the process may use.
    gelu : bool, default False
        y Phi(y) of each result y, Phi the normal distribution function (Hendrycks & Gimpel 2016), within 1.2e-7 abs(y); float32 only.

    Returns
    -------
    ndarray, shape (..., N)
        `out`, or a new C-contiguous array.

    Raises
    ------
    ValueError
        Shapes that do not fit; an `out` of another shape or dtype, or one that overlaps an input.
    TypeError
        Operands of different dtypes, or of another than float32 and float64; GELU of float64.
    """
    cdef Problem p
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
    dtype = x.dtype
    if dtype != FLOAT32 and (gelu or dtype != FLOAT64):
        raise TypeError(bad("x", "float32" if gelu else "float32 or float64", str(dtype), "project"))
    for name, array in (("weight", weight), ("bias", bias)):
        if array is not None and array.dtype != dtype:
            raise TypeError(bad(name, f"{dtype}, the dtype of x", str(array.dtype), "project"))
    shape = (*leading, N)
    if out is None:
        out = np.empty(shape, dtype)
    else:
        check_out(out, shape, {"x": x, "weight": weight, "bias": bias}, "project", dtype)
    if out.size == 0:
        return out
    try:
        for array in (readable(x), readable(weight), out, bias if bias is None else readable(np.ascontiguousarray(bias))):
            if array is not None:
                PyObject_GetBuffer(array, &buffers[held], PyBUF_STRIDES | PyBUF_WRITABLE if array is out else PyBUF_STRIDES)
                held += 1
        p.kernels = kernels_in_use() if dtype == FLOAT32 else kernels_in_use().float64
        p.item, p.gelu = p.kernels.size, gelu
        tokens_of(&p.x, &buffers[0])
        tokens_of(&p.out, &buffers[2])
        p.N, p.E, p.T = N, E, out.size // N
        p.W, p.rs, p.cs = <const char *>buffers[1].buf, buffers[1].strides[0] // p.item, buffers[1].strides[1] // p.item
        p.bias = <const char *>buffers[3].buf if held == 4 else NULL
        threads = cut(&p, threads)
        hire(&job, &p, NULL, <int>min(p.tiles * p.ranges, threads), carve(&p, NULL), 2.0 * p.T * p.N * p.E, "project")
        perform(&job, multiply_few if p.few else multiply, p.tiles * p.ranges, threads)
    finally:
        while held:
            held -= 1
            PyBuffer_Release(&buffers[held])
    return out
