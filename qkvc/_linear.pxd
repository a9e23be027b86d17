"""The rows of an array, for whoever walks along them."""

cdef enum:
    MAX_AXES = 32

cdef struct Tokens:  # the rows of an array (..., columns), counted in C order; strides in bytes, col in elements
    char *data
    int axes
    Py_ssize_t[MAX_AXES] shape, stride
    Py_ssize_t col

cdef char *row_of(const Tokens *t, Py_ssize_t token) noexcept nogil
cdef int tokens_of(Tokens *t, Py_buffer *b) except -1
