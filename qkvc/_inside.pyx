"""A look inside: the scores and weights that attention never writes down, and statistics of them without an L_q x L_k matrix.

Each is a sweep over the same tiles and blocks as attention itself, with other ends.  The weights are what the output was made of:
p = exp2(s - m) / l with the m and l of the forward pass, so a second sweep follows a first that finds them.
"""

from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint64_t

import numpy as np

from qkvc._coerce import as_real, bad, shape_text

from qkvc._cut cimport cut
from qkvc._kernels cimport QKVC_MAX_VECS
from qkvc._plan cimport Plan, Problem, make_plan
from qkvc._tile cimport (
    Block,
    Scratch,
    Tile,
    draw,
    get,
    lay_out,
    look,
    note_allowed,
    pack_queries,
    put,
    score,
    scratch_of,
    settle,
    start,
    sweep,
)
from qkvc._workers cimport Job, data_of, interrupted

cdef extern from "fpenv.h" nogil:
    uint64_t qkvc_fp_enter()
    void qkvc_fp_leave(uint64_t before)

cdef double LN_2 = 0.6931471805599453


cdef void find_sums(Job *job, Scratch *s, const Tile *t, int worker) noexcept nogil:
    """The forward pass without values: m and l of every query, then factor and lse."""
    cdef const Problem *p = <const Problem *>job.problem
    cdef int[QKVC_MAX_VECS] depth
    cdef Block b
    cdef int64_t i
    cdef int v
    cdef bint empty = False
    start(p, s)
    for i in range(t.block, t.blocks):
        if interrupted(job, worker):
            return
        if look(p, s, t, i, depth, &b):
            score(p, s, t, depth, &b)
            p.kernels.softmax(s.S, depth, t.vecs, s.m, s.l, s.alpha, s.beta)
    for v in range(t.queries):
        empty = empty or get(p, s.l, v) == 0
    if empty:  # allowed nothing, or only keys whose scores came out as -inf?
        for i in range(t.block, t.blocks):
            if look(p, s, t, i, depth, &b):
                note_allowed(p, s, t, depth, &b)
    settle(p, s, t, True)


# ------------------------------------------------------------------------------------------------------------------ scores and weights

cdef struct Matrix:
    char *data       # (batch, heads, Lq, Lk), contiguous; what no query may see is already there
    bint weights     # or scores, in natural units


cdef void write_block(const Problem *p, Scratch *s, const Tile *t, const int *depth, const Block *b, const Matrix *to) noexcept nogil:
    """The block's columns, through a transpose; each vector of queries as far as it was computed."""
    cdef void *row[64]
    cdef int v, i, queries, lanes = p.kernels.lanes
    for v in range(t.vecs):
        queries = min(lanes, t.queries - v * lanes)
        for i in range(queries):
            row[i] = to.data + (s.index[v * lanes + i] * p.Lk + b.first) * p.item
        if queries > 0:
            p.kernels.store(s.S + v * lanes * p.item, depth[v], <char *>s.factor + v * lanes * p.item, queries, row, 1)


cdef void write_rows(void *context, Py_ssize_t task, int worker) noexcept nogil:
    """One task of the pool: the scores or weights of a tile."""
    cdef Job *job = <Job *>context
    cdef const Problem *p = <const Problem *>job.problem
    cdef const Matrix *to = <const Matrix *>job.extra
    cdef Scratch *s = scratch_of(job, worker)
    cdef int[QKVC_MAX_VECS] depth
    cdef uint64_t environment
    cdef int64_t i
    cdef Block b
    cdef Tile t
    if job.cancelled:
        return
    environment = qkvc_fp_enter()
    t = lay_out(p, s, task)
    pack_queries(p, s, &t)
    if to.weights:
        find_sums(job, s, &t, worker)
    else:
        for i in range(t.queries):
            put(p, s.factor, i, 1)
    for i in range(t.block, t.blocks):
        if interrupted(job, worker):
            break
        if look(p, s, &t, i, depth, &b):
            score(p, s, &t, depth, &b)
            if to.weights:
                p.kernels.weigh(s.S, s.m, depth, t.vecs)
            if p.drops:
                draw(p, s, &t, depth, &b)
                p.kernels.drop(s.S, s.keep, depth, t.vecs)
            write_block(p, s, &t, depth, &b, to)
    qkvc_fp_leave(environment)


def score_matrix(query, key, str stage, mask, bias, causal, q_offset, window, key_lengths, alibi_slopes, sinks, softcap, scale, layout,
                 num_threads, chosen=None, rows_in_all=None, dropout_p=0.0, rng=None):
    """(..., H, Lq, Lk) of scores after a stage, or of weights; `chosen` are the ascending rows that `query` holds of rows_in_all."""
    cdef Plan plan = make_plan(query, key, None, mask, bias, causal, q_offset, window, key_lengths, alibi_slopes, sinks, softcap, scale,
                               None, layout, None, False, num_threads, chosen, rows_in_all, None, False, None, False, False,
                               dropout_p, rng)
    cdef Problem *p = &plan.problem
    cdef Matrix to
    if stage in ("raw", "softcap"):  # of every pair: nothing is masked before the bias
        p.has_mask, p.has_bias, p.slopes, p.lengths, p.left, p.right = False, False, NULL, NULL, -1, -1
    if stage == "raw":
        p.softcap = 0
    to.weights = stage == "softmax"
    if not to.weights:
        p.unit = 1
    shape = (*plan.batch_shape(), p.heads, p.Lq, p.Lk)
    result = np.full(shape, -np.inf, plan.dtype) if stage == "bias" else np.zeros(shape, plan.dtype)
    if result.size:
        to.data = data_of(result)
        sweep(plan, write_rows, p.tasks, &to)
    return result[0] if query_is_flat(query, key) else result


cdef bint query_is_flat(query, key) except -1:
    return np.ndim(query) == 2 and np.ndim(key) == 2


# ------------------------------------------------------------------------------------------------------------------------- statistics

cdef enum:
    STRIPES = 4  # parts that a head's queries are cut into, whatever the threads: the order of key_mass's sums


cdef struct Summary:
    const char *given              # natural lse per query, or NULL
    char *lse                      # (batch, heads, Lq) ...
    char *most
    char *entropy
    char *distance
    double *mass                   # (batch, heads, STRIPES, Lk)
    Py_ssize_t top_k
    int64_t *top_keys              # (batch, heads, Lq, top_k)
    char *top_weights              # scores until the row is done


cdef void insert(const Problem *p, const Summary *to, Py_ssize_t row, double x, int64_t j) noexcept nogil:
    """Into the row's descending list; an equal score stays behind those that came first."""
    cdef Py_ssize_t at = to.top_k - 1
    cdef int64_t *keys = to.top_keys + row * to.top_k
    cdef char *scores = to.top_weights + row * to.top_k * p.item
    while at > 0 and get(p, scores, at - 1) < x:
        put(p, scores, at, get(p, scores, at - 1))
        keys[at] = keys[at - 1]
        at -= 1
    put(p, scores, at, x)
    keys[at] = j


cdef void keep_largest(const Problem *p, Scratch *s, const Tile *t, const int *depth, const Block *b, const Summary *to) noexcept nogil:
    cdef int lanes = p.kernels.lanes, tile = lanes * p.kernels.vecs, i, j
    cdef char *last
    cdef double x
    for i in range(t.queries):
        last = to.top_weights + ((s.index[i] + 1) * to.top_k - 1) * p.item
        for j in range(depth[i // lanes]):
            x = get(p, s.S, j * tile + i)
            if x > get(p, last, 0):
                insert(p, to, s.index[i], x, b.first + j)


cdef void take_lse(const Problem *p, Scratch *s, const Tile *t, const Summary *to) noexcept nogil:
    """m and factor from the caller's lse: p = exp2(s - lse) needs no first sweep."""
    cdef int i
    for i in range(t.queries):
        s.lse[i] = get(p, to.given, s.index[i])
        put(p, s.m, i, s.lse[i] / LN_2)
        put(p, s.factor, i, 0 if s.lse[i] == -INFINITY else 1)


cdef void summarise_tile(Job *job, Scratch *s, const Tile *t, int worker, double *mass) noexcept nogil:
    cdef const Problem *p = <const Problem *>job.problem
    cdef const Summary *to = <const Summary *>job.extra
    cdef int[QKVC_MAX_VECS] depth
    cdef Py_ssize_t row
    cdef double spread, rest
    cdef int64_t i, j
    cdef Block b
    pack_queries(p, s, t)
    if to.given:
        take_lse(p, s, t, to)
    else:
        find_sums(job, s, t, worker)
    for i in range(t.vecs * p.kernels.lanes):
        if i >= t.queries:  # lanes that repeat the last query weigh nothing
            put(p, s.factor, i, 0)
            put(p, s.m, i, get(p, s.m, t.queries - 1))
        put(p, s.spread, i, 0)
        put(p, s.distance, i, 0)
        put(p, s.most, i, -INFINITY)
    for i in range(t.block, t.blocks):
        if interrupted(job, worker):
            return
        if not look(p, s, t, i, depth, &b):
            continue
        score(p, s, t, depth, &b)
        for j in range(t.vecs * p.kernels.lanes):
            put(p, s.position, j, <double>(s.place[j] - b.first))
        p.kernels.summarise(s.S, s.m, s.factor, s.position, depth, t.vecs, s.spread, s.distance, s.most, s.mass)
        for j in range(b.keys):
            mass[b.first + j] += get(p, s.mass, j)
        if to.top_k:
            keep_largest(p, s, t, depth, &b, to)
    for i in range(t.queries):
        row = s.index[i]
        spread, rest = get(p, s.spread, i), s.lse[i] - get(p, s.m, i) * LN_2  # -ln p = (m - s) ln 2 + (lse - m ln 2)
        put(p, to.lse, row, s.lse[i])
        put(p, to.most, row, spread if spread != spread else get(p, s.most, i) * LN_2)  # a maximum forgets NaN, a sum does not
        put(p, to.distance, row, get(p, s.distance, i))
        if get(p, s.l, i) == 0 and not to.given:
            put(p, to.entropy, row, get(p, s.factor, i))  # 0, or NaN
        else:
            put(p, to.entropy, row, spread * LN_2 + (rest * get(p, s.l, i) * get(p, s.factor, i) if not to.given else 0))
        for j in range(to.top_k):
            weigh_top(p, s, i, to, row * to.top_k + j)


cdef extern from "math.h" nogil:
    double exp(double x)


cdef void weigh_top(const Problem *p, Scratch *s, Py_ssize_t lane, const Summary *to, Py_ssize_t at) noexcept nogil:
    """A listed score becomes its weight."""
    if to.top_keys[at] < 0:
        put(p, to.top_weights, at, 0)
    else:
        put(p, to.top_weights, at, exp(get(p, to.top_weights, at) * LN_2 - s.lse[lane]))


cdef void summarise_stripe(void *context, Py_ssize_t task, int worker) noexcept nogil:
    """One task of the pool: a quarter of a head's tiles, in order, because key_mass adds over them."""
    cdef Job *job = <Job *>context
    cdef const Problem *p = <const Problem *>job.problem
    cdef const Summary *to = <const Summary *>job.extra
    cdef Scratch *s = scratch_of(job, worker)
    cdef Py_ssize_t head = task // STRIPES, stripe = task % STRIPES, i
    cdef uint64_t environment = qkvc_fp_enter()
    cdef Tile t
    for i in range(p.tiles * stripe // STRIPES, p.tiles * (stripe + 1) // STRIPES):
        if not job.cancelled:
            t = lay_out(p, s, head * p.tiles + i)
            summarise_tile(job, s, &t, worker, to.mass + task * p.Lk)
    qkvc_fp_leave(environment)


def statistics(query, key, mask, bias, causal, q_offset, window, key_lengths, alibi_slopes, sinks, softcap, scale, layout, lse,
               Py_ssize_t top_k, num_threads):
    """(lse, max_score, entropy, distance, key_mass, top_keys, top_weights), the last two None for top_k = 0."""
    cdef Plan plan = make_plan(query, key, None, mask, bias, causal, q_offset, window, key_lengths, alibi_slopes, sinks, softcap, scale,
                               None, layout, None, False, num_threads)
    cdef Problem *p = &plan.problem
    cdef Summary to
    # A tile's lanes hold one head, so that the lanes' sums are that head's; and the tiles do not depend on the threads.
    p.share, p.kv_heads, p.group = p.group, p.heads, 1
    cut(p, num_threads)
    p.tiles = (p.vectors + p.kernels.vecs - 1) // p.kernels.vecs
    rows = (*plan.batch_shape(), p.heads, p.Lq)
    flat = query_is_flat(query, key)
    given = None
    if lse is not None:
        given = np.ascontiguousarray(as_real("lse", lse, "attention_stats"), plan.dtype)
        if given.shape != (rows[1:] if flat else rows):
            raise ValueError(bad("lse", f"shape {rows[1:] if flat else rows}", shape_text(given), "attention_stats"))
    results = [np.zeros(rows, plan.dtype) for _ in range(4)]
    results[0].fill(-np.inf)
    results[1].fill(-np.inf)
    mass = np.zeros((*plan.batch_shape(), p.heads, STRIPES, p.Lk))
    top_keys = np.full((*rows, top_k), -1, np.int64)
    top_weights = np.full((*rows, top_k), -np.inf if p.Lk else 0, plan.dtype)
    to.given = data_of(given) if given is not None else NULL
    to.lse, to.most, to.entropy, to.distance = data_of(results[0]), data_of(results[1]), data_of(results[2]), data_of(results[3])
    to.mass = <double *>data_of(mass)
    to.top_k, to.top_keys, to.top_weights = top_k, <int64_t *>data_of(top_keys), data_of(top_weights)
    if results[0].size:
        sweep(plan, summarise_stripe, p.batch * p.heads * STRIPES, &to)
    results.append(mass.sum(axis=-2).astype(plan.dtype))
    results += [top_keys, top_weights] if top_k else [None, None]
    return [x[0] if flat and x is not None else x for x in results]
