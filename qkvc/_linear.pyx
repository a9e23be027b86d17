"""Y = X W^T + b, or GELU of that, the projections around attention: tokens lie in the lanes, the weight is read where it lies.

A task is a tile of tokens times a range of the weight's rows, so that few tokens of a wide projection keep every thread busy too.  It packs
columns of x, lets every row of the range meet them, and goes on to the next columns.  Where tokens would leave most lanes empty the rows of
the weight lie in them instead.  docs/arithmetic.md, clause 8, fixes the order of the sums, which none of that touches.
"""

from cpython.buffer cimport PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint64_t
from libc.string cimport memset

import numpy as np

from qkvc._coerce import bad, check_out, shape_text

from qkvc._kernels cimport QKVC_BLOCK, QKVC_FEW_BYTES, Kernels, fitted, kernels_in_use, threads_for, threads_worth
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
    STRIP = 128         # rows where they are adjacent: what `few_project` keeps in registers
    FEW_NUMBERS = 16384  # of x that few tokens pack at a time, and of their results: 64 KB each of L2, and long runs of adjacent rows
    MANY = 512          # tokens for which a weight of adjacent rows is turned first: below, that costs what it gains
    TURNED = 64         # of its columns for one task
    PIECE = 768         # of its rows that are turned at a time, if the rest is no fewer than half of that: 256 cost 15 % of the time, and
    PIECE_BYTES = 4096  # of each row so many; of few rows more, of short rows more of them, 3.1 MB together, which bound scratch
    TASKS = 2           # for each thread, so that none waits long for the last

cdef object FLOAT32 = np.dtype("float32")
cdef object FLOAT64 = np.dtype("float64")


cdef struct Problem:
    const Kernels *kernels
    Tokens x, out, start   # start: what is added to, where `plus`
    const char *W
    const char *bias   # contiguous, or NULL
    Py_ssize_t item, rs, cs, T, N, E
    Py_ssize_t vectors, tiles, ranges, columns
    Py_ssize_t rows            # most that a panel of results has
    bint gelu
    Py_ssize_t unit            # what a range is a multiple of
    bint few                   # tokens, and so the roles swap
    bint plus
    char *turned               # (N, turned_row): where `turn_some` writes
    Py_ssize_t turned_row


cdef struct Scratch:
    char *XT             # [columns][tile]
    char *YT             # [rows of a task][tile], or where tokens are few [token][rows of a task], and so
    char *sum            # of a block
    const void *x[MAX_TILE]
    const void *start[MAX_TILE]
    void *out[MAX_TILE]
    double[MAX_TILE] ones  # or floats


cdef inline Py_ssize_t whole(Py_ssize_t n, Py_ssize_t unit) noexcept nogil:
    return (n + unit - 1) // unit * unit


cdef inline Py_ssize_t over(Py_ssize_t n, Py_ssize_t unit) noexcept nogil:
    return (n + unit - 1) // unit


cdef char *row_of(const Tokens *t, Py_ssize_t token) noexcept nogil:
    cdef char *at = t.data
    cdef int axis
    for axis in range(t.axes - 1, -1, -1):
        at += token % t.shape[axis] * t.stride[axis]
        token //= t.shape[axis]
    return at


cdef Py_ssize_t row_at(const Problem *p, Py_ssize_t part) noexcept nogil:
    """Where a range of the weight's rows begins."""
    return min(p.N, (p.N + p.unit - 1) // p.unit * part // p.ranges * p.unit)


cdef size_t carve(const Problem *p, char *memory) noexcept nogil:
    """Lay a worker's Scratch out in its share of the memory, and say how large that is; without memory, only say it.

    item tile (E + N) bytes and some lines, where E counts at most COLUMNS and N at most MOST_ROWS; 3 item FEW_NUMBERS where tokens are few.
    """
    cdef Scratch measured
    cdef Scratch *s = <Scratch *>memory if memory != NULL else &measured
    cdef size_t row = (p.T if p.few else p.kernels.lanes * p.kernels.vecs) * p.item, at = 0
    slot(memory, &at, sizeof(Scratch))
    s.XT = slot(memory, &at, whole(min(p.E, p.columns), UNIT) * row)
    s.YT = slot(memory, &at, p.rows * row)
    s.sum = slot(memory, &at, p.rows * row if p.few and p.cs != 1 else 0)
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
        s.start[lane] = row_of(&p.start, first + lane) + top * p.start.col * item if p.plus else NULL
    if p.plus:
        kn.pack(s.start, p.start.col, <int>rows, 1.0, vecs, s.YT)
    else:
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


cdef void turn_some(void *context, Py_ssize_t task, int worker) noexcept nogil:
    """A strip of the weight's columns, for whom `multiply` would read them number by number from as many lines of memory."""
    cdef Job *job = <Job *>context
    cdef const Problem *p = <const Problem *>job.problem
    cdef Py_ssize_t e = task * TURNED
    p.kernels.transpose(p.W + e * p.cs * p.item, p.cs, <int>min(TURNED, p.E - e), <int>p.N, p.turned + e * p.item, p.turned_row)


cdef void multiply_few(void *context, Py_ssize_t task, int worker) noexcept nogil:
    """The same sums with the roles swapped, for tokens that would leave most lanes empty: the weight's rows lie in the lanes, and x is what
    is broadcast."""
    cdef Job *job = <Job *>context
    cdef const Problem *p = <const Problem *>job.problem
    cdef const Kernels *kn = p.kernels
    cdef Scratch *s = <Scratch *>share_of(job, worker)
    cdef Py_ssize_t top = row_at(p, task), rows = row_at(p, task + 1) - top, item = p.item, width = whole(rows, kn.lanes), i, k, e, n
    cdef uint64_t environment = qkvc_fp_enter()
    carve(p, <char *>s)
    fill_ones(s, item)
    for i in range(p.T):
        s.x[i] = row_of(&p.x, i)
        s.out[i] = row_of(&p.out, i) + top * p.out.col * item
    memset(s.YT, 0, p.T * width * item)
    for k in range(max(1, (p.E + p.columns - 1) // p.columns)):  # once even where E = 0: the bias is the result
        if interrupted(job, worker):
            break
        e = k * p.columns
        n = min(p.columns, p.E - e)
        kn.few_pack(s.x, p.x.col, <int>n, 1.0, <int>p.T, s.XT)
        kn.few_project(s.XT, <int>p.T, <int>n, p.W + (top * p.rs + e * p.cs) * item, p.rs, p.cs, <int>rows,
                       p.bias + top * item if p.bias and e + n == p.E else NULL, s.sum, s.YT)
        for i in range(p.T):
            s.x[i] = <const char *>s.x[i] + n * p.x.col * item
    if p.gelu:
        kn.gelu(s.YT, p.T * width, s.YT)
    if not job.cancelled:
        kn.few_store(s.YT, <int>rows, s.ones, <int>p.T, s.out, p.out.col)
    qkvc_fp_leave(environment)


cdef bint few(const Problem *p, Py_ssize_t lanes) noexcept nogil:
    """Are the tokens so few that their roles and the weight's rows are better swapped?

    768 -> 2304 from memory, one core, of the time of a tile.  Rows on AVX-512: 1 token 0.67, 4 0.77, 6 0.93, 8 1.19; on AVX2 1 0.94, 3
    0.97, 4 1.05; squares of 4 lanes gain nothing.  Adjacent rows, which a tile reads number by number: 1 token 0.2 to 0.4, 16 0.5 to 1.04.
    """
    if p.plus:
        return False
    if p.cs == 1:
        return 8 * p.T <= 3 * lanes and lanes >= 8
    return p.rs == 1 and p.T <= QKVC_FEW_BYTES


cdef int cut(Problem *p, int threads) noexcept nogil:
    """Tiles of tokens and ranges of rows; how many threads are worth it.  None of these changes a bit."""
    cdef const Kernels *widest = p.kernels
    cdef Py_ssize_t lanes
    p.kernels = fitted(p.kernels, p.T)
    lanes = p.kernels.lanes
    p.vectors = (p.T + lanes - 1) // lanes
    threads = threads_worth(threads, 2.0 * p.vectors * lanes * p.N * p.E)
    p.columns = COLUMNS if p.cs == 1 else DOWNWARDS
    p.few = few(p, widest.lanes)
    p.unit = STRIP if p.few and p.cs != 1 else UNIT
    if p.few:
        p.kernels, p.tiles = widest, 1
        p.columns = FEW_NUMBERS // p.T // QKVC_BLOCK * QKVC_BLOCK
        p.ranges = (p.N * p.T + FEW_NUMBERS - 1) // FEW_NUMBERS
        if threads > 1:
            p.ranges = max(p.ranges, min(TASKS * threads, (p.N + p.unit - 1) // p.unit))
        p.rows = whole((p.N + p.ranges - 1) // p.ranges, p.unit)
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


cdef int compute(Problem *p, int threads, double flops) except -1:
    cdef Job job
    threads = cut(p, threads)
    hire(&job, p, NULL, <int>min(p.tiles * p.ranges, threads), carve(p, NULL), flops, "project")
    perform(&job, multiply_few if p.few else multiply, p.tiles * p.ranges, threads)
    return 0


cdef int compute_turned(const Problem *call, object dtype, int threads, double flops) except -1:
    """The same with a piece of the weight after the other in a copy whose columns are adjacent; a piece's sums start from those before it.

    One core, 2048 tokens, of the FMA peak: 1024 -> 384 72 -> 80 %, and where rows are 4096 bytes apart, as in the gradient of a weight of
    1024 columns, 60 -> 83 %.  More short rows, or longer ones if few, where there is room: 384 -> 1024 in one piece, 0.97 of the time.
    """
    cdef Job job
    cdef Problem p
    cdef Py_buffer buffer
    # The line behind each row: where rows are 4096 bytes apart all fall into the same sets of L1.
    cdef Py_ssize_t line = 64 // call.item, width = whole(call.E, QKVC_BLOCK), numbers = PIECE * (PIECE_BYTES // call.item + line)
    cdef Py_ssize_t rows = whole(over(call.N, over(call.N, max(PIECE, numbers // (width + line) // UNIT * UNIT))), UNIT)
    cdef Py_ssize_t columns = min(width, (numbers // rows - line) // QKVC_BLOCK * QKVC_BLOCK), e, n
    room = np.empty((rows, columns + line), dtype)
    PyObject_GetBuffer(room, &buffer, PyBUF_STRIDES | PyBUF_WRITABLE)
    PyBuffer_Release(&buffer)
    for n in range(0, call.N, rows):
        for e in range(0, call.E, columns):
            PyErr_CheckSignals()  # a piece may be too short to look up in
            p = call[0]
            p.N, p.E = min(rows, call.N - n), min(columns, call.E - e)
            p.W += (n * p.rs + e * p.cs) * p.item
            p.x.data += e * p.x.col * p.item
            p.out.data += n * p.out.col * p.item
            p.start.data += n * p.start.col * p.item
            if e:
                p.plus, p.start = True, p.out
            if p.bias:
                p.bias = p.bias + n * p.item if e + p.E == call.E else NULL
            p.gelu = p.gelu and e + p.E == call.E
            p.turned, p.turned_row = <char *>buffer.buf, room.shape[1]
            hire(&job, &p, NULL, threads, 64, 0, "project")
            perform(&job, turn_some, over(p.E, TURNED), threads)
            p.W, p.rs, p.cs = p.turned, p.turned_row, 1
            compute(&p, threads, flops)
    return 0


cdef object readable(object x):
    """The array itself, or a copy where C may not read its numbers in place."""
    odd = not x.flags.aligned or any([stride % x.itemsize for stride in x.strides])
    return x.copy() if odd else x


def project(x, weight, bias=None, out=None, num_threads=None, bint gelu=False, plus=None):
    """Project the last axis: ``x @ weight.T + bias``.

    The weight is read where it lies, but if its rows are adjacent and tokens 512 or more: then pieces of it are copied, 3.2 MB at a time.
    Gradients are the same product: ``project(dy, weight.T)`` of x, ``project(dy.T, x.T)`` of the weight, where dy and x are (tokens, ...).

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
    plus : ndarray, shape (..., N), default None
        The dtype of `x`: what the sums start from instead of +0.  It may be `out`.

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
    cdef Py_buffer[5] buffers
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
    shape = (*leading, N)
    if plus is not None and not isinstance(plus, np.ndarray):
        raise TypeError(bad("plus", "an ndarray", type(plus).__name__, "project"))
    if plus is not None and plus.shape != shape:
        raise ValueError(bad("plus", f"shape {shape}", shape_text(plus), "project"))
    for name, array in (("weight", weight), ("bias", bias), ("plus", plus)):
        if array is not None and array.dtype != dtype:
            raise TypeError(bad(name, f"{dtype}, the dtype of x", str(array.dtype), "project"))
    if out is None:
        out = np.empty(shape, dtype)
    else:
        check_out(out, shape, {"x": x, "weight": weight, "bias": bias, "plus": None if plus is out else plus}, "project", dtype)
    if out.size == 0:
        return out
    try:
        for array in (readable(x), readable(weight), out, out if plus is None else readable(plus),
                      bias if bias is None else readable(np.ascontiguousarray(bias))):
            if array is not None:
                PyObject_GetBuffer(array, &buffers[held], PyBUF_STRIDES | PyBUF_WRITABLE if array is out else PyBUF_STRIDES)
                held += 1
        p.kernels = kernels_in_use() if dtype == FLOAT32 else kernels_in_use().float64
        p.item, p.gelu = p.kernels.size, gelu
        tokens_of(&p.x, &buffers[0])
        tokens_of(&p.out, &buffers[2])
        tokens_of(&p.start, &buffers[3])
        p.plus = plus is not None
        p.N, p.E, p.T = N, E, out.size // N
        p.W, p.rs, p.cs = <const char *>buffers[1].buf, buffers[1].strides[0] // p.item, buffers[1].strides[1] // p.item
        p.bias = <const char *>buffers[4].buf if held == 5 else NULL
        flops = 2.0 * p.T * p.N * p.E
        if p.rs == 1 and p.cs != 1 and p.T >= MANY and E:
            compute_turned(&p, dtype, threads, flops)
        else:
            compute(&p, threads, flops)
    finally:
        while held:
            held -= 1
            PyBuffer_Release(&buffers[held])
    return out
