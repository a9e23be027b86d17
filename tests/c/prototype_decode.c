/* Decode against the arithmetic contract (docs/arithmetic.md): few queries, many keys, the roles swapped.
 *
 *   scores   S[query][key] = sum over d of Q[query][d] * KT[d][key]     A = the queries, B = keys, transposed: keys lie in the lanes
 *   values   O[query][c]   = sum over j of P[query][j] * V[j][c]        A = P, B = value rows as they are
 *
 * Every sum keeps the order of the tile kernels, so the result must be theirs to the bit: first that is checked, then what it costs is
 * measured.  It finds three things out:
 *   - keys transposed 48 at a time by the kernel set's `pack`, then its own `scores`, against 16 x 16 squares that are used as soon as
 *     they are transposed and never leave the registers;
 *   - l_b as a chain of its own along each row, against one more sum beside the values: as if V had a column of ones;
 *   - the parts of all blocks computed in any order and merged in ascending order, as split-KV must do it.
 */
#include "target.h"

#ifdef QKVC_X86
TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#define NAME "prototype"
#define NARROW NULL
#define FLOAT64 qkvc_avx512_f64
#define TABLE prototype_f32
#include "float32.h"
#include "vec_avx512.h"
#include "kernels_body.h"
#include "prototype.h" /* last: its W is a name in the kernels */

_Static_assert(SEGMENT == LANES && W % SEGMENT == 0, "a piece of work is one segment of keys, a square of the transpose one segment of d");

enum { MAX_ROWS = 8, MOST = 16 << 20 /* floats of K and of V: 128 MB together, four times the L3 here */ };
enum { STRIP = 4 /* 4 rows x 4 vectors of sums, 4 of V, 4 of l, 1 of P: 25 of 32 registers */ };

/* How a variant computes what the contract fixes. */
struct variant {
    const char *name;
    int packed; /* scores through `pack` and `scores` of the kernel set */
    int apart;  /* l_b as chains of its own */
    int woven;  /* the scores of a block between the values of the block before */
    int split;  /* every block into a place of its own, the second half first; merged at the end */
};

/* Softmax and output of the queries over some keys: (m, l, O) of clause 3.  Queries lie in the lanes of m and l. */
struct part {
    float m[LANES], l[LANES], O[MAX_ROWS * MAX_D];
};

/* ------------------------------------------------------------------------------------------------------------------ scores */

/* Read rows in order.  The hardware fetches ahead of loads in address order, not of the columns of a transpose and not of prefetch
 * instructions: 25 GB/s against 6 and 8. */
static INLINE void touch(const float *x, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < n; i += LANES) __asm__ volatile("" ::"v"(v_load(x + i)));
}

/* S[i][j] for 16 keys, transposed in registers on the way. */
static INLINE void scores_piece(const int g, const int D, const float *Q, const float *K, int n, float *S)
{
    const float *rows[LANES];
    for (int k = 0; k < LANES; ++k) rows[k] = K + least(k, n - 1) * D;
    touch(K, n * D);
    for (int d = 0; d < D; d += LANES) {
        vec t[LANES], acc[MAX_ROWS];
        UNROLL for (int k = 0; k < LANES; ++k) t[k] = v_load(rows[k] + d);
        v_transpose(t);
        UNROLL for (int i = 0; i < g; ++i) acc[i] = v_set1(0);
        UNROLL for (int c = 0; c < LANES; ++c)
            UNROLL for (int i = 0; i < g; ++i) acc[i] = v_fma(v_set1(Q[i * D + d + c]), t[c], acc[i]);
        UNROLL for (int i = 0; i < g; ++i) v_store(S + i * W, v_add(d ? v_load(S + i * W) : v_set1(0), acc[i]));
    }
}

static void scores_packed(int g, int D, const float *Q, const float *K, int n, float *S)
{
    static float KT[MAX_D * TILE], chunk[MAX_ROWS * TILE];
    for (int j = 0; j < n; j += TILE) {
        const void *rows[TILE];
        int vecs = n - j > 2 * LANES ? 3 : n - j > LANES ? 2 : 1;
        for (int k = 0; k < vecs * LANES; ++k) rows[k] = K + least(j + k, n - 1) * D;
        touch(K + j * D, least(TILE, n - j) * D);
        qkvc_avx512_f32.pack(rows, 1, D, 1.0, vecs, KT);
        qkvc_avx512_f32.scores(Q, D, D, KT, (const int[]){g, g, g}, vecs, Q, 0, 0, NULL, chunk);
        for (int i = 0; i < g; ++i)
            for (int v = 0; v < vecs && j + v * LANES < W; ++v) v_store(S + i * W + j + v * LANES, v_load(chunk + i * TILE + v * LANES));
    }
}

/* ----------------------------------------------------------------------------------------------------------------- softmax */

/* m_b of each row, and P = exp2(S - m_b).  The numbers behind the last key become 0. */
static void softmax_rows(int g, int n, float *S, float *m)
{
    const vec lowest = v_set1(-INFINITE);
    const vmask last = (vmask)((1u << ((n - 1) % LANES + 1)) - 1);
    const int end = (n - 1) / LANES * LANES;
    for (int i = 0; i < g; ++i) {
        float *s = S + i * W;
        vec mb = lowest;
        v_store(s + end, v_select(last, v_load(s + end), lowest));
        for (int j = 0; j < n; j += LANES) mb = v_max(mb, v_load(s + j));
        m[i] = _mm512_reduce_max_ps(mb);
        mb = v_set1(m[i] == -INFINITE ? 0 : m[i]);
        for (int j = 0; j < n; j += LANES) v_store(s + j, v_exp2(v_sub(v_load(s + j), mb)));
    }
}

/* ------------------------------------------------------------------------------------------------------------------ values */

/* One segment of rows x vecs of O_b, and of l_b beside the first columns: every P is in a register there, and the pipes that add are
 * not those that multiply, so the horizontal sum costs next to nothing. */
static INLINE void values_strip(const int rows, const int vecs, const int with_l, const float *P, const float *V, int D, int n, float *O,
                                float *l)
{
    vec acc[STRIP][2 * STRIP], total[STRIP];
    UNROLL for (int i = 0; i < rows; ++i) {
        total[i] = v_set1(0);
        UNROLL for (int v = 0; v < vecs; ++v) acc[i][v] = v_set1(0);
    }
    for (int j = 0; j < n; ++j) {
        vec b[2 * STRIP];
        UNROLL for (int v = 0; v < vecs; ++v) b[v] = v_load(V + j * D + v * LANES);
        UNROLL for (int i = 0; i < rows; ++i) {
            vec p = v_set1(P[i * W + j]);
            if (with_l) total[i] = v_add(total[i], p);
            UNROLL for (int v = 0; v < vecs; ++v) acc[i][v] = v_fma(p, b[v], acc[i][v]);
        }
    }
    UNROLL for (int i = 0; i < rows; ++i) {
        if (with_l) l[i] += total[i][0];
        UNROLL for (int v = 0; v < vecs; ++v) {
            float *o = O + i * D + v * LANES;
            v_store(o, v_add(v_load(o), acc[i][v]));
        }
    }
}

static INLINE void values_piece(const int g, const int D, const int with_l, const float *P, const float *V, int n, float *O, float *l)
{
    const int rows = g < STRIP ? g : STRIP, vecs = g == 1 ? D / LANES : STRIP;
    if (vecs * LANES < D) touch(V, n * D); /* strips are no longer in address order: 278 -> 222 cycles a key at D = 128 */
    UNROLL for (int i = 0; i < g; i += rows) {
        values_strip(rows, vecs, with_l, P + i * W, V, D, n, O + i * D, l + i);
        UNROLL for (int c = vecs * LANES; c < D; c += vecs * LANES)
            values_strip(rows, vecs, 0, P + i * W, V + c, D, n, O + i * D + c, l + i);
    }
}

/* One segment of l_b alone, the rows' chains side by side */
static INLINE void sum_piece(const int g, const float *P, int n, float *l)
{
    float sum[MAX_ROWS] = {0};
    for (int j = 0; j < n; ++j)
        UNROLL for (int i = 0; i < g; ++i) sum[i] += P[i * W + j];
    UNROLL for (int i = 0; i < g; ++i) l[i] += sum[i];
}

/* The pieces above for each number of queries and each D, where both are constants. */
struct shape {
    int g, D;
    void (*scores)(const float *Q, const float *K, int n, float *S);
    void (*values)(const float *P, const float *V, int n, float *O, float *l);
    void (*values_apart)(const float *P, const float *V, int n, float *O, float *l);
};

#define SHAPE(g, D)                                                                                                                        \
    static void scores_##g##_##D(const float *Q, const float *K, int n, float *S) { scores_piece(g, D, Q, K, n, S); }                      \
    static void values_##g##_##D(const float *P, const float *V, int n, float *O, float *l) { values_piece(g, D, 1, P, V, n, O, l); }      \
    static void values_apart_##g##_##D(const float *P, const float *V, int n, float *O, float *l)                                          \
    {                                                                                                                                      \
        sum_piece(g, P, n, l);                                                                                                             \
        values_piece(g, D, 0, P, V, n, O, l);                                                                                              \
    }                                                                                                                                      \
    static const struct shape shape_##g##_##D = {g, D, scores_##g##_##D, values_##g##_##D, values_apart_##g##_##D};
SHAPE(1, 64) SHAPE(4, 64) SHAPE(8, 64) SHAPE(1, 128) SHAPE(4, 128) SHAPE(8, 128)
static const struct shape *const SHAPES[] = {&shape_1_64, &shape_4_64, &shape_8_64, &shape_1_128, &shape_4_128, &shape_8_128};

/* ------------------------------------------------------------------------------------------------------------ block and merge */

static void clear(struct part *b, const struct shape *of)
{
    memset(b->l, 0, sizeof b->l);
    memset(b->O, 0, sizeof(float) * (size_t)(of->g * of->D));
}

static void start(struct part *sum, const struct shape *of)
{
    for (int i = 0; i < LANES; ++i) sum->m[i] = -INFINITE;
    clear(sum, of);
}

static void block_part(const struct shape *of, const struct variant *how, const float *Q, const float *K, const float *V, int n,
                       struct part *b)
{
    static float S[MAX_ROWS * W] __attribute__((aligned(64)));
    if (how->packed) scores_packed(of->g, of->D, Q, K, n, S);
    else
        for (int j = 0; j < n; j += SEGMENT) of->scores(Q, K + j * of->D, least(SEGMENT, n - j), S + j);
    softmax_rows(of->g, n, S, b->m);
    clear(b, of);
    for (int j = 0; j < n; j += SEGMENT)
        (how->apart ? of->values_apart : of->values)(S + j, V + j * of->D, least(SEGMENT, n - j), b->O, b->l);
}

/* sum <- sum (+) b, as `softmax` and `values` do it */
static void merge(const struct shape *of, struct part *sum, const struct part *b)
{
    const vec lowest = v_set1(-INFINITE);
    vec before = v_load(sum->m), mb = v_load(b->m), now = v_max(before, mb);
    vec shift = v_select(v_eq(now, lowest), v_set1(0), now);
    vec alpha = v_exp2(v_sub(before, shift)), beta = v_exp2(v_sub(mb, shift));
    v_store(sum->m, now);
    v_store(sum->l, v_fma(beta, v_load(b->l), v_mul(alpha, v_load(sum->l))));
    for (int i = 0; i < of->g; ++i) {
        const vec x = v_set1(alpha[i]), y = v_set1(beta[i]);
        for (int c = i * of->D; c < (i + 1) * of->D; c += LANES)
            v_store(sum->O + c, v_fma(y, v_load(b->O + c), v_mul(x, v_load(sum->O + c))));
    }
}

static void attend_rows(const struct shape *of, const struct variant *how, const float *Q, const float *K, const float *V, ptrdiff_t n,
                        struct part *sum)
{
    struct part b;
    start(sum, of);
    start(&b, of);
    for (ptrdiff_t j = 0; j < n; j += W) {
        block_part(of, how, Q, K + j * of->D, V + j * of->D, n - j < W ? (int)(n - j) : W, &b);
        merge(of, sum, &b);
    }
}

/* The same, a segment of keys of one block in turn with a segment of values of the block before: two streams that never stop. */
static void attend_woven(const struct shape *of, const float *Q, const float *K, const float *V, ptrdiff_t n, struct part *sum)
{
    static float both[2][MAX_ROWS * W] __attribute__((aligned(64)));
    struct part b;
    start(sum, of);
    start(&b, of);
    for (ptrdiff_t i = 0; i <= (n + W - 1) / W; ++i) {
        float *S = both[i % 2], *P = both[(i + 1) % 2];
        const ptrdiff_t left = n - i * W;
        const int keys = left < W ? (int)left : W, values = !i ? 0 : left < 0 ? (int)left + W : W;
        const float *Ki = K + i * W * of->D, *Vi = V + (i - 1) * W * of->D;
        clear(&b, of);
        for (int j = 0; j < W; j += SEGMENT) {
            if (j < keys) of->scores(Q, Ki + j * of->D, least(SEGMENT, keys - j), S + j);
            if (j < values) of->values(P + j, Vi + j * of->D, least(SEGMENT, values - j), b.O, b.l);
        }
        if (i) merge(of, sum, &b);
        if (keys > 0) softmax_rows(of->g, keys, S, b.m);
    }
}

/* The second half of the blocks first, as another thread might, each into a place of its own; then merged in ascending order. */
static void attend_split(const struct shape *of, const struct variant *how, const float *Q, const float *K, const float *V, ptrdiff_t n,
                         struct part *sum)
{
    const ptrdiff_t blocks = (n + W - 1) / W;
    static struct part *parts;
    if (!parts) parts = allocate(sizeof *parts * MOST / 64 / W);
    for (ptrdiff_t k = 0; k < blocks; ++k) {
        const ptrdiff_t i = (k + blocks / 2) % blocks;
        start(&parts[i], of);
        block_part(of, how, Q, K + i * W * of->D, V + i * W * of->D, n - i * W < W ? (int)(n - i * W) : W, &parts[i]);
    }
    start(sum, of);
    for (ptrdiff_t i = 0; i < blocks; ++i) merge(of, sum, &parts[i]);
}

/* out[i], m[i], l[i] of g queries against n keys, the roles swapped; scaled once, and written as `store` does it. */
static void attend_swapped(const struct shape *of, const struct variant *how, const float *Q, const float *K, const float *V, ptrdiff_t n,
                           float scale, float *out, float *m, float *l)
{
    float scaled[MAX_ROWS * MAX_D];
    struct part sum;
    for (int i = 0; i < of->g * of->D; ++i) scaled[i] = Q[i] * (float)((double)scale * LOG2_E);
    if (how->split) attend_split(of, how, scaled, K, V, n, &sum);
    else if (how->woven) attend_woven(of, scaled, K, V, n, &sum);
    else attend_rows(of, how, scaled, K, V, n, &sum);
    for (int i = 0; i < of->g; ++i) {
        const vec factor = v_set1(1 / sum.l[i]);
        for (int c = i * of->D; c < (i + 1) * of->D; c += LANES) v_store(out + c, v_fma(v_load(sum.O + c), factor, v_set1(0)));
        m[i] = sum.m[i], l[i] = sum.l[i];
    }
}

/* The roof: both arrays read once, in order, as fast as this core can. */
static void read_all(const float *K, const float *V, size_t n, float *sink)
{
    vec acc[8];
    for (int i = 0; i < 8; ++i) acc[i] = v_set1(0);
    for (const float *x = K; x; x = x == K ? V : NULL)
        for (size_t k = 0; k < n; k += 8 * LANES)
            UNROLL for (int i = 0; i < 8; ++i) acc[i] = v_add(acc[i], v_load(x + k + i * LANES));
    for (int i = 1; i < 8; ++i) acc[0] = v_add(acc[0], acc[i]);
    v_store(sink, acc[0]);
}
TARGET_END

/* ------------------------------------------------------------------------------------------------------------------- checks */

static const struct variant VARIANTS[] = {
    {.name = "keys packed", .packed = 1}, {.name = "l_b apart", .apart = 1}, {.name = "in registers"},
    {.name = "split", .split = 1},        {.name = "woven", .woven = 1},
};
enum { COUNT = sizeof VARIANTS / sizeof *VARIANTS, SHAPE_COUNT = sizeof SHAPES / sizeof *SHAPES };

struct result {
    float out[MAX_ROWS * MAX_D], m[MAX_LANES], l[MAX_LANES];
};

static int same(const struct result *a, const struct result *b, int g, int D)
{
    size_t row = sizeof(float) * (size_t)g;
    return !memcmp(a->out, b->out, row * (size_t)D) && !memcmp(a->m, b->m, row) && !memcmp(a->l, b->l, row);
}

/* Every variant against every kernel set with FMA. */
static int check(const float *Q, const float *K, const float *V)
{
    static const int lengths[] = {1, 2, 15, 16, 17, 48, 49, 127, 128, 129, 255, 257, 1000, 4096};
    static const float scales[] = {0.125f, -0.125f, 8}; /* 8: scores of +-100 and more, so that P underflows and maxima jump */
    static const struct qkvc_kernels *const sets[] = {&qkvc_avx512_f32, &qkvc_avx2_f32};
    static struct result tile, swapped;
    int compared = 0, different = 0;
    for (int a = 0; a < 14 * SHAPE_COUNT * 3 * 2; ++a) {
        const int n = lengths[a / 2 / 3 / SHAPE_COUNT];
        const struct shape *of = SHAPES[a / 2 / 3 % SHAPE_COUNT];
        const float scale = scales[a / 2 % 3];
        const struct qkvc_kernels *kn = sets[a % 2];
        attend_tile(kn, Q, K, V, n, of->D, scale, of->g, tile.out, tile.m, tile.l);
        for (int i = 0; i < of->g * of->D; ++i)
            if (!(fabsf(tile.out[i]) <= 1)) return puts("the tile kernels are wrong: a mean of values in [-1, 1] is outside"), 1;
        for (int how = 0; how < COUNT; ++how) {
            attend_swapped(of, &VARIANTS[how], Q, K, V, n, scale, swapped.out, swapped.m, swapped.l);
            ++compared;
            if (same(&tile, &swapped, of->g, of->D)) continue;
            if (!different++)
                printf("differs from the %s tile: %s, %d queries, %d keys, D = %d, scale %g\n", kn->name, VARIANTS[how].name, of->g, n,
                       of->D, (double)scale);
        }
    }
    printf("%d results compared with the tile kernels', %d differ\n", compared, different);
    return different != 0;
}

/* --------------------------------------------------------------------------------------------------------------------- costs */

enum { TILE_PATH = COUNT, READ, WAYS };

static double least_of(const double *x, int n)
{
    double y = x[0];
    for (int i = 1; i < n; ++i) y = x[i] < y ? x[i] : y;
    return y;
}

static void measure(const char *where, const struct shape *of, ptrdiff_t n, int repeats, double ghz, const float *Q, const float *K,
                    const float *V)
{
    static struct result r;
    double best[WAYS];
    for (int round = 0; round < 10; ++round) /* in turns, so that all see the same neighbours */
        for (int way = 0; way < WAYS; ++way) {
            const double from = seconds();
            for (int i = 0; i < repeats; ++i) {
                if (way < COUNT) attend_swapped(of, &VARIANTS[way], Q, K, V, n, 0.125f, r.out, r.m, r.l);
                else if (way == TILE_PATH) attend_tile(&qkvc_avx2_f32, Q, K, V, n, of->D, 0.125f, of->g, r.out, r.m, r.l);
                else read_all(K, V, (size_t)(n * of->D), r.out);
            }
            const double time = seconds() - from;
            if (round == 0 || time < best[way]) best[way] = time;
        }
    const double keys = (double)n * repeats, bytes = 2.0 * sizeof(float) * of->D, best_ns = least_of(best, COUNT) * 1e9 / keys;
    printf("%-7s %3d %7d", where, of->D, of->g);
    for (int way = 0; way < WAYS; ++way) printf(" %12.1f", best[way] * 1e9 * ghz / keys);
    printf(" %10.1f %11.0f %%\n", bytes / best_ns, 100 * best[READ] * 1e9 / keys / best_ns);
}

int main(void)
{
    if (!kernel_set("avx512")) {
        puts("prototype_decode: nothing to run, this CPU has no AVX-512");
        return 0;
    }
    float *Q = allocate(sizeof(float) * MAX_ROWS * MAX_D), *K = allocate(sizeof(float) * MOST), *V = allocate(sizeof(float) * MOST);
    fill(Q, MAX_ROWS * MAX_D, 1);
    fill(K, MOST, 2);
    fill(V, MOST, 3);
    int failed = check(Q, K, V);
    double ghz = gigahertz();
    printf("cycles per key at %.2f GHz, the best of several rounds\n%-7s %3s %7s", ghz, "K and V", "D", "queries");
    for (int i = 0; i < COUNT; ++i) printf(" %12s", VARIANTS[i].name);
    printf(" %12s %12s %10s %13s\n", "tile", "read only", "best, GB/s", "of reading");
    for (int i = 0; i < SHAPE_COUNT; ++i) {
        measure("L2", SHAPES[i], 65536 / SHAPES[i]->D, 40, ghz, Q, K, V); /* 512 KB */
        measure("memory", SHAPES[i], MOST / SHAPES[i]->D, 1, ghz, Q, K, V);
    }
    free(Q), free(K), free(V);
    return failed;
}

#else
#include <stdio.h>
int main(void)
{
    puts("prototype_decode: nothing to run, this is not x86-64");
    return 0;
}
#endif
