"""What training does number by number, in one pass where NumPy takes many: activations and their gradients, AdamW, the gradient's norm.

Every function takes contiguous arrays of one dtype, float32 or float64, and one shape; who calls has seen to that.
"""

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.math cimport M_SQRT1_2, erf, exp
from libc.stdint cimport uint64_t

import numpy as np

from qkvc._kernels cimport AdamW, Kernels, Task, kernels_in_use, threads_for, threads_worth
from qkvc._workers cimport Job, hire, interrupted, perform

cdef extern from "fpenv.h" nogil:
    uint64_t qkvc_fp_enter()
    void qkvc_fp_leave(uint64_t before)

cdef enum:
    CHUNK = 16384    # numbers of a task
    SUMMED = 1024    # squares that are summed in the array's dtype; those sums are added in double
    FLOPS = 16       # a number's work, in flops of the same time
    MOST = 5         # arrays of a pass

cdef object FLOAT32 = np.dtype("float32")
cdef double BELL = 0.3989422804014327  # 1 / sqrt(2 pi)


cdef struct Pass:
    const Kernels *kernels
    char *a[MOST]
    Py_ssize_t n
    AdamW constants
    double *sums


cdef int run_pass(Pass *p, Task task, object arrays, int writes, object num_threads, str who) except -1:
    """Take the arrays, of which the last `writes` are written, through the task, a chunk at a time."""
    cdef Job job
    cdef Py_buffer[MOST] buffers
    cdef int held = 0, i, threads = threads_for(num_threads)
    cdef double work
    try:
        for array in arrays:
            PyObject_GetBuffer(array, &buffers[held], PyBUF_C_CONTIGUOUS | (PyBUF_WRITABLE if held >= len(arrays) - writes else 0))
            p.a[held] = <char *>buffers[held].buf
            held += 1
        p.kernels = kernels_in_use() if arrays[0].dtype == FLOAT32 else kernels_in_use().float64
        p.n = arrays[0].size
        work = <double>FLOPS * p.n
        threads = threads_worth(threads, work)
        hire(&job, p, NULL, threads, 64, work, who)
        perform(&job, task, (p.n + CHUNK - 1) // CHUNK, threads)
    finally:
        for i in range(held):
            PyBuffer_Release(&buffers[i])
    return 0


cdef Py_ssize_t begin(void *context, Py_ssize_t task, int worker, char **at, Py_ssize_t *n) noexcept nogil:
    """Where the arrays of a chunk begin, and how long it is: 0 after Ctrl-C."""
    cdef Job *job = <Job *>context
    cdef const Pass *p = <const Pass *>job.problem
    cdef int i
    for i in range(MOST):
        at[i] = p.a[i] + task * CHUNK * p.kernels.size
    n[0] = 0 if interrupted(job, worker) else min(CHUNK, p.n - task * CHUNK)
    return n[0]


cdef const Pass *pass_of(void *context) noexcept nogil:
    return <const Pass *>(<Job *>context).problem


cdef void gelu_double(const double *x, const double *g, Py_ssize_t n, double *out) noexcept nogil:
    """x Phi(x), or where g is not NULL g times its derivative: float64 has no kernel for it (src/float32.h says why)."""
    cdef Py_ssize_t i
    cdef double share
    for i in range(n):
        share = 0.5 + 0.5 * erf(x[i] * M_SQRT1_2)
        out[i] = x[i] * share if g == NULL else g[i] * (share + x[i] * BELL * exp(-0.5 * x[i] * x[i]))


cdef void gelu_some(void *context, Py_ssize_t task, int worker) noexcept nogil:
    cdef char *a[MOST]
    cdef Py_ssize_t n
    cdef uint64_t environment = qkvc_fp_enter()
    begin(context, task, worker, a, &n)
    if pass_of(context).kernels.gelu:
        pass_of(context).kernels.gelu(a[0], n, a[1])
    else:
        gelu_double(<double *>a[0], NULL, n, <double *>a[1])
    qkvc_fp_leave(environment)


cdef void gelu_grad_some(void *context, Py_ssize_t task, int worker) noexcept nogil:
    cdef char *a[MOST]
    cdef Py_ssize_t n
    cdef uint64_t environment = qkvc_fp_enter()
    begin(context, task, worker, a, &n)
    if pass_of(context).kernels.gelu_grad:
        pass_of(context).kernels.gelu_grad(a[0], a[1], n, a[2])
    else:
        gelu_double(<double *>a[0], <double *>a[1], n, <double *>a[2])
    qkvc_fp_leave(environment)


cdef void swiglu_some(void *context, Py_ssize_t task, int worker) noexcept nogil:
    cdef char *a[MOST]
    cdef Py_ssize_t n
    cdef uint64_t environment = qkvc_fp_enter()
    begin(context, task, worker, a, &n)
    pass_of(context).kernels.swiglu(a[0], a[1], n, a[2])
    qkvc_fp_leave(environment)


cdef void swiglu_grad_some(void *context, Py_ssize_t task, int worker) noexcept nogil:
    cdef char *a[MOST]
    cdef Py_ssize_t n
    cdef uint64_t environment = qkvc_fp_enter()
    begin(context, task, worker, a, &n)
    pass_of(context).kernels.swiglu_grad(a[0], a[1], a[2], n, a[3], a[4])
    qkvc_fp_leave(environment)


cdef void adamw_some(void *context, Py_ssize_t task, int worker) noexcept nogil:
    cdef char *a[MOST]
    cdef Py_ssize_t n
    cdef uint64_t environment = qkvc_fp_enter()
    begin(context, task, worker, a, &n)
    pass_of(context).kernels.adamw(a[1], a[0], a[2], a[3], n, &pass_of(context).constants)
    qkvc_fp_leave(environment)


cdef void square_some(void *context, Py_ssize_t task, int worker) noexcept nogil:
    cdef char *a[MOST]
    cdef Py_ssize_t n, i
    cdef const Pass *p = pass_of(context)
    cdef double sum = 0
    cdef uint64_t environment = qkvc_fp_enter()
    begin(context, task, worker, a, &n)
    for i in range((n + SUMMED - 1) // SUMMED):
        sum += p.kernels.square_sum(a[0] + i * SUMMED * p.kernels.size, <int>min(SUMMED, n - i * SUMMED))
    p.sums[task] = sum
    qkvc_fp_leave(environment)


def gelu(x, num_threads=None):
    """x Phi(x) of each number (Hendrycks & Gimpel 2016)."""
    cdef Pass p
    out = np.empty_like(x)
    run_pass(&p, gelu_some, (x, out), 1, num_threads, "gelu")
    return out


def gelu_grad(x, grad, num_threads=None):
    """The gradient with respect to x, `grad` being that of ``gelu(x)``."""
    cdef Pass p
    out = np.empty_like(x)
    run_pass(&p, gelu_grad_some, (x, grad, out), 1, num_threads, "gelu_grad")
    return out


def swiglu(gate, x, num_threads=None):
    """x silu(gate) of each pair, silu(a) = a / (1 + exp(-a)) (Shazeer 2020)."""
    cdef Pass p
    out = np.empty_like(x)
    run_pass(&p, swiglu_some, (gate, x, out), 1, num_threads, "swiglu")
    return out


def swiglu_grad(gate, x, grad, num_threads=None):
    """The gradients with respect to gate and x, `grad` being that of ``swiglu(gate, x)``."""
    cdef Pass p
    dgate, dx = np.empty_like(gate), np.empty_like(x)
    run_pass(&p, swiglu_grad_some, (gate, x, grad, dgate, dx), 2, num_threads, "swiglu_grad")
    return dgate, dx


def adamw(grad, weight, first, second, double clip, double beta1, double beta2, double step, double root, double eps, double keep,
          num_threads=None):
    """A step of `weight` and of the means of its gradient and its square, in place; src/kernels.h has the equations."""
    cdef Pass p
    p.constants = AdamW(clip, beta1, beta2, step, root, eps, keep)
    run_pass(&p, adamw_some, (grad, weight, first, second), 3, num_threads, "adamw")


def square_sum(x, num_threads=None):
    """The sum of all squares, a float: in order, and so the same for any number of threads."""
    cdef Pass p
    cdef double[::1] sums = np.zeros((x.size + CHUNK - 1) // CHUNK + 1)
    cdef double sum = 0
    cdef Py_ssize_t i
    p.sums = &sums[0]
    run_pass(&p, square_some, (x,), 0, num_threads, "square_sum")
    for i in range(sums.shape[0]):
        sum += sums[i]
    return sum
