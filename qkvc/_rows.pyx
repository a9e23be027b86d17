"""What training does row by row: the gradient of a norm, the loss, and the sums of an embedding's gradient.

Every function takes C-contiguous arrays (rows, columns) of one dtype, float32 or float64; who calls has seen to that.
"""

from libc.math cimport log
from libc.stdint cimport int64_t, uint64_t

import numpy as np

from qkvc._kernels cimport QKVC_BLOCK, Kernels, Task, kernels_in_use, threads_for, threads_worth
from qkvc._softmax cimport real, reduce_row
from qkvc._workers cimport Job, data_of, hire, interrupted, perform

cdef extern from "fpenv.h" nogil:
    uint64_t qkvc_fp_enter()
    void qkvc_fp_leave(uint64_t before)

cdef enum:
    FLOPS = 32    # a number's work, in flops of the same time

cdef object FLOAT32 = np.dtype("float32")


cdef struct Rows:
    const Kernels *kernels
    const char *x
    const char *g
    const char *weight
    const char *also            # or NULL
    const int64_t *target
    char *dx
    char *partial               # (blocks, 2, width)
    double *loss
    Py_ssize_t rows, width, per_task
    double eps, factor
    int64_t ignored
    bint centred


cdef int run_rows(Rows *p, Task task, object x, Py_ssize_t per_task, object num_threads, str who) except -1:
    cdef Job job
    cdef double work = <double>FLOPS * x.size
    cdef int threads = threads_worth(threads_for(num_threads), work)
    p.kernels = kernels_in_use() if x.dtype == FLOAT32 else kernels_in_use().float64
    p.rows, p.width, p.per_task = x.shape[0], x.shape[1], per_task
    hire(&job, p, NULL, threads, 64, work, who)
    perform(&job, task, (p.rows + per_task - 1) // per_task, threads)
    return 0


# -------------------------------------------------------------------------------------------------------------------------------- norms

cdef void norm_block(void *context, Py_ssize_t task, int worker) noexcept nogil:
    cdef Job *job = <Job *>context
    cdef const Rows *p = <const Rows *>job.problem
    cdef Py_ssize_t size = p.width * p.kernels.size, row
    cdef char *partial = p.partial + 2 * task * size
    cdef uint64_t environment = qkvc_fp_enter()
    if not interrupted(job, worker):
        for row in range(task * p.per_task, min(p.rows, (task + 1) * p.per_task)):
            p.kernels.norm_grad(p.x + row * size, p.g + row * size, p.weight, p.also + row * size if p.also else NULL, <int>p.width, p.eps,
                                p.centred, p.dx + row * size, partial, partial + size)
    qkvc_fp_leave(environment)


def norm_grad(x, grad, weight, double eps, bint centred, also=None, num_threads=None):
    """Gradients of a norm along rows: of x, to which `also` is added if given, of the weight, and, where it is centred, of the bias.

    Sums over rows are taken in blocks of 128, and those added in ascending order.
    """
    cdef Rows p
    dx = np.empty_like(x)
    partial = np.zeros(((len(x) + QKVC_BLOCK - 1) // QKVC_BLOCK, 2, x.shape[1]), x.dtype)
    if x.size:
        p.x, p.g, p.weight, p.also = data_of(x), data_of(grad), data_of(weight), NULL
        if also is not None:
            p.also = data_of(also)
        p.dx, p.partial, p.eps, p.centred = data_of(dx), data_of(partial), eps, centred
        run_rows(&p, norm_block, x, QKVC_BLOCK, num_threads, "norm_grad")
    dweight, dbias = np.zeros((2, x.shape[1]), x.dtype)
    for block in partial:
        dweight += block[0]
        dbias += block[1]
    return dx, dweight, dbias if centred else None


# --------------------------------------------------------------------------------------------------------------------------------- loss

cdef void lose(const Rows *p, Py_ssize_t row, const real *x, real *dx) noexcept nogil:
    cdef int64_t target = p.target[row]
    cdef Py_ssize_t i
    cdef double largest, total
    if target == p.ignored:
        p.loss[row] = 0
        for i in range(p.width):
            dx[i] = 0
        return
    reduce_row(p.kernels, x, p.width, &largest, &total)
    p.loss[row] = log(total) + (largest - x[target])
    p.kernels.row_exp(x, p.width, largest, p.factor / total, dx)
    dx[target] -= <real>p.factor


cdef void lose_some(void *context, Py_ssize_t task, int worker) noexcept nogil:
    cdef Job *job = <Job *>context
    cdef const Rows *p = <const Rows *>job.problem
    cdef Py_ssize_t row, at
    cdef uint64_t environment = qkvc_fp_enter()
    if not interrupted(job, worker):
        for row in range(task * p.per_task, min(p.rows, (task + 1) * p.per_task)):
            at = row * p.width
            if p.kernels.size == sizeof(double):
                lose[double](p, row, <const double *>p.x + at, <double *>p.dx + at)
            else:
                lose[float](p, row, <const float *>p.x + at, <float *>p.dx + at)
    qkvc_fp_leave(environment)


def cross_entropy(logits, target, int64_t ignored, double factor, num_threads=None):
    """Each row's loss, -log softmax(logits)[target] or 0 where the target is ignored, in float64; and `factor` times its gradient."""
    cdef Rows p
    cdef const int64_t[::1] targets = target
    losses, grad = np.zeros(len(logits)), np.empty_like(logits)
    cdef double[::1] loss = losses
    if logits.size:
        p.x, p.dx, p.target, p.loss = data_of(logits), data_of(grad), &targets[0], &loss[0]
        p.ignored, p.factor = ignored, factor
        run_rows(&p, lose_some, logits, max(1, 16384 // logits.shape[1]), num_threads, "cross_entropy")
    return losses, grad


# ---------------------------------------------------------------------------------------------------------------------------- embedding

cdef void add_rows(const int64_t *ids, Py_ssize_t rows, Py_ssize_t width, const real *x, real *out) noexcept nogil:
    cdef Py_ssize_t row, i
    cdef real *to
    for row in range(rows):
        to = out + ids[row] * width
        for i in range(width):
            to[i] += x[row * width + i]


def scatter_add(ids, x, out):
    """``out[ids[i]] += x[i]``, i ascending: 2048 rows of 384 take 0.2 ms, a thirtieth of what numpy.add.at takes."""
    cdef const int64_t[::1] index = ids
    cdef uint64_t environment
    cdef bint wide = x.itemsize == sizeof(double)
    cdef Py_ssize_t rows = len(ids), width = x.shape[1]
    cdef char *to = NULL
    cdef char *source = NULL
    if not x.size:
        return
    source, to = data_of(x), data_of(out)
    with nogil:
        environment = qkvc_fp_enter()
        if wide:
            add_rows[double](&index[0], rows, width, <double *>source, <double *>to)
        else:
            add_rows[float](&index[0], rows, width, <float *>source, <float *>to)
        qkvc_fp_leave(environment)
