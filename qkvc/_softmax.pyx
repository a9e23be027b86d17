"""softmax and logsumexp of rows: three passes over each, many rows on many threads."""

from libc.math cimport INFINITY, isnan, log
from libc.stdint cimport uint64_t

from qkvc._kernels cimport Kernels, kernels_in_use, run, threads_for

cdef extern from "fpenv.h" nogil:
    uint64_t qkvc_fp_enter()
    void qkvc_fp_leave(uint64_t before)

cdef enum:
    MAX_LANES = 16
    PIECE = 4096  # terms summed in the dtype of the row, with their rounding errors; the pieces are summed in double, with theirs

cdef struct Rows:
    const Kernels *kernels
    const void *x
    void *softmax      # the same shape as x, or NULL
    void *logsumexp    # one number a row, or NULL
    Py_ssize_t rows, n, rows_per_task


cdef void reduce_row(const Kernels *kn, const real *x, Py_ssize_t n, double *largest, double *total) noexcept nogil:
    """The maximum, and the sum of exp(x - maximum); NaN where x has one or the maximum is infinite and met."""
    cdef real[2 * MAX_LANES] partial
    cdef double sum = 0, lost = 0, next, back
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
    for piece in range((n + PIECE - 1) // PIECE):
        start = piece * PIECE
        for i in range(2 * kn.lanes):
            partial[i] = 0
        kn.row_sum(x + start, min(PIECE, n - start), largest[0], partial)
        for i in range(2 * kn.lanes):
            next = sum + partial[i]
            back = next - sum
            lost += (sum - (next - back)) + (partial[i] - back)
            sum = next
    total[0] = sum + lost


cdef void reduce_range(const Rows *job, Py_ssize_t first, Py_ssize_t end, const real *x) noexcept nogil:
    cdef real *softmax = <real *>job.softmax
    cdef real *logsumexp = <real *>job.logsumexp
    cdef Py_ssize_t i
    cdef double largest, total
    for i in range(first, end):
        reduce_row(job.kernels, x + i * job.n, job.n, &largest, &total)
        if softmax:
            job.kernels.row_exp(x + i * job.n, job.n, largest, 1 / total, softmax + i * job.n)
        else:  # an infinite maximum is the result itself: inf - inf says nothing
            logsumexp[i] = <real>(largest if largest in (INFINITY, -INFINITY) else largest + log(total))


cdef void reduce_rows(void *context, Py_ssize_t task, int worker) noexcept nogil:
    cdef const Rows *job = <const Rows *>context
    cdef Py_ssize_t first = task * job.rows_per_task, end = min(job.rows, first + job.rows_per_task)
    cdef uint64_t environment = qkvc_fp_enter()
    if job.kernels.size == sizeof(double):
        reduce_range(job, first, end, <const double *>job.x)
    else:
        reduce_range(job, first, end, <const float *>job.x)
    qkvc_fp_leave(environment)


cdef int reduce(const real[:, ::1] x, real *softmax, real *logsumexp) except -1:
    cdef Rows job
    cdef Py_ssize_t tasks
    if x.shape[0] == 0:
        return 0
    if x.shape[1] == 0:
        if logsumexp:
            for i in range(x.shape[0]):
                logsumexp[i] = -INFINITY
        return 0
    job.kernels = kernels_in_use().float64 if real is double else kernels_in_use()
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


cdef int softmax_of(const real[:, ::1] x, real[:, ::1] out) except -1:
    if x.shape[0] != out.shape[0] or x.shape[1] != out.shape[1]:
        raise ValueError(f"softmax: out: expected shape {(x.shape[0], x.shape[1])}, got {(out.shape[0], out.shape[1])}")
    return reduce(x, &out[0, 0] if x.shape[0] and x.shape[1] else NULL, NULL)


cdef int logsumexp_of(const real[:, ::1] x, real[::1] out) except -1:
    if x.shape[0] != out.shape[0]:
        raise ValueError(f"logsumexp: out: expected {x.shape[0]} elements, got {out.shape[0]}")
    return reduce(x, NULL, &out[0] if x.shape[0] else NULL)


def softmax_rows(x, out):
    """x and out: (rows, n), C-contiguous, both float32 or both float64."""
    if x.itemsize == sizeof(double):
        softmax_of[double](x, out)
    else:
        softmax_of[float](x, out)


def logsumexp_rows(x, out):
    """x: (rows, n), out: (rows,), C-contiguous, both float32 or both float64."""
    if x.itemsize == sizeof(double):
        logsumexp_of[double](x, out)
    else:
        logsumexp_of[float](x, out)
