"""Few queries against many keys, as in decoding: the tile loop with the roles swapped, and the keys in pieces.

The steps are those of `walk` in _attention.pyx, and so are the bits.  A block's part (m_b, l_b, O_b) depends on nothing before it.  So
pieces of the keys are read by whoever is free, every part waits in a place of its own, and who ends last merges them in ascending order
(docs/arithmetic.md, clause 3).  Flash-Decoding merges pieces, whose rounding would depend on how many there are.
"""

from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from qkvc._kernels cimport QKVC_MAX_VECS, Kernels, Task
from qkvc._plan cimport Plan, Problem
from qkvc._tile cimport (
    MAX_TILE,
    Block,
    Part,
    Scratch,
    Tile,
    W,
    adjust,
    bring_rows,
    few_width,
    find,
    finish,
    get,
    lay_out,
    look,
    out_rows,
    part_at,
    part_bytes,
    put,
    query_rows,
    scratch_of,
    shorten_rows,
    start,
    sweep,
)
from qkvc._workers cimport Job, interrupted

cdef extern from "fpenv.h" nogil:
    uint64_t qkvc_fp_enter()
    void qkvc_fp_leave(uint64_t before)

cdef extern from *:
    """
    static int qkvc_count_up(int *done) { return __atomic_add_fetch(done, 1, __ATOMIC_ACQ_REL); }
    """
    int qkvc_count_up(int *done) nogil

ctypedef struct Parts:
    Task whole          # the same task by `walk`: a tile, or for when something is not finite
    char *memory        # [key head][block of all batch items whose keys are in pieces]
    int *done           # [batch item][key head] pieces


cdef void read_block(const Problem *p, Scratch *s, const Tile *t, int64_t index, Part b) noexcept nogil:
    """(m_b, l_b, O_b) of one block of keys"""
    cdef const Kernels *kn = p.kernels
    cdef int queries = t.queries, i
    cdef int[QKVC_MAX_VECS] depth
    cdef void *row[MAX_TILE]
    cdef Block block
    if not look(p, s, t, index, depth, &block):                                                     # which keys does any mask let through?
        for i in range(queries):
            put(p, b.m, i, -INFINITY)
            put(p, b.l, i, 0)
        memset(b.O, 0, <size_t>(queries * few_width(p) * p.item))
        return
    if p.few_copy_key:
        bring_rows(p, &p.key, block.keys, p.D, s.K, &block.K, &block.K_row, &block.K_kind)
    if p.few_copy_value:
        bring_rows(p, &p.value, block.keys, p.Dv, s.V, &block.V, &block.V_row, &block.V_kind)
    if p.few_bytes:
        kn.few_scores_bytes(s.Q, queries, <int>p.D, block.K, block.K_row, block.keys, s.P)
    else:
        kn.few_scores(s.Q, queries, <int>p.D, block.K, block.K_row, block.K_kind, block.keys, s.P)  # S <- Q KT
    if p.softcap or p.slopes or p.has_bias or block.masked or block.clipped:                        # by way of a tile, which knows how
        for i in range(t.vecs * kn.lanes):
            row[i] = s.P + min(i, queries - 1) * W * p.item
        for i in range(t.vecs):
            depth[i] = block.keys
        kn.pack(<const void *const *>row, 1, block.keys, 1.0, t.vecs, s.S)
        adjust(p, s, t, depth, &block)
        kn.store(s.S, block.keys, s.alpha, queries, row, 1)
    if p.few_bytes:
        kn.few_softmax_bytes(s.P, queries, block.V, block.V_row, <int>p.Dv, block.keys, b.m, b.l)
        kn.few_values_bytes(s.P, queries, block.V, block.V_row, <int>p.Dv, block.keys, b.O)
        return
    kn.few_softmax(s.P, queries, block.keys, b.m, b.l)                                              # P <- exp2(S - m_b)
    kn.few_values(s.P, queries, block.V, block.V_row, block.V_kind, <int>p.Dv, block.keys, b.O)     # O_b <- P V


cdef void decode(void *context, Py_ssize_t task, int worker) noexcept nogil:
    """One task of the pool: a piece of the keys of one (batch item, key head), and the result, if no other piece is missing."""
    cdef Job *job = <Job *>context
    cdef const Problem *p = <const Problem *>job.problem
    cdef const Parts *parts = <const Parts *>job.extra
    cdef Scratch *s = scratch_of(job, worker)
    cdef char *memory = NULL
    cdef uint64_t environment
    cdef void *row[MAX_TILE]
    cdef Py_ssize_t col
    cdef bint finite
    cdef int64_t i, n
    cdef Part b
    cdef Tile t
    if job.cancelled:
        return
    if p.runs and not find(p, task).few:
        parts.whole(context, task, worker)
        return
    environment = qkvc_fp_enter()
    t = lay_out(p, s, task)
    n = t.blocks - t.block
    if t.shares > 1:
        memory = parts.memory + t.part * part_bytes(p)
    start(p, s)                                                                                     # m <- -inf, l <- 0, O <- 0
    memset(s.O, 0, <size_t>(t.queries * few_width(p) * p.item))
    for i in range(t.vecs * p.kernels.lanes):
        put(p, s.alpha, i, 1)
    col = query_rows(p, s, &t, <const void **>row)
    pack = p.kernels.few_pack_bytes if p.few_bytes else p.kernels.few_pack
    pack(<const void *const *>row, col, <int>p.D, p.scale * p.unit, t.queries, s.Q)
    b = part_at(p, s.part)
    for i in range(n * t.share // t.shares, n * (t.share + 1) // t.shares):
        if interrupted(job, worker):
            break
        if memory:
            b = part_at(p, memory + i * part_bytes(p))
        read_block(p, s, &t, t.block + i, b)
        if not memory:
            p.kernels.few_merge(b.m, b.l, b.O, t.queries, <int>p.Dv, s.m, s.l, s.O)
    if not job.cancelled and (not memory or qkvc_count_up(&parts.done[t.batch * p.kv_heads + t.kv_head]) == t.shares):
        if memory:
            for i in range(n):
                b = part_at(p, memory + i * part_bytes(p))
                p.kernels.few_merge(b.m, b.l, b.O, t.queries, <int>p.Dv, s.m, s.l, s.O)
        finish(p, s, &t)
        col = out_rows(p, s, &t, row)
        finite = p.kernels.few_store(s.O, <int>p.Dv, s.factor, t.queries, row, col)
        shorten_rows(p, s, &t, row)
        for i in range(t.queries):
            finite = finite and get(p, s.l, i) > 0
        if not finite and not p.few_bytes:  # of bytes a weight of 0 takes nothing, so nothing came from a masked key
            parts.whole(context, task, worker)
    qkvc_fp_leave(environment)


cdef int decode_all(Plan plan, Task whole) except -1:
    """The whole call.  Parts, where keys are in pieces: item (Dv + 32) bytes for every query and block; beyond 1 GB keys stay whole."""
    cdef const Problem *p = &plan.problem
    cdef Py_ssize_t blocks = p.kv_heads * p.blocks
    cdef Parts parts
    parts.whole, parts.memory, parts.done = whole, NULL, NULL
    try:
        if blocks:
            parts.memory = <char *>malloc(blocks * part_bytes(p))
            parts.done = <int *>calloc(p.batch * p.kv_heads, sizeof(int))
            if parts.memory == NULL or parts.done == NULL:
                raise MemoryError(f"attention: {blocks * part_bytes(p)} bytes for the parts of {blocks} blocks")
        sweep(plan, decode, p.tasks, &parts)
    finally:
        free(parts.memory)
        free(parts.done)
    return 0
