"""What the loss shares with softmax: a row's maximum, and its sum of exponentials."""

from qkvc._kernels cimport Kernels

ctypedef fused real:
    float
    double

cdef void reduce_row(const Kernels *kn, const real *x, Py_ssize_t n, double *largest, double *total) noexcept nogil
