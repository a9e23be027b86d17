"""softmax and logsumexp of rows: three passes over each, many rows on many threads."""

from libc.math cimport INFINITY, isnan, log
from libc.stdint cimport uint64_t

from qkvc._kernels cimport Kernels, kernels_in_use, run, threads_for

cdef extern from "fpenv.h" nogil:
    uint64_t qkvc_fp_enter()
    void qkvc_fp_leave(uint64_t before)

cdef enum:
    MAX_LANES = 16
    PIECE = 4096  # terms summed in float32, with their rounding errors; the pieces are summed in double


cdef struct Rows:
    const Kernels *kernels
    const float *x
    float *softmax     # the same shape as x, or NULL
    float *logsumexp   # one number a row, or NULL
    Py_ssize_t rows, n, rows_per_task


cdef void reduce_row(const Kernels *kn, const float *x, Py_ssize_t n, double *largest, double *total) noexcept nogil:
    """The maximum, and the sum of exp(x - maximum); NaN where x has one or the maximum is infinite and met."""
    cdef float[2 * MAX_LANES] partial
    cdef Py_ssize_t piece, start
    cdef int i
    for i in range(kn.lanes):
        partial[i] = -INFINITY
    kn.row_max(x, n, partial)
    largest[0] = -INFINITY
    for i in range(kn.lanes):
        if partial[i] > largest[0] or isnan(partial[i]):
            largest[0] = partial[i]
        if isnan(largest[0]):
            break
    total[0] = 0
    for piece in range((n + PIECE - 1) // PIECE):
        start = piece * PIECE
        for i in range(2 * kn.lanes):
            partial[i] = 0
        kn.row_sum(x + start, min(PIECE, n - start), largest[0], partial)
        for i in range(2 * kn.lanes):
            total[0] += partial[i]


cdef void reduce_rows(void *context, Py_ssize_t task, int worker) noexcept nogil:
    cdef Rows *job = <Rows *>context
    cdef uint64_t environment = qkvc_fp_enter()
    cdef Py_ssize_t i, end = min(job.rows, (task + 1) * job.rows_per_task)
    cdef const float *x
    cdef double largest, total
    for i in range(task * job.rows_per_task, end):
        x = job.x + i * job.n
        reduce_row(job.kernels, x, job.n, &largest, &total)
        if job.softmax:
            job.kernels.row_exp(x, job.n, largest, 1 / total, job.softmax + i * job.n)
        else:  # an infinite maximum is the result itself: inf - inf says nothing
            job.logsumexp[i] = <float>(largest if largest in (INFINITY, -INFINITY) else largest + log(total))
    qkvc_fp_leave(environment)


cdef int reduce(const float[:, ::1] x, float *softmax, float *logsumexp) except -1:
    cdef Rows job
    cdef Py_ssize_t tasks
    if x.shape[0] == 0:
        return 0
    if x.shape[1] == 0:
        if logsumexp:
            for i in range(x.shape[0]):
                logsumexp[i] = -INFINITY
        return 0
    job.kernels = kernels_in_use()
    job.x, job.softmax, job.logsumexp = &x[0, 0], softmax, logsumexp
    job.rows, job.n = x.shape[0], x.shape[1]
    job.rows_per_task = max(1, 16384 // job.n)  # about 10 us of work
    tasks = (job.rows + job.rows_per_task - 1) // job.rows_per_task
    cdef int threads = threads_for(None)
    if tasks < 4:
        threads = 1
    with nogil:
        run(reduce_rows, NULL, &job, tasks, threads)
    return 0


def softmax_rows(const float[:, ::1] x not None, float[:, ::1] out not None):
    if x.shape[0] != out.shape[0] or x.shape[1] != out.shape[1]:
        raise ValueError(f"softmax: out: expected shape {(x.shape[0], x.shape[1])}, got {(out.shape[0], out.shape[1])}")
    reduce(x, &out[0, 0] if x.shape[0] and x.shape[1] else NULL, NULL)


def logsumexp_rows(const float[:, ::1] x not None, float[::1] out not None):
    if x.shape[0] != out.shape[0]:
        raise ValueError(f"logsumexp: out: expected {x.shape[0]} elements, got {out.shape[0]}")
    reduce(x, NULL, &out[0] if x.shape[0] else NULL)
