"""What a call of attention would do, counted and not done: the real plan, the real tiles, the real look into every block.

A sweep like those of _attention.pyx and _inside.pyx whose kernels are a counter, so that nothing is judged twice.
"""

from libc.math cimport INFINITY
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free

from qkvc._cut cimport LANE_OVERHEAD
from qkvc._kernels cimport QKVC_BFLOAT16, QKVC_MAX_VECS, kernels_in_use, threads_for
from qkvc._plan cimport Plan, Problem, View, make_plan
from qkvc._tile cimport MAX_TILE, Block, Scratch, Tile, W, carve, get, lay_out, look, part_bytes, scratch_of, sweep
from qkvc._workers cimport Job, interrupted

# A tile done again with a select for every key takes this much more than the first time: 2.9 to 3.6 times in all (docs/arithmetic.md).
# Few queries are done again by a tile, twice.
cdef double AGAIN = 2.2

cdef struct Counts:
    int64_t blocks, clipped, masked   # that tiles look into; where positions, and where the bool mask, hide something
    int64_t pairs                     # of a query and a key that it may attend to
    int64_t computed                  # of a lane, or one of few queries, and a key
    int64_t again, tiles_again        # of a lane and a key of tiles in which a query may attend to nothing, which are done twice
    int64_t key_rows                  # that all tiles read
    int64_t mask_cells, bias_cells    # ... rows that lanes share counted once a tile
    Py_ssize_t head                   # (batch item, key head) of the tile before, and which keys its tiles have read
    int64_t first, last
    int64_t key_rows_once             # that any tile of their head reads
    int threads
    Py_ssize_t pieces                 # of each head's keys where queries are few, else 0
    double *busy                      # what each thread has had to do, in pairs


cdef int64_t rows_apart(const void *const *row, int queries, Py_ssize_t col, int keys) noexcept nogil:
    """Numbers in a block of a mask or bias."""
    cdef int64_t rows = 1
    cdef int i
    for i in range(1, queries):
        rows += row[i] != row[i - 1]
    return rows * (keys if col else 1)


cdef int64_t allowed(const Problem *p, const Scratch *s, const Block *b, int lane) noexcept nogil:
    """Keys of the block that positions, mask and bias let a query attend to."""
    cdef int64_t first = max(s.begin[lane], b.first), last = min(s.end[lane], b.first + b.keys), found = 0, j
    if not p.has_mask and not p.has_bias:
        return max(0, last - first)
    for j in range(first, last):
        if p.has_mask and not s.mask_row[lane][j * p.mask.col]:
            continue
        found += not p.has_bias or get(p, s.bias_row[lane], j * p.bias.col) != -INFINITY
    return found


cdef void close_head(Counts *to) noexcept nogil:
    to.key_rows_once += max(0, to.last - to.first)
    to.first, to.last = (<int64_t>1) << 62, 0


cdef void count_tile(void *context, Py_ssize_t task, int worker) noexcept nogil:
    """One task of the pool: `walk` without arithmetic."""
    cdef Job *job = <Job *>context
    cdef const Problem *p = <const Problem *>job.problem
    cdef Counts *to = <Counts *>job.extra
    cdef Scratch *s = scratch_of(job, worker)
    cdef Tile t = lay_out(p, s, task)
    cdef int64_t[MAX_TILE] seen
    cdef int[QKVC_MAX_VECS] depth
    cdef int lanes = p.kernels.lanes, v, idlest
    cdef int64_t computed = 0, swapped = 0, n, i
    cdef bint empty = False
    cdef double work
    cdef Block b
    if task // p.tiles != to.head:
        close_head(to)
        to.head = task // p.tiles
    for v in range(t.queries):
        seen[v] = 0
    for i in range(t.block, t.blocks):
        if interrupted(job, worker):
            return
        if not look(p, s, &t, i, depth, &b):
            continue
        to.blocks += 1
        to.clipped += b.clipped
        to.masked += b.masked
        to.key_rows += b.keys
        to.first, to.last = min(to.first, b.first), max(to.last, b.first + b.keys)
        for v in range(t.vecs):
            computed += depth[v] * lanes
        swapped += t.queries * b.keys
        for v in range(t.queries):
            n = allowed(p, s, &b, v)
            seen[v] += n
            to.pairs += n
        if p.has_mask:
            to.mask_cells += rows_apart(<const void *const *>s.mask_row, t.queries, p.mask.col, b.keys)
        if p.has_bias:
            to.bias_cells += rows_apart(s.bias_row, t.queries, p.bias.col, b.keys)
    for v in range(t.queries):
        empty = empty or seen[v] == 0
    to.computed += swapped if to.pieces else computed
    work = swapped if to.pieces else computed + t.vecs * lanes * LANE_OVERHEAD / 2  # a pair is 2 flops a column
    if empty and computed:
        to.tiles_again += 1
        to.again += computed
        work += again(to.pieces) * computed
    for _ in range(max(1, to.pieces)):
        idlest = 0
        for v in range(to.threads):  # the next task goes to whoever is done first
            if to.busy[v] < to.busy[idlest]:
                idlest = v
        to.busy[idlest] += work / max(1, to.pieces)


cdef double again(Py_ssize_t pieces) noexcept nogil:
    return 1 + AGAIN if pieces else AGAIN


cdef str why_copied(bint copied, const Problem *p, const View *view):
    """Which of the reasons in `aliases` and `make_plan`; few queries widen what they load, and pair it."""
    if not copied:
        return ""
    if view.kind != p.kernels.kind and not p.pieces:
        return "storage"
    if p.kernels.kind == QKVC_BFLOAT16 and (p.D % 2 if view == &p.key else not p.pieces):
        return "pairs"
    return "columns" if view.col != 1 else "rows"


def describe(query, key, value, mask, bias, causal, q_offset, window, key_lengths, alibi_slopes, sinks, softcap, scale, head_scale, layout,
             out, num_threads):
    """The plan of a call and what its tiles would read and compute, in plain numbers.  Of the arrays only mask and bias are looked at."""
    cdef Plan plan = make_plan(query, key, value, mask, bias, causal, q_offset, window, key_lengths, alibi_slopes, sinks, softcap, scale,
                               head_scale, layout, out, False, num_threads)
    cdef Problem *p = &plan.problem
    cdef Counts to
    cdef Py_ssize_t tasks = p.batch * p.kv_heads * p.tiles if plan.out.size else 0
    cdef Py_ssize_t vectors = (p.vectors + max(p.tiles, 1) - 1) // max(p.tiles, 1)
    cdef int threads = <int>max(1, min(tasks * max(1, p.pieces), p.threads)), i
    cdef double most = 0, total = 0
    told = {
        "kernels": p.kernels.name.decode(),
        "narrow": p.kernels.lanes * p.item < kernels_in_use().lanes * kernels_in_use().size,
        "dtype": p.kernels.dtype.decode(),
        "item": p.item,
        "items": (p.query.size, p.key.size, p.value.size, p.out.size),
        "dim": p.D,
        "v_dim": p.Dv,
        "rows": p.batch * p.heads * p.Lq if tasks else 0,
        "lanes": p.kernels.lanes,
        "tiles": tasks,
        "tile_vectors": vectors if tasks else 0,
        "tile_queries": min(vectors * p.kernels.lanes, p.rows) if tasks else 0,
        "pieces": p.pieces if tasks else 0,
        "parts": p.kv_heads * p.blocks * part_bytes(p) if tasks else 0,
        "lanes_in_all": p.batch * p.kv_heads * p.vectors * p.kernels.lanes if tasks else 0,
        "blocks_in_all": tasks * ((p.Lk + W - 1) // W),
        "threads": threads,
        "threads_worth": p.threads,
        "threads_allowed": threads_for(num_threads),
        "scratch": carve(p, NULL),
        "copy_key": why_copied(p.few_copy_key if p.pieces else p.copy_key, p, &p.key),
        "copy_value": why_copied(p.few_copy_value if p.pieces else p.copy_value, p, &p.value),
        "lane_overhead": LANE_OVERHEAD,
        "again": again(p.pieces),
    }
    to.blocks = to.clipped = to.masked = to.pairs = to.computed = to.again = to.tiles_again = to.key_rows = to.key_rows_once = 0
    to.mask_cells = to.bias_cells = 0
    to.head = -1
    to.first, to.last = 0, 0
    to.threads, to.pieces = threads, p.pieces
    to.busy = <double *>calloc(threads, sizeof(double))
    if to.busy == NULL:
        raise MemoryError("explain: no memory for the counts")
    try:
        if tasks:
            p.pieces = 0                         # tiles are counted
            p.threads = 1                        # one after the other, so that the counts need no lock
            p.copy_key = p.copy_value = False    # the numbers are not wanted
            sweep(plan, count_tile, tasks, &to)
            close_head(&to)
        for i in range(threads):
            most, total = max(most, to.busy[i]), total + to.busy[i]
    finally:
        free(to.busy)
    told.update(
        blocks=to.blocks, blocks_clipped=to.clipped, blocks_masked=to.masked, pairs=to.pairs, pairs_computed=to.computed,
        pairs_again=to.again, tiles_again=to.tiles_again, key_rows=to.key_rows, key_rows_once=to.key_rows_once,
        mask_cells=to.mask_cells, bias_cells=to.bias_cells, share=most / total if total else 1.0 / threads,
    )
    return told
