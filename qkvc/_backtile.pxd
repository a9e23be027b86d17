"""A tile of queries before a block of keys, on the way back: what the sweeps of _backward.pyx share."""

from libc.stdint cimport int64_t

from qkvc._kernels cimport Task
from qkvc._plan cimport Plan, Problem, View
from qkvc._tile cimport MAX_TILE, Block, Lanes, Scratch, Tile
from qkvc._workers cimport Job

ctypedef struct Gradients:
    View grad_out, out, query, key, value  # the last three are dQ, dK and dV, without data where nobody wants them
    const char *lse            # reals (batch, heads, Lq)
    const char *grad_lse       # ... or NULL
    char *dots                 # ... sums over columns of dO O
    Py_ssize_t Q_width         # D and Dv in whole vectors
    Py_ssize_t O_width
    Py_ssize_t pitch           # of a row of dK and dV, side by side
    Py_ssize_t groups          # at most, of any batch item
    bint spare                 # are there more stripes than groups?
    int64_t keys               # of the longest batch item
    Py_ssize_t slab            # bytes of a group's part
    char *slabs                # of all heads; NULL: a worker has those of one head
    double *bias               # the bias's gradient, contiguous, its strides 0 where the bias was broadcast ...
    View places
    const int64_t *sharers     # ... and whose it is: for each of its heads the (batch item, head) pairs that share it, so many
    Py_ssize_t sharing
    bint by_tile, by_block     # do tiles, or blocks of keys, have numbers of their own in it?
    Py_ssize_t offset          # where its Desk lies in a worker's share

# What a worker has besides Scratch.
ctypedef struct Desk:
    char *OT         # [Dv][tile], then dOT
    char *dOT
    char *dP         # [W][tile], then dS
    char *dQ         # [D][tile]
    char *own_Q      # [tile][Q_width]
    char *own_dO     # [tile][O_width]
    const char *Q    # these, or the tile's rows where they are
    const char *dO
    char *stripe     # one more part, where groups have several stripes
    char *slabs      # groups' parts, unless all heads' are together
    char *spare      # a row of dK or dV
    Lanes lse, delta, one, scale
    const void *ahead[4 * MAX_TILE]  # rows of the next tile: of Q and dQ, then of out and dO, so many of each
    int rows


cdef inline Py_ssize_t over(Py_ssize_t n, Py_ssize_t size) noexcept nogil:
    return (n + size - 1) // size


cdef Desk *desk_of(const Job *job, int worker) noexcept nogil

# The steps, in the order in which they are taken; `differentiate` says False where nothing is to be seen, as `look` does.
cdef void aim(const Problem *p, const Gradients *g, Desk *r, const Tile *t) noexcept nogil
cdef void prepare(const Problem *p, const Gradients *g, Scratch *s, Desk *r, const Tile *t) noexcept nogil
cdef bint differentiate(const Problem *p, const Gradients *g, Scratch *s, Desk *r, const Tile *t, int64_t index, int *depth, Block *b,
                        char *part) noexcept nogil
cdef void store_query(const Problem *p, const Gradients *g, Desk *r, const Tile *t) noexcept nogil

# Run `task` on the problem's threads, with a Scratch and a Desk for each.
cdef int back(Plan plan, Gradients *g, Task task, Py_ssize_t tasks) except -1
