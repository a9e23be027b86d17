/* The contract between the tile loop (qkvc/_attention.pyx, _tile.pyx) and the micro-kernels.
 *
 * A tile is a set of queries, one per vector lane.  Everything that belongs to it lies in panels: rows of `tile` reals, one column per
 * query, the first `vecs * lanes` of them in use.  src/README.md has the picture; docs/arithmetic.md fixes the order of every sum.
 *
 *   QT[d][lane]   queries, transposed and scaled       S[j][lane]  scores of one key block, then P in the same place
 *   O[c][lane]    output so far, not yet divided by l  m l alpha beta [lane]
 *
 * depth[v] is how many keys of the block the queries of vector v may reach, ascending in v: the staircase of a causal block.
 *
 * No function allocates, fails, keeps state or looks at a CPU.  Strides count elements.  Panels need no alignment; 64 bytes are faster.
 */
#ifndef QKVC_KERNELS_H
#define QKVC_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define QKVC_BLOCK 128 /* keys per block: W of docs/arithmetic.md, measured there */
#define QKVC_MAX_VECS 3
#define QKVC_WHOLE 48 /* queries: every tile divides it, so stripes of the backward begin where tiles of any set do */
#define QKVC_FEW 48 /* most queries of the few_ functions, if a tile holds them; its vectors */
#define QKVC_FEW_BYTES 16 /* ... of those for bytes, and tokens of few_project: docs/arithmetic.md promises the former */

/* How an array keeps its numbers: as the set's reals, or in 16 bits, which are widened on the way in and rounded on the way out; or, of
 * keys and values, as int8 with a float behind the columns of each row: what 1 stands for. */
enum qkvc_kind { QKVC_REAL, QKVC_FLOAT16, QKVC_BFLOAT16, QKVC_INT8 };

/* A step of AdamW: what the gradient, the weight and the square root are multiplied by, and how far the weight goes */
struct qkvc_adamw {
    double clip, beta1, beta2, step, root, eps, keep;
};

/* Dropout: a weight whose number, of 32 bits, is below the limit becomes 0, the others are multiplied by the scale */
struct qkvc_dropout {
    uint64_t seed;
    uint32_t limit;
    double scale;
};

struct qkvc_kernels {
    const char *name;  /* "avx512bf16", "avx512", "avx2", "neon", "portable" */
    const char *dtype; /* "float32", "float64", "bfloat16" */
    int kind;          /* of the query, key and value rows that it reads */
    int size;          /* bytes of a real */
    int lanes;         /* queries per vector */
    int vecs;          /* most vectors per tile; tile = lanes * vecs */
    const struct qkvc_kernels *narrow; /* a set with the same bits and half the lanes, for when these would lie empty; or NULL */
    const struct qkvc_kernels *float64; /* the same instructions for float64; a float64 set names itself */
    const struct qkvc_kernels *bfloat16; /* the set for query, key and value of bfloat16; NULL: they are widened for this one */

    /* to[i * cols + c] = the real that x[i * row + c * col] of that kind is, for i < rows and c < cols.  float64 takes reals only,
     * QKVC_INT8 a col of 1.
     * A bfloat16 set takes bfloat16 only and leaves it that: query and key rows get an even number of columns, value rows become pairs. */
    void (*gather)(const void *x, ptrdiff_t row, ptrdiff_t col, int kind, int rows, int cols, void *to);
    void (*gather_values)(const void *x, ptrdiff_t row, ptrdiff_t col, int kind, int rows, int cols, void *to);

    /* to[c * col] of that 16-bit kind = x[c], rounded to nearest even; NULL for float64 */
    void (*shorten)(const void *x, int n, int kind, void *to, ptrdiff_t col);

    /* panel[c][lane] = rows[lane][c * col] * scale for c < cols.  rows has vecs * lanes pointers, all of them readable. */
    void (*pack)(const void *const *rows, ptrdiff_t col, int cols, double scale, int vecs, void *panel);

    /* to[c * to_row + r] = x[r * row + c] for r < rows and c < cols */
    void (*transpose)(const void *x, ptrdiff_t row, int rows, int cols, void *to, ptrdiff_t to_row);

    /* QT from rows of queries: what `scores` wants.  In floats it is `pack`; in pairs it takes D / 2 + 1 rows, and scales S, not Q. */
    void (*pack_queries)(const void *const *rows, ptrdiff_t col, int cols, double scale, int vecs, void *QT);

    /* S[j][lane] = sum over d of K[j * row + d] * QT[d][lane], for j < depth[v].  Meanwhile the next rows of K and row
     * j of V, V_row apart and Dv long, are fetched towards L2: `values` reads V in strips that no hardware prefetcher follows.  A bfloat16
     * set does what its gather_values would, into `pairs`, unless that is NULL; others do not look at it. */
    void (*scores)(const void *K, ptrdiff_t row, int D, const void *QT, const int *depth, int vecs, const void *V, ptrdiff_t V_row, int Dv,
                   void *pairs, void *S);

    /* S += bias * unit; where bias is -inf the score is -inf whatever it was */
    void (*add_bias)(void *S, const void *bias, double unit, const int *depth, int vecs);

    /* S[j][lane] = -inf where rows[lane][j * col] is 0 */
    void (*mask)(void *S, const uint8_t *const *rows, ptrdiff_t col, const int *depth, int vecs);

    /* S[j][lane] = -inf where j < first[lane] or j >= limit[lane]; both ascend and hold small integers */
    void (*clip)(void *S, const void *first, const void *limit, const int *depth, int vecs);

    /* S becomes cap * tanh(S / cap), in whatever unit cap is: softcap */
    void (*soften)(void *S, double cap, const int *depth, int vecs);

    /* S[j][lane] -= slope[lane] * |position[lane] - j|: ALiBi, j counted from the block's first key */
    void (*add_slope)(void *S, const void *slope, const void *position, const int *depth, int vecs);

    /* S becomes P = exp2(S - m_b) with m_b the maximum of its column in this block; m and l take the block in;
     * alpha and beta are what the output so far and the block's own output must be multiplied by */
    void (*softmax)(void *S, const int *depth, int vecs, void *m, void *l, void *alpha, void *beta);

    /* keep[j][lane] = scale or 0, for the weight of query row[lane] of head[lane] of the item for key first + j; 4 divides first.
     * keep has QKVC_BLOCK rows, whatever the depth.  Then P *= keep. */
    void (*draw)(void *keep, const struct qkvc_dropout *dropout, const uint32_t *row, const uint32_t *head, uint32_t item, int64_t first,
                 const int *depth, int vecs);
    void (*drop)(void *P, const void *keep, const int *depth, int vecs);

    /* O[c][lane] = alpha * O + beta * sum over j < depth[v] of V[j * row + c] * P[j][lane] */
    void (*values)(const void *V, ptrdiff_t row, int Dv, const void *P, const int *depth, int vecs, const void *alpha, const void *beta,
                   void *O);

    /* The same bits, but a key whose `allowed` is -inf adds nothing, not even 0 * NaN.  Slow: only after `finite` said no. */
    void (*values_selected)(const void *V, ptrdiff_t row, int Dv, const void *P, const void *allowed, const int *depth, int vecs,
                            const void *alpha, const void *beta, void *O);

    /* YT[n][lane] += sum over e < E of W[n * rs + e * cs] * XT[e][lane] for n < N, in blocks of QKVC_BLOCK; then += bias[n], unless it is
     * NULL.  The next rows of W are fetched meanwhile. */
    void (*project)(const void *W, ptrdiff_t rs, ptrdiff_t cs, int N, int E, const void *XT, int vecs, const void *bias, void *YT);

    /* out[i] = x[i] Phi(x[i]); NULL for float64 */
    void (*gelu)(const void *x, ptrdiff_t n, void *out);

    /* Y += R, where R is not NULL; then each lane's column of `rows` numbers gets mean 0 and variance 1, weight[row] and bias[row] */
    void (*norm)(void *Y, const void *R, int rows, int vecs, double eps, const void *weight, const void *bias);

    /* One head's vector in place: x *= weight / sqrt(mean of x^2 + eps), where weight is not NULL; then each of the pairs
     * (x[i], x[i + pairs]), or (x[2 i], x[2 i + 1]) where they are interleaved, is turned by the angle of cos[i] and sin[i].  What lies
     * behind the pairs stays. */
    void (*turn)(void *x, int width, const void *weight, double eps, int pairs, int interleaved, const void *cos, const void *sin);

    /* Gradients, along rows of `width` adjacent numbers.  Of norm(x) * weight + bias: dx, to which `also` is added unless it is NULL;
     * dweight and, where x is centred as `norm` does it, dbias grow by this row's share. */
    void (*norm_grad)(const void *x, const void *g, const void *weight, const void *also, int width, double eps, int centred, void *dx,
                      void *dweight, void *dbias);

    /* dx[i] = g[i] (x Phi(x))'; NULL for float64 */
    void (*gelu_grad)(const void *x, const void *g, ptrdiff_t n, void *dx);

    /* out[i] = silu(gate[i]) x[i] with silu(a) = a / (1 + exp(-a)), and its gradients; dgate and dx may lie where gate and x do */
    void (*swiglu)(const void *gate, const void *x, ptrdiff_t n, void *out);
    void (*swiglu_grad)(const void *gate, const void *x, const void *g, ptrdiff_t n, void *dgate, void *dx);

    /* sum of x[i]^2 */
    double (*square_sum)(const void *x, int n);

    /* m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, w = keep w - step m / (root sqrt(v) + eps), with g = clip grad */
    void (*adamw)(void *w, const void *grad, void *m, void *v, ptrdiff_t n, const struct qkvc_adamw *constants);

    /* Is every number of O and l finite, and every l above zero? */
    int (*finite)(const void *O, int Dv, const void *l, int vecs);

    /* rows[lane][c * col] = O[c][lane] * factor[lane] for lane < queries */
    void (*store)(const void *O, int Dv, const void *factor, int queries, void *const *rows, ptrdiff_t col);

    /* Few queries, many keys: S[i * QKVC_BLOCK + j], P in the same place, and O[i * width + c] with width = Dv rounded up to whole vectors.
     * The same bits as from a tile.  m and l have a number for each query, and memory for whole vectors of them; Q has D rounded up to a
     * multiple of 16 for each, in few_pack's own order. */
    void (*few_pack)(const void *const *rows, ptrdiff_t col, int D, double scale, int queries, void *Q);
    void (*few_scores)(const void *Q, int queries, int D, const void *K, ptrdiff_t row, int kind, int n, void *S);
    void (*few_softmax)(void *S, int queries, int n, void *m_b, void *l_b);
    void (*few_values)(const void *P, int queries, const void *V, ptrdiff_t row, int kind, int Dv, int n, void *O_b);

    /* The same for int8 rows where they lie, in bits of their own (docs/arithmetic.md); NULL: they are gathered before. */
    void (*few_pack_bytes)(const void *const *rows, ptrdiff_t col, int D, double scale, int queries, void *Q);
    void (*few_scores_bytes)(const void *Q, int queries, int D, const void *K, ptrdiff_t row, int n, void *S);
    void (*few_softmax_bytes)(void *S, int queries, const void *V, ptrdiff_t row, int Dv, int n, void *m_b, void *l_b);
    void (*few_values_bytes)(const void *P, int queries, const void *V, ptrdiff_t row, int Dv, int n, void *O_b);

    /* (m, l, O) takes (m_b, l_b, O_b) in; blocks in ascending order */
    void (*few_merge)(const void *m_b, const void *l_b, const void *O_b, int queries, int Dv, void *m, void *l, void *O);

    /* rows[i][c * col] = O[i][c] * factor[i]; returns whether all of O was finite */
    int (*few_store)(const void *O, int Dv, const void *factor, int queries, void *const *rows, ptrdiff_t col);

    /* Y[i * width + n] += sum over e < E of x[i][e] * W[n * rs + e * cs] for n < N, in blocks of QKVC_BLOCK; then += bias[n], unless it is
     * NULL; width = N rounded up to whole vectors, X is few_pack's of x, rs or cs is 1.  The bits of `project`.  sum has room for a Y. */
    void (*few_project)(const void *X, int tokens, int E, const void *W, ptrdiff_t rs, ptrdiff_t cs, int N, const void *bias, void *sum,
                        void *Y);

    /* S[j][lane] becomes exp2(S - shift[lane]), 0 where S is -inf */
    void (*weigh)(void *S, const void *shift, const int *depth, int vecs);

    /* Of p = exp2(S - shift) * factor: spread[lane] += sum of p (shift - S), distance[lane] += sum of p |position - j|, most[lane] rises to
     * the largest S, all over the block's keys; mass[j] = sum of p over the lanes. */
    void (*summarise)(const void *S, const void *shift, const void *factor, const void *position, const int *depth, int vecs,
                      void *spread, void *distance, void *most, void *mass);

    /* The backward: delta[lane] = sum over c < n of A[c][lane] * B[c][lane] */
    void (*back_delta)(const void *A, const void *B, int n, int vecs, void *delta);

    /* S becomes P = exp2(S - shift[lane]), dP becomes dS = P (dP - delta[lane]); both 0 where S is -inf */
    void (*back_softmax)(void *S, void *dP, const void *shift, const void *delta, const int *depth, int vecs);

    /* dS *= 1 - (S / cap)^2, S as `soften` left it */
    void (*back_soften)(void *dS, const void *S, double cap, const int *depth, int vecs);

    /* C[j * pitch + c] += sum over lanes < queries of P[j][lane] * X[lane * width + c] for c < width, a multiple of `lanes`, and every j that
     * the lane reaches.  Meanwhile so many bytes of each of the rows `ahead` are fetched, or of as many as there is time for: any address
     * will do. */
    void (*back_rows)(const void *P, const void *X, int width, int queries, const int *depth, int vecs, void *C, ptrdiff_t pitch,
                      const void *const *ahead, int rows, int bytes);

    /* The same bits, but where `allowed` is -inf nothing is added, not even 0 * NaN.  Slow. */
    void (*back_rows_selected)(const void *P, const void *allowed, const void *X, int width, int queries, const int *depth, int vecs,
                               void *C, ptrdiff_t pitch);

    /* to[c] = scale * (parts[0][c] + parts[1][c] + ...) for c < n; whole vectors of parts are readable */
    void (*back_sum)(const void *const *parts, int count, int n, double scale, void *to);

    /* softmax of one long contiguous row, in pieces: three passes over x, natural exponent, partial[] has 2 * lanes reals */
    void (*row_max)(const void *x, ptrdiff_t n, void *partial);
    void (*row_sum)(const void *x, ptrdiff_t n, double max, void *partial);
    void (*row_exp)(const void *x, ptrdiff_t n, double max, double factor, void *out);

    /* out[i] = exp2(x[i]), the function inside softmax, for the tests */
    void (*exp2)(const void *x, ptrdiff_t n, void *out);

    /* steps * ROWS * VECS FMAs from registers into registers: the roof that speeds are measured against.  Returns how many flops. */
    double (*fma_loop)(ptrdiff_t steps, void *sink);

    /* The sum of n reals, n a multiple of 8 * lanes, that are only loaded: the roof of memory. */
    double (*read_loop)(const void *x, ptrdiff_t n);
};

extern const struct qkvc_kernels qkvc_avx512_f32, qkvc_avx2_f32, qkvc_neon_f32, qkvc_portable_f32;
extern const struct qkvc_kernels qkvc_avx512_f64, qkvc_avx2_f64, qkvc_neon_f64, qkvc_portable_f64;

/* Makes bfloat16 kernels of a copy of AVX-512's for float32. */
void qkvc_avx512_bf16(struct qkvc_kernels *set);

/* Gives a copy of AVX-512's for float32 kernels that read int8. */
void qkvc_avx512_vnni(struct qkvc_kernels *set);

/* The float32 sets this CPU and operating system can run, best first, portable last; *count says how many. */
const struct qkvc_kernels *const *qkvc_kernel_sets(int *count);

#endif
