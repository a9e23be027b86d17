"""A tile of queries before a block of keys: the steps that every sweep over the scores takes, and the scratch and threads to take them.

_attention.pyx walks the blocks for the output, _inside.pyx for the weights and for statistics.  Reals are float or double as the problem
says; only the kernels compute with many of them.
"""

from libc.math cimport INFINITY, NAN, exp2, log2
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

from qkvc._kernels cimport QKVC_BFLOAT16, QKVC_REAL, Kernels, Task
from qkvc._plan cimport Plan, Problem, Run, View
from qkvc._workers cimport Job, hire, padded, perform, share_of, slot

cdef extern from *:
    """
    #define qkvc_fetch(x) __builtin_prefetch(x, 0, 1)
    #define qkvc_fetch_to_write(x) __builtin_prefetch(x, 1, 3)
    """
    void qkvc_fetch(const void *x) nogil
    void qkvc_fetch_to_write(const void *x) nogil

cdef double LN_2 = 0.6931471805599453

# Against fewer keys than this, fetching what comes next takes longer than it saves.
cdef Py_ssize_t LONG_ENOUGH = 64


# ----------------------------------------------------------------------------------------------------------------------- the queries

cdef Py_ssize_t batch_offset(const Problem *p, const View *view, Py_ssize_t item, const int64_t *first) noexcept nogil:
    """Of the item's row 0, which in a ragged batch is row first[item]."""
    cdef Py_ssize_t offset = first[item] * view.row if first else 0
    cdef int axis
    for axis in range(p.batch_axes - 1, -1, -1):
        offset += item % p.batch_shape[axis] * view.batch[axis]
        item //= p.batch_shape[axis]
    return offset


cdef Run run_of(const Problem *p, Py_ssize_t task) noexcept nogil:
    """The batch item whose task it is."""
    cdef Py_ssize_t low = 0, high = p.count, middle
    cdef Run r
    if p.runs:
        while high - low > 1:
            middle = (low + high) // 2
            if p.runs[middle].tasks <= task:
                low = middle
            else:
                high = middle
        return p.runs[low]
    r.rows, r.few, r.shares = p.rows, p.pieces > 0, p.pieces if p.pieces else p.tiles
    r.batch = task // (r.shares * p.kv_heads)
    r.tasks, r.blocks = r.batch * r.shares * p.kv_heads, r.batch * ((p.Lk + W - 1) // W)
    return r


cdef Tile find(const Problem *p, Py_ssize_t task) noexcept nogil:
    """Which tile a task is.  The tiles of one (batch item, key head) follow each other, heaviest first."""
    cdef Tile t
    cdef Run r = run_of(p, task)
    cdef Py_ssize_t lanes = p.kernels.lanes, vectors = (r.rows + lanes - 1) // lanes, first = 0, last = vectors
    task -= r.tasks
    t.batch, t.kv_head, t.few = r.batch, task // r.shares, r.few
    t.share, t.shares = r.shares - 1 - task % r.shares, r.shares
    t.part = t.kv_head * p.blocks + r.blocks
    t.K, t.V, t.block, t.blocks = NULL, NULL, 0, 0  # `lay_out` knows
    if p.backward:
        first, last = t.share * p.kernels.vecs, min((t.share + 1) * p.kernels.vecs, vectors)
    elif not r.few:
        first, last = vectors * t.share // r.shares, vectors * (t.share + 1) // r.shares
    t.vecs = <int>(last - first)
    t.row = first * lanes
    t.queries = <int>(min(last * lanes, r.rows) - t.row)
    return t


cdef Tile lay_out(const Problem *p, Scratch *s, Py_ssize_t task) noexcept nogil:
    """Which queries are in the lanes, where they are read and written, and how far they may look.

    Lane order is query by query, its heads side by side: limits then ascend along the lanes, as `clip` and `depth` want.  Lanes beyond the
    last query repeat it.  Rows of out are fetched already: their misses cost `store` 3 % of 128 queries' time.
    """
    cdef Tile t = find(p, task)
    cdef Py_ssize_t lanes = p.kernels.lanes, batch = t.batch, kv_head = t.kv_head, head, i, q, h, at
    cdef const int64_t *first = p.first_key
    t.K = p.key.data + (batch_offset(p, &p.key, batch, first) + kv_head // p.share * p.key.head) * p.key.size
    if p.value.data:
        t.V = p.value.data + (batch_offset(p, &p.value, batch, first) + kv_head // p.share * p.value.head) * p.value.size

    cdef int64_t length = p.lengths[batch] if p.lengths else p.Lk
    cdef int64_t offset = p.offsets[batch] if p.offsets else p.offset
    cdef char *query = p.query.data + batch_offset(p, &p.query, batch, p.first_query) * p.query.size
    cdef char *out = p.out.data + batch_offset(p, &p.out, batch, p.first_query) * p.out.size if p.out.data else NULL
    cdef char *mask = p.mask.data + batch_offset(p, &p.mask, batch, NULL) if p.has_mask else NULL
    cdef char *bias = p.bias.data + batch_offset(p, &p.bias, batch, NULL) * p.item if p.has_bias else NULL
    cdef Py_ssize_t row = p.first_query[batch] if p.first_query else batch * p.heads * p.Lq
    q, h = t.row // p.group, t.row % p.group
    for i in range(t.vecs * lanes):
        if i and i < t.queries:
            h += 1
            if h == p.group:
                q, h = q + 1, 0
        head = kv_head * p.group + h
        s.query[i] = query + (head * p.query.head + q * p.query.row) * p.query.size
        s.index[i] = row + head * p.Lq + q
        s.head[i] = batch * p.heads + head
        if out:
            s.out[i] = out + (head * p.out.head + q * p.out.row) * p.out.size
            for at in range(0, p.Dv * p.out.size if p.Lk >= LONG_ENOUGH else 0, 64):  # a line
                qkvc_fetch_to_write(<char *>s.out[i] + at)
        if p.has_mask:
            s.mask_row[i] = <uint8_t *>mask + head * p.mask.head + q * p.mask.row
        if p.has_bias:
            s.bias_row[i] = bias + (head * p.bias.head + q * p.bias.row) * p.item
        if p.slopes:
            put(p, s.slope, i, p.slopes[s.head[i]] * p.unit)
        s.row[i], s.own_head[i] = <uint32_t>(p.chosen[q] if p.chosen else q), <uint32_t>head
        s.place[i] = offset + (p.chosen[q] if p.chosen else q)
        s.end[i] = length if p.right < 0 else max(0, min(length, s.place[i] + p.right + 1))
        s.begin[i] = 0 if p.left < 0 else max(0, min(s.end[i], s.place[i] - p.left))
    t.block = s.begin[0] // W
    t.blocks = (s.end[t.vecs * lanes - 1] + W - 1) // W
    return t


cdef void fetch_queries(const Problem *p, Py_ssize_t task) noexcept nogil:
    """Towards the cache, for a tile to come: `pack` reads a row once and waits for each, 6 % of the time of 128 queries."""
    cdef Tile t
    cdef Py_ssize_t i, at
    cdef const char *query
    cdef const char *row
    if task >= p.tasks or p.Lk < LONG_ENOUGH:
        return
    t = find(p, task)
    query = p.query.data + (batch_offset(p, &p.query, t.batch, p.first_query) + t.kv_head * p.group * p.query.head) * p.query.size
    for i in range(t.row, t.row + t.queries):
        row = query + (i % p.group * p.query.head + i // p.group * p.query.row) * p.query.size
        for at in range(0, p.D * p.query.size, 64):  # a line
            qkvc_fetch(row + at)


cdef Py_ssize_t query_rows(const Problem *p, Scratch *s, const Tile *t, const void **row) noexcept nogil:
    """The lanes' queries as the set reads them, where they are or widened; and the stride of their columns."""
    cdef Py_ssize_t i
    memcpy(row, s.query, sizeof(s.query))
    if p.query.kind == p.kernels.kind:
        return p.query.col
    for i in range(t.vecs * p.kernels.lanes):
        row[i] = s.rows + i * p.D * p.item
        p.kernels.gather(s.query[i], 0, p.query.col, p.query.kind, 1, <int>p.D, <char *>row[i])
    return 1


cdef void pack_queries(const Problem *p, Scratch *s, const Tile *t) noexcept nogil:
    """QT <- (scale Q) transposed, in units of log2"""
    cdef const void *row[MAX_TILE]
    cdef Py_ssize_t col = query_rows(p, s, t, row)
    p.kernels.pack_queries(row, col, <int>p.D, p.scale * p.unit, t.vecs, s.QT)


cdef void start(const Problem *p, Scratch *s) noexcept nogil:
    """m <- -inf, l <- 0, O <- 0"""
    cdef int i, tile = p.kernels.lanes * p.kernels.vecs
    for i in range(tile):
        put(p, s.m, i, -INFINITY)
    memset(s.l, 0, sizeof(Lanes))
    memset(s.O, 0, <size_t>(tile * p.Dv * p.item))
    memset(s.seen, 0, MAX_TILE)


# -------------------------------------------------------------------------------------------------------------------------- the keys

cdef inline int within(int64_t n, int most) noexcept nogil:
    return <int>(0 if n < 0 else most if n > most else n)


cdef bint look(const Problem *p, Scratch *s, const Tile *t, int64_t index, int *depth, Block *b) noexcept nogil:
    """How far into the block each vector must go, which masks have anything to say in it, and where its rows lie.  False: nothing to do,
    every key of it is masked for every query."""
    cdef int lanes = p.kernels.lanes, last = t.vecs * lanes - 1, v, i, width
    b.first = index * W
    if s.begin[0] > b.first:  # whole chains of keys before a window add +0 to every sum
        b.first += (s.begin[0] - b.first) // SEGMENT * SEGMENT
    width = <int>((index + 1) * W - b.first)
    for v in range(t.vecs):
        depth[v] = within(s.end[(v + 1) * lanes - 1] - b.first, width)
    b.keys = depth[t.vecs - 1]
    if b.keys == 0:
        return False
    b.clipped = s.end[0] - b.first < b.keys or s.begin[last] > b.first
    if b.clipped:
        for i in range(last + 1):
            put(p, s.first, i, within(s.begin[i] - b.first, W))
            put(p, s.limit, i, within(s.end[i] - b.first, W))
    b.masked = False
    if p.has_mask:
        b.keys = reach(s.mask_row, p.mask.col, b.first, t.queries, b.keys)
        if b.keys == 0:
            return False
        for v in range(t.vecs):
            depth[v] = min(depth[v], b.keys)
        b.masked = hides(s.mask_row, p.mask.col, b.first, t.queries, b.keys)
    if p.has_bias and shut(p, s, b, t.queries):
        return False
    b.K, b.K_row = t.K + b.first * p.key.row * p.key.size, p.key.row
    b.V, b.V_row = t.V, 0
    if t.V:
        b.V, b.V_row = t.V + b.first * p.value.row * p.value.size, p.value.row
    b.K_kind, b.V_kind = p.key.kind, p.value.kind
    return True


cdef void bring_rows(const Problem *p, const View *view, int n, Py_ssize_t cols, char *to, const char **x, Py_ssize_t *row,
                     int *kind) noexcept nogil:
    """Copy n rows to where they lie side by side, as the set's own numbers."""
    p.kernels.gather(x[0], view.row, view.col, view.kind, n, <int>cols, to)
    x[0], row[0], kind[0] = to, cols if p.kernels.kind == QKVC_REAL else cols + cols % 2, p.kernels.kind


cdef int reach(const uint8_t *const *lane, Py_ssize_t col, int64_t first, int queries, int n) noexcept nogil:
    """Keys up to the last that the mask lets any query see: padding at the end costs nothing."""
    cdef int i, j, found = 0
    for i in range(queries):
        if i and lane[i] == lane[i - 1]:
            continue
        for j in range(n - 1, found - 1, -1):
            if lane[i][(first + j) * col]:
                found = j + 1
                break
        if found == n:
            break
    return found


cdef bint hides(const uint8_t *const *lane, Py_ssize_t col, int64_t first, int queries, int n) noexcept nogil:
    """Has the mask a False among n keys?  Rows that broadcast are looked at once."""
    cdef uint8_t every_key
    cdef const uint8_t *x
    cdef int i, j
    for i in range(queries):
        if i and lane[i] == lane[i - 1]:
            continue
        x = lane[i] + first * col
        every_key = 1
        if col == 1:
            for j in range(n):
                every_key &= x[j] != 0
        else:
            for j in range(n):
                every_key &= x[j * col] != 0
        if not every_key:
            return True
    return False


cdef bint shut(const Problem *p, const Scratch *s, const Block *b, int queries) noexcept nogil:
    """Is the bias -inf for every query and key?  Of an ordinary bias one number is read."""
    cdef int i, j
    for i in range(queries):
        for j in range(b.keys):
            if get(p, s.bias_row[i], (b.first + j) * p.bias.col) != -INFINITY:
                return False
    return True


# ------------------------------------------------------------------------------------------------------------------------ the scores

cdef void score(const Problem *p, Scratch *s, const Tile *t, const int *depth, Block *b) noexcept nogil:
    """S <- K QT, capped, sloped, biased, and -inf where masked"""
    cdef char *pairs = NULL
    if p.copy_key:
        bring_rows(p, &p.key, b.keys, p.D, s.K, &b.K, &b.K_row, &b.K_kind)
    if p.copy_value and p.kernels.kind == QKVC_BFLOAT16 and p.value.col == 1:
        pairs = s.V  # which the products' loop makes at a third of what a loop of its own takes
    elif p.copy_value:
        p.kernels.gather_values(b.V, p.value.row, p.value.col, p.value.kind, b.keys, <int>p.Dv, s.V)
        b.V, b.V_row = s.V, p.Dv
    p.kernels.scores(b.K, b.K_row, <int>p.D, s.QT, depth, t.vecs, b.V, b.V_row, <int>p.Dv, pairs, s.S)
    if pairs:
        b.V, b.V_row = pairs, p.Dv
    adjust(p, s, t, depth, b)


cdef void adjust(const Problem *p, Scratch *s, const Tile *t, const int *depth, const Block *b) noexcept nogil:
    """All that happens to a score before its softmax; cheap where a block has nothing of the kind."""
    cdef const Kernels *kn = p.kernels
    cdef int i
    if p.softcap:
        kn.soften(s.S, p.softcap * p.unit, depth, t.vecs)
        if p.backward:
            memcpy(s.capped, s.S, <size_t>(b.keys * kn.lanes * kn.vecs * p.item))
    if p.slopes:
        for i in range(t.vecs * kn.lanes):
            put(p, s.position, i, <double>(s.place[i] - b.first))
        kn.add_slope(s.S, s.slope, s.position, depth, t.vecs)
    mask_scores(p, s, t, depth, b, s.S)


cdef void mask_scores(const Problem *p, Scratch *s, const Tile *t, const int *depth, const Block *b, char *S) noexcept nogil:
    """Add the bias, then let bias, mask and positions select -inf."""
    cdef const Kernels *kn = p.kernels
    cdef const void *lane[MAX_TILE]
    cdef int i
    if p.has_bias:
        for i in range(t.vecs * kn.lanes):
            lane[i] = <const char *>s.bias_row[i] + b.first * p.bias.col * p.item
        kn.pack(lane, p.bias.col, b.keys, 1.0, t.vecs, s.bias)
        kn.add_bias(S, s.bias, p.unit, depth, t.vecs)
    if b.masked:
        for i in range(t.vecs * kn.lanes):
            lane[i] = s.mask_row[i] + b.first * p.mask.col
        kn.mask(S, <const uint8_t *const *>lane, p.mask.col, depth, t.vecs)
    if b.clipped:
        kn.clip(S, s.first, s.limit, depth, t.vecs)


cdef void note_allowed(const Problem *p, Scratch *s, const Tile *t, const int *depth, const Block *b) noexcept nogil:
    """allowed <- 0, -inf where masked: the masks, applied to a block of zeros."""
    cdef int lanes = p.kernels.lanes, tile = lanes * p.kernels.vecs, i, j
    memset(s.allowed, 0, <size_t>(b.keys * tile * p.item))
    mask_scores(p, s, t, depth, b, s.allowed)
    for i in range(t.vecs * lanes):
        for j in range(depth[i // lanes]):
            s.seen[i] |= get(p, s.allowed, j * tile + i) != -INFINITY


cdef void draw(const Problem *p, Scratch *s, const Tile *t, const int *depth, const Block *b) noexcept nogil:
    """keep <- 1 / (1 - dropout_p), 0 where a weight is dropped"""
    p.kernels.draw(s.keep, &p.dropout, s.row, s.own_head, <uint32_t>t.batch, b.first, depth, t.vecs)


cdef void settle(const Problem *p, Scratch *s, const Tile *t, bint want_lse) noexcept nogil:
    """factor <- 1 / l, and lse <- ln(sum exp(scores)) where it is wanted, the sink of its head taken in.  A query that was allowed no key
    has factor 0; one whose scores were all -inf without a mask saying so gets NaN, as from NumPy."""
    cdef double m, l, top, sink
    cdef int i
    for i in range(t.queries):
        m, l = get(p, s.m, i), get(p, s.l, i)
        sink = p.sinks[s.head[i]] * p.unit if p.sinks else -INFINITY
        if l == 0:
            put(p, s.factor, i, NAN if s.seen[i] and sink == -INFINITY else 0.0)
            s.lse[i] = sink * LN_2
            continue
        if sink == -INFINITY:
            put(p, s.factor, i, 1 / l)
        else:
            top = max(m, sink)
            l = l * exp2(m - top) + exp2(sink - top)
            put(p, s.factor, i, exp2(m - top) / l)
            m = top
        if want_lse:  # 1 % of the time of 128 queries
            s.lse[i] = (m + log2(l)) * LN_2


cdef Py_ssize_t out_rows(const Problem *p, Scratch *s, const Tile *t, void **row) noexcept nogil:
    """Where the tile's outputs go as reals, which is out itself unless it keeps 16 bits; and the stride of their columns."""
    cdef Py_ssize_t i
    memcpy(row, s.out, sizeof(s.out))
    if p.out.kind == QKVC_REAL:
        return p.out.col
    for i in range(t.queries):
        row[i] = s.rows + i * p.Dv * p.item
    return 1


cdef void shorten_rows(const Problem *p, Scratch *s, const Tile *t, void *const *row) noexcept nogil:
    """out <- the rows that `out_rows` gave"""
    cdef Py_ssize_t i
    if p.out.kind != QKVC_REAL:
        for i in range(t.queries):
            p.kernels.shorten(row[i], <int>p.Dv, p.out.kind, s.out[i], p.out.col)


cdef void finish(const Problem *p, Scratch *s, const Tile *t) noexcept nogil:
    """What out must be multiplied by is in factor; lse is written."""
    cdef int i
    settle(p, s, t, p.lse != NULL)
    if p.head_scale:
        for i in range(t.queries):
            put(p, s.factor, i, get(p, s.factor, i) * p.head_scale[s.head[i]])
    if p.lse:
        for i in range(t.queries):
            put(p, p.lse, s.index[i], s.lse[i])


# ------------------------------------------------------------------------------------------------------------------ scratch and threads

cdef size_t carve(const Problem *p, char *memory) noexcept nogil:
    """Lay a worker's Scratch out in its share of the memory, and say how large that is; without memory, only say it.

    item [tile (D + Dv + 3 W) + W (1 + D + Dv where copied)] bytes, tile W more with dropout, tile times the larger of D and Dv
    where query or out have 16 bits, W + D + Dv for each query where they are few, and some lines: no term in Lq, and none in Lk beyond a
    block.
    """
    cdef Scratch measured
    cdef Scratch *s = <Scratch *>memory if memory != NULL else &measured
    cdef size_t row = p.kernels.lanes * p.kernels.vecs * p.item, keys = min(p.Lk, W) + min(p.Lk, W) % 2, at = 0
    slot(memory, &at, sizeof(Scratch))
    s.QT = slot(memory, &at, row * (p.D + 1))
    s.O = slot(memory, &at, row * few_width(p))
    s.S = slot(memory, &at, row * keys)
    s.bias = slot(memory, &at, row * keys)
    s.allowed = slot(memory, &at, row * keys)
    s.keep = slot(memory, &at, row * W if p.drops else 0)
    s.capped = slot(memory, &at, row * keys if p.backward and p.softcap else 0)
    s.mass = slot(memory, &at, keys * p.item)
    s.K = slot(memory, &at, keys * p.D * p.item if p.copy_key else 0)
    s.V = slot(memory, &at, keys * p.Dv * p.item if p.copy_value else 0)
    s.rows = slot(memory, &at, row * max(p.D, p.Dv) if p.query.kind != QKVC_REAL or p.out.kind != QKVC_REAL else 0)
    s.Q = slot(memory, &at, p.rows * (p.D + 2 * SEGMENT) * p.item if p.pieces else 0)
    s.P = slot(memory, &at, few_sums(p) * W * p.item if p.pieces else 0)  # P is transposed whole vectors at a time
    s.part = slot(memory, &at, part_bytes(p) if p.pieces else 0)
    return at


cdef Py_ssize_t few_width(const Problem *p) noexcept nogil:
    return (p.Dv + p.kernels.lanes - 1) // p.kernels.lanes * p.kernels.lanes


cdef size_t part_bytes(const Problem *p) noexcept nogil:
    return padded(<size_t>((2 * few_sums(p) + p.rows * few_width(p)) * p.item))


cdef Scratch *scratch_of(const Job *job, int worker) noexcept nogil:
    return <Scratch *>share_of(job, worker)


cdef int sweep(Plan plan, Task task, Py_ssize_t tasks, void *extra) except -1:
    cdef const Problem *p = &plan.problem
    cdef int workers = <int>min(tasks, p.threads), i
    cdef Job job
    hire(&job, p, extra, workers, carve(p, NULL), 2 * p.work, "attention")
    for i in range(workers):
        carve(p, share_of(&job, i))
    return perform(&job, task, tasks, p.threads)
