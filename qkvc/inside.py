"""A look inside attention: scores, weights, and statistics of the weights without an L_q x L_k matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from qkvc._coerce import as_operands, bad
from qkvc._inside import score_matrix, statistics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from qkvc.functional import Causal, Layout, Window

    Stage = Literal["raw", "softcap", "bias", "softmax"]

STAGES: tuple[Stage, ...] = ("raw", "softcap", "bias", "softmax")


class AttentionStats(NamedTuple):
    """What `attention_stats` returns."""

    lse: NDArray[Any]
    max_score: NDArray[Any]
    entropy: NDArray[Any]
    distance: NDArray[Any]
    key_mass: NDArray[Any]
    top_keys: NDArray[np.int64] | None
    top_weights: NDArray[Any] | None


def attention_scores(
    query: ArrayLike,
    key: ArrayLike,
    *,
    stage: Stage = "raw",
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    causal: Causal = False,
    q_offset: ArrayLike | None = None,
    window: Window | None = None,
    key_lengths: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    layout: Layout = "bhld",
    num_threads: int | None = None,
) -> NDArray[Any]:
    """Every score of every query, at one of the four stages on its way to a weight.

    Parameters
    ----------
    query, key : array_like
        As of `attention`; so are all options, and what it raises.
    stage : {"raw", "softcap", "bias", "softmax"}, default "raw"
        "raw" is scale * q . k of every pair, masked or not; "softcap" the same after `softcap`; "bias" after ALiBi and bias too, -inf
        where masked; "softmax" the weights, as from `attention_weights`.  ONNX's `qk_matmul_output_mode` offers these four.

    Returns
    -------
    ndarray, shape (..., H_q, L_q, L_k) in every layout; (L_q, L_k) where both inputs have two axes
        In the dtype of the result of `attention`.

    Raises
    ------
    ValueError
        Another stage, and as from `attention`.
    TypeError
        As from `attention`.
    """
    if stage not in STAGES:
        raise ValueError(bad("stage", '"raw", "softcap", "bias" or "softmax"', repr(stage), "attention_scores"))
    options = (mask, bias, causal, q_offset, window, key_lengths, alibi_slopes, sinks, softcap, scale, layout, num_threads)
    return score_matrix(query, key, stage, *options)


def attention_weights(
    query: ArrayLike,
    key: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    causal: Causal = False,
    q_offset: ArrayLike | None = None,
    window: Window | None = None,
    key_lengths: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    rng: np.random.Generator | int | None = None,
    layout: Layout = "bhld",
    heads: Sequence[int] | None = None,
    queries: Sequence[int] | None = None,
    num_threads: int | None = None,
) -> NDArray[Any]:
    """How much each query takes of each key: softmax(scale * Q K^T + bias), written out.

    Parameters
    ----------
    query, key : array_like
        As of `attention`; so are the options, and what it raises.
    heads, queries : sequence of int, optional
        Only these, in this order; negative numbers count from the end.  The others are not computed.  With `dropout_p`, whose numbers go by
        the head, heads are all.

    Returns
    -------
    ndarray, shape (..., H_q, L_q, L_k) in every layout, H_q and L_q as chosen; (L_q, L_k) where both inputs have two axes
        Rows sum to 1 (with `sinks` to what the sink leaves), or to 0 where a query may attend to nothing; before
        `dropout_p`.

    Raises
    ------
    ValueError
        A head or query that does not exist, and as from `attention`.
    TypeError
        As from `attention`.
    """
    chosen = rows_in_all = back = None
    q: Any = query
    k: Any = key
    if heads is not None and dropout_p:
        raise ValueError(bad("heads", "None beside dropout_p", "a selection", "attention_weights"))
    if heads is not None or queries is not None:
        q, k, _, _ = as_operands(q, k, None)
        axis = {"bhld": (-3, -2), "blhd": (-2, -3)}.get(layout, (-3, -2))
        if heads is not None:
            q, k, per_head, dense = _choose_heads(q, k, axis[0], heads, (alibi_slopes, sinks), (mask, bias))
            (alibi_slopes, sinks), (mask, bias) = per_head, dense
        if queries is not None and q.ndim >= 2:
            rows = axis[1] if q.ndim > 2 else -2
            rows_in_all = q.shape[rows]
            wanted = _indices("queries", queries, rows_in_all)
            chosen, back = np.unique(wanted, return_inverse=True)  # ascending, as the tiles want them
            q = q.take(chosen, axis=rows)
            mask, bias = (_take(x, chosen, -2) for x in (mask, bias))
    options = (mask, bias, causal, q_offset, window, key_lengths, alibi_slopes, sinks, softcap, scale, layout, num_threads)
    weights = score_matrix(q, k, "softmax", *options, chosen, rows_in_all, dropout_p, rng)
    return weights if back is None else weights.take(back.reshape(-1), axis=-2)


def _indices(name: str, x: Any, count: int) -> NDArray[np.int64]:
    """Indices from 0, checked."""
    array = np.asarray(x)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TypeError(bad(name, "a sequence of integers", f"{array.dtype} of shape {array.shape}", "attention_weights"))
    wrong = array[(array < -count) | (array >= count)]
    if wrong.size:
        raise ValueError(bad(name, f"indices into {count}", str(wrong[0]), "attention_weights"))
    return np.where(array < 0, array + count, array).astype(np.int64)


def _take(x: Any, indices: NDArray[np.int64], axis: int) -> Any:
    """Part of what broadcasts along `axis`: all of it where that axis is missing or 1."""
    if x is None or np.ndim(x) < -axis or np.shape(x)[axis] == 1:
        return x
    return np.take(x, indices, axis=axis)


def _choose_heads(
    query: NDArray[Any], key: NDArray[Any], axis: int, heads: Any, per_head: tuple[Any, ...], dense: tuple[Any, ...]
) -> tuple[Any, Any, list[Any], list[Any]]:
    """Query and key, and what belongs to them, of some heads; each then has a key head of its own."""
    count = query.shape[axis] if query.ndim > 2 else 1
    wanted = _indices("heads", heads, count)
    if query.ndim < 3:
        raise ValueError(bad("heads", "None where the query has no heads axis", "a selection", "attention_weights"))
    if key.ndim > 2:
        if not key.shape[axis] or count % key.shape[axis]:
            raise ValueError(bad("query", f"a number of heads that the key's {key.shape[axis]} divide", f"{count} heads"))
        key = key.take(wanted // (count // key.shape[axis]), axis=axis)
    query = query.take(wanted, axis=axis)
    return query, key, [_take(x, wanted, -1) for x in per_head], [_take(x, wanted, -3) for x in dense]


def attention_stats(
    query: ArrayLike,
    key: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    causal: Causal = False,
    q_offset: ArrayLike | None = None,
    window: Window | None = None,
    key_lengths: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    layout: Layout = "bhld",
    lse: ArrayLike | None = None,
    top_k: int = 0,
    num_threads: int | None = None,
) -> AttentionStats:
    """What the weights p look like, without writing them down.

    Parameters
    ----------
    query, key : array_like
        As of `attention`; so are the options, and what it raises.
    lse : array_like, shape (..., H_q, L_q) in every layout, optional
        From `attention_with_lse` of the same arrays and options: one sweep over the scores instead of two.
    top_k : int, default 0
        How many of the heaviest keys to name per query.

    Returns
    -------
    lse : ndarray, shape (..., H_q, L_q)
        ln sum exp(scores).
    max_score : ndarray, shape (..., H_q, L_q)
        The largest score, -inf where nothing is allowed.
    entropy : ndarray, shape (..., H_q, L_q)
        -sum p ln p over the keys, 0 (one key) to ln L_k (all alike).
    distance : ndarray, shape (..., H_q, L_q)
        sum p abs(position - j), in keys; position i of row i unless `causal` or `q_offset` says another.
    key_mass : ndarray, shape (..., H_q, L_k)
        sum of p over the queries: what each key is given in all.
    top_keys : ndarray of int64, shape (..., H_q, L_q, top_k), or None
        Keys of the largest weights, descending, of equals the lower first; -1 where fewer are allowed.
    top_weights : ndarray, shape (..., H_q, L_q, top_k), or None
        Their weights, 0 for -1.
    The first axes are missing where both inputs have two axes.

    Raises
    ------
    ValueError
        An lse of another shape, a negative top_k, and as from `attention`.
    TypeError
        As from `attention`.

    Notes
    -----
    Memory: O(L_q + L_k) per head, 32 bytes a key.  Statistics of parts of the keys: lse and max_score merge exactly (logaddexp, maximum);
    entropy, distance and key_mass are sums of p and merge after each part is weighed by exp(lse_part - lse), entropy with (lse - lse_part)
    added, to rounding.  `key_mass` of queries in parts adds up to rounding.
    """
    if isinstance(top_k, bool) or not hasattr(top_k, "__index__"):
        raise TypeError(bad("top_k", "an integer of 0 or more", type(top_k).__name__, "attention_stats"))
    if top_k < 0:
        raise ValueError(bad("top_k", "an integer of 0 or more", str(top_k), "attention_stats"))
    options = (mask, bias, causal, q_offset, window, key_lengths, alibi_slopes, sinks, softcap, scale, layout)
    return AttentionStats(*statistics(query, key, *options, lse, top_k, num_threads))


__all__ = ["AttentionStats", "attention_scores", "attention_stats", "attention_weights"]
