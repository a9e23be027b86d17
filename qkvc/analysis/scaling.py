"""What a score is made of, how its spread grows with the width of a head, and what the softmax makes of that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import sqrt
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qkvc._coerce import as_count, as_finite, as_operands, as_real, bad
from qkvc.analysis._mass import entropy_of
from qkvc.functional import softmax
from qkvc.inside import attention_scores

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


class ScoreVariance(NamedTuple):
    """What `score_variance` returns."""

    dims: NDArray[np.int64]
    raw: NDArray[np.float64]
    scaled: NDArray[np.float64]


class Sharpness(NamedTuple):
    """What `sharpness` returns."""

    scales: NDArray[np.float64]
    weights: NDArray[np.float64]
    entropy: NDArray[np.float64]
    largest: NDArray[np.float64]


class LengthDirection(NamedTuple):
    """What `length_and_direction` returns."""

    query_length: NDArray[np.float64]
    key_length: NDArray[np.float64]
    cosine: NDArray[np.float64]
    by_direction: NDArray[np.float64]


def score_variance(
    dims: Sequence[int] = (4, 8, 16, 32, 64, 128, 256, 512), *, queries: int = 512, keys: int = 512, seed: int = 0
) -> ScoreVariance:
    """The variance of q . k and of q . k / sqrt(d_k) for random q and k, against their width d_k.

    Entries are independent, of mean 0 and variance 1, so that q . k is a sum of d_k terms of variance 1: its variance is d_k, and 1 after
    the scaling, in expectation (Vaswani et al. 2017, footnote 4).  What is measured is off by some sqrt((2 / queries + 2 / keys) / d_k)
    of that, because rows share a query and columns a key: 4 % at d_k = 4.

    Parameters
    ----------
    dims : sequence of int
        The widths d_k.
    queries, keys : int, default 512
        How many; all pairs are scored.
    seed : int, default 0

    Returns
    -------
    dims : ndarray of int64, shape (n,)
    raw, scaled : ndarray of float64, shape (n,)
        The variance of all scores, without the scale and with it.

    Raises
    ------
    ValueError, TypeError
        Sizes that are no counts.
    """
    who = "score_variance"
    if not isinstance(dims, Iterable):
        raise TypeError(bad("dims", "a sequence of integers", type(dims).__name__, who))
    widths = [as_count("dims", dim, who) for dim in dims]
    rows, columns = as_count("queries", queries, who), as_count("keys", keys, who)
    measured = []
    for width in widths:
        rng = np.random.default_rng((as_count("seed", seed, who, 0), width))
        query, key = rng.standard_normal((rows, width)), rng.standard_normal((columns, width))
        measured.append([attention_scores(query, key, scale=scale).var() for scale in (1.0, 1 / sqrt(width))])
    raw, scaled = np.reshape(measured, (-1, 2)).T
    return ScoreVariance(np.array(widths, np.int64), raw, scaled)


def sharpness(scores: ArrayLike, scales: ArrayLike) -> Sharpness:
    """How sharp softmax(scale * scores) is, for any number of scales (1 / temperature).

    Parameters
    ----------
    scores : array_like, shape (..., L_k)
        -inf for a key that is masked.
    scales : array_like, shape (n,)
        Finite.  At 0 all weights are alike; as it grows, the weight goes to the largest score; below 0, to the smallest.

    Returns
    -------
    scales : ndarray of float64, shape (n,)
    weights : ndarray of float64, shape (n, ..., L_k)
    entropy : ndarray of float64, shape (n, ...)
        -sum p ln p, from 0 to ln L_k; it falls as the scale moves away from 0.
    largest : ndarray of float64, shape (n, ...)
        From 1 / L_k to 1.

    Raises
    ------
    ValueError
        No scores; a NaN or +inf among them, a row of -inf alone; scales that are not finite or have no axis of their own.
    TypeError
        Numbers that are not real.
    """
    s, by = as_real("scores", scores, "sharpness").astype(np.float64), as_real("scales", scales, "sharpness").astype(np.float64)
    if s.ndim < 1 or not s.shape[-1]:
        raise ValueError(bad("scores", "shape (..., L_k), of one key or more", f"shape {s.shape}", "sharpness"))
    if by.ndim != 1 or not np.isfinite(by).all():
        got = f"shape {by.shape}" if by.ndim != 1 else "others among them"
        raise ValueError(bad("scales", "finite numbers, shape (n,)", got, "sharpness"))
    if np.isnan(s).any() or np.isposinf(s).any() or np.isneginf(s).all(-1).any():
        raise ValueError(bad("scores", "finite numbers, or -inf for some of a row", "others among them", "sharpness"))
    allowed = ~np.isneginf(s)
    with np.errstate(over="ignore"):
        scaled = by.reshape(-1, *(1,) * s.ndim) * np.where(allowed, s, 0)
    if not np.isfinite(scaled).all():
        raise ValueError(bad("scales", "numbers whose products with the scores are within float64", f"{np.abs(by).max():g}", "sharpness"))
    p = softmax(np.where(allowed, scaled, -np.inf), axis=-1)
    return Sharpness(by, p, entropy_of(p), p.max(-1))


def length_and_direction(query: ArrayLike, key: ArrayLike, *, scale: float | None = None) -> LengthDirection:
    """Take scores apart: scale * q . k = scale * length(q) * length(k) * cos(q, k).

    The length of a query makes its softmax sharper or flatter and moves no key before another; which key wins is a matter of the keys'
    directions, as seen from the query, and of their lengths.

    Parameters
    ----------
    query : array_like, shape (..., H, L_q, D) or (L_q, D)
        As of `attention`.
    key : array_like, shape (..., H_kv, L_k, D) or (L_k, D)
        As of `attention`; H_kv divides H.
    scale : float, optional
        Default ``1 / sqrt(D)``; in `query_length`.

    Returns
    -------
    query_length : ndarray of float64, shape (..., H, L_q)
        Of q, times abs(scale).
    key_length : ndarray of float64, shape (..., H_kv, L_k)
        Of k.
    cosine : ndarray of float64, shape (..., H, L_q, L_k)
        From -1 to 1, with the sign of the scale; 0 where either is 0.  query_length * key_length * cosine are the scores.
    by_direction : ndarray of float64, shape (..., H, L_q)
        The squared correlation, over a query's keys, of its scores with its cosines: the share of the scores' variance for which the keys'
        lengths are not needed, 0 to 1.  NaN where either does not vary.

    Raises
    ------
    ValueError, TypeError
        As from `attention`.
    """
    q, k = (np.asarray(x, np.float64) for x in as_operands(query, key, None)[:2])
    scores = attention_scores(q, k, scale=1.0)
    by: Any = (1 / sqrt(q.shape[-1]) if q.shape[-1] else 1.0) if scale is None else as_finite("scale", scale, "length_and_direction")
    query_length, key_length = (np.linalg.norm(x, axis=-1) for x in (q, k))
    grouped = key_length if k.ndim == 2 else np.repeat(key_length, scores.shape[-3] // max(k.shape[-3], 1), axis=-2)
    lengths = query_length[..., :, np.newaxis] * grouped[..., np.newaxis, :]
    lengths = np.broadcast_to(lengths, scores.shape)
    cosine = np.divide(scores, lengths, out=np.zeros_like(scores), where=lengths > 0)
    cosine = np.clip(cosine, -1, 1) * (np.sign(by) if by else 1.0)
    spread = [x - x.sum(-1, keepdims=True) / max(x.shape[-1], 1) for x in (scores, cosine)]
    with np.errstate(invalid="ignore", divide="ignore"):
        together = np.square((spread[0] * spread[1]).sum(-1)) / (np.square(spread[0]).sum(-1) * np.square(spread[1]).sum(-1))
    return LengthDirection(abs(by) * query_length, key_length, cosine, np.minimum(together, 1))
