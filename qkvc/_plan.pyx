"""Every judgement about a call of attention: shapes, dtypes, strides, positions, tiles and threads.

What leaves here is a `Plan` whose `Problem` cannot be wrong, so that the tile loop below has nothing left to check.  All errors are raised
here, before anything is written: "attention: <argument>: expected <what>, got <what>".
"""

from cpython.buffer cimport PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.math cimport sqrt
from libc.stdint cimport uintptr_t

import numpy as np

from qkvc._coerce import as_bias, as_float32, as_integers, as_mask, as_scale, bad, check_out, shape_text

from qkvc._kernels cimport fitted, kernels_in_use, threads_for, threads_worth

cdef object ndarray = np.ndarray
cdef object empty = np.empty
cdef object FLOAT32 = np.dtype("float32")

cdef enum:
    ITEM = sizeof(float)

# Widest rows taken: scratch grows with them, and C counts panels with int.
cdef Py_ssize_t MAX_DIM = 1 << 20

# What a lane costs beside its flops (packing, storing, checking, for each of D + Dv), in flops of the same time: 16 queries against 16 keys
# take twice the time of their arithmetic.
cdef double LANE_OVERHEAD = 30

# Rows this many bytes apart (or a multiple) fall into few sets of a 32 KB, 8-way L1, so a key block of them is copied first.
cdef Py_ssize_t ALIASING_STRIDE = 4096


cdef class Plan:
    def __dealloc__(self):
        while self.held:
            self.held -= 1
            PyBuffer_Release(&self.buffers[self.held])

    cdef int borrow(self, View *view, Py_buffer **shape, object array, bint writable) except -1:
        """Take the array's buffer for the life of the plan."""
        cdef Py_buffer *buffer = &self.buffers[self.held]
        PyObject_GetBuffer(array, buffer, PyBUF_STRIDES | PyBUF_WRITABLE if writable else PyBUF_STRIDES)
        self.held += 1
        shape[0] = buffer
        view.data = <char *>buffer.buf
        return 0

    cdef int place(self, str name, object x, Py_buffer **shape, View *view) except -1:
        """Borrow `query`, `key` or `value`; exact float32 arrays, which are nearly all, skip every conversion."""
        if not (type(x) is ndarray and x.dtype is FLOAT32):
            x = as_float32(name, x)
        self.borrow(view, shape, x, False)
        cdef Py_buffer *b = shape[0]
        cdef Py_ssize_t odd = <Py_ssize_t>(<uintptr_t>b.buf % ITEM)
        cdef int axis
        for axis in range(b.ndim):
            if b.shape[axis] > 1:
                odd |= b.strides[axis] % ITEM
        if odd:  # not on float boundaries: C may not read it in place
            self.held -= 1
            PyBuffer_Release(b)
            self.borrow(view, shape, x.copy(), False)
            b = shape[0]
        if b.ndim < 2:
            raise ValueError(bad(name, "an array (..., heads, length, dim) of 2 axes or more", shape_text(x)))
        return 0


cdef Py_ssize_t axis_of(Py_buffer *b, int from_end) noexcept:
    """Length of an axis counted from the end; an axis that is not there has length 1."""
    return b.shape[b.ndim - from_end] if b.ndim >= from_end else 1


cdef Py_ssize_t step_of(Py_buffer *b, int from_end, Py_ssize_t item) noexcept:
    """Stride in elements; a missing axis, or one of length 1 that broadcasts, has stride 0."""
    return b.strides[b.ndim - from_end] // item if b.ndim >= from_end and b.shape[b.ndim - from_end] != 1 else 0


cdef Py_ssize_t length_of(Py_buffer *b, int row) noexcept:
    return axis_of(b, row if b.ndim > 2 else 2)


cdef Py_ssize_t heads_of(Py_buffer *b, int head) noexcept:
    return axis_of(b, head) if b.ndim > 2 else 1  # (L, D) is one head in either layout


cdef int batch_shape(Problem *p, Py_buffer **operands, tuple names) except -1:
    """The leading axes of query, key and value, broadcast as NumPy does."""
    cdef int axis, i, from_end
    cdef Py_ssize_t n, size
    p.batch_axes = 0
    for i in range(3):
        p.batch_axes = max(p.batch_axes, operands[i].ndim - 3)
    if p.batch_axes > MAX_BATCH_AXES:
        raise ValueError(bad("query", f"at most {MAX_BATCH_AXES} batch axes", str(p.batch_axes)))
    p.batch = 1
    for axis in range(p.batch_axes):
        from_end = p.batch_axes - axis + 3
        size = 1
        for i in range(3):
            n = axis_of(operands[i], from_end)
            if n != 1 and size != 1 and n != size:
                raise ValueError(bad(names[i], f"batch axes that broadcast with those of {' and '.join(names[:i])}",
                                     " and ".join(shape_text(<object>operands[j].obj) for j in range(i + 1))))
            if n != 1:
                size = n
        p.batch_shape[axis] = size
        p.batch *= size
    return 0


cdef void spread(Problem *p, View *view, Py_buffer *b, Py_ssize_t item) noexcept:
    """Strides of the batch axes; heads, rows and columns are the caller's."""
    cdef int axis
    for axis in range(p.batch_axes):
        view.batch[axis] = step_of(b, p.batch_axes - axis + 3, item)


cdef void set_strides(Problem *p, View *view, Py_buffer *b, int head, int row) noexcept:
    spread(p, view, b, ITEM)
    if b.ndim == 2:
        view.head, view.row = 0, step_of(b, 2, ITEM)
    else:
        view.head, view.row = step_of(b, head, ITEM), step_of(b, row, ITEM)
    view.col = step_of(b, 1, ITEM)


cdef int place_scores(Plan plan, str name, object x, View *view, Py_ssize_t item) except -1:
    """A mask or a bias: broadcasts to (batch ..., heads, Lq, Lk) in every layout and enlarges nothing."""
    cdef Problem *p = &plan.problem
    cdef Py_buffer *b
    cdef int axis
    cdef bint fits
    plan.borrow(view, &b, x, False)
    fits = b.ndim <= p.batch_axes + 3
    if fits:
        fits = axis_of(b, 1) in (1, p.Lk) and axis_of(b, 2) in (1, p.Lq) and axis_of(b, 3) in (1, p.heads)
        for axis in range(p.batch_axes):
            fits = fits and axis_of(b, p.batch_axes - axis + 3) in (1, p.batch_shape[axis])
    if not fits:
        wanted = (*[p.batch_shape[axis] for axis in range(p.batch_axes)], p.heads, p.Lq, p.Lk)
        raise ValueError(bad(name, f"an array that broadcasts to {wanted}", shape_text(x)))
    spread(p, view, b, item)
    view.head, view.row, view.col = step_of(b, 3, item), step_of(b, 2, item), step_of(b, 1, item)
    return 0


cdef int positions(Plan plan, object causal, object q_offset, object key_lengths) except -1:
    """Where the queries stand among the keys: p = i + offset."""
    cdef Problem *p = &plan.problem
    cdef const int64_t[::1] numbers
    cdef object shape
    p.offset, p.offsets, p.lengths = 0, NULL, NULL
    if causal is False and q_offset is None and key_lengths is None:
        p.causal = False
        return 0
    shape = tuple([p.batch_shape[axis] for axis in range(p.batch_axes)])
    if key_lengths is not None:
        lengths = as_integers("key_lengths", key_lengths, shape, 0, p.Lk)
        if p.batch:
            numbers = lengths
            p.lengths = &numbers[0]
            plan.kept = (lengths,)

    if isinstance(causal, (bool, np.bool_)):
        p.causal = bool(causal)
    elif isinstance(causal, str):
        if causal not in ("top-left", "bottom-right"):
            raise ValueError(bad("causal", 'True, False, "top-left" or "bottom-right"', repr(causal)))
        p.causal = True
    else:
        raise TypeError(bad("causal", 'True, False, "top-left" or "bottom-right"', type(causal).__name__))

    if q_offset is not None:
        if not p.causal:
            raise ValueError(bad("q_offset", "causal=True beside it", "causal=False, which uses no positions"))
        if isinstance(causal, str):
            raise ValueError(bad("q_offset", f"either q_offset or causal={causal!r}", "both"))
        offsets = as_integers("q_offset", q_offset, shape, -(1 << 62), 1 << 62)
        if p.batch:
            numbers = offsets
            p.offsets = &numbers[0]
            plan.kept = (*(plan.kept or ()), offsets)
    elif p.causal and not isinstance(causal, str) and p.Lq != p.Lk:
        raise ValueError(bad("causal", 'causal="top-left" (torch, JAX) or causal="bottom-right" (FlashAttention, MLX, KV caches), or a '
                                       f"q_offset, because {p.Lq} queries against {p.Lk} keys can be aligned both ways", "causal=True"))
    elif causal == "bottom-right":
        if key_lengths is None:
            p.offset = p.Lk - p.Lq
        else:
            offsets = lengths - p.Lq
            if p.batch:
                numbers = offsets
                p.offsets = &numbers[0]
                plan.kept = (*plan.kept, offsets)
    return 0


cdef bint aliases(Py_ssize_t row, Py_ssize_t rows, Py_ssize_t col, Py_ssize_t cols) noexcept:
    """Must a block of these rows be copied before the kernels read it?"""
    if cols > 1 and col != 1:
        return True
    return rows > 8 and row != 0 and (row * ITEM) % ALIASING_STRIDE == 0


cdef void cut(Problem *p, object num_threads) except *:
    """Tiles and threads.  Neither changes a bit of the result (docs/arithmetic.md)."""
    cdef Py_ssize_t heads = p.batch * p.kv_heads, lanes
    p.rows = p.group * p.Lq
    p.kernels = fitted(p.kernels, p.rows)
    lanes = p.kernels.lanes
    p.vectors = (p.rows + lanes - 1) // lanes
    p.threads = threads_worth(threads_for(num_threads), <double>heads * p.vectors * lanes * (p.D + p.Dv) * (2.0 * p.Lk + LANE_OVERHEAD))
    p.tiles = (p.vectors + p.kernels.vecs - 1) // p.kernels.vecs
    if p.tiles * heads < 2 * p.threads:  # narrower tiles, so that every thread has work
        p.tiles = min(p.vectors, (2 * p.threads + heads - 1) // max(heads, 1))


cdef Plan make_plan(object query, object key, object value, object mask, object bias, object causal, object q_offset, object key_lengths,
                    object scale, object layout, object out, bint want_lse, object num_threads):
    cdef Plan plan = Plan.__new__(Plan)
    cdef Problem *p = &plan.problem
    cdef Py_buffer *q
    cdef Py_buffer *k
    cdef Py_buffer *v
    cdef Py_buffer *o
    cdef Py_buffer *operands[3]
    cdef int head = 3, row = 2, axis
    cdef bint flat
    cdef float[::1] lse

    if not isinstance(layout, str):
        raise TypeError(bad("layout", '"bhld" or "blhd"', type(layout).__name__))
    if layout == "blhd":
        head, row = 2, 3
    elif layout != "bhld":
        raise ValueError(bad("layout", '"bhld" or "blhd"', repr(layout)))
    plan.place("query", query, &q, &p.query)
    plan.place("key", key, &k, &p.key)
    plan.place("value", value, &v, &p.value)
    operands[0], operands[1], operands[2] = q, k, v
    batch_shape(p, operands, ("query", "key", "value"))

    p.kernels = kernels_in_use()
    p.Lq, p.heads = length_of(q, row), heads_of(q, head)
    p.Lk, p.kv_heads = length_of(k, row), heads_of(k, head)
    p.D, p.Dv = axis_of(q, 1), axis_of(v, 1)
    if p.D > MAX_DIM:
        raise ValueError(bad("query", f"a last axis of at most {MAX_DIM}", str(p.D)))
    if p.Dv > MAX_DIM:
        raise ValueError(bad("value", f"a last axis of at most {MAX_DIM}", str(p.Dv)))
    if axis_of(k, 1) != p.D:
        raise ValueError(bad("key", f"the query's last axis, {p.D}", shape_text(<object>k.obj)))
    if length_of(v, row) != p.Lk or heads_of(v, head) != p.kv_heads:
        raise ValueError(bad("value", f"the key's {p.Lk} rows in {p.kv_heads} heads", f"{shape_text(<object>v.obj)} with key "
                                      f"{shape_text(<object>k.obj)}"))
    if (p.kv_heads == 0 and p.heads != 0) or (p.kv_heads != 0 and p.heads % p.kv_heads != 0):
        raise ValueError(bad("query", f"a number of heads that the key's {p.kv_heads} divide", f"{p.heads} heads"))
    p.group = p.heads // p.kv_heads if p.kv_heads else 1

    set_strides(p, &p.query, q, head, row)
    set_strides(p, &p.key, k, head, row)
    set_strides(p, &p.value, v, head, row)
    p.copy_key = aliases(p.key.row, p.Lk, p.key.col, p.D)
    p.copy_value = aliases(p.value.row, p.Lk, p.value.col, p.Dv)
    p.scale = (1 / sqrt(<double>p.D) if p.D else 1.0) if scale is None else as_scale(scale)

    p.has_mask = mask is not None
    if p.has_mask:
        place_scores(plan, "mask", as_mask(mask), &p.mask, 1)
    p.has_bias = bias is not None
    if p.has_bias:
        place_scores(plan, "bias", as_bias(bias), &p.bias, ITEM)
    positions(plan, causal, q_offset, key_lengths)
    cut(p, num_threads)

    flat = q.ndim == 2 and k.ndim == 2 and v.ndim == 2
    batch = tuple([p.batch_shape[axis] for axis in range(p.batch_axes)])
    if flat:
        shape, lse_shape = (p.Lq, p.Dv), (p.Lq,)
    else:
        shape = (*batch, p.heads, p.Lq, p.Dv) if row == 2 else (*batch, p.Lq, p.heads, p.Dv)
        lse_shape = (*batch, p.heads, p.Lq)
    if out is None:
        plan.out = empty(shape, FLOAT32)
    else:
        check_out(out, shape, {"query": query, "key": key, "value": value, "mask": mask, "bias": bias})
        plan.out = out
    plan.borrow(&p.out, &o, plan.out, True)
    set_strides(p, &p.out, o, head, row)
    if want_lse:
        plan.lse = empty(lse_shape, FLOAT32)
        if plan.lse.size:
            lse = plan.lse.reshape(-1)
            p.lse = &lse[0]
    return plan
