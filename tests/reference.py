"""Attention in float64, written to be read: no tiles, no running maximum, masks select.  The oracle of every other test.

`reference` says what the result is, `naive32` what float32 NumPy makes of it (the yardstick of the accuracy promise), and `certificate`
how far any element may be from the truth when every rounding of the arithmetic contract goes wrong at once.  Results in float64 are
compared with the same formulas in long double: `exact_for` says which.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .philox import numbers

UNIT = 2.0**-24  # unit roundoff of float32
PAIRS = 2.0**-8 + 1.02e-4  # what bfloat16 kernels lose of a weight: its rounding, and their short exp2
BLOCK = 128  # keys per block of the arithmetic contract: the length of the chains in `certificate`

Array = NDArray[Any]


class Reference(NamedTuple):
    out: Array
    lse: Array


class Stats(NamedTuple):
    """Without the top keys: where scores nearly tie, which key is one of them is a matter of rounding, and the tests judge the choice."""

    lse: Array
    max_score: Array
    entropy: Array
    distance: Array
    key_mass: Array


class Problem(NamedTuple):
    """One call with everything broadcast: query (..., H, L_q, D), key and value (..., H, L_k, ...), allowed (..., H, L_q, L_k)."""

    query: Array
    key: Array
    value: Array
    bias: Array
    allowed: NDArray[np.bool_]
    away: Array  # |position - j|
    slopes: Array
    sinks: Array
    head_scale: Array
    keep: Array  # what dropout multiplies weights by
    softcap: float | None
    scale: float
    flat: bool
    layout: str

    def shaped(self, out: Array, lse: Array) -> Reference:
        """Back to the caller's layout and rank."""
        return Reference(self.ranked(out if self.flat or self.layout == "bhld" else out.swapaxes(-2, -3)), self.ranked(lse))

    def ranked(self, x: Array) -> Array:
        """(L, D) is one head, and its results have no axis for it."""
        return x[0] if self.flat else x


def result_type(*operands: ArrayLike) -> np.dtype[Any]:
    """NumPy's promotion, where integers and bools count as float64, and two kinds of 16 bits meet in float32."""
    dtypes = {np.dtype(np.float64) if x.kind in "iub" else x.newbyteorder("=") if x.kind == "f" else x
              for x in (np.asarray(x).dtype for x in operands)}  # fmt: skip
    if np.dtype(np.float64) in dtypes:
        return np.dtype(np.float64)
    return dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)


def lse_type(*operands: ArrayLike) -> np.dtype[Any]:
    """Of `lse`, and of everything that looks inside: what is computed in."""
    return np.dtype(np.float64 if result_type(*operands) == np.float64 else np.float32)


def exact_for(*operands: ArrayLike) -> DTypeLike:
    """What to compute in for operands like these, so that the oracle's own error does not count."""
    return np.longdouble if result_type(*operands) == np.float64 else np.float64


def unit_of(dtype: DTypeLike) -> float:
    return 2.0**-53 if np.dtype(dtype) == np.float64 else UNIT


def shortening(dtype: DTypeLike, out: Array) -> Array:
    """By how much a result is moved when it is rounded to 16 bits: half a unit in the last place, or of the smallest denormal."""
    bits, smallest = {"float16": (11, 2.0**-24), "bfloat16": (8, 2.0**-133)}.get(np.dtype(dtype).name, (np.inf, 0.0))
    return np.maximum(2.0**-bits * np.abs(np.asarray(out, np.float64)), smallest / 2)


def _by_head(x: ArrayLike, layout: str) -> Array:
    array = np.asarray(x)
    if array.ndim == 2:
        return array[np.newaxis]
    return array.swapaxes(-2, -3) if layout == "blhd" else array


def problem(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike | None = None,
    *,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    causal: bool | str = False,
    q_offset: ArrayLike | None = None,
    window: tuple[int, int] = (-1, -1),
    key_lengths: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    head_scale: ArrayLike | None = None,
    dropout_p: float = 0.0,
    rng: int = 0,
    layout: str = "bhld",
    dtype: DTypeLike = np.float64,
) -> Problem:
    operands = (query, key) if value is None else (query, key, value)
    arrays = [_by_head(x, layout).astype(dtype) for x in operands]
    q, k, v = arrays[0], arrays[1], arrays[-1]
    (heads, l_q, d), (kv_heads, l_k) = q.shape[-3:], k.shape[-3:-1]
    batch = np.broadcast_shapes(*(x.shape[:-3] for x in arrays))
    of_head = np.arange(heads) // (heads // kv_heads) if heads else np.zeros(0, dtype=int)
    k, v = k[..., of_head, :, :], v[..., of_head, :, :]

    j = np.arange(l_k)
    per_item = (..., np.newaxis, np.newaxis, np.newaxis)
    lengths = np.broadcast_to(l_k if key_lengths is None else key_lengths, batch)[per_item]
    if q_offset is not None:
        offset = np.broadcast_to(q_offset, batch)[per_item]
    else:
        offset = lengths - l_q if causal == "bottom-right" else np.int64(0)
    position = np.arange(l_q)[:, np.newaxis] + offset

    allowed = np.broadcast_to(j < lengths, (*batch, heads, l_q, l_k)).copy()
    if causal is not False:
        allowed &= j <= position
    left, right = window
    if left >= 0:
        allowed &= position - left <= j
    if right >= 0:
        allowed &= j <= position + right
    if mask is not None:
        allowed &= np.asarray(mask)
    addend = np.zeros((), dtype=dtype) if bias is None else np.asarray(bias).astype(dtype)
    allowed &= ~np.isneginf(addend)

    def per_head(x: ArrayLike | None, default: float) -> Array:
        return np.asarray(default if x is None else x).astype(dtype)[..., np.newaxis, np.newaxis]

    keep = np.ones((), dtype=dtype)
    if dropout_p:
        drawn = numbers(rng, int(np.prod(batch)), heads, l_q, l_k).reshape(allowed.shape)
        keep = (drawn >= np.floor(dropout_p * 2**32)).astype(dtype) / (1 - keep * dropout_p)
    scale = (1 / np.sqrt(d) if d else 1.0) if scale is None else scale
    flat = all(np.ndim(x) == 2 for x in operands)
    return Problem(
        q, k, v, addend, allowed, np.abs(position - j), per_head(alibi_slopes, 0), per_head(sinks, -np.inf), per_head(head_scale, 1),
        keep, softcap, scale, flat, layout,
    )  # fmt: skip


def _raw(p: Problem) -> Array:
    return p.query.dtype.type(p.scale) * (p.query @ p.key.swapaxes(-1, -2))


def _capped(p: Problem, raw: Array) -> Array:
    return raw if p.softcap is None else (p.softcap * np.tanh(raw / p.softcap)).astype(raw.dtype)


def _masked(p: Problem, capped: Array) -> Array:
    return np.where(p.allowed, capped - p.slopes * p.away.astype(capped.dtype) + p.bias, -np.inf).astype(capped.dtype)


def _weights(p: Problem, s: Array) -> tuple[Array, Array]:
    """Softmax over the allowed keys and the sink, and its log-sum-exp; without either, weights are 0 and the sum's logarithm is -inf."""
    some = p.allowed.any(-1, keepdims=True) | ~np.isneginf(p.sinks)
    m = np.where(some, np.maximum(s.max(-1, keepdims=True, initial=-np.inf), p.sinks), 0).astype(s.dtype)
    e = np.where(p.allowed, np.exp(s - m), 0).astype(s.dtype)
    total = e.sum(-1, keepdims=True) + np.exp(p.sinks - m)
    return np.where(some, e / total, 0).astype(s.dtype), (m + np.log(total))[..., 0]


def _weighted_sum(p: Problem, weights: Array) -> Array:
    if np.isfinite(p.value).all():
        return weights @ p.value
    # 0 * NaN is NaN, so what is not allowed must not even be multiplied.
    terms = weights[..., np.newaxis] * p.value[..., np.newaxis, :, :]
    return np.where(p.allowed[..., np.newaxis], terms, 0).sum(-2)


def reference(query: ArrayLike, key: ArrayLike, value: ArrayLike, **options: Any) -> Reference:
    """What `qkvc.attention_with_lse` has to return, in float64."""
    p = problem(query, key, value, **options)
    with np.errstate(all="ignore"):
        weights, lse = _weights(p, _masked(p, _capped(p, _raw(p))))
        return p.shaped(p.head_scale * _weighted_sum(p, weights * p.keep), lse)


def reference_scores(query: ArrayLike, key: ArrayLike, stage: str = "softmax", **options: Any) -> Array:
    """What `qkvc.attention_scores` has to return; its last stage is what `qkvc.attention_weights` returns."""
    p = problem(query, key, **options)
    with np.errstate(all="ignore"):
        stages = [_raw(p)]
        stages.append(_capped(p, stages[0]))
        stages.append(_masked(p, stages[1]))
        stages.append(_weights(p, stages[2])[0] * p.keep)
    chosen = stages[("raw", "softcap", "bias", "softmax").index(stage)]
    return p.ranked(np.broadcast_to(chosen, p.allowed.shape))


def reference_stats(query: ArrayLike, key: ArrayLike, *, lse: ArrayLike | None = None, **options: Any) -> Stats:
    """What `qkvc.attention_stats` has to return, without its top keys."""
    p = problem(query, key, **options)
    with np.errstate(all="ignore"):
        s = _masked(p, _capped(p, _raw(p)))
        weights, own = _weights(p, s)
        if lse is not None:
            own = np.asarray(lse).astype(s.dtype).reshape(own.shape)
            weights = np.where(p.allowed, np.exp(s - own[..., np.newaxis]), 0)
        entropy = -np.where(weights > 0, weights * np.log(weights), 0).sum(-1)
        stats = (own, s.max(-1, initial=-np.inf), entropy, (weights * p.away).sum(-1), weights.sum(-2))
    return Stats(*map(p.ranked, stats))


def reference_merge(outs: list[ArrayLike], lses: list[ArrayLike], layout: str = "bhld", dtype: DTypeLike = np.float64) -> Reference:
    """What `qkvc.merge_attention` has to return: the parts, weighted with their shares of the sum."""
    out, lse = (np.stack([np.asarray(x).astype(dtype) for x in parts]) for parts in (outs, lses))
    m = lse.max(0)
    m = np.where(np.isneginf(m), 0, m)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.exp(lse - m)
        total = share.sum(0)
        share = np.where(total > 0, share / total, 0)[..., np.newaxis]
        share = share.swapaxes(-2, -3) if layout == "blhd" and lse.ndim > 2 else share
        return Reference((share * out).sum(0), m + np.log(total))


class Gradients(NamedTuple):
    query: Array
    key: Array
    value: Array
    bias: Array
    sinks: Array
    head_importance: Array


def _like(x: Array, shape: tuple[int, ...]) -> Array:
    """Summed over the axes that something of this shape was broadcast along."""
    x = x.sum(tuple(range(x.ndim - len(shape))))
    return x.sum(tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)


def reference_backward(
    grad_out: ArrayLike, query: ArrayLike, key: ArrayLike, value: ArrayLike, *, grad_lse: ArrayLike | None = None, **options: Any
) -> Gradients:
    """What `qkvc.attention_backward` has to return: the chain rule, written out over the whole matrix; for finite operands."""
    p = problem(query, key, value, **options)
    raw = _raw(p)
    capped = _capped(p, raw)
    with np.errstate(all="ignore"):
        weights, lse = _weights(p, _masked(p, capped))
        taken = np.where(np.isneginf(p.sinks), 0, np.exp(p.sinks - lse[..., np.newaxis]))
    d_o = _by_head(grad_out, p.layout).astype(weights.dtype) * p.head_scale
    d_p = (d_o @ p.value.swapaxes(-1, -2)) * p.keep
    delta = (weights * d_p).sum(-1, keepdims=True)
    importance = np.abs(delta.sum((-1, -2)))
    if grad_lse is not None:
        delta = delta - np.where(np.isneginf(lse), 0, np.asarray(grad_lse).reshape(lse.shape)).astype(delta.dtype)[..., np.newaxis]
    d_s = weights * (d_p - delta)
    d_raw = d_s if p.softcap is None else (d_s * (1 - (capped / p.softcap) ** 2)).astype(d_s.dtype)
    scale = p.query.dtype.type(p.scale)
    per_head = (d_raw @ p.key * scale, d_raw.swapaxes(-1, -2) @ p.query * scale, (weights * p.keep).swapaxes(-1, -2) @ d_o)
    of_sinks = _like((-taken * delta).sum((-1, -2)), np.shape(options.get("sinks", 0)))
    return Gradients(*_of_operands(p, per_head, (query, key, value)), _like(d_s, p.bias.shape), of_sinks, importance)


def _of_operands(p: Problem, grads: tuple[Array, ...], operands: tuple[ArrayLike, ...]) -> list[Array]:
    """Of each query head, summed over the group and over broadcast axes."""
    folded = []
    for x, grad in zip(operands, grads, strict=True):
        shape = _by_head(x, p.layout).shape
        groups = (shape[-3], grad.shape[-3] // max(shape[-3], 1))
        own = _like(grad.reshape(*grad.shape[:-3], *groups, *grad.shape[-2:]).sum(-3), shape)
        folded.append(own.swapaxes(-2, -3) if p.layout == "blhd" and np.ndim(x) > 2 else own.reshape(np.shape(x)))
    return folded


def backward_certificate(
    grad_out: ArrayLike,
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    grad_lse: ArrayLike | None = None,
    unit: float = UNIT,
    weights_lose: float = 0,
    **options: Any,
) -> Gradients:
    """Largest possible error of each element of `reference_backward`, as `certificate` has it, before it is rounded to 16 bits.

    P errs as a weight does and by lse, dP by a chain of Dv, delta by that and by what out errs and lost if it has 16 bits; dS by all
    three, softcap's slope by twice what its score does.  Sums over keys and over queries are chains, at worst of all terms.
    """
    p, bounds = problem(query, key, value, **options), certificate(query, key, value, unit=unit, weights_lose=weights_lose, **options)

    def chain(n: int) -> float:
        return (n + 16) * unit

    def whole(x: Array) -> Array:
        return x[np.newaxis] if p.flat else x

    capped = _capped(p, _raw(p))
    with np.errstate(all="ignore"):
        weights, lse = _weights(p, _masked(p, capped))
    of_lse = np.where(np.isfinite(lse), whole(bounds.lse) + 8 * unit * (1 + np.abs(lse)), 0)[..., np.newaxis]
    rows, columns = np.abs(_by_head(grad_out, p.layout).astype(weights.dtype)), p.value.shape[-1]
    out = np.abs(p.head_scale * (weights * p.keep @ p.value))
    of_out = p.keep.max(initial=1) * _by_head(bounds.out, p.layout) + shortening(result_type(query, key, value), out)
    dropped = (rows * np.abs(p.head_scale) @ np.abs(p.value).swapaxes(-1, -2)) * p.keep
    more = np.abs(0 if grad_lse is None else np.asarray(grad_lse).reshape(lse.shape)[..., np.newaxis])
    delta, of_delta = (
        (rows * out).sum(-1, keepdims=True) + more,
        (rows * (of_out + chain(columns) * out)).sum(-1, keepdims=True) + unit * more,
    )
    of_weights = whole(bounds.weight) + weights * of_lse
    d_s = weights * (dropped + delta)
    of_d_s = of_weights * (dropped + delta) + weights * (chain(columns) * dropped + of_delta) + 4 * unit * d_s
    d_raw, of_raw = d_s, of_d_s
    if p.softcap is not None:
        of_raw = of_d_s * (1 - (capped / p.softcap) ** 2) + d_s * np.minimum(1, 2 * whole(bounds.score) / p.softcap + chain(0))
    scale, (l_q, l_k), group = abs(p.scale), weights.shape[-2:], weights.shape[-3] // max(1, _by_head(key, p.layout).shape[-3])
    of_all = p.keep * (of_weights + chain(l_q * group) * weights)
    per_head = (
        (of_raw + chain(l_k) * d_raw) @ np.abs(p.key) * scale,
        (of_raw + chain(l_q * group) * d_raw).swapaxes(-1, -2) @ np.abs(p.query) * scale,
        of_all.swapaxes(-1, -2) @ (rows * np.abs(p.head_scale)),
    )
    taken = np.where(np.isneginf(p.sinks), 0, np.exp(p.sinks - np.where(np.isfinite(lse), lse, 0)[..., np.newaxis]))
    of_sinks = taken * ((of_lse + 8 * unit * np.abs(np.where(taken, p.sinks, 0)) + chain(l_q)) * delta + of_delta)
    return Gradients(
        *_of_operands(p, per_head, (query, key, value)),
        _like(of_d_s + unit * d_s, p.bias.shape),
        _like(of_sinks.sum((-1, -2)), np.shape(options.get("sinks", 0))),
        (of_delta + chain(l_q) * delta).sum((-1, -2)),
    )


def naive32(query: ArrayLike, key: ArrayLike, value: ArrayLike, **options: Any) -> NDArray[np.float32]:
    """The textbook formula in float32 NumPy, in exactly this order of operations: the yardstick of the accuracy promise."""
    p = problem(query, key, value, dtype=np.float32, **options)
    with np.errstate(all="ignore"):
        raw = (p.query * np.float32(p.scale)) @ p.key.swapaxes(-1, -2)
        weights, lse = _weights(p, _masked(p, _capped(p, raw)))
        return p.shaped(p.head_scale * (weights @ p.value), lse).out


class Bounds(NamedTuple):
    """Largest possible error of each element: out and lse as the caller sees them, the score, the weight (..., H, L_q, L_k)."""

    out: Array
    lse: Array
    score: Array
    weight: Array


def certificate(
    query: ArrayLike, key: ArrayLike, value: ArrayLike | None = None, *, unit: float = UNIT, weights_lose: float = 0, **options: Any
) -> Bounds:
    """Largest possible error of each element for finite inputs and roundings of `unit`, first order in it, with 1 % for the rest.

    A score is a chain of D roundings over the scaled query; softcap, which never steepens an error, adds a dozen of its own size, ALiBi and
    bias three products and sums.  A weight then errs by what its own score and the row's largest score err, by the rounding of their
    difference, by 1 ULP of exp2 and by the cut at 2**-126 (float64: 2**-1022).  A value sum is one chain per block and one merge per block.
    A sink is one more score, of three roundings.  `weights_lose` is a rounding of the weights before they are summed.
    """
    p = problem(query, key, value, **options)

    def gamma(n: int) -> float:
        return n * unit / (1 - n * unit)

    tiny = 2.0**-126 if unit == UNIT else 2.0**-1022
    l_k, d = p.key.shape[-2:]
    raw = _raw(p)
    capped = _capped(p, raw)
    s = _masked(p, capped)
    with np.errstate(all="ignore"):
        weights, lse = _weights(p, s)
        sink_weight = np.where(np.isneginf(p.sinks), 0, np.exp(p.sinks - lse[..., np.newaxis]))
    sink = np.where(np.isneginf(p.sinks), 0, p.sinks)
    m = np.maximum(s.max(-1, keepdims=True, initial=-np.inf), p.sinks)
    m = np.where(np.isneginf(m), 0, m)

    addends = np.where(p.allowed, np.abs(p.slopes) * p.away + np.abs(p.bias), 0)
    e = gamma(d + 4) * abs(p.scale) * (np.abs(p.query) @ np.abs(p.key).swapaxes(-1, -2))
    if p.softcap is not None:
        e = np.minimum(e, 2 * p.softcap) + gamma(12) * np.abs(capped)
    e = e + np.where(addends > 0, gamma(4) * (np.abs(capped) + addends), 0)
    e_sink = gamma(3) * np.abs(sink)
    e_max = np.maximum(np.where(p.allowed, e, 0).max(-1, keepdims=True, initial=0), e_sink)
    theta = e + e_max + unit * np.where(p.allowed, np.abs(s - m), 0) + 3 * unit + weights_lose
    theta_sink = e_sink + e_max + unit * np.abs(sink - m) + 3 * unit

    size = np.abs(p.value)
    out = np.abs(weights @ p.value)
    chains = gamma(min(l_k, BLOCK) + -(-l_k // BLOCK) + 8)
    weighted = weights * theta
    total = weighted.sum(-1, keepdims=True) + sink_weight * theta_sink
    bound = weighted @ size + out * total + chains * (weights @ size + out)
    bound += tiny * (p.allowed @ size + out)
    bound = np.abs(p.head_scale) * (bound + gamma(2) * out)
    of_lse = (total + chains)[..., 0] + 2 * unit * np.where(np.isfinite(lse), np.abs(lse), 0)
    of_weight = weighted + weights * (total + 2 * chains) + tiny
    shaped = p.shaped(1.01 * bound, 1.01 * of_lse)
    return Bounds(*shaped, p.ranked(1.01 * np.broadcast_to(e, p.allowed.shape)), p.ranked(1.01 * of_weight))


def stats_certificate(query: ArrayLike, key: ArrayLike, *, unit: float = UNIT, **options: Any) -> Stats:
    """Largest possible error of each statistic: of its weights, of the logarithm in the entropy, and of one chain for each sum."""
    bounds, p = certificate(query, key, unit=unit, **options), problem(query, key, **options)
    weights = reference_scores(query, key, "softmax", **options)
    score = reference_scores(query, key, "bias", **options)
    top = score.max(-1, initial=-np.inf)
    top_error = np.where(np.isneginf(score), 0, bounds.score).max(-1, initial=0) + 4 * unit * np.where(np.isneginf(top), 0, np.abs(top))
    error = bounds.weight + weights * bounds.lse[..., np.newaxis]
    with np.errstate(divide="ignore"):
        surprise = np.where(weights > 0, -np.log(weights), 0)
    away = p.ranked(np.broadcast_to(p.away, p.allowed.shape))
    l_q, l_k = weights.shape[-2:]
    return Stats(
        bounds.lse,
        top_error,
        (2 * error * (1 + np.abs(surprise)) + (l_k + 8) * unit * weights * np.abs(surprise)).sum(-1),
        ((error + (l_k + 8) * unit * weights) * away).sum(-1),
        (error + (l_q + 8) * unit * weights).sum(-2),
    )
