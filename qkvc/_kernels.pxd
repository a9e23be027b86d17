"""What the other extensions see of src/: the kernel contract (src/kernels.h) and the pool (src/pool.h)."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "kernels.h" nogil:
    enum:
        QKVC_BLOCK
        QKVC_MAX_VECS
        QKVC_REAL
        QKVC_FLOAT16
        QKVC_BFLOAT16
        QKVC_INT8
        QKVC_FEW
        QKVC_FEW_BYTES
        QKVC_WHOLE

    ctypedef struct AdamW "struct qkvc_adamw":
        double clip, beta1, beta2, step, root, eps, keep

    ctypedef struct Dropout "struct qkvc_dropout":
        uint64_t seed
        uint32_t limit
        double scale

    ctypedef struct Kernels "struct qkvc_kernels":
        const char *name
        const char *dtype
        int kind
        int size
        int lanes
        int vecs
        const Kernels *narrow
        const Kernels *float64
        const Kernels *bfloat16
        void (*gather)(const void *x, Py_ssize_t row, Py_ssize_t col, int kind, int rows, int cols, void *to) noexcept nogil
        void (*gather_values)(const void *x, Py_ssize_t row, Py_ssize_t col, int kind, int rows, int cols, void *to) noexcept nogil
        void (*shorten)(const void *x, int n, int kind, void *to, Py_ssize_t col) noexcept nogil
        void (*pack)(const void *const *rows, Py_ssize_t col, int cols, double scale, int vecs, void *panel) noexcept nogil
        void (*transpose)(const void *x, Py_ssize_t row, int rows, int cols, void *to, Py_ssize_t to_row) noexcept nogil
        void (*pack_queries)(const void *const *rows, Py_ssize_t col, int cols, double scale, int vecs, void *QT) noexcept nogil
        void (*scores)(const void *K, Py_ssize_t row, int D, const void *QT, const int *depth, int vecs, const void *V, Py_ssize_t V_row,
                       int Dv, void *pairs, void *S) noexcept nogil
        void (*add_bias)(void *S, const void *bias, double unit, const int *depth, int vecs) noexcept nogil
        void (*mask)(void *S, const uint8_t *const *rows, Py_ssize_t col, const int *depth, int vecs) noexcept nogil
        void (*clip)(void *S, const void *first, const void *limit, const int *depth, int vecs) noexcept nogil
        void (*soften)(void *S, double cap, const int *depth, int vecs) noexcept nogil
        void (*add_slope)(void *S, const void *slope, const void *position, const int *depth, int vecs) noexcept nogil
        void (*softmax)(void *S, const int *depth, int vecs, void *m, void *l, void *alpha, void *beta) noexcept nogil
        void (*draw)(void *keep, const Dropout *dropout, const uint32_t *row, const uint32_t *head, uint32_t item, int64_t first,
                     const int *depth, int vecs) noexcept nogil
        void (*drop)(void *P, const void *keep, const int *depth, int vecs) noexcept nogil
        void (*values)(const void *V, Py_ssize_t row, int Dv, const void *P, const int *depth, int vecs, const void *alpha,
                       const void *beta, void *O) noexcept nogil
        void (*values_selected)(const void *V, Py_ssize_t row, int Dv, const void *P, const void *allowed, const int *depth, int vecs,
                                const void *alpha, const void *beta, void *O) noexcept nogil
        void (*project)(const void *W, Py_ssize_t rs, Py_ssize_t cs, int N, int E, const void *XT, int vecs, const void *bias,
                        void *YT) noexcept nogil
        void (*gelu)(const void *x, Py_ssize_t n, void *out) noexcept nogil
        void (*norm)(void *Y, const void *R, int rows, int vecs, double eps, const void *weight, const void *bias) noexcept nogil
        void (*turn)(void *x, int width, const void *weight, double eps, int pairs, bint interleaved, const void *cos,
                     const void *sin) noexcept nogil
        void (*norm_grad)(const void *x, const void *g, const void *weight, const void *also, int width, double eps, bint centred,
                          void *dx, void *dweight, void *dbias) noexcept nogil
        void (*gelu_grad)(const void *x, const void *g, Py_ssize_t n, void *dx) noexcept nogil
        void (*swiglu)(const void *gate, const void *x, Py_ssize_t n, void *out) noexcept nogil
        void (*swiglu_grad)(const void *gate, const void *x, const void *g, Py_ssize_t n, void *dgate, void *dx) noexcept nogil
        double (*square_sum)(const void *x, int n) noexcept nogil
        void (*adamw)(void *w, const void *grad, void *m, void *v, Py_ssize_t n, const AdamW *constants) noexcept nogil
        void (*few_pack)(const void *const *rows, Py_ssize_t col, int D, double scale, int queries, void *Q) noexcept nogil
        void (*few_scores)(const void *Q, int queries, int D, const void *K, Py_ssize_t row, int kind, int n, void *S) noexcept nogil
        void (*few_softmax)(void *S, int queries, int n, void *m_b, void *l_b) noexcept nogil
        void (*few_values)(const void *P, int queries, const void *V, Py_ssize_t row, int kind, int Dv, int n,
                           void *O_b) noexcept nogil
        void (*few_pack_bytes)(const void *const *rows, Py_ssize_t col, int D, double scale, int queries, void *Q) noexcept nogil
        void (*few_scores_bytes)(const void *Q, int queries, int D, const void *K, Py_ssize_t row, int n, void *S) noexcept nogil
        void (*few_softmax_bytes)(void *S, int queries, const void *V, Py_ssize_t row, int Dv, int n, void *m_b,
                                  void *l_b) noexcept nogil
        void (*few_values_bytes)(const void *P, int queries, const void *V, Py_ssize_t row, int Dv, int n, void *O_b) noexcept nogil
        void (*few_merge)(const void *m_b, const void *l_b, const void *O_b, int queries, int Dv, void *m, void *l, void *O) noexcept nogil
        bint (*few_store)(const void *O, int Dv, const void *factor, int queries, void *const *rows, Py_ssize_t col) noexcept nogil
        void (*few_project)(const void *X, int tokens, int E, const void *W, Py_ssize_t rs, Py_ssize_t cs, int N, const void *bias,
                            void *sum, void *Y) noexcept nogil
        bint (*finite)(const void *O, int Dv, const void *l, int vecs) noexcept nogil
        void (*store)(const void *O, int Dv, const void *factor, int queries, void *const *rows, Py_ssize_t col) noexcept nogil
        void (*weigh)(void *S, const void *shift, const int *depth, int vecs) noexcept nogil
        void (*summarise)(const void *S, const void *shift, const void *factor, const void *position, const int *depth, int vecs,
                          void *spread, void *distance, void *most, void *mass) noexcept nogil
        void (*back_delta)(const void *A, const void *B, int n, int vecs, void *delta) noexcept nogil
        void (*back_softmax)(void *S, void *dP, const void *shift, const void *delta, const int *depth, int vecs) noexcept nogil
        void (*back_soften)(void *dS, const void *S, double cap, const int *depth, int vecs) noexcept nogil
        void (*back_rows)(const void *P, const void *X, int width, int queries, const int *depth, int vecs, void *C,
                          Py_ssize_t pitch, const void *const *ahead, int rows, int bytes) noexcept nogil
        void (*back_rows_selected)(const void *P, const void *allowed, const void *X, int width, int queries, const int *depth, int vecs,
                                   void *C, Py_ssize_t pitch) noexcept nogil
        void (*back_sum)(const void *const *parts, int count, int n, double scale, void *to) noexcept nogil
        void (*row_max)(const void *x, Py_ssize_t n, void *partial) noexcept nogil
        void (*row_sum)(const void *x, Py_ssize_t n, double max, void *partial) noexcept nogil
        void (*row_exp)(const void *x, Py_ssize_t n, double max, double factor, void *out) noexcept nogil
        void (*exp2)(const void *x, Py_ssize_t n, void *out) noexcept nogil
        double (*fma_loop)(Py_ssize_t steps, void *sink) noexcept nogil
        double (*read_loop)(const void *x, Py_ssize_t n) noexcept nogil

    const Kernels *const *qkvc_kernel_sets(int *count)

ctypedef void (*Task)(void *context, Py_ssize_t task, int worker) noexcept nogil
ctypedef void (*Idle)(void *context) noexcept nogil

# The set in use.  Callers take it once, at the start of a call.
cdef const Kernels *kernels_in_use() noexcept nogil

# The set, or its narrow one where that leaves enough fewer lanes empty.
cdef const Kernels *fitted(const Kernels *kernels, Py_ssize_t rows) noexcept nogil

# The threads a call may use: `num_threads` if given, else the process-wide number; and how many of them this much work is worth.
cdef int threads_for(object num_threads) except -1
cdef int threads_worth(int threads, double flops) noexcept nogil

# src/pool.c, which lives in this extension alone.
cdef void run(Task task, Idle idle, void *context, Py_ssize_t tasks, int threads) noexcept nogil
