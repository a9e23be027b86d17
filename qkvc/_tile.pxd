"""A tile of queries before the blocks of keys: what every sweep over the scores shares."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from qkvc._kernels cimport QKVC_BLOCK, Task
from qkvc._plan cimport Plan, Problem, Run, View
from qkvc._workers cimport Job

cdef enum:
    MAX_TILE = 64  # lanes of the widest tile, 48 on AVX-512
    W = QKVC_BLOCK
    SEGMENT = 16   # keys a chain of the sums: docs/arithmetic.md

# One number a lane, a double or a float as the problem has it.
ctypedef double[MAX_TILE] Lanes

ctypedef struct Scratch:
    char *QT         # [D][tile]
    char *O          # [Dv][tile]
    char *S          # [W][tile]
    char *Q          # few queries
    char *P          # [query][W] scores, then weights of few queries, whose output is O as [query][few_width]
    char *part       # of one block of few queries
    char *bias       # [W][tile], mask and bias of the block, keys down
    char *allowed    # [W][tile], -inf where masked: only for the careful walk
    char *keep       # [W][tile], what dropout multiplies weights by
    char *capped     # [W][tile], S behind softcap: only for the backward
    char *K          # [W][D] and [W][Dv]: copies of blocks that cannot be read in place
    char *V
    char *rows       # [tile][D or Dv]: queries on the way in and results on the way out, where arrays keep them in 16 bits
    char *mass       # [W], for statistics
    Lanes m, l, alpha, beta, factor, first, limit, slope, position
    Lanes spread, distance, most
    double[MAX_TILE] lse           # natural, whatever the problem's reals
    int64_t[MAX_TILE] place        # position of the lane's query among the keys
    int64_t[MAX_TILE] begin        # first key that it may see
    int64_t[MAX_TILE] end          # first key behind those
    uint8_t[MAX_TILE] seen         # has it been allowed any key?
    Py_ssize_t[MAX_TILE] index     # of the query in lse
    Py_ssize_t[MAX_TILE] head      # ... and among the heads of all batch items
    uint32_t[MAX_TILE] row         # where dropout looks it up: its row,
    uint32_t[MAX_TILE] own_head    # and its head in its item
    const void *query[MAX_TILE]
    const void *bias_row[MAX_TILE]
    const uint8_t *mask_row[MAX_TILE]
    void *out[MAX_TILE]

ctypedef struct Tile:
    Py_ssize_t batch, kv_head
    Py_ssize_t row     # its first among all heads of the group
    bint few           # the roles are swapped: it holds all of them, and this is one of the pieces of its keys
    Py_ssize_t share, shares  # which tile or piece, of how many
    Py_ssize_t part    # where its blocks wait in parts, if they do
    int vecs, queries
    const char *K      # row 0 of its key and value head
    const char *V
    int64_t block      # the first block that any of its queries may see ...
    int64_t blocks     # ... and the first behind them

ctypedef struct Block:
    int64_t first      # key
    int keys           # that any query may see by position
    bint clipped       # positions begin or end inside the block
    bint masked        # the bool mask has a False in it
    const char *K      # its rows, in place or copied
    const char *V
    Py_ssize_t K_row, V_row
    int K_kind, V_kind

# A block's part for few queries, laid out in its memory.
ctypedef struct Part:
    char *m
    char *l
    char *O            # [query][few_width]


cdef inline double get(const Problem *p, const void *x, Py_ssize_t i) noexcept nogil:
    return (<const float *>x)[i] if p.item == sizeof(float) else (<const double *>x)[i]


cdef inline void put(const Problem *p, void *x, Py_ssize_t i, double value) noexcept nogil:
    if p.item == sizeof(float):
        (<float *>x)[i] = <float>value
    else:
        (<double *>x)[i] = value


# The steps of a sweep, in the order in which they are taken.
cdef Scratch *scratch_of(const Job *job, int worker) noexcept nogil
cdef Py_ssize_t batch_offset(const Problem *p, const View *view, Py_ssize_t item, const int64_t *first) noexcept nogil
cdef Run run_of(const Problem *p, Py_ssize_t task) noexcept nogil
cdef Tile find(const Problem *p, Py_ssize_t task) noexcept nogil
cdef Tile lay_out(const Problem *p, Scratch *s, Py_ssize_t task) noexcept nogil
cdef void fetch_queries(const Problem *p, Py_ssize_t task) noexcept nogil
cdef Py_ssize_t query_rows(const Problem *p, Scratch *s, const Tile *t, const void **row) noexcept nogil
cdef void pack_queries(const Problem *p, Scratch *s, const Tile *t) noexcept nogil
cdef void start(const Problem *p, Scratch *s) noexcept nogil
cdef bint look(const Problem *p, Scratch *s, const Tile *t, int64_t index, int *depth, Block *b) noexcept nogil
cdef void bring_rows(const Problem *p, const View *view, int n, Py_ssize_t cols, char *to, const char **x, Py_ssize_t *row,
                     int *kind) noexcept nogil
cdef void score(const Problem *p, Scratch *s, const Tile *t, const int *depth, Block *b) noexcept nogil
cdef void adjust(const Problem *p, Scratch *s, const Tile *t, const int *depth, const Block *b) noexcept nogil
cdef void note_allowed(const Problem *p, Scratch *s, const Tile *t, const int *depth, const Block *b) noexcept nogil
cdef void draw(const Problem *p, Scratch *s, const Tile *t, const int *depth, const Block *b) noexcept nogil
cdef void settle(const Problem *p, Scratch *s, const Tile *t, bint want_lse) noexcept nogil
cdef Py_ssize_t out_rows(const Problem *p, Scratch *s, const Tile *t, void **row) noexcept nogil
cdef void shorten_rows(const Problem *p, Scratch *s, const Tile *t, void *const *row) noexcept nogil
cdef void finish(const Problem *p, Scratch *s, const Tile *t) noexcept nogil

# Of few queries: their m, up to whole vectors of the widest set; where a block's part lies, numbers in a row of its O, its bytes.
cdef inline Py_ssize_t few_sums(const Problem *p) noexcept nogil:
    return (p.rows + 15) // 16 * 16


cdef inline Part part_at(const Problem *p, char *memory) noexcept nogil:
    return Part(memory, memory + few_sums(p) * p.item, memory + 2 * few_sums(p) * p.item)


cdef Py_ssize_t few_width(const Problem *p) noexcept nogil
cdef size_t part_bytes(const Problem *p) noexcept nogil

# Bytes of a worker's scratch, laid out in its memory unless that is NULL.
cdef size_t carve(const Problem *p, char *memory) noexcept nogil

# Run `task` for every tile on the problem's threads.
cdef int sweep(Plan plan, Task task, Py_ssize_t tasks, void *extra) except -1
