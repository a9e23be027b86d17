/* The kernels whose vectors lie along rows, on every kernel set this CPU can run, in every dtype: few queries against a block, and few tokens
 * against a weight, to the bits of the tile kernels and near plain loops in long double; a head's norm and turn, to the bits of
 * docs/arithmetic.md; gradients and AdamW; rows gathered and shortened through strides; beside them dropout, by another Philox.  No Python:
 * `make kernels` runs it here and `make neon` on an emulated AArch64. */
#include "check.h"

#include <stdlib.h>

enum { MAX_TILE = 64, MAX_D = 80, PAD = 3, BLOCKS = 2, MAX_ROW = MAX_D + PAD, ROOM = 16 /* whole vectors */ };

static const double UNTOUCHED = 77;

/* -------------------------------------------------------------------------------------------------------------------- few queries */

struct few {
    int queries, D, Dv, keys; /* of each of two blocks */
};

/* What a set reads, rows of `cols` numbers that are `row` apart with NaN between, and the same numbers for the plain loops */
static void operand(const Set *kn, int rows, int cols, int row, double range, uint64_t seed, void *x, double *plain)
{
    static float line[MAX_ROW];
    static uint16_t pairs[MAX_ROW];
    static double real[MAX_ROW];
    for (int i = 0; i < rows; ++i) {
        fill(kn, real, row, range, seed + 1000 * (uint64_t)i);
        for (int c = cols; c < row; ++c) put(kn, real, c, NAN);
        if (kn->kind == QKVC_BFLOAT16) {
            memcpy(line, real, sizeof line);
            kn->shorten(line, row, QKVC_BFLOAT16, (uint16_t *)x + i * row, 1);
            memcpy(pairs, (uint16_t *)x + i * row, sizeof *pairs * (size_t)row);
            for (int c = 0; c < cols; ++c) {
                const uint32_t bits = (uint32_t)pairs[c] << 16;
                float number;
                memcpy(&number, &bits, sizeof number);
                plain[i * cols + c] = number;
            }
        } else {
            memcpy(at(kn, x, i * row), real, (size_t)(row * kn->size));
            for (int c = 0; c < cols; ++c) plain[i * cols + c] = get(kn, real, c);
        }
    }
}

/* Numbers of the set's `kind` behind x */
static const void *past(const Set *kn, const void *x, ptrdiff_t i) { return (const char *)x + i * (kn->kind == QKVC_REAL ? kn->size : 2); }

/* Two blocks, one after the other, by the tile kernels and by the few_ kernels; of the first, query 0 may see nothing. */
static void check_few(const Set *kn, const struct few *c)
{
    static double Q[QKVC_FEW * MAX_ROW], K[BLOCKS * W * MAX_ROW], V[BLOCKS * W * MAX_ROW], K2[W * (MAX_D + 1)], V2[W * MAX_D];
    static double q[QKVC_FEW * MAX_D], k[BLOCKS * W * MAX_D], v[BLOCKS * W * MAX_D];
    static double QT[(MAX_D + 1) * MAX_TILE], S[(W + 1) * MAX_TILE], O[MAX_D * MAX_TILE], FQ[QKVC_FEW * (MAX_D + 2 * ROOM)];
    static double FS[QKVC_FEW * W + ROOM], Ob[QKVC_FEW * (MAX_D + ROOM)], FO[QKVC_FEW * (MAX_D + ROOM)];
    double m[MAX_TILE], l[MAX_TILE], alpha[MAX_TILE], beta[MAX_TILE], mb[MAX_TILE], lb[MAX_TILE], fm[MAX_TILE], fl[MAX_TILE];
    const int lanes = kn->lanes, tile = lanes * kn->vecs, vecs = (c->queries + lanes - 1) / lanes, n = c->keys;
    const int in_pairs = kn->kind == QKVC_BFLOAT16, down = in_pairs ? (n + 1) / 2 : n, width = (c->Dv + lanes - 1) / lanes * lanes;
    const int depth[QKVC_MAX_VECS] = {n, n, n};
    const double u = epsilon(kn), loose = in_pairs ? 0x1p-6 : 64 * u;
    const void *rows[MAX_TILE];
    wide s[BLOCKS * W];

    operand(kn, c->queries, c->D, c->D + PAD, 2, 60, Q, q);
    operand(kn, BLOCKS * n, c->D, c->D + PAD, 2, 61, K, k), operand(kn, BLOCKS * n, c->Dv, c->Dv + PAD, 1, 62, V, v);
    for (int i = 0; i < tile; ++i) rows[i] = past(kn, Q, (i < c->queries ? i : c->queries - 1) * (c->D + PAD));
    kn->pack_queries(rows, 1, c->D, 0.5, vecs, QT);
    kn->few_pack(rows, 1, c->D, 0.5, c->queries, FQ);
    for (int i = 0; i < tile; ++i) put(kn, m, i, -INFINITY), put(kn, l, i, 0);
    for (int i = 0; i < MAX_TILE; ++i) put(kn, fm, i, -INFINITY), put(kn, fl, i, 0);
    memset(O, 0, sizeof O), memset(FO, 0, sizeof FO);

    for (int block = 0; block < BLOCKS; ++block) {
        const void *key = past(kn, K, block * n * (c->D + PAD)), *value = past(kn, V, block * n * (c->Dv + PAD)), *raw = value;
        ptrdiff_t key_row = c->D + PAD, value_row = c->Dv + PAD;
        if (in_pairs) {
            kn->gather(key, key_row, 1, kn->kind, n, c->D, K2);
            key = K2, key_row = c->D + c->D % 2;
            ((uint16_t *)V2)[2 * down * c->Dv] = 7777;
        }
        kn->scores(key, key_row, c->D, QT, depth, vecs, value, value_row, c->Dv, in_pairs ? V2 : NULL, S);
        if (in_pairs) {
            expect(kn, "scores, past the end of its pairs", block, ((uint16_t *)V2)[2 * down * c->Dv], 7777, 0);
            value = V2, value_row = c->Dv;
        }
        kn->few_scores(FQ, c->queries, c->D, key, key_row, kn->kind, n, FS);
        for (int i = 0; i < c->queries; ++i)
            for (int j = 0; j < n; ++j) {
                wide want = 0;
                for (int d = 0; d < c->D; ++d) want += (wide)q[i * c->D + d] * k[(block * n + j) * c->D + d] / 2;
                expect(kn, "few_scores", j, get(kn, FS, i * W + j), want, 32 * u * sqrt(c->D));
                expect_same(kn, "few_scores", at(kn, FS, i * W + j), at(kn, S, j * tile + i), 1);
                if ((block == 0 && i == 0) || (i + 5 * j) % 11 == 3) put(kn, FS, i * W + j, -INFINITY), put(kn, S, j * tile + i, -INFINITY);
            }
        kn->softmax(S, depth, vecs, m, l, alpha, beta);
        kn->few_softmax(FS, c->queries, n, mb, lb);
        for (int i = 0; i < c->queries; ++i)
            for (int j = 0; j < down; ++j) expect_same(kn, "few_softmax", at(kn, FS, i * W + j), at(kn, S, j * tile + i), 1);
        kn->values(value, value_row, c->Dv, S, depth, vecs, alpha, beta, O);
        kn->few_values(FS, c->queries, raw, c->Dv + PAD, kn->kind, c->Dv, n, Ob);
        kn->few_merge(mb, lb, Ob, c->queries, c->Dv, fm, fl, FO);
        expect_same(kn, "few_merge, m", fm, m, (size_t)c->queries), expect_same(kn, "few_merge, l", fl, l, (size_t)c->queries);
    }

    for (int i = 0; i < c->queries; ++i) {
        wide top = -INFINITY, sum = 0;
        for (int j = 0; j < BLOCKS * n; ++j) {
            s[j] = 0;
            for (int d = 0; d < c->D; ++d) s[j] += (wide)q[i * c->D + d] * k[j * c->D + d] / 2;
            if ((j < n && i == 0) || (i + 5 * (j % n)) % 11 == 3) s[j] = -INFINITY;
            top = fmaxl(top, s[j]);
        }
        for (int j = 0; j < BLOCKS * n; ++j) sum += s[j] = top == -INFINITY ? 0 : exp2l(s[j] - top);
        expect(kn, "few, m", i, get(kn, fm, i), top, 32 * u * sqrt(c->D));
        expect(kn, "few, l", i, get(kn, fl, i), sum, loose * sum);
        for (int d = 0; d < c->Dv; ++d) {
            wide want = 0;
            for (int j = 0; j < BLOCKS * n; ++j) want += s[j] * v[j * c->Dv + d];
            expect(kn, "few, O", i * c->Dv + d, get(kn, FO, i * width + d), want, loose * sum);
        }
    }

    for (int col = 1; col <= 3; col += 2) {
        static double by_tile[QKVC_FEW * (3 * MAX_D + 1)], by_row[QKVC_FEW * (3 * MAX_D + 1)];
        const int row = col * c->Dv + 1;
        void *to_tile[MAX_TILE], *to_row[MAX_TILE];
        for (int i = 0; i < c->queries * row; ++i) put(kn, by_tile, i, UNTOUCHED), put(kn, by_row, i, UNTOUCHED);
        for (int i = 0; i < tile; ++i) put(kn, alpha, i, 1 + i);
        for (int i = 0; i < c->queries; ++i) to_tile[i] = at(kn, by_tile, i * row), to_row[i] = at(kn, by_row, i * row);
        kn->store(O, c->Dv, alpha, c->queries, to_tile, col);
        expect(kn, "few_store, finite", 0, kn->few_store(FO, c->Dv, alpha, c->queries, to_row, col), 1, 0);
        expect_same(kn, "few_store", by_row, by_tile, (size_t)(c->queries * row));
        for (int i = 0; i < c->queries; ++i) {
            const int where = i * width + i * 7 % c->Dv;
            const double x = get(kn, FO, where);
            put(kn, FO, where, i % 2 ? NAN : -INFINITY);
            expect(kn, "few_store, of a NaN or inf", i, kn->few_store(FO, c->Dv, alpha, c->queries, to_row, col), 0, 0);
            put(kn, FO, where, x);
        }
    }
}

/* Few tokens, with columns of x apart or not, before a weight whose rows or columns are adjacent: NaN behind each, the first number anywhere
 * in a cache line */
static void check_project(const Set *kn, int tokens, int E, int N, int turned)
{
    enum { MAX_E = 300, MAX_N = 100 };
    static double x[QKVC_FEW * 2 * MAX_E], weight[(MAX_E + PAD) * (MAX_N + PAD) + QKVC_FEW], bias[MAX_N], X[QKVC_FEW * (MAX_E + ROOM)];
    static double XT[MAX_E * MAX_TILE], YT[MAX_N * MAX_TILE], sum[QKVC_FEW * (MAX_N + ROOM)], Y[QKVC_FEW * (MAX_N + ROOM) + 1];
    const int lanes = kn->lanes, tile = lanes * kn->vecs, width = (N + lanes - 1) / lanes * lanes, col = 1 + tokens % 2;
    const int across = turned ? N : E, row = across + PAD, rs = turned ? 1 : row, cs = turned ? row : 1;
    const void *const begin = at(kn, weight, tokens), *const added = E % 2 ? bias : NULL;
    const void *rows[QKVC_FEW + MAX_TILE];
    fill(kn, x, tokens * col * E, 1, 75), fill(kn, weight, tokens + (turned ? E : N) * row, 1, 76), fill(kn, bias, N, 1, 77);
    for (int i = 0; i < (turned ? E : N); ++i)
        for (int c = across; c < row; ++c) put(kn, weight, tokens + i * row + c, NAN);
    for (int i = 0; i < QKVC_FEW + MAX_TILE; ++i) rows[i] = at(kn, x, (i < tokens ? i : tokens - 1) * col * E);
    for (int i = 0; i < tokens * width; ++i) put(kn, Y, i, i % 7 - 3);
    put(kn, Y, tokens * width, UNTOUCHED);
    kn->few_pack(rows, col, E, 1, tokens, X);
    kn->few_project(X, tokens, E, begin, rs, cs, N, added, sum, Y);
    expect(kn, "few_project, past its end", tokens * width, get(kn, Y, tokens * width), UNTOUCHED, 0);
    for (int first = 0; first < tokens; first += tile) {
        const int here = tokens - first < tile ? tokens - first : tile, vecs = (here + lanes - 1) / lanes;
        for (int n = 0; n < N; ++n)
            for (int i = 0; i < tile; ++i) put(kn, YT, n * tile + i, ((first + i) * width + n) % 7 - 3);
        kn->pack(rows + first, col, E, 1, vecs, XT);
        kn->project(begin, rs, cs, N, E, XT, vecs, added, YT);
        for (int i = first; i < first + here; ++i)
            for (int n = 0; n < N; ++n) {
                wide want = (i * width + n) % 7 - 3 + (added ? (wide)get(kn, bias, n) : 0);
                for (int e = 0; e < E; ++e) want += (wide)get(kn, rows[i], e * col) * get(kn, begin, n * rs + e * cs);
                expect(kn, "few_project", i * width + n, get(kn, Y, i * width + n), want, (16 * sqrt(E) + 4) * epsilon(kn));
                expect_same(kn, "few_project", at(kn, Y, i * width + n), at(kn, YT, n * tile + i - first), 1);
            }
    }
}

/* ---------------------------------------------------------------------------------------------------------------- norm and turn */

static double rounded(const Set *kn, double x) { return kn->size == 8 ? x : (float)x; }

/* Of float32 in float64: one operation on floats, rounded to float64 and then to float32, is rounded as if once (Figueroa 1995). */
static double chained(const Set *kn, double a, double sum)
{
    if (!strcmp(kn->name, "portable")) return rounded(kn, rounded(kn, a * a) + sum);
    return kn->size == 8 ? fma(a, a, sum) : fmaf((float)a, (float)a, (float)sum);
}

/* Clause 9 of docs/arithmetic.md, a number at a time */
static void check_turn(const Set *kn, int width, int pairs, int interleaved, int normed)
{
    double x[MAX_D + 1], weight[MAX_D], cosines[MAX_D], sines[MAX_D], want[MAX_D], chain[16] = {0};
    const double eps = 1e-5;
    fill(kn, x, width, 3, (uint64_t)width), fill(kn, weight, width, 1, 71), fill(kn, cosines, pairs, 1, 72), fill(kn, sines, pairs, 1, 73);
    for (int i = 0; i < width; ++i) want[i] = get(kn, x, i), chain[i % 16] = chained(kn, want[i], chain[i % 16]);
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; ++i) chain[i] = rounded(kn, chain[i] + chain[i + half]);
    if (normed) {
        const double mean = rounded(kn, chain[0] / width), root = rounded(kn, sqrt(rounded(kn, mean + rounded(kn, eps))));
        for (int i = 0; i < width; ++i) want[i] = rounded(kn, rounded(kn, want[i] * rounded(kn, 1 / root)) * get(kn, weight, i));
    }
    for (int i = 0; i < pairs; ++i) {
        double *a = want + (interleaved ? 2 * i : i), *b = interleaved ? a + 1 : a + pairs;
        const double c = get(kn, cosines, i), s = get(kn, sines, i), old = *a;
        *a = rounded(kn, rounded(kn, *a * c) - rounded(kn, *b * s));
        *b = rounded(kn, rounded(kn, *b * c) + rounded(kn, old * s));
    }
    put(kn, x, width, UNTOUCHED);
    kn->turn(x, width, normed ? weight : NULL, eps, pairs, interleaved, cosines, sines);
    for (int i = 0; i < width; ++i) expect(kn, normed ? "turn, normed" : "turn", i, get(kn, x, i), want[i], 0);
    expect(kn, "turn, past its end", width, get(kn, x, width), UNTOUCHED, 0);
}

/* ---------------------------------------------------------------------------------------------------------------------- storage */

/* Rows through any strides become what their numbers become alone (which forward.c has checked), and come back. */
/* What training does along a row, near plain loops in long double: a norm's gradient, activations, AdamW; nothing past the end. */
static void check_learning(const Set *kn, int n, int centred)
{
    double x[MAX_D + 1], g[MAX_D], weight[MAX_D], also[MAX_D], dx[MAX_D + 1], dweight[MAX_D + 1], dbias[MAX_D + 1];
    const wide u = 64 * epsilon(kn), eps = 1e-5L;
    wide mean = 0, square = 0, level = 0, slope = 0, sum = 0;
    fill(kn, x, n, 3, (uint64_t)n), fill(kn, g, n, 1, 81), fill(kn, weight, n, 1, 82), fill(kn, also, n, 1, 83);
    fill(kn, dweight, n, 1, 84), fill(kn, dbias, n, 1, 85);
    put(kn, dx, n, UNTOUCHED), put(kn, dweight, n, UNTOUCHED), put(kn, dbias, n, UNTOUCHED);
    for (int i = 0; i < n; ++i) mean += centred ? get(kn, x, i) / (wide)n : 0;
    for (int i = 0; i < n; ++i) square += (get(kn, x, i) - mean) * (get(kn, x, i) - mean) / n, sum += (wide)get(kn, x, i) * get(kn, x, i);
    const wide r = 1 / sqrtl(square + eps);
    for (int i = 0; i < n; ++i) {
        const wide up = (wide)get(kn, weight, i) * get(kn, g, i);
        level += centred ? up / n : 0, slope += up * (get(kn, x, i) - mean) * r / n;
    }
    kn->norm_grad(x, g, weight, also, n, (double)eps, centred, dx, dweight, dbias);
    static double before[2][MAX_D];
    fill(kn, before[0], n, 1, 84), fill(kn, before[1], n, 1, 85);
    for (int i = 0; i < n; ++i) {
        const wide y = (get(kn, x, i) - mean) * r, up = (wide)get(kn, weight, i) * get(kn, g, i);
        expect(kn, "norm_grad dx", i, get(kn, dx, i), r * (up - level - y * slope) + get(kn, also, i), u * (8 + 8 * r));
        expect(kn, "norm_grad dweight", i, get(kn, dweight, i), get(kn, before[0], i) + get(kn, g, i) * y, u * (1 + r));
        expect(kn, "norm_grad dbias", i, get(kn, dbias, i), get(kn, before[1], i) + (centred ? get(kn, g, i) : 0), u);
    }
    expect(kn, "norm_grad, past its end", n, get(kn, dx, n) + get(kn, dweight, n) + get(kn, dbias, n), 3 * UNTOUCHED, 0);
    expect(kn, "square_sum", n, kn->square_sum(x, n), sum, u * sum);

    put(kn, dx, n, UNTOUCHED), put(kn, dweight, n, UNTOUCHED);
    kn->swiglu(x, weight, n, dx);
    for (int i = 0; i < n; ++i) {
        const wide a = get(kn, x, i);
        expect(kn, "swiglu", i, get(kn, dx, i), a / (1 + expl(-a)) * get(kn, weight, i), u);
    }
    kn->swiglu_grad(x, weight, g, n, dx, dweight);
    for (int i = 0; i < n; ++i) {
        const wide a = get(kn, x, i), s = 1 / (1 + expl(-a)), up = get(kn, g, i);
        expect(kn, "swiglu_grad of the gate", i, get(kn, dx, i), up * get(kn, weight, i) * s * (1 + a * (1 - s)), u);
        expect(kn, "swiglu_grad", i, get(kn, dweight, i), up * a * s, u);
    }
    if (kn->gelu_grad) {
        kn->gelu_grad(x, g, n, dx);
        for (int i = 0; i < n; ++i) {
            const wide a = get(kn, x, i), bell = expl(-a * a / 2) * 0.398942280401432677939946L;
            expect(kn, "gelu_grad", i, get(kn, dx, i), get(kn, g, i) * ((1 + erfl(a * 0.707106781186547524400844L)) / 2 + a * bell), u);
        }
    }
    expect(kn, "an activation, past its end", n, get(kn, dx, n) + get(kn, dweight, n), 2 * UNTOUCHED, 0);

    const struct qkvc_adamw c = {.clip = 0.5, .beta1 = 0.9, .beta2 = 0.97, .step = 0.02, .root = 3, .eps = 1e-3, .keep = 0.99};
    double m[MAX_D + 1], v[MAX_D + 1], first[MAX_D], second[MAX_D], start[MAX_D];
    fill(kn, m, n, 1, 86), fill(kn, v, n, 1, 87), fill(kn, weight, n, 1, 88);
    for (int i = 0; i < n; ++i) put(kn, v, i, fabs(get(kn, v, i)));
    put(kn, m, n, UNTOUCHED), put(kn, v, n, UNTOUCHED);
    for (int i = 0; i < n; ++i) first[i] = get(kn, m, i), second[i] = get(kn, v, i), start[i] = get(kn, weight, i);
    kn->adamw(weight, g, m, v, n, &c);
    for (int i = 0; i < n; ++i) {
        const wide up = 0.5L * get(kn, g, i), mean_ = 0.9L * first[i] + 0.1L * up, square_ = 0.97L * second[i] + 0.03L * up * up;
        expect(kn, "adamw m", i, get(kn, m, i), mean_, u);
        expect(kn, "adamw v", i, get(kn, v, i), square_, u);
        expect(kn, "adamw w", i, get(kn, weight, i), 0.99L * start[i] - 0.02L * mean_ / (3 * sqrtl(square_) + 1e-3L), u);
    }
    expect(kn, "adamw, past its end", n, get(kn, m, n) + get(kn, v, n), 2 * UNTOUCHED, 0);
}

static void check_transpose(const Set *kn, int rows, int cols)
{
    static double x[MAX_D * MAX_ROW], to[MAX_D * MAX_ROW];
    fill(kn, x, rows * (cols + PAD), 1, 90);
    for (int i = 0; i < cols * (rows + PAD); ++i) put(kn, to, i, UNTOUCHED);
    kn->transpose(x, cols + PAD, rows, cols, to, rows + PAD);
    for (int c = 0; c < cols; ++c)
        for (int r = 0; r < rows + PAD; ++r)
            expect(kn, "transpose", c * (rows + PAD) + r, get(kn, to, c * (rows + PAD) + r),
                   r < rows ? get(kn, x, r * (cols + PAD) + c) : UNTOUCHED, 0);
}

static void check_gather(const Set *kn, int kind, int rows, int cols, int row, int col)
{
    static double x[2 * 9 * 4 * MAX_D], to[9 * MAX_D + 1], one;
    uint16_t *halves = (uint16_t *)x, back[3 * MAX_D + 1];
    const ptrdiff_t middle = 9 * 4 * MAX_D, size = kind == QKVC_REAL ? kn->size : 2;
    fill(kn, x, 2 * middle, 9, 80);
    if (kind != QKVC_REAL)
        for (int i = 0; i < 2 * middle; ++i) halves[i] = (uint16_t)(i * 40503 & 0xbfff); /* no NaN among them */
    put(kn, to, rows * cols, UNTOUCHED);
    kn->gather((char *)x + middle * size, row, col, kind, rows, cols, to);
    for (int i = 0; i < rows; ++i)
        for (int c = 0; c < cols; ++c) {
            kn->gather((char *)x + (middle + i * row + c * col) * size, 1, 1, kind, 1, 1, &one);
            expect_same(kn, "gather through strides", at(kn, to, i * cols + c), &one, 1);
        }
    expect(kn, "gather, past its end", rows * cols, get(kn, to, rows * cols), UNTOUCHED, 0);
    if (kind == QKVC_REAL || col < 1 || col > 3) return;
    for (int i = 0; i <= 3 * MAX_D; ++i) back[i] = 7777;
    kn->shorten(to, cols, kind, back, col);
    for (int i = 0; i <= cols * col; ++i)
        expect(kn, "shorten through strides", i, back[i], i % col || i == cols * col ? 7777 : halves[middle + i], 0);
}

/* int8, every number of it, times the float behind the row, rounded once. */
static void check_gather_bytes(const Set *kn, int rows, int cols)
{
    static int8_t x[9 * (MAX_D + 9)];
    static float to[9 * MAX_D + 1];
    const int row = cols + (int)sizeof(float) + rows % 4; /* floats off their boundaries */
    for (int i = 0; i < rows * row; ++i) x[i] = (int8_t)(i * 37);
    for (int i = 0; i < rows; ++i) memcpy(x + i * row + cols, &(float){ldexpf(1.1f, 9 * i - 40)}, sizeof(float));
    to[rows * cols] = (float)UNTOUCHED;
    kn->gather(x, row, 1, QKVC_INT8, rows, cols, to);
    for (int i = 0; i < rows; ++i)
        for (int c = 0; c < cols; ++c)
            expect(kn, "gather of bytes", i * cols + c, to[i * cols + c], (float)x[i * row + c] * ldexpf(1.1f, 9 * i - 40), 0);
    expect(kn, "gather of bytes, past its end", rows * cols, to[rows * cols], (float)UNTOUCHED, 0);
}

/* int8 where it lies: scores within half a step of the query's number, P and O within half a 65535th of the largest P * unit.  Rows begin
 * anywhere. */
static void check_few_bytes(const Set *kn, const struct few *c)
{
    static int8_t K[1 + W * (MAX_D + 9)], V[1 + W * (MAX_D + 9)];
    static float q[QKVC_FEW * MAX_D], S[QKVC_FEW * W], before[QKVC_FEW * W], O[QKVC_FEW * (MAX_D + ROOM)], m[2 * ROOM], l[2 * ROOM];
    static float Q[QKVC_FEW * (MAX_D + 2 * ROOM)];
    const int n = c->keys, row = c->D + 5, value_row = c->Dv + 7, width = (c->Dv + kn->lanes - 1) / kn->lanes * kn->lanes;
    const int8_t *k = K + 1, *v = V + 1;
    const void *rows[QKVC_FEW];
    float key_unit[W], unit[W];
    fill(kn, q, QKVC_FEW * MAX_D, 2, 90), fill(kn, key_unit, W, 0.05, 91), fill(kn, unit, W, 1, 92);
    for (size_t i = 0; i < sizeof K; ++i) K[i] = (int8_t)(i * 37 >> 2), V[i] = (int8_t)(i * 91 >> 3);
    for (int j = 0; j < n; ++j) unit[j] = fabsf(unit[j]) + 0.1f;
    for (int j = 0; j < n; ++j) memcpy(K + 1 + j * row + c->D, key_unit + j, 4), memcpy(V + 1 + j * value_row + c->Dv, unit + j, 4);
    for (int i = 0; i < c->queries; ++i) rows[i] = q + i * c->D;
    kn->few_pack_bytes(rows, 1, c->D, 0.5, c->queries, Q);
    kn->few_scores_bytes(Q, c->queries, c->D, k, row, n, S);
    for (int i = 0; i < c->queries; ++i) {
        wide largest = 0;
        for (int d = 0; d < c->D; ++d) largest = fmaxl(largest, fabsf(q[i * c->D + d]) / 2);
        for (int j = 0; j < n; ++j) {
            wide want = 0, sum = 0;
            for (int d = 0; d < c->D; ++d) want += (wide)q[i * c->D + d] / 2 * k[j * row + d], sum += abs(k[j * row + d]);
            const wide step = fabsl(key_unit[j]) * largest * (1 / 65278.0L + 1e-6L);
            expect(kn, "few_scores_bytes", j, S[i * W + j], want * key_unit[j], step * sum);
            if ((i + 5 * j) % 11 == 3 || (i == 0 && n > 20)) S[i * W + j] = -INFINITY;
        }
    }
    memcpy(before, S, sizeof S);
    kn->few_softmax_bytes(S, c->queries, v, value_row, c->Dv, n, m, l);
    kn->few_values_bytes(S, c->queries, v, value_row, c->Dv, n, O);
    for (int i = 0; i < c->queries; ++i) {
        wide top = -INFINITY, sum = 0, most = 0, p[W];
        for (int j = 0; j < n; ++j) top = fmaxl(top, before[i * W + j]);
        for (int j = 0; j < n; ++j) {
            sum += p[j] = top == -INFINITY ? 0 : exp2l(before[i * W + j] - top);
            most = fmaxl(most, p[j] * unit[j]);
        }
        expect(kn, "few_softmax_bytes, m", i, m[i], top, 0);
        expect(kn, "few_softmax_bytes, l", i, l[i], sum, 64 * epsilon(kn) * sum);
        for (int d = 0; d < c->Dv; ++d) {
            wide want = 0, all = 0;
            for (int j = 0; j < n; ++j) want += p[j] * unit[j] * v[j * value_row + d], all += abs(v[j * value_row + d]);
            expect(kn, "few_values_bytes", i * c->Dv + d, O[i * width + d], want, most * all * (1 / 131070.0L + 1e-6L));
        }
    }
}

/* A block for pairs: key rows get an even number of columns, value rows are zipped; behind an odd end stands 0. */
static void check_gather_pairs(const Set *kn, int rows, int cols, int row, int col)
{
    static uint16_t x[2 * 9 * 4 * MAX_D], keys[9 * (MAX_D + 1) + 1], values[10 * MAX_D + 1];
    const int middle = 9 * 4 * MAX_D, even = cols + cols % 2, up = rows + rows % 2;
    for (int i = 0; i < 2 * middle; ++i) x[i] = (uint16_t)(i * 40503);
    keys[rows * even] = values[up * cols] = 7777;
    kn->gather(x + middle, row, col, QKVC_BFLOAT16, rows, cols, keys);
    kn->gather_values(x + middle, row, col, QKVC_BFLOAT16, rows, cols, values);
    for (int i = 0; i < rows; ++i)
        for (int c = 0; c < even; ++c)
            expect(kn, "gather of pairs", c, keys[i * even + c], c < cols ? x[middle + i * row + c * col] : 0, 0);
    for (int i = 0; i < up; ++i)
        for (int c = 0; c < cols; ++c)
            expect(kn, "gather_values", c, values[(i / 2 * cols + c) * 2 + i % 2], i < rows ? x[middle + i * row + c * col] : 0, 0);
    expect(kn, "gather of pairs, past its end", rows, keys[rows * even], 7777, 0);
    expect(kn, "gather_values, past its end", rows, values[up * cols], 7777, 0);
}

/* Random123's Philox 4x32-10 in words of 32 bits, one counter at a time: what `draw` does in vectors of 64 */
static void philox(uint32_t x[4], uint32_t low, uint32_t high)
{
    for (int round = 0; round < 10; ++round, low += 0x9e3779b9, high += 0xbb67ae85) {
        const uint64_t a = (uint64_t)x[0] * 0xd2511f53, b = (uint64_t)x[2] * 0xcd9e8d57;
        const uint32_t next[4] = {(uint32_t)(b >> 32) ^ x[1] ^ low, (uint32_t)b, (uint32_t)(a >> 32) ^ x[3] ^ high, (uint32_t)a};
        memcpy(x, next, sizeof next);
    }
}

/* Weights of any queries, heads and keys of any size, kept or not by what Philox says, on the staircase of a causal block; a limit that is
 * a weight's own number keeps it, one more does not. */
static void check_dropout(const Set *kn, int vecs, int64_t first, uint32_t item)
{
    static double keep[W * MAX_TILE + 1], P[W * MAX_TILE], before[W * MAX_TILE];
    const int tile = kn->lanes * kn->vecs, depth[QKVC_MAX_VECS] = {W - 27, W - 2, W};
    struct qkvc_dropout c = {.seed = 0x9123456789abcdefu * (item + 1), .limit = 0x80000000u, .scale = 1.0 / 3};
    uint32_t row[MAX_TILE], head[MAX_TILE];
    for (int i = 0; i < tile; ++i) row[i] = 0xfffffff0u * (i % 3 == 1) + (uint32_t)i, head[i] = (uint32_t)i * 0x10001u;
    for (int turn = 0; turn < 4; ++turn) {
        uint32_t own[4] = {(uint32_t)(first / 4), row[0], head[0], item};
        philox(own, (uint32_t)c.seed, (uint32_t)(c.seed >> 32));
        if (turn) c.limit = turn == 1 ? own[2] : turn == 2 ? own[2] + 1 : UINT32_MAX;
        fill(kn, P, W * tile, 1, 93), memcpy(before, P, sizeof P);
        put(kn, keep, W * tile, UNTOUCHED);
        kn->draw(keep, &c, row, head, item, first, depth, vecs);
        kn->drop(P, keep, depth, vecs);
        for (int i = 0; i < vecs * kn->lanes; ++i)
            for (int j = 0; j < W; ++j) {
                uint32_t x[4] = {(uint32_t)((first + j) / 4), row[i], head[i], item};
                philox(x, (uint32_t)c.seed, (uint32_t)(c.seed >> 32));
                const double scale = x[j % 4] < c.limit ? 0 : rounded(kn, c.scale), p = get(kn, before, j * tile + i);
                if (j < depth[i / kn->lanes]) expect(kn, "draw", j * tile + i, get(kn, keep, j * tile + i), scale, 0);
                expect(kn, "drop", j * tile + i, get(kn, P, j * tile + i), j < depth[i / kn->lanes] ? rounded(kn, p * scale) : p, 0);
            }
        expect(kn, "draw, past its end", W * tile, get(kn, keep, W * tile), UNTOUCHED, 0);
    }
}

static void check_set(const Set *kn)
{
    static const int widths[] = {1, 16, 40, 7, 33, 64, 80}, keys[] = {1, 16, 31, 100, 127, 128}, strides[] = {1, 3, -1, 0};
    static const int depths[] = {1, 15, 16, 100, 128, 129, 257, 300}, across[] = {1, 16, 33, 100};
    const int tile = kn->lanes * kn->vecs;
    worst = 0;
    for (int queries = 1; queries <= QKVC_FEW && queries <= tile; ++queries)
        for (int i = 0; i < 7; ++i)
            for (int j = 0; j < 6; ++j) {
                const struct few c = {queries, widths[i], widths[(i + j + queries) % 7], keys[j]};
                check_few(kn, &c);
                if (kn->few_pack_bytes && kn->kind == QKVC_REAL && queries <= QKVC_FEW_BYTES) check_few_bytes(kn, &c);
            }
    if (kn->kind == QKVC_REAL)
        for (int tokens = 1; tokens <= QKVC_FEW_BYTES; ++tokens)
            for (int i = 0; i < 8; ++i)
                for (int turned = 0; turned < 2; ++turned) check_project(kn, tokens, depths[i], across[(i + tokens / 2) % 4], turned);
    for (int i = 0; i < 7; ++i)
        for (int j = 0; j < 4; ++j) {
            const int rows = 1 + 2 * i % 9, row = (i % 2 ? 2 : -2) * MAX_D + 5;
            if (kn->kind == QKVC_BFLOAT16)
                check_gather_pairs(kn, rows, widths[i], row, strides[j]);
            else {
                if (kn->shorten) check_gather_bytes(kn, rows, widths[i]);
                for (int kind = QKVC_REAL; kind <= (kn->shorten ? QKVC_BFLOAT16 : QKVC_REAL); ++kind)
                    check_gather(kn, kind, rows, widths[i], row, strides[j]);
            }
        }
    for (int width = 1; width <= MAX_D; ++width)
        for (int way = 0; way < 4; ++way) check_turn(kn, width, width / 2 - way % 2 * (width / 8), way % 2, way / 2);
    for (int n = 1; n <= MAX_D; ++n) check_learning(kn, n, n % 2), check_learning(kn, n, 1 - n % 2), check_transpose(kn, n, MAX_D - n + 1);
    if (kn->draw)
        for (int vecs = 1; vecs <= kn->vecs; ++vecs)
            for (int item = 0; item < 4; ++item) check_dropout(kn, vecs, W * ((int64_t)1 << 9 * item), (uint32_t)item * 0x20000001u);
    printf("%-10s %s  rows: largest error %.2f of what is allowed\n", kn->name, kn->dtype, worst);
}

int main(void)
{
    int count;
    const Set *const *sets = qkvc_kernel_sets(&count);
    for (int i = 0; i < count; ++i) {
        check_set(sets[i]), check_set(sets[i]->float64);
        if (sets[i]->bfloat16) check_set(sets[i]->bfloat16);
    }
    if (failures) printf("%d failures\n", failures);
    return failures != 0;
}
