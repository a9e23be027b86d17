"""Blocks of keys one by one, and their merging apart from them: what `walk` does in one go, in two halves with the same bits.

A block's part (m_b, l_b, O_b) depends on nothing before it, and merging is the same few operations wherever it happens
(docs/arithmetic.md, clause 3).  So parts may be made in any order, on other threads or machines, of keys that never are together.
"""

from libc.math cimport signbit
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memset

import numpy as np

from qkvc._kernels cimport QKVC_FEW, QKVC_MAX_VECS, Kernels, kernels_in_use, threads_for, threads_worth
from qkvc._plan cimport Plan, Problem, make_plan
from qkvc._tile cimport (
    MAX_TILE,
    Block,
    Part,
    Scratch,
    Tile,
    few_width,
    finish,
    get,
    lay_out,
    look,
    note_allowed,
    pack_queries,
    part_at,
    part_bytes,
    put,
    score,
    scratch_of,
    start,
    sweep,
)
from qkvc._workers cimport Job, data_of, interrupted

cdef extern from "fpenv.h" nogil:
    uint64_t qkvc_fp_enter()
    void qkvc_fp_leave(uint64_t before)

cdef double LOG2_E = 1.4426950408889634

# What merging a number costs, in flops of the same time: it waits for memory.
cdef double MERGE_FLOPS = 16


# ----------------------------------------------------------------------------------------------------------------------------- making

cdef struct Parts:
    char *m              # (blocks, batch, heads, Lq)
    char *l
    Py_ssize_t rows      # of all queries and heads
    Py_ssize_t blocks
    Py_ssize_t pieces    # that a tile's blocks are cut into, so that every thread has work


cdef void make_part(const Problem *p, Scratch *s, const Tile *t, int64_t index, const Parts *to) noexcept nogil:
    """One step of `walk`, from nothing, and what it found."""
    cdef const Kernels *kn = p.kernels
    cdef int Dv = <int>p.Dv, i
    cdef int[QKVC_MAX_VECS] depth
    cdef void *row[MAX_TILE]
    cdef double l
    cdef Block b
    start(p, s)
    if t.block <= index < t.blocks and look(p, s, t, index, depth, &b):
        score(p, s, t, depth, &b)
        kn.softmax(s.S, depth, t.vecs, s.m, s.l, s.alpha, s.beta)
        kn.values(b.V, b.V_row, Dv, s.S, depth, t.vecs, s.alpha, s.beta, s.O)
        if not kn.finite(s.O, Dv, s.l, t.vecs):  # clause 5, of this block alone
            memset(s.O, 0, <size_t>(kn.lanes * kn.vecs * Dv * p.item))
            note_allowed(p, s, t, depth, &b)
            kn.values_selected(b.V, b.V_row, Dv, s.S, s.allowed, depth, t.vecs, s.alpha, s.beta, s.O)
    for i in range(t.vecs * kn.lanes):
        put(p, s.factor, i, 1)
    for i in range(t.queries):
        l = get(p, s.l, i)
        row[i] = <char *>s.out[i] + index * to.rows * p.Dv * p.item
        put(p, to.m, index * to.rows + s.index[i], get(p, s.m, i))
        put(p, to.l, index * to.rows + s.index[i], -0.0 if l == 0 and s.seen[i] else l)
    kn.store(s.O, Dv, s.factor, t.queries, row, p.out.col)


cdef void make_parts(void *context, Py_ssize_t task, int worker) noexcept nogil:
    """One task of the pool: some blocks for a tile of queries."""
    cdef Job *job = <Job *>context
    cdef const Problem *p = <const Problem *>job.problem
    cdef const Parts *to = <const Parts *>job.extra
    cdef Scratch *s = scratch_of(job, worker)
    cdef Py_ssize_t piece = task % to.pieces
    cdef uint64_t environment
    cdef int64_t i
    cdef Tile t
    if job.cancelled:
        return
    environment = qkvc_fp_enter()
    t = lay_out(p, s, task // to.pieces)
    pack_queries(p, s, &t)
    for i in range(to.blocks * piece // to.pieces, to.blocks * (piece + 1) // to.pieces):
        if interrupted(job, worker):
            break
        make_part(p, s, &t, i, to)
    qkvc_fp_leave(environment)


def part_arrays(query, key, value, mask, bias, causal, q_offset, window, key_lengths, alibi_slopes, softcap, scale, layout, precision,
                num_threads):
    """(m, l, O) of every block of keys, the first axis."""
    if value is None:
        raise TypeError("attention: value: expected an array, got None")
    cdef Plan plan = make_plan(query, key, value, mask, bias, causal, q_offset, window, key_lengths, alibi_slopes, None, softcap, scale,
                               None, layout, None, False, num_threads, None, None, precision, True)
    cdef Problem *p = &plan.problem
    cdef Parts to
    shape = plan.out.shape
    rows = (*shape[:1], *((p.Lq,) if len(shape) == 3 else (*plan.batch_shape(), p.heads, p.Lq)))
    m, l = np.empty(rows, plan.dtype), np.empty(rows, plan.dtype)
    if m.size:
        to.m, to.l, to.rows, to.blocks = data_of(m), data_of(l), p.batch * p.heads * p.Lq, shape[0]
        to.pieces = max(1, min(to.blocks, 2 * p.threads // p.tasks))
        sweep(plan, make_parts, p.tasks * to.pieces, &to)
    return m, l, plan.out


# ---------------------------------------------------------------------------------------------------------------------------- merging

cdef struct Merge:
    const int64_t *parts  # [count][4]: m, l and O of contiguous arrays, and their blocks
    Py_ssize_t count
    char *out
    Py_ssize_t rows       # of all queries and heads
    Py_ssize_t head, row  # strides of O and out; batch items follow each other


cdef void merge_rows(void *context, Py_ssize_t task, int worker) noexcept nogil:
    """One task of the pool: a few queries, whatever their heads, through all blocks of all parts."""
    cdef Job *job = <Job *>context
    cdef const Problem *p = <const Problem *>job.problem
    cdef const Merge *to = <const Merge *>job.extra
    cdef Scratch *s = scratch_of(job, worker)
    cdef Py_ssize_t first = task * p.rows, head, i, k, index, width = few_width(p)
    cdef Py_ssize_t[QKVC_FEW] place
    cdef void *row[QKVC_FEW]
    cdef const int64_t *part
    cdef uint64_t environment
    cdef Part b = part_at(p, s.part)
    cdef Tile t
    if job.cancelled:
        return
    environment = qkvc_fp_enter()
    t.queries = <int>min(p.rows, to.rows - first)
    start(p, s)
    memset(s.O, 0, <size_t>(t.queries * width * p.item))
    memset(s.part, 0, part_bytes(p))
    for i in range(t.queries):
        s.index[i] = first + i
        s.head[i] = head = (first + i) // p.Lq
        place[i] = head // p.heads * p.heads * p.Lq * p.Dv + head % p.heads * to.head + (first + i) % p.Lq * to.row
        row[i] = to.out + place[i] * p.item
    for k in range(to.count):
        part = to.parts + 4 * k
        for index in range(part[3]):
            memcpy(b.m, <const char *>part[0] + (index * to.rows + first) * p.item, <size_t>(t.queries * p.item))
            memcpy(b.l, <const char *>part[1] + (index * to.rows + first) * p.item, <size_t>(t.queries * p.item))
            for i in range(t.queries):
                memcpy(b.O + i * width * p.item, <const char *>part[2] + (index * to.rows * p.Dv + place[i]) * p.item,
                       <size_t>(p.Dv * p.item))
                s.seen[i] |= signbit(get(p, b.l, i)) != 0
            p.kernels.few_merge(b.m, b.l, b.O, t.queries, <int>p.Dv, s.m, s.l, s.O)
    finish(p, s, &t)
    p.kernels.few_store(s.O, <int>p.Dv, s.factor, t.queries, row, 1)
    qkvc_fp_leave(environment)


def merge_arrays(parts, shape, batch, Py_ssize_t heads, Py_ssize_t length, bint heads_inside, sinks, head_scale, num_threads):
    """(out, lse) of contiguous (m, l, O) of one dtype; `out` has `shape`, its heads inside its rows or around them."""
    cdef Plan plan = Plan.__new__(Plan)
    cdef Problem *p = &plan.problem
    cdef Merge to
    cdef const int64_t[:, ::1] table = np.array([(*(x.ctypes.data for x in part), len(part[0])) for part in parts], np.int64)
    cdef const double[::1] numbers
    dtype = parts[0][0].dtype
    out, lse = np.empty(shape, dtype), np.empty((*batch, heads, length), dtype)
    p.kernels = kernels_in_use() if dtype == np.float32 else kernels_in_use().float64
    p.item, p.unit, p.batch, p.heads, p.Lq, p.Dv = dtype.itemsize, LOG2_E, int(np.prod(batch)), heads, length, shape[len(shape) - 1]
    p.rows, p.pieces = min(QKVC_FEW, p.kernels.lanes * p.kernels.vecs), 1
    if lse.size:
        if sinks is not None:
            numbers = sinks
            p.sinks = &numbers[0]
        if head_scale is not None:
            numbers = head_scale
            p.head_scale = &numbers[0]
        to.parts, to.count, to.out, to.rows, p.lse = &table[0, 0], len(parts), data_of(out), lse.size, data_of(lse)
        to.head, to.row = (p.Dv, heads * p.Dv) if heads_inside else (length * p.Dv, p.Dv)
        p.threads = threads_worth(threads_for(num_threads), MERGE_FLOPS * sum(part[2].size for part in parts))
        sweep(plan, merge_rows, (to.rows + p.rows - 1) // p.rows, &to)
    return out, lse
