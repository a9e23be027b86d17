"""The tile loop: `walk` below is the algorithm, everything else serves it.

FlashAttention-2 (Dao 2023, algorithm 1) with the queries of a tile in the vector lanes: S and P exist for one tile and one block of keys at
a time and stay in L1, so memory does not grow with the length.  docs/arithmetic.md fixes the order of every sum.
"""

from libc.stdint cimport int64_t, uint64_t

from qkvc._decode cimport decode_all
from qkvc._kernels cimport QKVC_MAX_VECS, Kernels
from qkvc._plan cimport Plan, Problem, make_plan
from qkvc._tile cimport (
    MAX_TILE,
    Block,
    Scratch,
    Tile,
    draw,
    fetch_queries,
    finish,
    lay_out,
    look,
    note_allowed,
    out_rows,
    pack_queries,
    score,
    scratch_of,
    shorten_rows,
    start,
    sweep,
)
from qkvc._workers cimport Job, interrupted

cdef extern from "fpenv.h" nogil:
    uint64_t qkvc_fp_enter()
    void qkvc_fp_leave(uint64_t before)


cdef void walk(Job *job, Scratch *s, const Tile *t, int worker, bint careful) noexcept nogil:
    """One tile of queries against every block of keys it may see."""
    cdef const Problem *p = <const Problem *>job.problem
    cdef const Kernels *kn = p.kernels
    cdef int Dv = <int>p.Dv
    cdef int[QKVC_MAX_VECS] depth
    cdef Block b
    cdef int64_t i

    pack_queries(p, s, t)                                                           # QT <- (scale Q) transposed, in units of log2
    start(p, s)                                                                     # m <- -inf, l <- 0, O <- 0
    for i in range(t.block, t.blocks):
        if interrupted(job, worker):
            return
        if not look(p, s, t, i, depth, &b):                                         # which keys does any mask let through?
            continue
        score(p, s, t, depth, &b)                                                   # S <- K QT + bias, -inf where masked
        kn.softmax(s.S, depth, t.vecs, s.m, s.l, s.alpha, s.beta)                   # P <- exp2(S - m_b), (m, l) <- (m, l) + (m_b, l_b)
        if p.drops:
            draw(p, s, t, depth, &b)
            kn.drop(s.S, s.keep, depth, t.vecs)                                     # P <- P / (1 - dropout_p), 0 where dropped
        if not careful:
            kn.values(b.V, b.V_row, Dv, s.S, depth, t.vecs, s.alpha, s.beta, s.O)   # O <- alpha O + beta V P
        else:
            note_allowed(p, s, t, depth, &b)
            kn.values_selected(b.V, b.V_row, Dv, s.S, s.allowed, depth, t.vecs, s.alpha, s.beta, s.O)


cdef void attend(void *context, Py_ssize_t task, int worker) noexcept nogil:
    """One task of the pool: walk a tile, and write it."""
    cdef Job *job = <Job *>context
    cdef const Problem *p = <const Problem *>job.problem
    cdef Scratch *s = scratch_of(job, worker)
    cdef uint64_t environment
    cdef void *row[MAX_TILE]
    cdef Py_ssize_t col
    cdef Tile t
    if job.cancelled:
        return
    environment = qkvc_fp_enter()
    t = lay_out(p, s, task)
    walk(job, s, &t, worker, False)
    fetch_queries(p, task + p.threads)  # most likely this worker's next
    if not p.kernels.finite(s.O, <int>p.Dv, s.l, t.vecs):
        # NaN, an infinity, or a query without keys.  It may have come from a masked key's value, as 0 * NaN: only now is it worth a
        # select per key to find out (docs/arithmetic.md, clause 5).
        walk(job, s, &t, worker, True)
    if not job.cancelled:
        finish(p, s, &t)
        col = out_rows(p, s, &t, row)
        p.kernels.store(s.O, <int>p.Dv, s.factor, t.queries, row, col)                              # out <- O / l, through its strides
        shorten_rows(p, s, &t, row)
    qkvc_fp_leave(environment)


def attend_arrays(query, key, value, mask, bias, causal, q_offset, window, key_lengths, alibi_slopes, sinks, softcap, scale, head_scale,
                  dropout_p, rng, layout, precision, out, num_threads, bint want_lse, starts=None, bint in_bytes=False):
    """(out, lse or None): the whole call, behind qkvc.attention and its relatives; `starts` of a ragged batch's queries and keys,
    `in_bytes` of a cache's int8."""
    if value is None:
        raise TypeError("attention: value: expected an array, got None")
    cdef Plan plan = make_plan(query, key, value, mask, bias, causal, q_offset, window, key_lengths, alibi_slopes, sinks, softcap, scale,
                               head_scale, layout, out, want_lse, num_threads, None, None, precision, False, starts, in_bytes,
                               False, dropout_p, rng)
    cdef const Problem *p = &plan.problem
    if plan.out.size or (want_lse and plan.lse.size):
        if p.pieces:
            decode_all(plan, attend)
        else:
            sweep(plan, attend, p.tasks, NULL)
    return (plan.out, plan.lse) if want_lse else plan.out
