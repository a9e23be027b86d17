"""Attention in float64, written to be read: no tiles, no running maximum, masks select.  The oracle of every other test.

`reference` says what the result is, `naive32` what float32 NumPy makes of it (the yardstick of the accuracy promise), and `certificate`
how far any element may be from the truth when every rounding of the arithmetic contract goes wrong at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

UNIT = 2.0**-24  # unit roundoff of float32
BLOCK = 128  # keys per block of the arithmetic contract: the length of the chains in `certificate`


class Reference(NamedTuple):
    out: NDArray[Any]
    lse: NDArray[Any]


class Problem(NamedTuple):
    """One call with everything broadcast: query (..., H, L_q, D), key and value (..., H, L_k, ...), allowed (..., H, L_q, L_k)."""

    query: NDArray[Any]
    key: NDArray[Any]
    value: NDArray[Any]
    bias: NDArray[Any]
    allowed: NDArray[np.bool_]
    scale: float
    flat: bool
    layout: str

    def shaped(self, out: NDArray[Any], lse: NDArray[Any]) -> Reference:
        """Back to the caller's layout and rank."""
        if self.flat:
            return Reference(out[0], lse[0])
        return Reference(out.swapaxes(-2, -3) if self.layout == "blhd" else out, lse)


def _by_head(x: ArrayLike, layout: str) -> NDArray[Any]:
    array = np.asarray(x)
    if array.ndim == 2:
        return array[np.newaxis]
    return array.swapaxes(-2, -3) if layout == "blhd" else array


def problem(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    causal: bool | str = False,
    q_offset: ArrayLike | None = None,
    key_lengths: ArrayLike | None = None,
    scale: float | None = None,
    layout: str = "bhld",
    dtype: type = np.float64,
) -> Problem:
    q, k, v = (_by_head(x, layout).astype(dtype) for x in (query, key, value))
    (heads, l_q, d), (kv_heads, l_k) = q.shape[-3:], k.shape[-3:-1]
    batch = np.broadcast_shapes(q.shape[:-3], k.shape[:-3], v.shape[:-3])
    of_head = np.arange(heads) // (heads // kv_heads) if heads else np.zeros(0, dtype=int)
    k, v = k[..., of_head, :, :], v[..., of_head, :, :]

    i, j = np.arange(l_q)[:, np.newaxis], np.arange(l_k)
    per_item = (..., np.newaxis, np.newaxis, np.newaxis)
    lengths = np.broadcast_to(l_k if key_lengths is None else key_lengths, batch)[per_item]
    allowed = np.broadcast_to(j < lengths, (*batch, heads, l_q, l_k)).copy()
    if causal is not False:
        if q_offset is not None:
            offset = np.broadcast_to(q_offset, batch)[per_item]
        else:
            offset = lengths - l_q if causal == "bottom-right" else np.int64(0)
        allowed &= j <= i + offset
    if mask is not None:
        allowed &= np.asarray(mask)
    addend = np.zeros((), dtype=dtype) if bias is None else np.asarray(bias).astype(dtype)
    allowed &= ~np.isneginf(addend)

    scale = (1 / np.sqrt(d) if d else 1.0) if scale is None else scale
    flat = all(np.ndim(x) == 2 for x in (query, key, value))
    return Problem(q, k, v, addend, allowed, scale, flat, layout)


def _weights(p: Problem, scores: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Softmax over the allowed keys and its log-sum-exp; a row that may attend to nothing has weights 0 and -inf."""
    some = p.allowed.any(-1, keepdims=True)
    s = np.where(p.allowed, scores + p.bias, -np.inf).astype(scores.dtype)
    m = np.where(some, s.max(-1, keepdims=True, initial=-np.inf), 0).astype(scores.dtype)
    e = np.where(p.allowed, np.exp(s - m), 0).astype(scores.dtype)
    total = e.sum(-1, keepdims=True)
    return np.where(some, e / total, 0).astype(scores.dtype), (m + np.log(total))[..., 0]


def _weighted_sum(p: Problem, weights: NDArray[Any]) -> NDArray[Any]:
    if np.isfinite(p.value).all():
        return weights @ p.value
    # 0 * NaN is NaN, so what is not allowed must not even be multiplied.
    terms = weights[..., np.newaxis] * p.value[..., np.newaxis, :, :]
    return np.where(p.allowed[..., np.newaxis], terms, 0).sum(-2)


def reference(query: ArrayLike, key: ArrayLike, value: ArrayLike, **options: Any) -> Reference:
    """What `qkvc.attention_with_lse` has to return, in float64."""
    p = problem(query, key, value, **options)
    with np.errstate(all="ignore"):
        weights, lse = _weights(p, p.scale * (p.query @ p.key.swapaxes(-1, -2)))
        return p.shaped(_weighted_sum(p, weights), lse)


def naive32(query: ArrayLike, key: ArrayLike, value: ArrayLike, **options: Any) -> NDArray[np.float32]:
    """The textbook formula in float32 NumPy, in exactly this order of operations: the yardstick of the accuracy promise."""
    p = problem(query, key, value, dtype=np.float32, **options)
    with np.errstate(all="ignore"):
        weights, lse = _weights(p, (p.query * np.float32(p.scale)) @ p.key.swapaxes(-1, -2))
        return p.shaped(weights @ p.value, lse).out


def _gamma(n: int) -> float:
    return n * UNIT / (1 - n * UNIT)


def certificate(query: ArrayLike, key: ArrayLike, value: ArrayLike, **options: Any) -> NDArray[Any]:
    """Largest possible error of each element of `out` for finite inputs, first order in u, with 1 % for the rest.

    A score is a chain of D roundings over the scaled query, and a bias is one more product and sum.  A weight then errs by what its own
    score and the row's largest score err, by the rounding of their difference, by 1 ULP of exp2 and by the cut at 2**-126.  A value sum
    is one chain per block and one merge per block.
    """
    p = problem(query, key, value, **options)
    l_k, d = p.key.shape[-2:]
    s = p.scale * (p.query @ p.key.swapaxes(-1, -2))
    with np.errstate(all="ignore"):
        weights, _ = _weights(p, s)
    s = np.where(p.allowed, s + p.bias, -np.inf)
    m = np.where(p.allowed.any(-1, keepdims=True), s.max(-1, keepdims=True, initial=-np.inf), 0)
    bias = np.where(p.allowed, np.abs(p.bias), 0)
    e = _gamma(d + 2) * abs(p.scale) * (np.abs(p.query) @ np.abs(p.key).swapaxes(-1, -2)) + _gamma(3) * bias
    e_max = np.where(p.allowed, e, 0).max(-1, keepdims=True, initial=0)
    theta = e + e_max + UNIT * np.where(p.allowed, np.abs(s - m), 0) + 3 * UNIT

    size = np.abs(p.value)
    out = np.abs(weights @ p.value)
    chains = _gamma(min(l_k, BLOCK) + -(-l_k // BLOCK) + 8)
    weighted = weights * theta
    bound = weighted @ size + out * weighted.sum(-1, keepdims=True) + chains * (weights @ size + out)
    bound += 2.0**-126 * (p.allowed @ size + out)
    return 1.01 * p.shaped(bound, s).out
