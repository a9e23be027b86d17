"""The gradient of attention: `walk_back` is the algorithm, everything else serves it.

FlashAttention-2 (Dao 2023, algorithm 2) with queries in the vector lanes, and queries outermost: a tile's dQ stays with it, as O does in
the forward, and its blocks add to the dK and dV of a stripe.  P is recomputed from lse.  Five products, no L_q x L_k matrix.

dK and dV are sums over queries.  Their order is fixed by lengths alone: a chain for every stripe of some 512 queries, then stripes are
added to groups, of which there are at most GROUPS, and groups to the whole (docs/arithmetic.md, clause 10).
"""

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

import numpy as np

from qkvc._coerce import as_like, as_operand, as_operands, bad
from qkvc._kernels import undisturbed

from qkvc._backtile cimport Desk, Gradients, aim, back, desk_of, differentiate, over, prepare, store_query
from qkvc._cut cimport cut
from qkvc._kernels cimport QKVC_BLOCK, QKVC_MAX_VECS, QKVC_REAL, QKVC_WHOLE, Kernels
from qkvc._plan cimport Plan, Problem, Run, View, make_plan, set_strides
from qkvc._tile cimport MAX_TILE, Block, Scratch, Tile, batch_offset, find, get, lay_out, note_allowed, run_of, scratch_of
from qkvc._workers cimport Job, data_of, interrupted, padded, result

cdef extern from "fpenv.h" nogil:
    uint64_t qkvc_fp_enter()
    void qkvc_fp_leave(uint64_t before)

cdef str WHO = "attention_backward"

cdef enum:
    STRIPE = 512    # queries of a chain, nearly
    GROUPS = 8      # of stripes: so many parts of dK and dV there are at most
    ENOUGH = 4      # heads for each thread: fewer are cut into their groups


# Which keys a part of dK and dV has; its rows follow, counted from key 0.
cdef struct Part:
    int64_t first, end


cdef inline char *rows_of(Part *part) noexcept nogil:
    return <char *>part + 64


cdef inline void add_columns(const Kernels *kn, const Tile *t, const Block *b, int D, const char *dS, const char *allowed, const int *depth,
                             const void *one, char *dQ) noexcept nogil:
    """dQ <- dQ + KT dS; with `allowed`, pair by pair"""
    if allowed == NULL:
        kn.values(b.K, b.K_row, D, dS, depth, t.vecs, one, one, dQ)
    else:
        kn.values_selected(b.K, b.K_row, D, dS, allowed, depth, t.vecs, one, one, dQ)


cdef inline void add_rows(const Kernels *kn, const Tile *t, const char *P, const char *allowed, const char *X, Py_ssize_t width,
                          const int *depth, char *C, Py_ssize_t pitch, const void *const *ahead, int rows, int bytes) noexcept nogil:
    """C <- C + P X; with `allowed`, pair by pair.  So many rows ahead are fetched."""
    if allowed == NULL:
        kn.back_rows(P, X, <int>width, t.queries, depth, t.vecs, C, pitch, ahead, rows, bytes)
    else:
        kn.back_rows_selected(P, allowed, X, <int>width, t.queries, depth, t.vecs, C, pitch)


cdef void walk_back(Job *job, Scratch *s, Desk *r, const Tile *t, int worker, bint careful, char *part) noexcept nogil:
    """One tile of queries against every block of keys that it may see: its dQ, and what it adds to dK and dV."""
    cdef const Problem *p = <const Problem *>job.problem
    cdef const Gradients *g = <const Gradients *>job.extra
    cdef const Kernels *kn = p.kernels
    cdef const char *allowed = s.allowed if careful else NULL
    cdef int[QKVC_MAX_VECS] depth
    cdef char *dK
    cdef char *dV
    cdef Block b
    cdef int64_t i
    cdef int rows = 2 * r.rows  # of the next tile, fetched in the first block

    prepare(p, g, s, r, t)                                                          # QT, dOT, delta <- rowsum(dO O) - dlse, dQ <- 0
    for i in range(t.block, t.blocks):
        if interrupted(job, worker):
            return
        if not differentiate(p, g, s, r, t, i, depth, &b, part):                    # P <- exp2(S - lse), dS <- P (V dOT - delta)
            continue
        if p.softcap:
            kn.back_soften(r.dP, s.capped, p.softcap * p.unit, depth, t.vecs)       # dS <- dS tanh'
        if careful:
            note_allowed(p, s, t, depth, &b)
        dK = part + b.first * g.pitch * p.item
        dV = dK + g.Q_width * p.item
        if g.query.data:
            add_columns(kn, t, &b, <int>p.D, r.dP, allowed, depth, r.one, r.dQ)     # dQ <- dQ + KT dS
        if g.key.data:
            # dK <- dK + dS Q
            add_rows(kn, t, r.dP, allowed, r.Q, g.Q_width, depth, dK, g.pitch, r.ahead, rows, <int>(p.D * p.query.size))
        if g.value.data:
            if p.drops:
                kn.drop(s.S, s.keep, depth, t.vecs)
            # dV <- dV + P dO
            add_rows(kn, t, s.S, allowed, r.dO, g.O_width, depth, dV, g.pitch, r.ahead + 2 * MAX_TILE, rows, <int>(p.Dv * g.out.size))
        rows = 0


# --------------------------------------------------------------------------------------------------------------- stripes and groups

cdef inline int64_t keys_of(const Problem *p, const Run *run) noexcept nogil:
    """Rows of the key's gradient, whether or not `key_lengths` lets anybody see them."""
    return p.first_key[run.batch + 1] - p.first_key[run.batch] if p.first_key else p.Lk


cdef inline Py_ssize_t stripes_of(const Run *run) noexcept nogil:
    return max(1, run.rows // STRIPE)


cdef inline Py_ssize_t groups_of(const Run *run) noexcept nogil:
    return min(GROUPS, stripes_of(run))


cdef inline Py_ssize_t tile_at(const Problem *p, const Run *run, Py_ssize_t stripe) noexcept nogil:
    """The first tile of a stripe, or the first behind all."""
    cdef Py_ssize_t stripes = stripes_of(run)
    if stripe == stripes:
        return run.shares
    return run.rows * stripe // stripes // QKVC_WHOLE * QKVC_WHOLE // (p.kernels.lanes * p.kernels.vecs)


cdef bint do_stripe(Job *job, Scratch *s, Desk *r, int worker, const Run *run, Py_ssize_t head, Py_ssize_t stripe, bint careful,
                    Part *part) noexcept nogil:
    """A stripe's tiles in ascending order; False if a number is not finite."""
    cdef const Problem *p = <const Problem *>job.problem
    cdef const Gradients *g = <const Gradients *>job.extra
    cdef const Kernels *kn = p.kernels
    cdef Py_ssize_t first = tile_at(p, run, stripe), end = tile_at(p, run, stripe + 1), last = run.tasks + (head + 1) * run.shares - 1
    cdef Py_ssize_t after, i
    cdef Py_ssize_t row = kn.lanes * kn.vecs * p.item, bytes
    cdef bint clean = True
    cdef Tile next
    cdef Tile t = lay_out(p, s, last - end + 1)
    part.end = min(t.blocks * QKVC_BLOCK, keys_of(p, run))
    t = lay_out(p, s, last - first)
    part.first = min(t.block * QKVC_BLOCK, part.end)
    bytes = (part.end - part.first) * g.pitch * p.item
    memset(rows_of(part) + part.first * g.pitch * p.item, 0, <size_t>(bytes + row))
    for i in range(first, end):
        if job.cancelled:
            return True
        if i > first:
            t = lay_out(p, s, last - i)
        after = last - i - 1 if i + 1 < run.shares else last + p.threads * run.shares  # then most likely this worker's next head
        r.rows = 0
        if after < p.tasks:
            next = find(p, after)
            aim(p, g, r, &next)
        walk_back(job, s, r, &t, worker, careful, rows_of(part))
        clean = clean and kn.finite(r.dQ, <int>p.D, r.one, t.vecs)
        if g.query.data:
            store_query(p, g, r, &t)
    return clean and kn.finite(rows_of(part) + part.first * g.pitch * p.item, <int>((bytes + row - 1) // row), r.one, kn.vecs)


cdef void add_part(const Problem *p, const Gradients *g, Part *sum, Part *part) noexcept nogil:
    """Later queries see neither their first nor their last key earlier."""
    cdef Py_ssize_t row = g.pitch * p.item
    cdef const void *pair[2]
    cdef int64_t j
    if part.first == part.end:
        return
    if sum.first == sum.end:
        sum.first = sum.end = part.first
    if sum.end < part.end:
        memset(rows_of(sum) + sum.end * row, 0, <size_t>((part.end - sum.end) * row))
        sum.end = part.end
    for j in range(part.first, part.end):
        pair[0], pair[1] = rows_of(sum) + j * row, rows_of(part) + j * row
        p.kernels.back_sum(pair, 2, <int>g.pitch, 1.0, <void *>pair[0])


cdef void do_group(Job *job, int worker, const Run *run, Py_ssize_t head, Py_ssize_t group, char *slabs) noexcept nogil:
    """A group's part: of its first stripe, to which the others are added."""
    cdef const Problem *p = <const Problem *>job.problem
    cdef const Gradients *g = <const Gradients *>job.extra
    cdef Scratch *s = scratch_of(job, worker)
    cdef Desk *r = desk_of(job, worker)
    cdef Py_ssize_t stripes = stripes_of(run), groups = groups_of(run), first = stripes * group // groups, i
    cdef Part *sum = <Part *>(slabs + group * g.slab)
    cdef Part *part
    for i in range(first, stripes * (group + 1) // groups):
        if job.cancelled:  # before a part is cleared for nothing
            return
        part = sum if i == first else <Part *>r.stripe
        if not do_stripe(job, s, r, worker, run, head, i, False, part):
            # NaN or an infinity.  It may have come from what is masked, as 0 * NaN: only now is it worth a select for every pair to find
            # out (docs/arithmetic.md, clause 5).
            do_stripe(job, s, r, worker, run, head, i, True, part)
        if part != sum and not job.cancelled:
            add_part(p, g, sum, part)


cdef void store_rows(const Problem *p, const View *view, const void *const *row, int count, Py_ssize_t columns, double scale, char *spare,
                     char *to) noexcept nogil:
    """to <- scale * the sum of rows"""
    if view.kind == QKVC_REAL:
        p.kernels.back_sum(row, count, <int>columns, scale, to)
    else:
        p.kernels.back_sum(row, count, <int>columns, scale, spare)
        p.kernels.shorten(spare, <int>columns, view.kind, to, view.col)


cdef void add_up(const Problem *p, const Gradients *g, const Run *run, Py_ssize_t head, char *slabs, int64_t first, int64_t end,
                 char *spare) noexcept nogil:
    """Rows of the key's and the value's gradients: the groups' parts, in ascending order."""
    cdef Py_ssize_t groups = groups_of(run), i
    cdef const void *row[GROUPS]
    cdef const void *beside[GROUPS]
    cdef Part *part
    cdef int64_t j
    cdef int count
    cdef char *dK = g.key.data + (batch_offset(p, &g.key, run.batch, p.first_key) + head * g.key.head) * g.key.size
    cdef char *dV = g.value.data + (batch_offset(p, &g.value, run.batch, p.first_key) + head * g.value.head) * g.value.size
    for j in range(first, end):
        count = 0
        for i in range(groups):
            part = <Part *>(slabs + i * g.slab)
            if part.first <= j < part.end:
                row[count] = rows_of(part) + j * g.pitch * p.item
                beside[count] = <const char *>row[count] + g.Q_width * p.item
                count += 1
        if g.key.data:
            store_rows(p, &g.key, row, count, p.D, p.scale, spare, dK + j * g.key.row * g.key.size)
        if g.value.data:
            store_rows(p, &g.value, beside, count, p.Dv, 1.0, spare, dV + j * g.value.row * g.value.size)


# ------------------------------------------------------------------------------------------------------------------------- the tasks

cdef inline Py_ssize_t items_of(const Problem *p) noexcept nogil:
    return p.count if p.runs else p.batch


cdef inline Run item_of(const Problem *p, Py_ssize_t i) noexcept nogil:
    """The i-th batch item that has queries."""
    return p.runs[i] if p.runs else run_of(p, i * p.kv_heads * p.tiles)


cdef void back_head(void *context, Py_ssize_t task, int worker) noexcept nogil:
    """One task of the pool: a key head of a batch item."""
    cdef Job *job = <Job *>context
    cdef const Problem *p = <const Problem *>job.problem
    cdef const Gradients *g = <const Gradients *>job.extra
    cdef Run run = item_of(p, task // p.kv_heads)
    cdef Desk *r = desk_of(job, worker)
    cdef Py_ssize_t head = task % p.kv_heads, i
    cdef uint64_t environment
    if job.cancelled:
        return
    environment = qkvc_fp_enter()
    for i in range(groups_of(&run)):
        do_group(job, worker, &run, head, i, r.slabs)
    for i in range(over(keys_of(p, &run), QKVC_BLOCK)):
        if interrupted(job, worker):
            break
        add_up(p, g, &run, head, r.slabs, i * QKVC_BLOCK, min((i + 1) * QKVC_BLOCK, keys_of(p, &run)), r.spare)
    qkvc_fp_leave(environment)


cdef void back_group(void *context, Py_ssize_t task, int worker) noexcept nogil:
    """One task of the pool, where heads are few: a group, those of the latest queries first, which under `causal` see most."""
    cdef Job *job = <Job *>context
    cdef const Problem *p = <const Problem *>job.problem
    cdef const Gradients *g = <const Gradients *>job.extra
    cdef Py_ssize_t heads = items_of(p) * p.kv_heads, head = task % heads, group = g.groups - 1 - task // heads
    cdef Run run = item_of(p, head // p.kv_heads)
    cdef uint64_t environment
    if job.cancelled or group >= groups_of(&run):
        return
    environment = qkvc_fp_enter()
    do_group(job, worker, &run, head % p.kv_heads, group, g.slabs + head * g.groups * g.slab)
    qkvc_fp_leave(environment)


cdef void back_keys(void *context, Py_ssize_t task, int worker) noexcept nogil:
    """One task of the pool, behind the groups: a block of keys."""
    cdef Job *job = <Job *>context
    cdef const Problem *p = <const Problem *>job.problem
    cdef const Gradients *g = <const Gradients *>job.extra
    cdef Py_ssize_t blocks = over(g.keys, QKVC_BLOCK), head = task // blocks, first = task % blocks * QKVC_BLOCK
    cdef Run run = item_of(p, head // p.kv_heads)
    cdef uint64_t environment
    if interrupted(job, worker):
        return
    environment = qkvc_fp_enter()
    add_up(p, g, &run, head % p.kv_heads, g.slabs + head * g.groups * g.slab, first, min(first + QKVC_BLOCK, keys_of(p, &run)),
           desk_of(job, worker).spare)
    qkvc_fp_leave(environment)


cdef void find_dots(void *context, Py_ssize_t task, int worker) noexcept nogil:
    """One task of the pool, where only sums of dO O are wanted: a tile."""
    cdef Job *job = <Job *>context
    cdef const Problem *p = <const Problem *>job.problem
    cdef Scratch *s = scratch_of(job, worker)
    cdef uint64_t environment
    cdef Tile t
    if interrupted(job, worker):
        return
    environment = qkvc_fp_enter()
    t = lay_out(p, s, task)
    prepare(p, <const Gradients *>job.extra, s, desk_of(job, worker), &t)
    qkvc_fp_leave(environment)


# --------------------------------------------------------------------------------------------------------------------- the bias

cdef void add_scores(const Problem *p, const Gradients *g, const Tile *t, Desk *r, const int *depth, const Block *b) noexcept nogil:
    """dS, added to the places of the scores in the bias's gradient."""
    cdef Py_ssize_t lanes = p.kernels.lanes, tile = lanes * p.kernels.vecs, i, j
    cdef const View *v = &g.places
    cdef double *row
    for i in range(t.queries):
        row = g.bias + batch_offset(p, v, t.batch, NULL) + t.kv_head * v.head + (t.row + i) * v.row + b.first * v.col
        for j in range(depth[i // lanes]):
            row[j * v.col] += get(p, r.dP, j * tile + i)


cdef void back_bias(void *context, Py_ssize_t task, int worker) noexcept nogil:
    """One task of the pool: numbers of the bias's gradient that no other task has, from all batch items and heads that share them."""
    cdef Job *job = <Job *>context
    cdef const Problem *p = <const Problem *>job.problem
    cdef const Gradients *g = <const Gradients *>job.extra
    cdef Scratch *s = scratch_of(job, worker)
    cdef Desk *r = desk_of(job, worker)
    cdef Py_ssize_t pieces = p.tiles if g.by_tile else over(p.Lk, QKVC_BLOCK) if g.by_block else 1, piece = task % pieces, i, tile
    cdef int[QKVC_MAX_VECS] depth
    cdef uint64_t environment = qkvc_fp_enter()
    cdef int64_t index
    cdef Block b
    cdef Tile t
    for i in range(task // pieces * g.sharing, (task // pieces + 1) * g.sharing):
        for tile in range(piece if g.by_tile else 0, piece + 1 if g.by_tile else p.tiles):
            if interrupted(job, worker):
                break
            t = lay_out(p, s, g.sharers[i] * p.tiles + tile)
            prepare(p, g, s, r, &t)
            for index in range(t.block, t.blocks):
                if (g.by_tile or not g.by_block or index == piece) and differentiate(p, g, s, r, &t, index, depth, &b, NULL):
                    add_scores(p, g, &t, r, depth, &b)
    qkvc_fp_leave(environment)


cdef object of_bias(Plan plan, Gradients *g, object bias, object num_threads):
    """The bias's gradient, in a sweep of its own: S and dP once more, but in order, whatever axes it was broadcast along."""
    cdef Problem *p = &plan.problem
    cdef Py_buffer *b
    cdef const int64_t[::1] sharers
    room = np.zeros(np.shape(bias))
    plan.borrow(&g.places, &b, room, True)
    set_strides(p, &g.places, b, 3, 2)
    g.bias = <double *>g.places.data
    shape = room.shape[:len(room.shape) - 2]
    heads = np.broadcast_to(np.arange(np.prod(shape, dtype=np.int64)).reshape(shape), (*plan.batch_shape(), p.heads)).ravel()
    whose = np.argsort(heads, kind="stable").astype(np.int64)
    sharers = whose
    # A tile's lanes hold one head, because each head may have a place of its own.
    p.share, p.kv_heads, p.group = p.group, p.heads, 1
    cut(p, num_threads)
    if room.size and whose.size and p.Lq:
        measure(p, g)
        g.slab = 0
        g.sharers, g.sharing = &sharers[0], whose.size // max(1, heads.max() + 1)
        g.by_tile, g.by_block = g.places.row != 0, g.places.col != 0
        pieces = p.tiles if g.by_tile else over(p.Lk, QKVC_BLOCK) if g.by_block else 1
        back(plan, g, back_bias, whose.size // g.sharing * pieces)
    return room if room.dtype == plan.dtype else undisturbed(room.astype, plan.dtype)


# ---------------------------------------------------------------------------------------------------------------------------- the door

cdef object taken(Plan plan, View *view, str name, object x, tuple shape, object dtypes, int head, int row):
    """Borrow a result of the forward, or its gradient, as it is if the set can read it."""
    cdef Py_buffer *b
    x = as_like(name, x, shape, dtypes, WHO)
    plan.borrow(view, &b, x, False)
    set_strides(&plan.problem, view, b, head, row)
    return x


cdef void measure(const Problem *p, Gradients *g) noexcept:
    """How large the parts of dK and dV are."""
    cdef Py_ssize_t lanes = p.kernels.lanes, i
    cdef Run run
    g.Q_width, g.O_width = over(p.D, lanes) * lanes, over(p.Dv, lanes) * lanes
    g.pitch = g.Q_width + g.O_width
    for i in range(items_of(p) if p.runs else 1):
        run = item_of(p, i)
        g.groups = max(g.groups, groups_of(&run))
        g.spare = g.spare or stripes_of(&run) > groups_of(&run)
        g.keys = max(g.keys, keys_of(p, &run))
    g.slab = padded(64 + (g.keys * g.pitch + MAX_TILE) * p.item)


cdef tuple three(object x, int row):
    """The shape of an operand with its axis of heads."""
    return x.shape if x.ndim > 2 else (1, *x.shape) if row == 2 else (x.shape[0], 1, x.shape[1])


cdef object given(Plan plan, View *view, object x, int head, int row):
    """Room for the gradient of an operand: of its dtype where it has the batch's shape, else in full, to be summed."""
    cdef Py_buffer *b
    shape = three(x, row)
    full = shape if plan.ragged is not None else (*plan.batch_shape(), *shape[len(shape) - 3:])
    room = result(full, x.dtype if full == shape else plan.dtype)
    if not plan.problem.tiles:  # where somebody has no queries, nobody comes to its keys
        room.fill(0)
    plan.borrow(view, &b, room, True)
    set_strides(&plan.problem, view, b, head, row)
    return room


cdef object finished(object room, object x, object dtype, int row):
    if room is None or (room.shape == x.shape and room.dtype == dtype):
        return room
    return undisturbed(folded, room, three(x, row), dtype).reshape(x.shape)


def folded(x, shape, dtype):
    """Summed over the axes that something of this shape was broadcast along, then of this dtype."""
    extra = x.ndim - len(shape)
    axes = (*range(extra), *[i + extra for i, n in enumerate(shape) if n == 1 and x.shape[i + extra] != 1])
    return (x.sum(axis=axes) if axes else x).reshape(shape).astype(dtype, copy=False)


def backward_arrays(grad_out, query, key, value, out, lse, mask, bias, causal, q_offset, window, key_lengths, alibi_slopes, sinks, softcap,
                    scale, head_scale, dropout_p, rng, layout, precision, grad_lse, needs, num_threads, starts=None):
    """(dQ, dK, dV, d bias, rowsum(dO O), lse, grad_lse, queries of each sequence of a ragged batch).

    What nobody needs is None; lse and grad_lse are as they were used.
    """
    if value is None:
        raise TypeError(bad("value", "an array", "None", WHO))
    cdef Plan plan = make_plan(query, key, value, mask, bias, causal, q_offset, window, key_lengths, alibi_slopes, sinks, softcap, scale,
                               head_scale, layout, None, False, num_threads, None, None, precision, False, starts, False, True,
                               dropout_p, rng)
    cdef Problem *p = &plan.problem
    cdef Gradients g
    cdef Py_ssize_t heads
    cdef int head = 3, row = 2
    if layout == "blhd":
        head, row = 2, 3
    operands = query, key, value
    if not plan.plain:
        operands = as_operand("query", query), as_operand("key", key), as_operand("value", value)
        query, key, value, _ = as_operands(*operands)
    dtypes = [x.dtype for x in operands]
    plan.plain = False  # from here on dtypes are looked at
    memset(&g, 0, sizeof(g))
    rows = plan.shape[:1] if len(plan.shape) == 2 else (*(() if starts is not None else plan.batch_shape()), p.heads, p.Lq)
    grad_out = taken(plan, &g.grad_out, "grad_out", grad_out, plan.shape, plan.dtype, head, row)
    out = taken(plan, &g.out, "out", out, plan.shape, plan.dtype, head, row)
    lse = np.ascontiguousarray(as_like("lse", lse, rows, plan.dtype, WHO), plan.dtype)
    g.lse = data_of(lse)
    if grad_lse is not None:
        grad_lse = np.ascontiguousarray(as_like("grad_lse", grad_lse, rows, plan.dtype, WHO), plan.dtype)
        g.grad_lse = data_of(grad_lse)
    dots = np.zeros(rows, plan.dtype)
    g.dots = data_of(dots)
    dQ = given(plan, &g.query, query, head, row) if "query" in needs else None
    dK = given(plan, &g.key, key, head, row) if "key" in needs else None
    dV = given(plan, &g.value, value, head, row) if "value" in needs else None
    heads = items_of(p) * p.kv_heads
    if dots.size:
        measure(p, &g)
        if not (g.query.data or g.key.data or g.value.data):
            g.slab = 0
            back(plan, &g, find_dots, p.tasks)
        elif g.groups > 1 and heads < ENOUGH * p.threads:
            slabs = np.empty(heads * g.groups * g.slab + 64, np.uint8)
            g.slabs = data_of(slabs)
            g.slabs += -<size_t>g.slabs % 64
            back(plan, &g, back_group, heads * g.groups)
            back(plan, &g, back_keys, heads * over(g.keys, QKVC_BLOCK))
        else:
            back(plan, &g, back_head, heads)
    dB = of_bias(plan, &g, bias, num_threads) if "bias" in needs else None
    dQ, dK, dV = [finished(x, of, dtype, row) for x, of, dtype in zip((dQ, dK, dV), (query, key, value), dtypes)]
    return dQ, dK, dV, dB, dots, lse, grad_lse, None if plan.ragged is None else plan.ragged[0]
