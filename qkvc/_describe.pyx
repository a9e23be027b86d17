"""What a call of attention would do, counted and not done: the real plan, the real tiles, the real look into every block.

A sweep like those of _attention.pyx and _inside.pyx whose kernels are a counter, so that nothing is judged twice.
"""

from libc.math cimport INFINITY
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from qkvc._cut cimport LANE_OVERHEAD
from qkvc._kernels cimport QKVC_BFLOAT16, QKVC_MAX_VECS, kernels_in_use, threads_for
from qkvc._plan cimport Plan, Problem, View, make_plan
from qkvc._tile cimport MAX_TILE, Block, Scratch, Tile, W, carve, find, get, lay_out, look, part_bytes, scratch_of, sweep
from qkvc._workers cimport Job, interrupted

# A tile done again with a select for every key takes this much more than the first time: 2.9 to 3.6 times in all (docs/arithmetic.md).
# Few queries are done again by a tile, twice.
cdef double AGAIN = 2.2

cdef struct Counts:
    int64_t tiles, few                # of the tiles, those of few queries
    int64_t vecs, queries, lanes      # most of a tile, and lanes of all that hold queries
    int64_t blocks, blocks_in_all     # that tiles look into, and would if nothing were masked
    int64_t clipped, masked           # where positions, and where the bool mask, hide something
    int64_t pairs                     # of a query and a key that it may attend to
    int64_t computed, few_computed    # of a lane, or one of few queries, and a key; the latter alone
    int64_t again, tiles_again        # what the second time takes of tiles in which a query may attend to nothing, in pairs
    int64_t key_rows, few_rows        # that all tiles read; those of few queries
    int64_t mask_cells, bias_cells    # ... rows that lanes share counted once a tile
    Py_ssize_t head                   # (batch item, key head) of the tile before, and which keys its tiles have read
    int64_t first, last
    int64_t key_rows_once             # that any tile of their head reads
    int threads
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
    """One task of the pool: `walk` without arithmetic; the first piece of few queries' keys stands for all."""
    cdef Job *job = <Job *>context
    cdef const Problem *p = <const Problem *>job.problem
    cdef Counts *to = <Counts *>job.extra
    cdef Scratch *s = scratch_of(job, worker)
    cdef Tile t = find(p, task)
    cdef int64_t[MAX_TILE] seen
    cdef int[QKVC_MAX_VECS] depth
    cdef int lanes = p.kernels.lanes, v, idlest
    cdef int64_t computed = 0, swapped = 0, rows = 0, n, i
    cdef Py_ssize_t pieces = t.shares if t.few else 1
    cdef bint empty = False
    cdef double work
    cdef Block b
    if t.few and t.share:
        return
    t = lay_out(p, s, task)
    if t.batch * p.kv_heads + t.kv_head != to.head:
        close_head(to)
        to.head = t.batch * p.kv_heads + t.kv_head
    to.tiles += 1
    to.few += t.few
    to.vecs, to.queries = max(to.vecs, t.vecs), max(to.queries, t.queries)
    to.lanes += 0 if t.few else t.vecs * lanes
    to.blocks_in_all += ((p.lengths[t.batch] if p.runs else p.Lk) + W - 1) // W
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
        rows += b.keys
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
    to.key_rows += rows
    to.computed += swapped if t.few else computed
    if t.few:
        to.few_rows += rows
        to.few_computed += swapped
    work = swapped if t.few else computed + t.vecs * lanes * LANE_OVERHEAD / 2  # a pair is 2 flops a column
    if empty and computed:
        to.tiles_again += 1
        to.again += <int64_t>(again(t.few) * computed)
        work += again(t.few) * computed
    for _ in range(pieces):
        idlest = 0
        for v in range(to.threads):  # the next task goes to whoever is done first
            if to.busy[v] < to.busy[idlest]:
                idlest = v
        to.busy[idlest] += work / pieces


cdef double again(bint few) noexcept nogil:
    return 1 + AGAIN if few else AGAIN


cdef str why_copied(bint copied, const Problem *p, const View *view, bint few):
    """Which of the reasons in `aliases` and `make_plan`; few queries widen what they load, and pair it."""
    if not copied:
        return ""
    if view.kind != p.kernels.kind and not few:
        return "storage"
    if p.kernels.kind == QKVC_BFLOAT16 and (p.D % 2 if view == &p.key else not few):
        return "pairs"
    return "columns" if view.col != 1 else "rows"


def describe(query, key, value, mask, bias, causal, q_offset, window, key_lengths, alibi_slopes, sinks, softcap, scale, head_scale, layout,
             precision, out, num_threads, starts):
    """The plan of a call and what its tiles would read and compute, in plain numbers.  Of the arrays only mask and bias are looked at."""
    cdef Plan plan = make_plan(query, key, value, mask, bias, causal, q_offset, window, key_lengths, alibi_slopes, sinks, softcap, scale,
                               head_scale, layout, out, False, num_threads, None, None, precision, False, starts)
    cdef Problem *p = &plan.problem
    cdef Counts to
    cdef Py_ssize_t tasks = p.tasks if plan.out.size else 0
    cdef int threads = <int>max(1, min(tasks, p.threads)), i
    cdef double most = 0, total = 0
    told = {
        "kernels": p.kernels.name.decode(),
        "narrow": p.kernels.lanes * p.item < kernels_in_use().lanes * kernels_in_use().size,
        "dtype": p.kernels.dtype.decode(),
        "item": p.item,
        "items": (p.query.size, p.key.size, p.value.size, p.out.size),
        "dim": p.D,
        "v_dim": p.Dv,
        "rows": (p.Lq if p.runs else p.batch * p.Lq) * p.heads if tasks else 0,
        "lanes": p.kernels.lanes,
        "pieces": p.pieces if tasks else 0,
        "parts": p.kv_heads * p.blocks * part_bytes(p) if tasks else 0,
        "threads": threads,
        "threads_worth": p.threads,
        "threads_allowed": threads_for(num_threads),
        "scratch": carve(p, NULL),
        "lane_overhead": LANE_OVERHEAD,
    }
    copied = p.copy_key, p.copy_value
    memset(&to, 0, sizeof(to))
    to.head, to.threads = -1, threads
    to.busy = <double *>calloc(threads, sizeof(double))
    if to.busy == NULL:
        raise MemoryError("explain: no memory for the counts")
    try:
        if tasks:
            p.threads = 1                        # one after the other, so that the counts need no lock
            p.copy_key = p.copy_value = False    # the numbers are not wanted
            sweep(plan, count_tile, tasks, &to)
            close_head(&to)
        for i in range(threads):
            most, total = max(most, to.busy[i]), total + to.busy[i]
    finally:
        free(to.busy)
    few = p.pieces and to.few == to.tiles
    told.update(
        copy_key=why_copied(p.few_copy_key if few else copied[0], p, &p.key, few),
        copy_value=why_copied(p.few_copy_value if few else copied[1], p, &p.value, few),
        tiles=to.tiles, few=to.few, tile_vectors=to.vecs, tile_queries=to.queries, lanes_in_all=to.lanes, blocks=to.blocks,
        blocks_in_all=to.blocks_in_all, blocks_clipped=to.clipped, blocks_masked=to.masked, pairs=to.pairs, pairs_computed=to.computed,
        few_computed=to.few_computed, pairs_again=to.again, tiles_again=to.tiles_again, key_rows=to.key_rows, few_rows=to.few_rows,
        key_rows_once=to.key_rows_once, mask_cells=to.mask_cells, bias_cells=to.bias_cells, share=most / total if total else 1.0 / threads,
    )
    return told
