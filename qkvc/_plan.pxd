"""The plan of one call: everything the tile loop needs to know, in plain numbers."""

from libc.stdint cimport int64_t

from qkvc._kernels cimport Dropout, Kernels

cdef enum:
    MAX_BATCH_AXES = 32

# An operand as (batch ..., head, row, column); strides count its elements, of `size` bytes, which `kind` (src/kernels.h) says how to read.
ctypedef struct View:
    char *data
    int kind
    Py_ssize_t size
    Py_ssize_t[MAX_BATCH_AXES] batch
    Py_ssize_t head
    Py_ssize_t row
    Py_ssize_t col

# A sequence of a ragged batch: its tasks, which follow those of heavier sequences.
ctypedef struct Run:
    Py_ssize_t batch          # which sequence
    Py_ssize_t rows           # queries of all heads of a group
    bint few                  # so few that the roles are swapped
    Py_ssize_t shares         # tiles for each key head, or pieces of its keys
    double work               # of a task
    Py_ssize_t tasks          # of the runs before
    Py_ssize_t blocks         # ... and how many blocks of keys of one head wait in parts of theirs

ctypedef struct Problem:
    const Kernels *kernels
    Py_ssize_t item           # bytes of a real: 4 or 8
    View query, key, value, out, mask, bias

    int batch_axes
    Py_ssize_t[MAX_BATCH_AXES] batch_shape
    Py_ssize_t batch, heads, kv_heads, group, Lq, Lk, D, Dv
    Py_ssize_t share          # heads that read one key head although they are not stacked into its tiles; 1 but for statistics
    double scale              # of q . k, in units of the natural logarithm
    double unit               # of the scores, in units of the natural logarithm: log2(e), as softmax wants them
    double softcap            # 0: none

    bint has_mask, has_bias
    int64_t left, right       # keys p - left <= j <= p + right of a query at position p; -1: all.  Causal is right = 0
    Py_ssize_t offset         # position of query row 0 ...
    const int64_t *offsets    # ... or one per batch item
    const int64_t *lengths    # keys that exist, per batch item; NULL: all Lk
    const int64_t *first_query  # of a ragged batch, row 0 of each sequence among all Lq, which follow each other, and the end; or NULL
    const int64_t *first_key    # ... and among all Lk
    const int64_t *chosen     # the rows that the queries had before some were chosen, ascending; NULL: all

    const double *slopes      # (batch, heads), or NULL
    const double *sinks
    const double *head_scale
    bint drops                # are weights dropped?
    Dropout dropout

    Py_ssize_t rows           # queries of all heads of a group: what a tile's lanes are filled with
    Py_ssize_t vectors        # ... in vectors
    Py_ssize_t tiles          # tiles per (batch item, key head)
    Py_ssize_t pieces         # of the keys of each, where queries are so few that the roles are swapped; 0: they are not
    Run *runs                 # of a ragged batch, instead; rows and pieces are then the most of sequences of few queries
    Py_ssize_t count          # ... of them that have tasks
    Py_ssize_t tasks          # tiles, or pieces, of all batch items and key heads
    Py_ssize_t blocks         # of keys, of one key head of all batch items, that wait in parts
    double work               # in flops, with what lanes cost beside theirs
    bint copy_key, copy_value             # are blocks copied before the kernels read them?  And those of few queries,
    bint few_copy_key, few_copy_value     # which widen as they load, and join value rows themselves
    bint few_bytes                        # ... and read int8 where it lies, if the set can
    bint backward             # tiles are whole, so that their borders are those of stripes (_backward.pyx)
    bint apart                # blocks are not merged: every one has a place of its own in out, which has an axis more, the first
    int threads
    char *lse                 # reals (batch, heads, Lq), contiguous, or NULL

cdef class Plan:
    cdef Problem problem
    cdef Py_buffer[12] buffers
    cdef int held
    cdef bint plain           # query, key and value are float32 arrays
    cdef readonly object out, lse
    cdef readonly tuple shape  # of out
    cdef readonly object dtype  # of what is computed, and of lse: float32 or float64
    cdef object ragged        # lengths of the sequences' queries and of their keys, or None
    cdef list kept            # arrays that only their pointers in `problem` still know

    cdef int borrow(self, View *view, Py_buffer **shape, object array, bint writable) except -1
    cdef int place(self, str name, object x, Py_buffer **shape, View *view) except -1
    cdef tuple batch_shape(self)

# Of an operand whose batch axes are the problem's; `head` and `row` count axes from the end.
cdef void set_strides(Problem *p, View *view, Py_buffer *b, int head, int row) noexcept

# `value` and `out` may be None where only scores are wanted; then nothing is written.  With `in_bytes` key and value are int8, and behind
# each row stands the float32 that 1 stands for (QKVC_INT8).
cdef Plan make_plan(object query, object key, object value, object mask, object bias, object causal, object q_offset, object window,
                    object key_lengths, object alibi_slopes, object sinks, object softcap, object scale, object head_scale, object layout,
                    object out, bint want_lse, object num_threads, object chosen=*, object rows_in_all=*,
                    object precision=*, bint apart=*, object starts=*, bint in_bytes=*, bint backward=*,
                    object dropout_p=*, object rng=*)
