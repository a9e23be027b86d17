/* Every micro-kernel alone, then whole forwards, on every kernel set this CPU can run, in both dtypes, against plain loops in long double.
 * No Python: `make kernels` runs it here and `make neon` on an emulated AArch64.
 *
 * The bits of the forwards are summed up for each kind of call, and must be those below: every set with a fused multiply-add has one
 * arithmetic, portable C another, on any machine and by any compiler (docs/arithmetic.md).  Change that page before these numbers. */
#include "check.h"

enum { MAX_TILE = 64, MAX_D = 48, MAX_Q = 50, MAX_K = 300, KINDS = 6 };

static const char *const kinds[KINDS] = {"plain", "causal", "bias", "mask", "window", "softcap, ALiBi"};

static const uint64_t sums[2][2][KINDS] = { /* float32, float64; without FMA, with it */
    {{0xacf0ca945f7ca60a, 0xddf432a56a49050e, 0x5a8bcc0d9ba825f0,
      0x19b411b78312815c, 0xc61fee280f80fbb2, 0xe0468623c8fcdf7e},
     {0x907490ffb3ff71e0, 0x977afa69ca9acf8b, 0xd46a2e9899cc1324,
      0xd3e625fd8e5c0370, 0xc68e7cd40a3585db, 0xec01a405c1753ab7}},
    {{0x9696d5dcfd2f9d62, 0x773c03c3a7d1a1f9, 0x12750492e9e5c058,
      0x70e89c56f432facd, 0x5f82854e7630f1cd, 0x7d1ff866ba996032},
     {0x250e8dc8ab329f54, 0x783c0f301d1691cc, 0x0c1e4385dfa28a43,
      0xf8db825fcc7d5333, 0x3e8df2bd79817aa2, 0x1298cd0ba6ceba41}},
};

/* ----------------------------------------------------------------------------------------------------------- the kernels, one by one */

static double S[W * MAX_TILE], before[W * MAX_TILE], panel[W * MAX_TILE], copy[W * MAX_TILE];
static double lane1[MAX_TILE], lane2[MAX_TILE], lane3[MAX_TILE], lane4[MAX_TILE];
static uint8_t bytes[W * MAX_TILE];

/* A panel of scores of which a few are -inf, with a copy of it */
static void new_scores(const Set *kn, uint64_t seed)
{
    const int n = W * kn->lanes * kn->vecs;
    fill(kn, S, n, 8, seed);
    for (int i = 3; i < n; i += 41) put(kn, S, i, -INFINITY);
    memcpy(before, S, sizeof S);
}

/* Where j is below the staircase the new number is `formula` of the old one, x; elsewhere nothing has changed. */
#define CHECK_PANEL(what, error, formula)                                                                                                  \
    for (int v = 0; v < vecs; ++v)                                                                                                         \
        for (int j = 0; j < W; ++j)                                                                                                        \
            for (int lane = v * kn->lanes; lane < (v + 1) * kn->lanes; ++lane) {                                                           \
                const wide x = get(kn, before, j * tile + lane), want = j < depth[v] ? (formula) : x;                                      \
                expect(kn, what, j * tile + lane, get(kn, S, j * tile + lane), want, (error) * epsilon(kn) * fmaxl(1, fabsl(want)));       \
            }

static void check_scores(const Set *kn, int vecs)
{
    const int tile = kn->lanes * kn->vecs, n = tile * W, depth[3] = {vecs == 1 ? 77 : 40, vecs == 2 ? 128 : 77, 128};
    const uint8_t *rows[MAX_TILE];

    for (int col = 1; col <= 2; ++col) {
        new_scores(kn, 1);
        for (int i = 0; i < W * tile; ++i) bytes[i] = (uint8_t)(i % 7 % 3 * 85);
        for (int i = 0; i < tile; ++i) rows[i] = bytes + i * W / col;
        kn->mask(S, rows, col, depth, vecs);
        CHECK_PANEL("mask", 0, rows[lane][j * col] ? x : -INFINITY)
    }

    new_scores(kn, 2);
    fill(kn, panel, n, 3, 3);
    for (int i = 5; i < n; i += 17) put(kn, panel, i, i % 3 ? -INFINITY : kn->size == 8 ? -1.7e308 : -3.4e38);
    kn->add_bias(S, panel, LOG2_E, depth, vecs);
    const double largest = kn->size == 8 ? 0x1.fffffffffffffp1023 : 0x1.fffffep127;
    CHECK_PANEL("add_bias", 8, get(kn, panel, j * tile + lane) == -INFINITY ? -INFINITY
                                : x == -INFINITY                             ? x
                                : get(kn, panel, j * tile + lane) < -1e30    ? -(wide)largest
                                                                             : x + get(kn, panel, j * tile + lane) * LOG2_E)

    new_scores(kn, 4);
    for (int i = 0; i < tile; ++i) put(kn, lane1, i, i / 2), put(kn, lane2, i, 20 + 2 * i);
    kn->clip(S, lane1, lane2, depth, vecs);
    CHECK_PANEL("clip", 0, j < get(kn, lane1, lane) || j >= get(kn, lane2, lane) ? -INFINITY : x)

    new_scores(kn, 5);
    kn->soften(S, 2.5, depth, vecs);
    CHECK_PANEL("soften", 4, 2.5L * tanhl(x / 2.5L))

    new_scores(kn, 6);
    for (int i = 0; i < tile; ++i) put(kn, lane1, i, 0.125 * i), put(kn, lane2, i, 60 + i);
    kn->add_slope(S, lane1, lane2, depth, vecs);
    CHECK_PANEL("add_slope", 2, x - get(kn, lane1, lane) * fabs(get(kn, lane2, lane) - j))

    new_scores(kn, 7);
    fill(kn, lane1, tile, 4, 8);
    kn->weigh(S, lane1, depth, vecs);
    CHECK_PANEL("weigh", 16, exp2l(x - get(kn, lane1, lane)))
}

static void check_softmax(const Set *kn, int vecs)
{
    const int tile = kn->lanes * kn->vecs, depth[3] = {vecs == 1 ? 128 : 40, vecs == 2 ? 128 : 77, 128};
    wide m[MAX_TILE], l[MAX_TILE];
    for (int i = 0; i < tile; ++i) put(kn, lane1, i, -INFINITY), put(kn, lane2, i, 0), m[i] = -INFINITY, l[i] = 0;
    for (int round = 0; round < 3; ++round) {
        new_scores(kn, 9 + round);
        for (int j = 0; j < W; ++j) put(kn, S, j * tile, round == 1 ? get(kn, S, j * tile) : -INFINITY); /* lane 0 sees the second block */
        memcpy(before, S, sizeof S);
        kn->softmax(S, depth, vecs, lane1, lane2, lane3, lane4);
        for (int lane = 0; lane < vecs * kn->lanes; ++lane) {
            wide mb = -INFINITY, lb = 0;
            for (int j = 0; j < depth[lane / kn->lanes]; ++j) mb = fmaxl(mb, get(kn, before, j * tile + lane));
            for (int j = 0; j < depth[lane / kn->lanes]; ++j) {
                wide x = get(kn, before, j * tile + lane), p = x == -INFINITY ? 0 : exp2l(x - mb);
                expect(kn, "softmax, P", j * tile + lane, get(kn, S, j * tile + lane), p, 16 * epsilon(kn) * p);
                lb += p;
            }
            wide now = fmaxl(m[lane], mb), a = m[lane] == -INFINITY ? 0 : exp2l(m[lane] - now), b = mb == -INFINITY ? 0 : exp2l(mb - now);
            l[lane] = a * l[lane] + b * lb, m[lane] = now;
            expect(kn, "softmax, m", lane, get(kn, lane1, lane), now, 0);
            expect(kn, "softmax, l", lane, get(kn, lane2, lane), l[lane], 64 * epsilon(kn) * l[lane]);
            expect(kn, "softmax, alpha", lane, get(kn, lane3, lane), a, 16 * epsilon(kn) * a);
            expect(kn, "softmax, beta", lane, get(kn, lane4, lane), b, 16 * epsilon(kn) * b);
        }
    }
}

static void check_products(const Set *kn, int vecs, int D)
{
    static double K[W * MAX_D], QT[MAX_D * MAX_TILE], O[W * MAX_TILE], O2[W * MAX_TILE];
    const int tile = kn->lanes * kn->vecs, depth[3] = {vecs == 1 ? 101 : 40, vecs == 2 ? 101 : 77, 101};
    const double u = epsilon(kn);
    fill(kn, K, W * D, 1, 20), fill(kn, QT, D * tile, 1, 21);
    kn->scores(K, D, D, QT, depth, vecs, K, D, D, NULL, S);
    for (int lane = 0; lane < vecs * kn->lanes; ++lane)
        for (int j = 0; j < depth[lane / kn->lanes]; ++j) {
            wide want = 0;
            for (int d = 0; d < D; ++d) want += (wide)get(kn, K, j * D + d) * get(kn, QT, d * tile + lane);
            expect(kn, "scores", j * tile + lane, get(kn, S, j * tile + lane), want, 16 * u * sqrt(D));
        }

    fill(kn, O, D * tile, 1, 22), fill(kn, S, W * tile, 1, 23), fill(kn, lane1, tile, 1, 24), fill(kn, lane2, tile, 1, 25);
    memcpy(before, O, sizeof O), memcpy(O2, O, sizeof O);
    kn->values(K, D, D, S, depth, vecs, lane1, lane2, O);
    memset(panel, 0, sizeof panel);
    kn->values_selected(K, D, D, S, panel, depth, vecs, lane1, lane2, O2);
    expect_same(kn, "values_selected", O2, O, (size_t)(D * tile));
    for (int lane = 0; lane < vecs * kn->lanes; ++lane)
        for (int c = 0; c < D; ++c) {
            wide sum = 0;
            for (int j = 0; j < depth[lane / kn->lanes]; ++j) sum += (wide)get(kn, K, j * D + c) * get(kn, S, j * tile + lane);
            wide want = get(kn, lane1, lane) * (wide)get(kn, before, c * tile + lane) + get(kn, lane2, lane) * sum;
            expect(kn, "values", c * tile + lane, get(kn, O, c * tile + lane), want, 160 * u);
        }
    /* key 7, NaN, masked; key 8, zero, seen: both are as if they were not there */
    for (int c = 0; c < D; ++c) put(kn, K, 7 * D + c, NAN), put(kn, K, 8 * D + c, 0);
    for (int i = 0; i < tile; ++i) put(kn, panel, 7 * tile + i, -INFINITY);
    memcpy(O2, before, sizeof O2), memcpy(O, before, sizeof O);
    kn->values_selected(K, D, D, S, panel, depth, vecs, lane1, lane2, O2);
    for (int c = 0; c < D; ++c) put(kn, K, 7 * D + c, 0);
    kn->values(K, D, D, S, depth, vecs, lane1, lane2, O);
    expect_same(kn, "values_selected, NaN", O2, O, (size_t)(D * tile));

    fill(kn, K, W * D, 1, 26), fill(kn, O, W * tile, 1, 27), fill(kn, copy, W, 1, 28);
    for (int turned = 0; turned < 2; ++turned) {
        memcpy(S, O, sizeof S);
        kn->project(K, turned ? 1 : D, turned ? W : 1, 101, D, QT, vecs, copy, S);
        for (int lane = 0; lane < vecs * kn->lanes; ++lane)
            for (int i = 0; i < 101; ++i) {
                wide want = (wide)get(kn, O, i * tile + lane) + get(kn, copy, i);
                for (int d = 0; d < D; ++d) want += (wide)get(kn, K, turned ? d * W + i : i * D + d) * get(kn, QT, d * tile + lane);
                expect(kn, "project", i * tile + lane, get(kn, S, i * tile + lane), want, 16 * u * sqrt(D) + 4 * u);
            }
    }
}

/* Rows into a panel and out of it, with strides of one and of three elements: as they were, and nothing else touched */
static void check_panels(const Set *kn, int queries, int D, int col)
{
    static double rows[3 * MAX_TILE * MAX_D], O[MAX_D * MAX_TILE];
    const int tile = kn->lanes * kn->vecs, vecs = (queries + kn->lanes - 1) / kn->lanes, wide_row = D * col + 1;
    const void *from[MAX_TILE];
    void *to[MAX_TILE];
    fill(kn, rows, queries * wide_row, 1, 30);
    for (int i = 0; i < tile; ++i) from[i] = at(kn, rows, (i < queries ? i : queries - 1) * wide_row), put(kn, lane1, i, 1 + i);
    kn->pack(from, col, D, 0.5, vecs, O);
    for (int lane = 0; lane < vecs * kn->lanes; ++lane)
        for (int c = 0; c < D; ++c) expect(kn, "pack", c * tile + lane, get(kn, O, c * tile + lane), get(kn, from[lane], c * col) / 2, 0);
    expect(kn, "finite", 0, kn->finite(O, D, lane1, vecs), 1, 0);
    for (int lane = 0; lane < vecs * kn->lanes; ++lane) {
        const int i = (lane * 5 + D) % D * tile + lane;
        const double x = get(kn, O, i);
        put(kn, O, i, lane % 2 ? NAN : INFINITY);
        expect(kn, "finite, of a NaN or inf", lane, kn->finite(O, D, lane1, vecs), 0, 0);
        put(kn, O, i, x), put(kn, lane1, lane, 0);
        expect(kn, "finite, of l = 0", lane, kn->finite(O, D, lane1, vecs), 0, 0);
        put(kn, lane1, lane, 1 + lane);
    }
    for (int i = 0; i < 3 * MAX_TILE * MAX_D; ++i) put(kn, rows, i, 77);
    for (int i = 0; i < queries; ++i) to[i] = at(kn, rows, i * wide_row);
    kn->store(O, D, lane1, queries, to, col);
    for (int i = 0; i < queries; ++i)
        for (int c = 0; c < wide_row; ++c) {
            wide want = c % col || c == D * col ? 77 : (wide)get(kn, O, c / col * tile + i) * (1 + i);
            expect(kn, "store", i * wide_row + c, get(kn, rows, i * wide_row + c), want, epsilon(kn) * fabsl(want));
        }
    expect(kn, "store, past its end", 0, get(kn, rows, queries * wide_row), 77, 0);
}

/* Each number of 16 bits becomes its real and itself again; half-way to the next it becomes the even one of the two */
static void check_storage(const Set *kn, int kind)
{
    static uint16_t x[1 << 16], back[1 << 16];
    static float y[1 << 16];
    const int bits = kind == QKVC_FLOAT16 ? 10 : 7, top = 0x7fff >> bits;
    for (int i = 0; i < 1 << 16; ++i) x[i] = (uint16_t)i;
    for (int half = 0; half < 2; ++half) {
        kn->gather(x, 0, 1, kind, 1, 1 << 16, y);
        for (int i = 0; i < 1 << 16; ++i) {
            const int e = i >> bits & top, m = i & ((1 << bits) - 1);
            const double size = ldexp(m + (e ? 1 << bits : 0), (e ? e : 1) - top / 2 - bits), want = e < top ? size : m ? NAN : INFINITY;
            if (!half) expect(kn, "gather", i, fabs(y[i]), want, 0), expect(kn, "gather, sign", i, !signbit(y[i]), !(i >> 15), 0);
            if (half && e < top) y[i] += (float)copysign(ldexp(0.5, (e ? e : 1) - top / 2 - bits), y[i]);
        }
        kn->shorten(y, 1 << 16, kind, back, 1);
        for (int i = 0; i < 1 << 16; ++i)
            if (y[i] == y[i]) expect(kn, "shorten", i, back[i], i + (half && (i >> bits & top) < top ? i & 1 : 0), 0);
    }
}

static void check_summary(const Set *kn, int vecs)
{
    const int tile = kn->lanes * kn->vecs, depth[3] = {vecs == 1 ? 101 : 40, vecs == 2 ? 101 : 77, 101};
    double shift[MAX_TILE], factor[MAX_TILE], spread[MAX_TILE] = {0}, distance[MAX_TILE] = {0}, most[MAX_TILE], mass[W];
    wide masses[W] = {0};
    new_scores(kn, 40), fill(kn, shift, tile, 4, 41), fill(kn, factor, tile, 1, 42);
    for (int i = 0; i < tile; ++i) put(kn, lane1, i, 30 + i), put(kn, most, i, -INFINITY);
    kn->summarise(S, shift, factor, lane1, depth, vecs, spread, distance, most, mass);
    for (int lane = 0; lane < vecs * kn->lanes; ++lane) {
        wide t = 0, d = 0, top = -INFINITY, size = 0;
        for (int j = 0; j < depth[lane / kn->lanes]; ++j) {
            wide x = (wide)get(kn, S, j * tile + lane) - get(kn, shift, lane), p = exp2l(x) * get(kn, factor, lane);
            if (x > -INFINITY) t -= p * x, d += p * fabsl(30.0L + lane - j), size += fabsl(p), masses[j] += p;
            top = fmaxl(top, get(kn, S, j * tile + lane));
        }
        expect(kn, "summarise, spread", lane, get(kn, spread, lane), t, 640 * epsilon(kn) * size);
        expect(kn, "summarise, distance", lane, get(kn, distance, lane), d, 6400 * epsilon(kn) * size);
        expect(kn, "summarise, most", lane, get(kn, most, lane), top, 0);
    }
    for (int j = 0; j < depth[vecs - 1]; ++j) expect(kn, "summarise, mass", j, get(kn, mass, j), masses[j], 1e5 * epsilon(kn));
}

static void check_rows(const Set *kn, int n)
{
    double x[500], y[500], partial[2 * 16];
    wide max = -INFINITY, sum = 0, got = 0;
    double top = -INFINITY;
    fill(kn, x, n, 20, (uint64_t)n);
    for (int i = 0; i < n; ++i) max = fmaxl(max, get(kn, x, i));
    for (int i = 0; i < kn->lanes; ++i) put(kn, partial, i, -INFINITY);
    kn->row_max(x, n, partial);
    for (int i = 0; i < kn->lanes; ++i)
        if (get(kn, partial, i) > top) top = get(kn, partial, i);
    expect(kn, "row_max", n, top, max, 0);
    for (int i = 0; i < 2 * kn->lanes; ++i) put(kn, partial, i, 0);
    kn->row_sum(x, n, top, partial);
    for (int i = 0; i < n; ++i) sum += expl(get(kn, x, i) - max);
    for (int i = 0; i < 2 * kn->lanes; ++i) got += get(kn, partial, i);
    expect(kn, "row_sum", n, (double)got, sum, 2 * epsilon(kn) * sum);
    put(kn, y, n, 77);
    kn->row_exp(x, n, top, 1 / (double)sum, y);
    for (int i = 0; i < n; ++i) {
        wide want = expl(get(kn, x, i) - max) / sum;
        expect(kn, "row_exp", i, get(kn, y, i), want, 4 * epsilon(kn) * want);
    }
    expect(kn, "row_exp, past its end", n, get(kn, y, n), 77, 0);

    const double lowest = kn->size == 8 ? -1022 : -126;
    for (int i = 0; i < n; ++i) put(kn, x, i, i % 5 == 4 ? NAN : i % 5 == 3 ? lowest * 1.01 - i : lowest * i / n);
    put(kn, y, n, 77);
    kn->exp2(x, n, y);
    for (int i = 0; i < n; ++i) {
        wide at_x = get(kn, x, i), want = at_x < lowest ? 0 : exp2l(at_x);
        expect(kn, "exp2", i, get(kn, y, i), want, epsilon(kn) * want);
    }
    expect(kn, "exp2, past its end", n, get(kn, y, n), 77, 0);
}

/* --------------------------------------------------------------------------------------------------------------------- the forward */

struct call {
    int kind, queries, keys, D, Dv;
};

static double Q[MAX_Q * MAX_D], K[MAX_K * MAX_D], V[MAX_K * MAX_D], bias[MAX_Q * MAX_K], out[MAX_Q * MAX_D];
static uint8_t mask[MAX_Q * MAX_K];
static wide exact[MAX_Q * MAX_D];

static const double CAP = 1.5, SLOPE = 0.25;
enum { LEFT = 20, RIGHT = 140 };

/* The keys that query i may see by position: [first, end) */
static int first_key(const struct call *c, int i) { return c->kind == 4 && i > LEFT ? i - LEFT : 0; }
static int end_key(const struct call *c, int i)
{
    int end = c->kind == 1 ? i + 1 : c->kind == 4 ? i + RIGHT + 1 : c->keys;
    return end < c->keys ? end : c->keys;
}

static void plain(const Set *kn, const struct call *c)
{
    for (int i = 0; i < c->queries; ++i) {
        wide s[MAX_K], m = -INFINITY, l = 0;
        for (int j = 0; j < c->keys; ++j) {
            s[j] = 0;
            for (int d = 0; d < c->D; ++d) s[j] += (wide)get(kn, Q, i * c->D + d) * get(kn, K, j * c->D + d);
            s[j] *= 0.5;
            if (c->kind == 5) s[j] = CAP * tanhl(s[j] / CAP) - SLOPE * fabsl((wide)i - j);
            if (c->kind == 2) s[j] += get(kn, bias, i * c->keys + j);
            if ((c->kind == 3 && !mask[i * c->keys + j]) || j < first_key(c, i) || j >= end_key(c, i)) s[j] = -INFINITY;
            m = fmaxl(m, s[j]);
        }
        for (int d = 0; d < c->Dv; ++d) exact[i * c->Dv + d] = 0;
        if (m == -INFINITY) continue;
        for (int j = 0; j < c->keys; ++j) l += s[j] = expl(s[j] - m);
        for (int j = 0; j < c->keys; ++j)
            for (int d = 0; d < c->Dv; ++d) exact[i * c->Dv + d] += s[j] / l * get(kn, V, j * c->Dv + d);
    }
}

#define START 0xcbf29ce484222325u /* FNV-1a (Fowler, Noll, Vo) */

static uint64_t summed(uint64_t sum, const void *x, size_t n)
{
    for (size_t i = 0; i < n; ++i) sum = (sum ^ ((const uint8_t *)x)[i]) * 0x100000001b3u;
    return sum;
}

/* As `walk` in qkvc/_attention.pyx does it, for the tile that begins with query `start` */
static void walk(const Set *kn, const struct call *c, int start, int queries)
{
    static double QT[MAX_D * MAX_TILE], O[MAX_D * MAX_TILE];
    double m[MAX_TILE], l[MAX_TILE], alpha[MAX_TILE], beta[MAX_TILE], factor[MAX_TILE], lower[MAX_TILE], upper[MAX_TILE];
    const int lanes = kn->lanes, tile = lanes * kn->vecs, vecs = (queries + lanes - 1) / lanes, n = vecs * lanes;
    const void *rows[MAX_TILE];
    const uint8_t *masks[MAX_TILE];
    void *to[MAX_TILE];
    int query[MAX_TILE];
    for (int i = 0; i < n; ++i) query[i] = start + (i < queries ? i : queries - 1), rows[i] = at(kn, Q, query[i] * c->D);
    for (int i = 0; i < queries; ++i) to[i] = at(kn, out, query[i] * c->Dv);
    for (int i = 0; i < tile; ++i) put(kn, m, i, -INFINITY), put(kn, l, i, 0);
    memset(O, 0, sizeof O);
    kn->pack(rows, 1, c->D, 0.5 * LOG2_E, vecs, QT);
    for (int first = 0; first < c->keys; first += W) {
        const int keys = c->keys - first < W ? c->keys - first : W;
        int depth[QKVC_MAX_VECS];
        for (int v = 0; v < vecs; ++v) {
            int reach = end_key(c, query[(v + 1) * lanes - 1]) - first;
            depth[v] = reach < 0 ? 0 : reach > keys ? keys : reach;
        }
        if (depth[vecs - 1] == 0) break;
        kn->scores(at(kn, K, first * c->D), c->D, c->D, QT, depth, vecs, at(kn, V, first * c->Dv), c->Dv, c->Dv, NULL, S);
        if (c->kind == 5) {
            for (int i = 0; i < n; ++i) put(kn, lower, i, SLOPE * LOG2_E), put(kn, upper, i, query[i] - first);
            kn->soften(S, CAP * LOG2_E, depth, vecs);
            kn->add_slope(S, lower, upper, depth, vecs);
        }
        if (c->kind == 2) {
            for (int i = 0; i < n; ++i) rows[i] = at(kn, bias, query[i] * c->keys + first);
            kn->pack(rows, 1, keys, 1, vecs, panel);
            kn->add_bias(S, panel, LOG2_E, depth, vecs);
        }
        if (c->kind == 3) {
            for (int i = 0; i < n; ++i) masks[i] = mask + query[i] * c->keys + first;
            kn->mask(S, masks, 1, depth, vecs);
        }
        if (c->kind == 1 || c->kind == 4) {
            for (int i = 0; i < n; ++i) {
                int low = first_key(c, query[i]) - first, high = end_key(c, query[i]) - first;
                put(kn, lower, i, low < 0 ? 0 : low > W ? W : low), put(kn, upper, i, high < 0 ? 0 : high > W ? W : high);
            }
            kn->clip(S, lower, upper, depth, vecs);
        }
        kn->softmax(S, depth, vecs, m, l, alpha, beta);
        kn->values(at(kn, V, first * c->Dv), c->Dv, c->Dv, S, depth, vecs, alpha, beta, O);
    }
    for (int i = 0; i < queries; ++i) put(kn, factor, i, get(kn, l, i) > 0 ? 1 / get(kn, l, i) : 0);
    kn->store(O, c->Dv, factor, queries, to, 1);
}

/* One call, on every set of one dtype: near the plain loops, and the same bits in all sets that have an FMA */
static void attend(const Set *const *sets, int count, const struct call *c, uint64_t found[2])
{
    const Set *any = sets[0];
    fill(any, Q, c->queries * c->D, 2, 50), fill(any, K, c->keys * c->D, 2, 51), fill(any, V, c->keys * c->Dv, 1, 52);
    fill(any, bias, c->queries * c->keys, 3, 53);
    for (int i = 0; i < c->queries * c->keys; ++i) mask[i] = i % 11 % 3 != 0;
    plain(any, c);
    uint64_t sum[2] = {0, 0};
    for (int s = 0; s < count; ++s) {
        const Set *kn = sets[s];
        const int tile = kn->lanes * kn->vecs, fused = strcmp(kn->name, "portable") != 0;
        memset(out, 0xff, sizeof out);
        for (int q = 0; q < c->queries; q += tile) walk(kn, c, q, c->queries - q < tile ? c->queries - q : tile);
        const uint64_t bits = summed(found[fused], out, (size_t)(c->queries * c->Dv * kn->size));
        for (int i = 0; i < c->queries * c->Dv; ++i)
            expect(kn, kinds[c->kind], i, get(kn, out, i), exact[i], 16 * epsilon(kn));
        if (sum[fused] && sum[fused] != bits && ++failures < 20)
            printf("%s, %s: %s, %d queries, %d keys: not the bits of the other sets\n", kn->name, kn->dtype, kinds[c->kind], c->queries,
                   c->keys);
        sum[fused] = bits;
    }
    memcpy(found, sum, sizeof sum);
}

int main(void)
{
    static const int queries[] = {1, 13, 50}, keys[] = {1, 16, 129, 300}, widths[] = {1, 16, 40, 7, 33};
    int count;
    const Set *const *singles = qkvc_kernel_sets(&count), *doubles[8];
    for (int s = 0; s < count; ++s) doubles[s] = singles[s]->float64;
    for (int size = 0; size < 2; ++size) {
        const Set *const *sets = size ? doubles : singles;
        for (int s = 0; s < count; ++s) {
            const Set *kn = sets[s];
            worst = 0;
            for (int vecs = 1; vecs <= kn->vecs; ++vecs) {
                check_scores(kn, vecs), check_softmax(kn, vecs), check_summary(kn, vecs);
                for (int i = 0; i < 5; ++i) check_products(kn, vecs, widths[i]);
            }
            for (int n = 1; n <= kn->lanes * kn->vecs; ++n)
                for (int col = 1; col <= 3; col += 2) check_panels(kn, n, widths[n % 5], col);
            for (int n = 1; n < 500; n += 1 + n / 9) check_rows(kn, n);
            for (int kind = QKVC_FLOAT16; kn->shorten && kind <= QKVC_BFLOAT16; ++kind) check_storage(kn, kind);
            printf("%-8s %s  kernels: largest error %.2f of what is allowed\n", kn->name, kn->dtype, worst);
        }
        worst = 0;
        for (int kind = 0; kind < KINDS; ++kind) {
            uint64_t found[2] = {START, START};
            for (int i = 0; i < 12; ++i)
                attend(sets, count, &(struct call){kind, queries[i % 3], keys[i / 3], widths[i % 5], widths[(i + 2) % 5]}, found);
            for (int fused = count == 1 ? 0 : 1; fused >= 0; --fused) {
                const int same = found[fused] == sums[size][fused][kind];
                failures += !same;
                printf("%-16s %s  %-14s 0x%016jx%s\n", fused ? "with FMA" : "without", sets[0]->dtype, kinds[kind], (uintmax_t)found[fused],
                       same ? "" : "  is not what it was");
            }
        }
        printf("%s  forward: largest error %.2f of what is allowed\n", sets[0]->dtype, worst);
    }
    if (failures) printf("%d failures\n", failures);
    return failures != 0;
}
