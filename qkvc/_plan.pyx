"""Every judgement about a call of attention: shapes, dtypes, strides, positions, tiles and threads.

What leaves here is a `Plan` whose `Problem` cannot be wrong, so that the tile loop below has nothing left to check.  All errors are raised
here, before anything is written: "attention: <argument>: expected <what>, got <what>".
"""

from cpython.buffer cimport PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint32_t, uintptr_t
from libc.stdlib cimport free

import numpy as np

from qkvc._coerce import (
    Seed,
    as_bias,
    as_finite,
    as_integers,
    as_mask,
    as_operands,
    as_per_head,
    as_precision,
    as_rate,
    as_softcap,
    as_starts,
    as_window,
    bad,
    check_layout,
    check_out,
    shape_text,
)

from qkvc._cut cimport cut, cut_runs
from qkvc._kernels cimport QKVC_BFLOAT16, QKVC_BLOCK, QKVC_FLOAT16, QKVC_INT8, QKVC_REAL, kernels_in_use

cdef extern from *:
    """
    #include <math.h>
    #include "fpenv.h"

    /* As the kernels round: arithmetic may be moved past a change of the control word, but not past a volatile. */
    static double qkvc_one_over_root(double D)
    {
        const uint64_t before = qkvc_fp_enter();
        volatile double x = D;
        x = 1 / sqrt(x);
        qkvc_fp_leave(before);
        return x;
    }
    """
    double qkvc_one_over_root(double D) noexcept

cdef object ndarray = np.ndarray
cdef object empty = np.empty
cdef object FLOAT32 = np.dtype("float32")
cdef object FLOAT64 = np.dtype("float64")
cdef object UINT16 = np.dtype("uint16")
cdef double LOG2_E = 1.4426950408889634

# Widest rows taken: scratch grows with them, and C counts panels with int.
cdef Py_ssize_t MAX_DIM = 1 << 20

# Rows this many bytes apart (or a multiple) fall into few sets of a 32 KB, 8-way L1, so a key block of them is copied first.
cdef Py_ssize_t ALIASING_STRIDE = 4096


cdef class Plan:
    def __dealloc__(self):
        while self.held:
            self.held -= 1
            PyBuffer_Release(&self.buffers[self.held])
        free(self.problem.runs)

    cdef int borrow(self, View *view, Py_buffer **shape, object array, bint writable) except -1:
        """Take the array's buffer for the life of the plan."""
        cdef Py_buffer *buffer = &self.buffers[self.held]
        if not self.plain:
            view.kind = QKVC_REAL
            if array.dtype.itemsize == 1:
                view.kind = QKVC_INT8
            elif array.dtype.itemsize == 2:  # bfloat16, or its bits
                view.kind = QKVC_FLOAT16 if array.dtype.kind == "f" else QKVC_BFLOAT16
            if view.kind == QKVC_BFLOAT16:  # a dtype of another package has no buffer that is known
                array = array.view(UINT16)
        PyObject_GetBuffer(array, buffer, PyBUF_STRIDES | PyBUF_WRITABLE if writable else PyBUF_STRIDES)
        self.held += 1
        shape[0] = buffer
        view.data = <char *>buffer.buf
        view.size = buffer.itemsize
        return 0

    cdef int place(self, str name, object x, Py_buffer **shape, View *view) except -1:
        """Borrow `query`, `key` or `value`."""
        self.borrow(view, shape, x, False)
        cdef Py_buffer *b = shape[0]
        cdef Py_ssize_t item = b.itemsize, odd = <Py_ssize_t>(<uintptr_t>b.buf % item)
        cdef int axis
        for axis in range(b.ndim):
            if b.shape[axis] > 1:
                odd |= b.strides[axis] % item
        if odd:  # not on the boundaries of its numbers: C may not read it in place
            self.held -= 1
            PyBuffer_Release(b)
            self.borrow(view, shape, x.copy(), False)
            b = shape[0]
        if b.ndim < 2:
            raise ValueError(bad(name, "an array (..., heads, length, dim) of 2 axes or more", shape_text(x)))
        return 0

    cdef tuple batch_shape(self):
        cdef Problem *p = &self.problem
        return tuple([p.batch_shape[axis] for axis in range(p.batch_axes)])


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


cdef int broadcast_batch(Problem *p, Py_buffer **operands, int count, tuple names) except -1:
    """The leading axes of query, key and value, broadcast as NumPy does."""
    cdef int axis, i, from_end
    cdef Py_ssize_t n, size
    p.batch_axes = 0
    for i in range(count):
        p.batch_axes = max(p.batch_axes, operands[i].ndim - 3)
    if p.batch_axes > MAX_BATCH_AXES:
        raise ValueError(bad("query", f"at most {MAX_BATCH_AXES} batch axes", str(p.batch_axes)))
    p.batch = 1
    for axis in range(p.batch_axes):
        from_end = p.batch_axes - axis + 3
        size = 1
        for i in range(count):
            n = axis_of(operands[i], from_end)
            if n != 1 and size != 1 and n != size:
                raise ValueError(bad(names[i], f"batch axes that broadcast with those of {' and '.join(names[:i])}",
                                     " and ".join(shape_text(<object>operands[j].obj) for j in range(i + 1))))
            if n != 1:
                size = n
        p.batch_shape[axis] = size
        p.batch *= size
    return 0


cdef void spread(Problem *p, View *view, Py_buffer *b) noexcept:
    """Strides of the batch axes; heads, rows and columns are the caller's."""
    cdef int axis
    for axis in range(p.batch_axes):
        view.batch[axis] = step_of(b, p.batch_axes - axis + 3, view.size)


cdef void set_strides(Problem *p, View *view, Py_buffer *b, int head, int row) noexcept:
    spread(p, view, b)
    if b.ndim == 2:
        view.head, view.row = 0, step_of(b, 2, view.size)
    else:
        view.head, view.row = step_of(b, head, view.size), step_of(b, row, view.size)
    view.col = step_of(b, 1, view.size)


cdef int place_scores(Plan plan, str name, object x, View *view) except -1:
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
    spread(p, view, b)
    view.head, view.row, view.col = step_of(b, 3, view.size), step_of(b, 2, view.size), step_of(b, 1, view.size)
    return 0


cdef const int64_t *kept_integers(Plan plan, object numbers) except? NULL:
    """Where int64 numbers lie that live as long as the plan; NULL for none."""
    cdef const int64_t[::1] view = numbers
    plan.kept.append(numbers)
    return &view[0] if view.shape[0] else NULL


cdef const double *per_head(Plan plan, str name, object x, bint endless) except? NULL:
    """One float64 number for every batch item and head."""
    cdef Problem *p = &plan.problem
    cdef const double[::1] view
    if x is None:
        return NULL
    numbers = as_per_head(name, x, (*plan.batch_shape(), p.heads), endless)
    view = numbers
    plan.kept.append(numbers)
    return &view[0] if view.shape[0] else NULL


cdef int positions(Plan plan, object causal, object q_offset, object window, object key_lengths, bint sloped, object rows_in_all) except -1:
    """Where the queries stand among the keys, p = i + offset, and how far they look from there."""
    cdef Problem *p = &plan.problem
    cdef object rows = p.Lq if rows_in_all is None else rows_in_all, keys = p.Lk
    cdef str asks = None
    p.left = p.right = -1
    if causal is False and q_offset is None and window is None and key_lengths is None and not sloped:
        return 0
    if key_lengths is not None:
        key_lengths = as_integers("key_lengths", key_lengths, plan.batch_shape(), 0, p.Lk)
        p.lengths = kept_integers(plan, key_lengths)
    if plan.ragged is not None:
        rows, keys = plan.ragged
        key_lengths = keys
    if window is not None:
        p.left, p.right = as_window(window)

    if isinstance(causal, str):
        if causal not in ("top-left", "bottom-right"):
            raise ValueError(bad("causal", 'True, False, "top-left" or "bottom-right"', repr(causal)))
    elif not isinstance(causal, (bool, np.bool_)):
        raise TypeError(bad("causal", 'True, False, "top-left" or "bottom-right"', type(causal).__name__))
    if causal:
        asks = "causal"
    elif p.left >= 0 or p.right >= 0:
        asks = "window"
    elif sloped:
        asks = "alibi_slopes"

    if q_offset is not None:
        if asks is None:
            raise ValueError(bad("q_offset", "causal=True, a window or alibi_slopes beside it", "none of them: nothing uses positions"))
        if isinstance(causal, str):
            raise ValueError(bad("q_offset", f"either q_offset or causal={causal!r}", "both"))
        p.offsets = kept_integers(plan, as_integers("q_offset", q_offset, plan.batch_shape(), -(1 << 62), 1 << 62))
    elif causal == "bottom-right":
        if key_lengths is None:
            p.offset = p.Lk - rows
        else:
            p.offsets = kept_integers(plan, key_lengths - rows)
    elif asks is not None and not isinstance(causal, str):
        if plan.ragged is not None:  # the first sequence where they differ, if there is one
            first = np.flatnonzero(rows != keys)[:1]
            rows, keys = rows[first].sum(), keys[first].sum()
        if rows != keys:
            raise ValueError(bad(asks, 'causal="top-left" (torch, JAX) or causal="bottom-right" (FlashAttention, MLX, KV caches), or a '
                                       f"q_offset, because {rows} queries against {keys} keys can be aligned both ways",
                                 "causal=True" if causal else "neither"))
    if causal:
        p.right = 0
    return 0


cdef bint scattered(const View *view, Py_ssize_t cols) noexcept:
    return (cols > 1 and view.col != 1) or view.kind == QKVC_INT8  # which no product reads


cdef bint aliases(const View *view, Py_ssize_t rows) noexcept:
    return rows > 8 and view.row != 0 and (view.row * view.size) % ALIASING_STRIDE == 0


cdef int take_starts(Plan plan, object given_q, object given_k) except -1:
    """Sequences one behind another are a batch axis of stride 0, whose items have first rows of their own."""
    cdef Problem *p = &plan.problem
    if p.batch_axes:
        raise ValueError(bad("query", "arrays without batch axes: their rows are those of all sequences", f"{p.batch_axes} batch axes"))
    starts_q, starts_k = as_starts("cu_seqlens_q", given_q, p.Lq), as_starts("cu_seqlens_k", given_k, p.Lk)
    if starts_q.size != starts_k.size:
        raise ValueError(bad("cu_seqlens_k", f"{starts_q.size} integers, as in cu_seqlens_q", str(starts_k.size)))
    p.batch_axes = 1
    p.batch_shape[0] = p.batch = starts_q.size - 1
    plan.ragged = starts_q[1:] - starts_q[:p.batch], starts_k[1:] - starts_k[:p.batch]
    p.first_query, p.first_key = kept_integers(plan, starts_q), kept_integers(plan, starts_k)
    p.lengths = kept_integers(plan, plan.ragged[1])
    return 0


cdef object take_dropout(Problem *p, object dropout_p, object rng, bint again):
    """The rate; and the seed, which is not drawn yet."""
    cdef double rate = as_rate(dropout_p)
    p.drops = rate > 0
    p.dropout.limit, p.dropout.scale = <uint32_t>(rate * 4294967296.0), 1 / (1 - rate)
    if p.drops and again and (rng is None or isinstance(rng, np.random.Generator)):
        raise TypeError(bad("rng", "the integer that the forward was given", type(rng).__name__, "attention_backward"))
    return rng if isinstance(rng, Seed) else Seed(rng)


cdef bint exact(object x) except -1:
    return type(x) is ndarray and x.dtype == FLOAT32  # which need not be the same object, as after pickle


cdef Plan make_plan(object query, object key, object value, object mask, object bias, object causal, object q_offset, object window,
                    object key_lengths, object alibi_slopes, object sinks, object softcap, object scale, object head_scale, object layout,
                    object out, bint want_lse, object num_threads, object chosen=None, object rows_in_all=None,
                    object precision=None, bint apart=False, object starts=None, bint in_bytes=False, bint backward=False,
                    object dropout_p=0.0, object rng=None):
    cdef Plan plan = Plan.__new__(Plan)
    cdef Problem *p = &plan.problem
    cdef Py_buffer *q
    cdef Py_buffer *k
    cdef Py_buffer *v = NULL
    cdef Py_buffer *o
    cdef Py_buffer *operands[3]
    cdef View lse
    cdef int head = 3, row = 2
    cdef bint flat

    if not isinstance(layout, str) or layout not in ("bhld", "blhd"):
        check_layout(layout, "attention")
    if layout == "blhd":
        head, row = 2, 3
    plan.kept = []
    plan.dtype = dtype = FLOAT32
    plan.plain = precision is None and exact(query) and exact(key) and (value is None or exact(value))
    if not plan.plain:  # float32 arrays, which are nearly all, need no conversion
        if in_bytes:  # keys and values of a cache are what they are
            query = as_operands(query, query, None)[0]
        else:
            query, key, value, dtype = as_operands(query, key, value)
        plan.dtype = FLOAT64 if dtype == FLOAT64 else FLOAT32
        if precision is not None:
            given = query, key, value
            query, key, value = as_precision(precision, dtype, given, num_threads)
    p.item = plan.dtype.itemsize
    plan.place("query", query, &q, &p.query)
    plan.place("key", key, &k, &p.key)
    operands[0], operands[1] = q, k
    if value is not None:
        plan.place("value", value, &v, &p.value)
        operands[2] = v
    broadcast_batch(p, operands, 2 if v == NULL else 3, ("query", "key", "value"))

    if rng is not None or type(dropout_p) is not float or <double>dropout_p != 0:
        rng = take_dropout(p, dropout_p, rng, backward)
    p.kernels = kernels_in_use()
    if plan.dtype is not FLOAT32:
        p.kernels = p.kernels.float64
    elif v != NULL and not backward and not p.drops and p.kernels.bfloat16 != NULL:
        if p.query.kind == p.key.kind == p.value.kind == QKVC_BFLOAT16:
            p.kernels = p.kernels.bfloat16
    p.Lq, p.heads = length_of(q, row), heads_of(q, head)
    p.Lk, p.kv_heads = length_of(k, row), heads_of(k, head)
    p.D, p.Dv = axis_of(q, 1), axis_of(v, 1) if v != NULL else 0
    if p.D > MAX_DIM:
        raise ValueError(bad("query", f"a last axis of at most {MAX_DIM}", str(p.D)))
    if p.Dv > MAX_DIM:
        raise ValueError(bad("value", f"a last axis of at most {MAX_DIM}", str(p.Dv)))
    if axis_of(k, 1) != p.D:
        raise ValueError(bad("key", f"the query's last axis, {p.D}", shape_text(<object>k.obj)))
    if v != NULL and (length_of(v, row) != p.Lk or heads_of(v, head) != p.kv_heads):
        raise ValueError(bad("value", f"the key's {p.Lk} rows in {p.kv_heads} heads", f"{shape_text(<object>v.obj)} with key "
                                      f"{shape_text(<object>k.obj)}"))
    if (p.kv_heads == 0 and p.heads != 0) or (p.kv_heads != 0 and p.heads % p.kv_heads != 0):
        raise ValueError(bad("query", f"a number of heads that the key's {p.kv_heads} divide", f"{p.heads} heads"))
    if starts is not None:
        take_starts(plan, starts[0], starts[1])
    p.group = p.heads // p.kv_heads if p.kv_heads else 1
    p.share = 1

    set_strides(p, &p.query, q, head, row)
    set_strides(p, &p.key, k, head, row)
    p.few_bytes = p.key.kind == QKVC_INT8 and p.kernels.few_pack_bytes != NULL
    p.few_copy_key = not p.few_bytes and (scattered(&p.key, p.D) or (p.kernels.kind == QKVC_BFLOAT16 and p.D % 2 != 0))
    p.copy_key = p.few_copy_key or scattered(&p.key, p.D) or aliases(&p.key, p.Lk) or p.key.kind != p.kernels.kind
    if v != NULL:
        set_strides(p, &p.value, v, head, row)
        p.few_copy_value = not p.few_bytes and scattered(&p.value, p.Dv)  # of these, whole rows are read
        p.copy_value = p.few_copy_value or aliases(&p.value, p.Lk) or p.value.kind != p.kernels.kind or p.kernels.kind == QKVC_BFLOAT16
    p.scale = (qkvc_one_over_root(p.D) if p.D else 1.0) if scale is None else as_finite("scale", scale)
    p.unit = LOG2_E
    p.softcap = 0.0 if softcap is None else as_softcap(softcap)

    p.has_mask = mask is not None
    if p.has_mask:
        place_scores(plan, "mask", as_mask(mask), &p.mask)
    p.has_bias = bias is not None
    if p.has_bias:
        place_scores(plan, "bias", as_bias(bias, plan.dtype), &p.bias)
    p.slopes = per_head(plan, "alibi_slopes", alibi_slopes, False)
    p.sinks = per_head(plan, "sinks", sinks, True)
    p.head_scale = per_head(plan, "head_scale", head_scale, False)
    positions(plan, causal, q_offset, window, key_lengths, alibi_slopes is not None, rows_in_all)
    if chosen is not None:
        p.chosen = kept_integers(plan, chosen)
    p.apart, p.backward = apart, backward
    if starts is None:
        cut(p, num_threads)
    else:
        cut_runs(p, num_threads)

    flat = q.ndim == 2 and k.ndim == 2 and (v == NULL or v.ndim == 2)
    batch = plan.batch_shape() if starts is None else ()
    if v != NULL:
        if flat:
            shape = (p.Lq, p.Dv)
        else:
            shape = (*batch, p.heads, p.Lq, p.Dv) if row == 2 else (*batch, p.Lq, p.heads, p.Dv)
        if apart:
            shape, dtype = ((p.Lk + QKVC_BLOCK - 1) // QKVC_BLOCK, *shape), plan.dtype
        plan.shape = shape
    if v != NULL and not backward:
        if out is None:
            plan.out = empty(shape, dtype)
        else:
            check_out(out, shape, {"query": query, "key": key, "value": value, "mask": mask, "bias": bias}, dtype=dtype)
            plan.out = out
        plan.borrow(&p.out, &o, plan.out, True)
        set_strides(p, &p.out, o, head, row)
    if want_lse:
        plan.lse = empty((p.Lq,) if flat else (*batch, p.heads, p.Lq), plan.dtype)
        plan.borrow(&lse, &o, plan.lse, True)
        p.lse = lse.data
    if p.drops:  # last, so that a call that fails takes nothing from a generator
        p.dropout.seed = rng.value()
    return plan
