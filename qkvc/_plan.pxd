"""The plan of one call: everything the tile loop needs to know, in plain numbers."""

from libc.stdint cimport int64_t

from qkvc._kernels cimport Kernels

cdef enum:
    MAX_BATCH_AXES = 32

# An operand as (batch ..., head, row, column); strides count its elements.
ctypedef struct View:
    char *data
    Py_ssize_t[MAX_BATCH_AXES] batch
    Py_ssize_t head
    Py_ssize_t row
    Py_ssize_t col

ctypedef struct Problem:
    const Kernels *kernels
    View query, key, value, out, mask, bias

    int batch_axes
    Py_ssize_t[MAX_BATCH_AXES] batch_shape
    Py_ssize_t batch, heads, kv_heads, group, Lq, Lk, D, Dv
    double scale              # of q . k, in units of the natural logarithm

    bint has_mask, has_bias, causal
    Py_ssize_t offset         # position of query row 0 ...
    const int64_t *offsets    # ... or one per batch item
    const int64_t *lengths    # keys that exist, per batch item; NULL: all Lk

    Py_ssize_t rows           # queries of all heads of a group: what a tile's lanes are filled with
    Py_ssize_t vectors        # ... in vectors
    Py_ssize_t tiles          # tiles per (batch item, key head)
    bint copy_key, copy_value
    int threads
    float *lse                # (batch, heads, Lq), contiguous, or NULL

cdef class Plan:
    cdef Problem problem
    cdef Py_buffer[6] buffers
    cdef int held
    cdef readonly object out, lse
    cdef object kept          # arrays that only their pointers in `problem` still know

    cdef int borrow(self, View *view, Py_buffer **shape, object array, bint writable) except -1
    cdef int place(self, str name, object x, Py_buffer **shape, View *view) except -1


cdef Plan make_plan(object query, object key, object value, object mask, object bias, object causal, object q_offset, object key_lengths,
                    object scale, object layout, object out, bint want_lse, object num_threads)
