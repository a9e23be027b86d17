/* Dropout: which weights of a block are kept.  Part of kernels_body.h.
 *
 * Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), a block cipher of a counter: nothing is stored, and
 * the backward draws again what the forward drew.  A weight's number hangs on where it stands in the call, not on who computes it when. */

enum { PER_LANE = 8 / REAL_SIZE }; /* a product takes 64 bits: lanes i, i + PER_LANE, ... of a vec are a vlong */

typedef uint64_t vlong __attribute__((vector_size(sizeof(vec))));

static INLINE vlong product_of_halves(vlong a, uint32_t b)
{
#ifdef V_PRODUCT /* one instruction, which the compiler does not find for the expression below */
    return (vlong)V_PRODUCT(a, (vlong){0} + b);
#else
    return (a & 0xffffffff) * b;
#endif
}

/* Four numbers for each lane, in the lower halves; what the upper ones hold, no product looks at. */
static INLINE void philox(vlong x[4], uint64_t seed)
{
    uint32_t low = (uint32_t)seed, high = (uint32_t)(seed >> 32);
    UNROLL for (int round = 0; round < 10; ++round, low += 0x9e3779b9, high += 0xbb67ae85) {
        const vlong a = product_of_halves(x[0], 0xd2511f53), b = product_of_halves(x[2], 0xcd9e8d57);
        x[0] = b >> 32 ^ x[1] ^ low;
        x[1] = b;
        x[2] = a >> 32 ^ x[3] ^ high;
        x[3] = a;
    }
}

static INLINE vlong every_second(const uint32_t *x, int from)
{
    vlong a = {0};
    for (int i = 0; i < LANES / PER_LANE; ++i) a[i] = x[i * PER_LANE + from];
    return a;
}

/* scale where the lane's number is not below the limit, else 0 */
static INLINE vec kept(const vlong x[PER_LANE][4], int i, uint32_t limit, vec scale)
{
#if REAL_SIZE == 4
    const vwords number = (vwords)((x[0][i] & 0xffffffff) | x[1][i] << 32);
    return (vec)((vwords)(number >= limit) & (vwords)scale);
#else
    return (vec)((vlong)((x[0][i] & 0xffffffff) >= limit) & (vlong)scale);
#endif
}

/* The counter is (key / 4, row, head, item), and key % 4 says which of its four numbers. */
static void draw(void *keep_, const struct qkvc_dropout *d, const uint32_t *row, const uint32_t *head, uint32_t item, int64_t first,
                 const int *depth, int vecs)
{
    const vlong zero = {0};
    const vec scale = v_set1((REAL)d->scale);
    for (int v = 0; v < vecs; ++v, row += LANES, head += LANES) {
        REAL *keep = (REAL *)keep_ + v * LANES;
        vlong rows[PER_LANE], heads[PER_LANE];
        for (int h = 0; h < PER_LANE; ++h) rows[h] = every_second(row, h), heads[h] = every_second(head, h);
        for (int j = 0; j < depth[v]; j += 4) {
            vlong x[PER_LANE][4];
            UNROLL for (int h = 0; h < PER_LANE; ++h) {
                x[h][0] = zero + (uint64_t)(first + j) / 4, x[h][1] = rows[h], x[h][2] = heads[h], x[h][3] = zero + item;
                philox(x[h], d->seed);
            }
            UNROLL for (int i = 0; i < 4; ++i) v_store(keep + (j + i) * TILE, kept(x, i, d->limit, scale));
        }
    }
}

static void drop(void *P_, const void *keep_, const int *depth, int vecs)
{
    for (int v = 0; v < vecs; ++v) {
        REAL *P = (REAL *)P_ + v * LANES;
        const REAL *keep = (const REAL *)keep_ + v * LANES;
        for (int j = 0; j < depth[v]; ++j) v_store(P + j * TILE, v_mul(v_load(P + j * TILE), v_load(keep + j * TILE)));
    }
}
