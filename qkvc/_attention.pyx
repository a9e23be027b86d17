"""The tile loop: `walk` below is the algorithm, everything else serves it.

FlashAttention-2 (Dao 2023, algorithm 1) with the queries of a tile in the vector lanes: S and P exist for one tile and one block of keys at
a time and stay in L1, so memory does not grow with the length.  docs/arithmetic.md fixes the order of every sum.
"""

from libc.math cimport INFINITY, NAN, log2
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from threading import get_ident, main_thread

from qkvc._kernels cimport QKVC_BLOCK, QKVC_MAX_VECS, Kernels, run
from qkvc._plan cimport Plan, Problem, View, make_plan

cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef extern from "fpenv.h" nogil:
    uint64_t qkvc_fp_enter()
    void qkvc_fp_leave(uint64_t before)

cdef extern from *:
    """
    static void *qkvc_swap(void **slot, void *mine) { return __atomic_exchange_n(slot, mine, __ATOMIC_ACQ_REL); }
    static int qkvc_signals(void) { return PyErr_CheckSignals(); }
    static int qkvc_pending(void) { return PyErr_Occurred() ? -1 : 0; }
    """
    void *qkvc_swap(void **slot, void *mine) nogil
    int qkvc_signals()            # -1: a Python signal handler raised, and the exception is set
    int qkvc_pending() except -1  # raises what qkvc_signals left set

cdef double LOG2_E = 1.4426950408889634
cdef double LN_2 = 0.6931471805599453
cdef int64_t POLL_NS = 50_000_000  # Ctrl-C is looked for this often; the promise is 200 ms

cdef enum:
    MAX_TILE = 64  # lanes of the widest tile, 48 on AVX-512
    W = QKVC_BLOCK


cdef struct Scratch:
    float *QT        # [D][tile]
    float *O         # [Dv][tile]
    float *S         # [W][tile]
    float *bias      # [W][tile], mask and bias of the block, keys down
    float *allowed   # [W][tile], -inf where masked: only for the careful walk
    float *K         # [W][D] and [W][Dv]: copies of blocks that cannot be read in place
    float *V
    float[MAX_TILE] m, l, alpha, beta, factor, limit
    int64_t[MAX_TILE] end          # first key that the lane's query may not see
    uint8_t[MAX_TILE] seen         # has it been allowed any key?
    Py_ssize_t[MAX_TILE] index     # of the query in lse
    const void *query[MAX_TILE]
    const void *bias_row[MAX_TILE]
    const uint8_t *mask_row[MAX_TILE]
    void *out[MAX_TILE]


cdef struct Job:
    const Problem *problem
    char *memory
    size_t per_worker
    bint pollable      # the caller is Python's main thread, and the job is long
    int64_t polled
    bint cancelled


# ------------------------------------------------------------------------------------------------------------------------ one tile

cdef struct Tile:
    int vecs, queries
    const float *K     # row 0 of its key and value head
    const float *V
    int64_t keys       # keys that any of its queries may see


cdef inline Py_ssize_t batch_offset(const Problem *p, const View *view, Py_ssize_t item) noexcept nogil:
    cdef Py_ssize_t offset = 0
    cdef int axis
    for axis in range(p.batch_axes - 1, -1, -1):
        offset += item % p.batch_shape[axis] * view.batch[axis]
        item //= p.batch_shape[axis]
    return offset


cdef Tile lay_out(const Problem *p, Scratch *s, Py_ssize_t task) noexcept nogil:
    """Which queries are in the lanes, where they are read and written, and how far they may look.

    Lane order is query by query, its heads side by side: limits then ascend along the lanes, as `clip` and `depth` want.  Lanes beyond the
    last query repeat it.  The tiles of one (batch item, key head) follow each other, heaviest first.
    """
    cdef Tile t
    cdef Py_ssize_t lanes = p.kernels.lanes, index = p.tiles - 1 - task % p.tiles
    cdef Py_ssize_t batch, kv_head, head, first, last, i, row, q, h
    task //= p.tiles
    kv_head = task % p.kv_heads
    batch = task // p.kv_heads
    t.K = <const float *>p.key.data + batch_offset(p, &p.key, batch) + kv_head * p.key.head
    t.V = <const float *>p.value.data + batch_offset(p, &p.value, batch) + kv_head * p.value.head
    first = p.vectors * index // p.tiles
    last = p.vectors * (index + 1) // p.tiles
    t.vecs = <int>(last - first)
    row = first * lanes
    t.queries = <int>(min(last * lanes, p.rows) - row)

    cdef int64_t length = p.lengths[batch] if p.lengths else p.Lk
    cdef int64_t offset = p.offsets[batch] if p.offsets else p.offset
    cdef char *query = p.query.data + batch_offset(p, &p.query, batch) * sizeof(float)
    cdef char *out = p.out.data + batch_offset(p, &p.out, batch) * sizeof(float)
    cdef char *mask = p.mask.data + batch_offset(p, &p.mask, batch) if p.has_mask else NULL
    cdef char *bias = p.bias.data + batch_offset(p, &p.bias, batch) * sizeof(float) if p.has_bias else NULL
    q, h = row // p.group, row % p.group
    for i in range(t.vecs * lanes):
        if i and i < t.queries:
            h += 1
            if h == p.group:
                q, h = q + 1, 0
        head = kv_head * p.group + h
        s.query[i] = query + (head * p.query.head + q * p.query.row) * <Py_ssize_t>sizeof(float)
        s.out[i] = out + (head * p.out.head + q * p.out.row) * <Py_ssize_t>sizeof(float)
        s.index[i] = (batch * p.heads + head) * p.Lq + q
        if p.has_mask:
            s.mask_row[i] = <uint8_t *>mask + head * p.mask.head + q * p.mask.row
        if p.has_bias:
            s.bias_row[i] = bias + (head * p.bias.head + q * p.bias.row) * <Py_ssize_t>sizeof(float)
        s.end[i] = max(0, min(length, q + offset + 1)) if p.causal else length
    t.keys = s.end[t.vecs * lanes - 1]
    return t


cdef void walk(Job *job, Scratch *s, const Tile *t, int worker, bint careful) noexcept nogil:
    """One tile of queries against every block of keys it may see."""
    cdef const Problem *p = job.problem
    cdef const Kernels *kn = p.kernels
    cdef int D = <int>p.D, Dv = <int>p.Dv
    cdef int[QKVC_MAX_VECS] depth
    cdef Block b
    cdef int64_t i

    kn.pack(s.query, p.query.col, D, p.scale * LOG2_E, t.vecs, s.QT)                # QT <- (scale Q) transposed, in units of log2
    start(s, kn.lanes * kn.vecs, Dv)                                                # m <- -inf, l <- 0, O <- 0
    for i in range((t.keys + W - 1) // W):
        if interrupted(job, worker):
            return
        if not look(p, s, t, i * W, depth, &b):                                     # which keys does any mask let through?
            continue
        kn.scores(b.K, b.K_row, D, s.QT, depth, t.vecs, b.V, b.V_row, Dv, s.S)      # S <- K QT
        mask_scores(p, s, t, depth, &b, s.S)                                        # S <- S + bias, -inf where masked
        kn.softmax(s.S, depth, t.vecs, s.m, s.l, s.alpha, s.beta)                   # P <- exp2(S - m_b), (m, l) <- (m, l) + (m_b, l_b)
        if not careful:
            kn.values(b.V, b.V_row, Dv, s.S, depth, t.vecs, s.alpha, s.beta, s.O)   # O <- alpha O + beta V P
        else:
            note_allowed(p, s, t, depth, &b)
            kn.values_selected(b.V, b.V_row, Dv, s.S, s.allowed, depth, t.vecs, s.alpha, s.beta, s.O)


cdef void attend(void *context, Py_ssize_t task, int worker) noexcept nogil:
    """One task of the pool: walk a tile, and write it."""
    cdef Job *job = <Job *>context
    cdef const Problem *p = job.problem
    cdef Scratch *s = <Scratch *>(job.memory + worker * job.per_worker)
    cdef uint64_t environment
    cdef Tile t
    if job.cancelled:
        return
    environment = qkvc_fp_enter()
    t = lay_out(p, s, task)
    walk(job, s, &t, worker, False)
    if not p.kernels.finite(s.O, <int>p.Dv, s.l, t.vecs):
        # NaN, an infinity, or a query without keys.  It may have come from a masked key's value, as 0 * NaN: only now is it worth a
        # select per key to find out (docs/arithmetic.md, clause 5).
        memset(s.seen, 0, MAX_TILE)
        walk(job, s, &t, worker, True)
    if not job.cancelled:
        finish(p, s, &t)
    qkvc_fp_leave(environment)


# -------------------------------------------------------------------------------------------------------------------- steps of the walk

cdef struct Block:
    int64_t first      # key
    int keys           # that any query may see by position
    bint clipped       # positions end inside the block
    bint masked        # the bool mask has a False in it
    const float *K     # its rows, in place or copied
    const float *V
    Py_ssize_t K_row, V_row


cdef void start(Scratch *s, int tile, int Dv) noexcept nogil:
    cdef int i
    for i in range(tile):
        s.m[i] = -INFINITY
    memset(s.l, 0, tile * sizeof(float))
    memset(s.O, 0, <size_t>tile * Dv * sizeof(float))


cdef const float *copied(const float *x, Py_ssize_t row, Py_ssize_t col, int n, Py_ssize_t cols, float *to) noexcept nogil:
    """n rows side by side, for strides that the kernels cannot read or that L1 cannot hold."""
    cdef Py_ssize_t i, c
    for i in range(n):
        if col == 1:
            memcpy(to + i * cols, x + i * row, cols * sizeof(float))
        else:
            for c in range(cols):
                to[i * cols + c] = x[i * row + c * col]
    return to


cdef bint look(const Problem *p, Scratch *s, const Tile *t, int64_t first, int *depth, Block *b) noexcept nogil:
    """How far into the block each vector must go, which masks have anything to say in it, and where its rows lie.  False: nothing to do,
    every key of it is masked for every query."""
    cdef int lanes = p.kernels.lanes, v, i
    cdef int64_t n
    cdef int visible
    for v in range(t.vecs):
        n = s.end[(v + 1) * lanes - 1] - first
        depth[v] = <int>(0 if n < 0 else W if n > W else n)
    b.first, b.keys = first, depth[t.vecs - 1]
    b.clipped = s.end[0] - first < b.keys
    if b.clipped:
        for i in range(t.vecs * lanes):
            n = s.end[i] - first
            s.limit[i] = <float>(0 if n < 0 else W if n > W else n)
    b.masked = False
    if p.has_mask:
        visible = survey(s.mask_row, p.mask.col, first, t.queries, b.keys)
        if visible == NONE:
            return False
        b.masked = visible != ALL
    if p.has_bias and shut(<const float *const *>s.bias_row, p.bias.col, first, t.queries, b.keys):
        return False
    b.K, b.K_row = t.K + first * p.key.row, p.key.row
    b.V, b.V_row = t.V + first * p.value.row, p.value.row
    if p.copy_key:
        b.K, b.K_row = copied(b.K, p.key.row, p.key.col, b.keys, p.D, s.K), p.D
    if p.copy_value:
        b.V, b.V_row = copied(b.V, p.value.row, p.value.col, b.keys, p.Dv, s.V), p.Dv
    return True


cdef enum:
    NONE, SOME, ALL


cdef int survey(const uint8_t *const *lane, Py_ssize_t col, int64_t first, int queries, int n) noexcept nogil:
    """Does the mask let through none, some or all of n keys?  Rows that broadcast are looked at once."""
    cdef uint8_t any_key = 0, every_key = 1, one, all_of_row
    cdef const uint8_t *x
    cdef int i, j
    for i in range(queries):
        if i and lane[i] == lane[i - 1]:
            continue
        x = lane[i] + first * col
        one, all_of_row = 0, 1
        if col == 1:
            for j in range(n):
                one |= x[j]
                all_of_row &= x[j] != 0
        else:
            for j in range(n):
                one |= x[j * col]
                all_of_row &= x[j * col] != 0
        any_key |= one
        every_key &= all_of_row
        if any_key and not every_key:
            return SOME
    return ALL if every_key else NONE


cdef bint shut(const float *const *lane, Py_ssize_t col, int64_t first, int queries, int n) noexcept nogil:
    """Is the bias -inf for every query and key?  Of an ordinary bias one number is read."""
    cdef int i, j
    for i in range(queries):
        for j in range(n):
            if lane[i][(first + j) * col] != -INFINITY:
                return False
    return True


cdef void mask_scores(const Problem *p, Scratch *s, const Tile *t, const int *depth, const Block *b, float *S) noexcept nogil:
    """Add the bias, then let bias, mask and positions select -inf; cheap where a block has nothing of the kind."""
    cdef const Kernels *kn = p.kernels
    cdef const void *lane[MAX_TILE]
    cdef int i
    if p.has_bias:
        for i in range(t.vecs * kn.lanes):
            lane[i] = <const float *>s.bias_row[i] + b.first * p.bias.col
        kn.pack(lane, p.bias.col, b.keys, 1.0, t.vecs, s.bias)
        kn.add_bias(S, s.bias, depth, t.vecs)
    if b.masked:
        for i in range(t.vecs * kn.lanes):
            lane[i] = s.mask_row[i] + b.first * p.mask.col
        kn.pack_mask(<const uint8_t *const *>lane, p.mask.col, b.keys, t.vecs, s.bias)
        kn.add_bias(S, s.bias, depth, t.vecs)
    if b.clipped:
        kn.clip(S, s.limit, depth, t.vecs)


cdef void note_allowed(const Problem *p, Scratch *s, const Tile *t, const int *depth, const Block *b) noexcept nogil:
    """allowed <- 0, -inf where masked: the masks, applied to a block of zeros."""
    cdef int lanes = p.kernels.lanes, tile = lanes * p.kernels.vecs, i, j
    memset(s.allowed, 0, <size_t>b.keys * tile * sizeof(float))
    mask_scores(p, s, t, depth, b, s.allowed)
    for i in range(t.vecs * lanes):
        for j in range(depth[i // lanes]):
            s.seen[i] |= s.allowed[j * tile + i] != -INFINITY


cdef void finish(const Problem *p, Scratch *s, const Tile *t) noexcept nogil:
    """out <- O / l, through out's strides; lse <- ln(sum exp(scores)).  A query that was allowed no key gets 0 and -inf; one whose scores
    were all -inf without a mask saying so gets NaN, as from NumPy."""
    cdef int i
    for i in range(t.queries):
        if s.l[i] > 0:
            s.factor[i] = <float>1.0 / s.l[i]
        else:
            s.factor[i] = NAN if s.l[i] != 0 or s.seen[i] else <float>0.0
    p.kernels.store(s.O, <int>p.Dv, s.factor, t.queries, s.out, p.out.col)
    if p.lse == NULL:
        return
    for i in range(t.queries):
        p.lse[s.index[i]] = <float>((s.m[i] + log2(s.l[i])) * LN_2) if s.l[i] != 0 else -INFINITY


# -------------------------------------------------------------------------------------------------------------------- time and signals

cdef int64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1_000_000_000 + t.tv_nsec


cdef void poll(Job *job) noexcept nogil:
    """Has the user pressed Ctrl-C?"""
    cdef int64_t now = now_ns()
    if now - job.polled < POLL_NS:
        return
    job.polled = now
    with gil:
        if qkvc_signals() != 0:
            job.cancelled = True


cdef bint interrupted(Job *job, int worker) noexcept nogil:
    if worker == 0 and job.pollable:
        poll(job)
    return job.cancelled


cdef void idle(void *context) noexcept nogil:
    cdef Job *job = <Job *>context
    if job.pollable and not job.cancelled:
        poll(job)


# ------------------------------------------------------------------------------------------------------------------------------ the door

cdef size_t padded(size_t bytes) noexcept nogil:
    return (bytes + 63) // 64 * 64


cdef float *slot(char *memory, size_t *at, size_t reals) noexcept nogil:
    cdef char *start = memory + at[0]
    at[0] += padded(reals * sizeof(float))
    return <float *>start


cdef size_t carve(const Problem *p, char *memory) noexcept nogil:
    """Lay a worker's Scratch out in its share of the memory, and say how large that is; without memory, only say it.

    4 [tile (D + Dv + 3 W) + W (D + Dv where copied)] bytes and a few lines: no term in Lq, and none in Lk beyond a block.
    """
    cdef Scratch measured
    cdef Scratch *s = <Scratch *>memory if memory != NULL else &measured
    cdef size_t tile = p.kernels.lanes * p.kernels.vecs, keys = min(p.Lk, W), at = padded(sizeof(Scratch))
    s.QT = slot(memory, &at, tile * p.D)
    s.O = slot(memory, &at, tile * p.Dv)
    s.S = slot(memory, &at, tile * keys)
    s.bias = slot(memory, &at, tile * keys)
    s.allowed = slot(memory, &at, tile * keys)
    s.K = slot(memory, &at, keys * p.D if p.copy_key else 0)
    s.V = slot(memory, &at, keys * p.Dv if p.copy_value else 0)
    return at


# One piece of scratch is kept between calls: fresh pages would cost a small call more than its arithmetic.  Who finds it takes it; others
# allocate.  Its first 64 bytes hold its size.
cdef void *spare = NULL


cdef char *take_memory(size_t bytes) noexcept nogil:
    """64-byte aligned, or NULL."""
    cdef char *memory = <char *>qkvc_swap(&spare, NULL)
    if memory != NULL and (<size_t *>memory)[0] >= bytes:
        return memory
    free(memory)
    memory = <char *>aligned_alloc(64, padded(bytes + 64))
    if memory != NULL:
        (<size_t *>memory)[0] = bytes
    return memory


cdef void return_memory(char *memory) noexcept nogil:
    free(qkvc_swap(&spare, memory))


cdef int execute(Plan plan) except -1:
    cdef const Problem *p = &plan.problem
    cdef Py_ssize_t tasks = p.batch * p.kv_heads * p.tiles
    cdef int workers = <int>min(tasks, p.threads), i
    cdef Job job
    cdef char *memory
    if plan.out.size == 0 and (plan.lse is None or plan.lse.size == 0):
        return 0
    job.problem = p
    job.per_worker = carve(p, NULL)
    memory = take_memory(workers * job.per_worker)
    if memory == NULL:
        raise MemoryError(f"attention: {workers * job.per_worker} bytes of scratch")
    job.memory = memory + 64
    job.cancelled = False
    job.pollable = 4.0 * p.batch * p.heads * p.Lq * p.Lk * (p.D + p.Dv) > 1e9 and get_ident() == main_thread().ident
    job.polled = now_ns() if job.pollable else 0
    with nogil:
        for i in range(workers):
            carve(p, job.memory + i * job.per_worker)
        run(attend, idle, &job, tasks, p.threads)
        return_memory(memory)
    if job.cancelled:
        qkvc_pending()
    return 0


def attend_arrays(query, key, value, mask, bias, causal, q_offset, key_lengths, scale, layout, out, num_threads, bint want_lse):
    """(out, lse or None): the whole call, behind qkvc.attention and its relatives."""
    cdef Plan plan = make_plan(query, key, value, mask, bias, causal, q_offset, key_lengths, scale, layout, out, want_lse, num_threads)
    execute(plan)
    return (plan.out, plan.lse) if want_lse else plan.out
