"""How a call is cut into tasks for the threads: tiles of queries, or pieces of keys; of a ragged batch, for each sequence.

Nothing here changes a bit of the result (docs/arithmetic.md).
"""

from libc.math cimport ceil
from libc.stdlib cimport calloc, qsort

from qkvc._kernels cimport QKVC_BLOCK, QKVC_FEW_BYTES, QKVC_REAL, fitted, threads_for, threads_worth
from qkvc._plan cimport Problem, Run

# What a lane costs beside its flops (packing, storing, checking, for each of D + Dv), in flops of the same time: 16 queries against 16 keys
# take twice the time of their arithmetic.
cdef double LANE_OVERHEAD = 30

# Queries of a key head have their roles swapped (_decode.pyx) where transposing keys costs less than empty lanes: up to FEW, and as many as
# fill such a share of the lanes of whole vectors.  From memory, which tiles wait for, it is a whole vector and, with 32 registers, more of
# the others.  (AVX-512, float32, D = 128, microseconds for 1000 keys: 9 and 17 queries in cache 68 and 112, in tiles 85 and 139; 9, 17 and
# 33 from memory 75, 117 and 204, in tiles 124, 176 and 305.)  A vector too where the heads are not enough for the threads, because then
# keys are split.  Each thread gets so many pieces of them to choose from.
cdef Py_ssize_t FEW = 6
cdef double FEW_FLOATS = 0.6
cdef double FEW_PAIRS = 0.8
cdef double FEW_FROM_MEMORY = 0.9
cdef double BEYOND_CACHES = 32e6  # bytes
cdef double BEYOND_L2 = 4e6  # of 16 bits, which tiles copy: from L3 that waits as from memory
cdef Py_ssize_t FEW_KEYS = 32
cdef Py_ssize_t PIECES = 8

# The parts of pieces wait in memory: 3 to 12 % of the bytes of K and V.  Arrays that broadcast may have more keys than there is memory.
cdef double MOST_PARTS = 1e9  # bytes
cdef Py_ssize_t MOST_ENDS = 32  # numbers that m and l take for a query, at most


cdef inline Py_ssize_t over(Py_ssize_t n, Py_ssize_t size) noexcept:
    return (n + size - 1) // size


cdef bint few(const Problem *p, Py_ssize_t rows, Py_ssize_t length, Py_ssize_t keys, int threads) noexcept:
    """Are the queries of all heads of a group so few that their roles and the keys' are better swapped?  `length` keys of theirs, `keys` of
    all batch items."""
    cdef Py_ssize_t lanes = p.kernels.lanes, sure = FEW
    cdef bint short = p.key.kind != QKVC_REAL, wide = lanes * p.item >= 64  # and so has 32 of them
    cdef double share = FEW_PAIRS if short and wide else FEW_FLOATS
    if p.value.data == NULL or p.apart or p.backward or p.drops or rows == 0 or rows > lanes * p.kernels.vecs:
        return False
    if p.few_bytes:  # they have bits of their own, which must know neither threads nor neighbours
        return length > 0 and rows <= QKVC_FEW_BYTES
    if <double>p.kv_heads * keys * (p.D + p.Dv) * p.key.size > (BEYOND_L2 if short else BEYOND_CACHES):
        sure, share = max(sure, lanes), FEW_FROM_MEMORY if wide else share
    if p.batch * p.kv_heads < threads:
        sure = max(sure, 16)
    return length >= FEW_KEYS and rows <= max(<double>sure, share * lanes * over(rows, lanes))


cdef double work_of(const Problem *p, Py_ssize_t rows, Py_ssize_t length) noexcept:
    """Flops of a (batch item, key head)"""
    cdef double keys = length
    if p.left >= 0 and p.right >= 0:
        keys = min(keys, 1.0 + p.left + p.right)
    return <double>over(rows, p.kernels.lanes) * p.kernels.lanes * max(p.D + p.Dv, 1) * (2 * keys + LANE_OVERHEAD)


cdef Py_ssize_t pieces_of(const Problem *p, Py_ssize_t keys, double heads) noexcept:
    """Pieces of a head's keys, which are one part in `heads` of the work."""
    if <double>p.batch * p.kv_heads * over(keys, QKVC_BLOCK) * p.rows * (p.Dv + MOST_ENDS) * p.item > MOST_PARTS:
        return 1
    return max(1, min(over(keys, QKVC_BLOCK), <Py_ssize_t>(PIECES * p.threads / heads)))


cdef Py_ssize_t tiles_of(const Problem *p, Py_ssize_t rows, double heads) noexcept:
    """Tiles of a head: as wide as there are registers, or narrower, so that every thread has work."""
    cdef Py_ssize_t vectors = over(rows, p.kernels.lanes)
    if p.backward:
        return over(vectors, p.kernels.vecs)
    return min(vectors, max(over(vectors, p.kernels.vecs), <Py_ssize_t>ceil(2 * p.threads / heads)))


cdef int cut(Problem *p, object num_threads) except -1:
    """All batch items have one size."""
    cdef Py_ssize_t heads = p.batch * p.kv_heads
    p.rows = p.group * p.Lq
    p.pieces = few(p, p.rows, p.Lk, p.batch * p.Lk, threads_for(num_threads))
    if not p.pieces:
        p.kernels = fitted(p.kernels, p.rows)
    p.vectors = over(p.rows, p.kernels.lanes)
    p.work = heads * work_of(p, p.rows, p.Lk)
    p.threads = threads_worth(threads_for(num_threads), p.work)
    p.tiles = tiles_of(p, p.rows, max(heads, 1))
    if p.pieces:
        p.tiles = 1
        p.pieces = pieces_of(p, p.Lk, max(heads, 1))
    p.blocks = p.batch * over(p.Lk, QKVC_BLOCK) if p.pieces > 1 else 0
    p.tasks = heads * (p.pieces if p.pieces else p.tiles)
    return 0


cdef int heavier(const void *a, const void *b) noexcept nogil:
    cdef const Run *x = <const Run *>a
    cdef const Run *y = <const Run *>b
    return (x.work < y.work) - (x.work > y.work)


cdef int cut_runs(Problem *p, object num_threads) except -1:
    """Each sequence has its own; the heaviest tasks come first, so that the last to end are light."""
    cdef int threads = threads_for(num_threads)
    cdef Py_ssize_t longest = 0, i
    cdef double heads
    cdef Run *r
    p.runs = <Run *>calloc(max(p.batch, 1), sizeof(Run))
    if p.runs == NULL:
        raise MemoryError(f"attention: {p.batch * sizeof(Run)} bytes for {p.batch} sequences")
    for i in range(p.batch):
        r = &p.runs[i]
        r.batch, r.rows = i, p.group * (p.first_query[i + 1] - p.first_query[i])
        r.few = few(p, r.rows, p.lengths[i], p.Lk, threads)
        longest = max(longest, r.rows)
        if r.few:
            p.rows = max(p.rows, r.rows)
    if not p.rows:
        p.kernels = fitted(p.kernels, longest)
    for i in range(p.batch):
        p.runs[i].work = work_of(p, p.runs[i].rows, p.lengths[i])
        p.work += p.kv_heads * p.runs[i].work
    p.threads = threads_worth(threads, p.work)
    for i in range(p.batch):
        r = &p.runs[i]
        if r.rows:
            heads = p.work / r.work
            r.shares = pieces_of(p, p.lengths[i], heads) if r.few else tiles_of(p, r.rows, heads)
            r.work /= r.shares
    qsort(p.runs, p.batch, sizeof(Run), heavier)
    while p.count < p.batch and p.runs[p.count].rows:
        r = &p.runs[p.count]
        r.tasks, r.blocks = p.tasks, p.blocks
        p.tasks += r.shares * p.kv_heads
        if r.few:
            p.pieces = max(p.pieces, r.shares)
            p.blocks += over(p.lengths[r.batch], QKVC_BLOCK) if r.shares > 1 else 0
        p.count += 1
    return 0
