"""A tile of queries before a block of keys, on the way back: P and dS from lse, and the memory for them."""

from libc.math cimport isnan
from libc.stdint cimport int64_t
from libc.string cimport memset

from qkvc._kernels cimport QKVC_BLOCK, QKVC_REAL, Kernels, Task
from qkvc._plan cimport Plan, Problem, View
from qkvc._tile cimport MAX_TILE, Block, Scratch, Tile, batch_offset, carve, draw, get, look, put, score, scratch_of
from qkvc._workers cimport Job, hire, padded, perform, slot

cdef double LOG2_E = 1.4426950408889634


# ------------------------------------------------------------------------------------------------------------------ scratch and threads

cdef size_t furnish(const Problem *p, const Gradients *g, char *memory) noexcept nogil:
    """Lay a worker's Desk out, and say how large it is; without memory, only say it."""
    cdef Desk measured
    cdef Desk *r = <Desk *>memory if memory != NULL else &measured
    cdef size_t tile = p.kernels.lanes * p.kernels.vecs, row = tile * p.item, keys = min(g.keys, QKVC_BLOCK), at = 0
    slot(memory, &at, sizeof(Desk))
    r.OT = slot(memory, &at, row * p.Dv)
    r.dOT = slot(memory, &at, row * p.Dv)
    r.dP = slot(memory, &at, row * keys)
    r.dQ = slot(memory, &at, row * p.D)
    r.own_Q = slot(memory, &at, row * g.Q_width)
    r.own_dO = slot(memory, &at, row * g.O_width)
    r.stripe = slot(memory, &at, g.slab if g.spare else 0)
    r.slabs = slot(memory, &at, 0 if g.slabs else g.groups * g.slab)
    r.spare = slot(memory, &at, g.pitch * p.item)
    return at


cdef Desk *desk_of(const Job *job, int worker) noexcept nogil:
    return <Desk *>(<char *>scratch_of(job, worker) + (<const Gradients *>job.extra).offset)


cdef int back(Plan plan, Gradients *g, Task task, Py_ssize_t tasks) except -1:
    cdef Problem *p = &plan.problem
    cdef int workers = <int>min(tasks, p.threads), i
    cdef size_t share
    cdef Job job
    g.offset = padded(carve(p, NULL))
    share = g.offset + furnish(p, g, NULL)
    hire(&job, p, g, workers, share, 5 * p.work, "attention_backward")
    for i in range(workers):
        carve(p, <char *>scratch_of(&job, i))
        furnish(p, g, <char *>desk_of(&job, i))
    return perform(&job, task, tasks, p.threads)


# ---------------------------------------------------------------------------------------------------------------------------- a tile

cdef void aim(const Problem *p, const Gradients *g, Desk *r, const Tile *t) noexcept nogil:
    """The tile's rows, each of which is read once and waited for, will be fetched while the products of the one before are computed."""
    r.rows = t.queries
    rows_in(p, &p.query, t, r.ahead)
    rows_in(p, &g.query if g.query.data else &p.query, t, r.ahead + t.queries)
    rows_in(p, &g.out, t, r.ahead + 2 * MAX_TILE)
    rows_in(p, &g.grad_out, t, r.ahead + 2 * MAX_TILE + t.queries)


cdef void rows_in(const Problem *p, const View *view, const Tile *t, const void **row) noexcept nogil:
    """Where the lanes' rows of an operand lie, query by query, its heads side by side; lanes beyond the last query repeat it."""
    cdef const char *next
    cdef Py_ssize_t head = view.head * view.size, i, h = t.row % p.group
    next = view.data + batch_offset(p, view, t.batch, p.first_query) * view.size
    next += (t.kv_head * p.group + h) * head + t.row // p.group * view.row * view.size
    for i in range(t.queries):
        row[i] = next
        next, h = next + head, h + 1
        if h == p.group:
            next, h = next + view.row * view.size - p.group * head, 0
    for i in range(t.queries, t.vecs * p.kernels.lanes):
        row[i] = row[t.queries - 1]


cdef char *bring(const Problem *p, const View *view, const Tile *t, Py_ssize_t columns, Py_ssize_t width, char *to, bint copy,
                 const void **row) noexcept nogil:
    """The lanes' rows as reals, side by side, `width` apart with zero behind the last column.  Rows that lie so stay where they are, unless
    a copy is wanted (1.4 % of the time of 4 x 6 x 256 x 64); others go to `to`.  `row` is where each lane's is then."""
    cdef Py_ssize_t i
    rows_in(p, view, t, row)
    if not copy and view.kind == QKVC_REAL and view.col == 1 and view.row == columns == width and p.group == 1:
        return <char *>row[0]
    if width > columns:
        memset(to, 0, <size_t>(t.queries * width * p.item))
    for i in range(t.queries):
        p.kernels.gather(row[i], 0, view.col, view.kind, 1, <int>columns, to + i * width * p.item)
    for i in range(t.vecs * p.kernels.lanes):
        row[i] = to + min(i, t.queries - 1) * width * p.item
    return to


cdef bint nothing(const Problem *p, const Desk *r, const Tile *t, int lane) noexcept nogil:
    """Is the lane's row of out all 0, as of a query that may attend to nothing?  Then no NaN in grad_out matters, though 0 NaN is NaN."""
    cdef Py_ssize_t c
    for c in range(p.Dv):
        if get(p, r.OT, c * p.kernels.lanes * p.kernels.vecs + lane) != 0:
            return False
    return True


cdef void prepare(const Problem *p, const Gradients *g, Scratch *s, Desk *r, const Tile *t) noexcept nogil:
    """QT and dOT, rows of Q and dO, lse in units of log2, delta = rowsum(dO O) - dlse, and dQ <- 0."""
    cdef const Kernels *kn = p.kernels
    cdef int lanes = t.vecs * kn.lanes, Dv = <int>p.Dv, i, c
    cdef const void *row[MAX_TILE]
    cdef char *dO
    cdef double scale
    if g.out.kind == QKVC_REAL:
        rows_in(p, &g.out, t, row)
        kn.pack(row, g.out.col, Dv, 1.0, t.vecs, r.OT)
    else:
        bring(p, &g.out, t, p.Dv, g.O_width, r.own_dO, True, row)
        kn.pack(row, 1, Dv, 1.0, t.vecs, r.OT)
    r.dO = bring(p, &g.grad_out, t, p.Dv, g.O_width, r.own_dO, p.head_scale != NULL, row)
    kn.pack(row, 1, Dv, 1.0, t.vecs, r.dOT)
    kn.back_delta(r.OT, r.dOT, Dv, t.vecs, r.delta)
    for i in range(t.queries):
        if isnan(get(p, r.delta, i)) and nothing(p, r, t, i):
            put(p, r.delta, i, 0)
        put(p, g.dots, s.index[i], get(p, r.delta, i))
    if p.head_scale:
        for i in range(t.queries):
            dO, scale = <char *>row[i], p.head_scale[s.head[i]]
            for c in range(Dv):
                put(p, dO, c, get(p, dO, c) * scale)
        kn.pack(row, 1, Dv, 1.0, t.vecs, r.dOT)
    r.Q = bring(p, &p.query, t, p.D, g.Q_width, r.own_Q, False, row)
    kn.pack(row, 1, <int>p.D, p.scale * p.unit, t.vecs, s.QT)
    for i in range(lanes):
        put(p, r.lse, i, get(p, g.lse, s.index[i]) * LOG2_E)
        put(p, r.scale, i, p.scale)
        if g.grad_lse:
            put(p, r.delta, i, get(p, r.delta, i) - get(p, g.grad_lse, s.index[i]))
    for i in range(kn.lanes * kn.vecs):
        put(p, r.one, i, 1)
    memset(r.dQ, 0, <size_t>(kn.lanes * kn.vecs * p.D * p.item))


cdef bint differentiate(const Problem *p, const Gradients *g, Scratch *s, Desk *r, const Tile *t, int64_t index, int *depth, Block *b,
                        char *part) noexcept nogil:
    """P in place of S, and dS in place of dP: of the scores behind softcap, ALiBi and bias.  Rows of `part`, if any, are fetched."""
    cdef const Kernels *kn = p.kernels
    if not look(p, s, t, index, depth, b):
        return False
    score(p, s, t, depth, b)                                                        # S <- K QT + bias, -inf where masked
    kn.scores(b.V, b.V_row, <int>p.Dv, r.dOT, depth, t.vecs, part + b.first * g.pitch * p.item, g.pitch, <int>g.pitch if part else 0, NULL,
              r.dP)
    if p.drops:
        draw(p, s, t, depth, b)
        kn.drop(r.dP, s.keep, depth, t.vecs)
    kn.back_softmax(s.S, r.dP, r.lse, r.delta, depth, t.vecs)                       # dP = V dOT; P <- exp2(S - lse), dS <- P (dP - delta)
    return True


cdef void store_query(const Problem *p, const Gradients *g, Desk *r, const Tile *t) noexcept nogil:
    """The tile's rows of the query's gradient, through its strides."""
    cdef void *row[MAX_TILE]
    cdef void *to[MAX_TILE]
    cdef Py_ssize_t i
    rows_in(p, &g.query, t, <const void **>row)
    if g.query.kind == QKVC_REAL:
        p.kernels.store(r.dQ, <int>p.D, r.scale, t.queries, row, g.query.col)
        return
    for i in range(t.queries):
        to[i] = r.own_Q + i * g.Q_width * p.item  # nobody needs its queries any more
    p.kernels.store(r.dQ, <int>p.D, r.scale, t.queries, to, 1)
    for i in range(t.queries):
        p.kernels.shorten(to[i], <int>p.D, g.query.kind, row[i], g.query.col)
