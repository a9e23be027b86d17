"""Attention through layers: what of each input token arrives at each output token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qkvc._coerce import as_finite, bad, integers_within
from qkvc.analysis._mass import as_weights

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

MOST_WORK = 2e9  # edges of the graph times pairs of tokens, some 30 ns each: a minute
WHOLE = 1 << 30  # SciPy's flows are integers of 32 bits; no token passes on more than 1, which this stands for


def attention_rollout(weights: ArrayLike, *, residual: float = 0.5) -> NDArray[np.float64]:
    """Attention rollout: the weights of all layers multiplied, beside the residual connections.

    R_l = A_l R_(l-1), R_0 = 1, with A_l = residual * 1 + (1 - residual) * mean over heads of W_l, rows scaled to sum to 1 (Abnar & Zuidema
    2020, section 3).

    Parameters
    ----------
    weights : array_like, shape (layers, H, L, L)
        Of every layer, the first first.
    residual : float, default 0.5
        The share of a token that comes from itself, past attention; 0 for attention alone.

    Returns
    -------
    ndarray of float64, shape (layers, L, L)
        What of each input token (column) has arrived at each token (row) behind each layer.  Rows sum to 1.

    Raises
    ------
    ValueError
        Another shape, weights that are negative, not finite or sum to more than 1, a residual outside 0 to 1; a token that attends to
        nothing where the residual is 0.
    TypeError
        Weights that are no real numbers.

    Notes
    -----
    Rollout knows neither values nor feed-forward layers; `attention_flow` is the upper bound of what could pass.

    References
    ----------
    Abnar & Zuidema, "Quantifying attention flow in transformers" (2020).
    """
    layers = _layers(weights, residual, "attention_rollout")
    result = np.empty_like(layers)
    arrived = np.eye(layers.shape[-1])
    for number, layer in enumerate(layers):
        arrived = result[number] = layer @ arrived
    return result


def attention_flow(
    weights: ArrayLike, *, residual: float = 0.5, queries: Sequence[int] | None = None, keys: Sequence[int] | None = None
) -> NDArray[np.float64]:
    """Attention flow: the most that can pass from each input token to each token behind the last layer, if weights are what pipes hold.

    The maximum flow in the graph whose nodes are tokens after each layer, and whose edge from token i behind layer l to token j before it
    holds A_l[i, j], as of `attention_rollout` (Abnar & Zuidema 2020, section 3).

    Parameters
    ----------
    weights : array_like, shape (layers, H, L, L)
        Of every layer, the first first.
    residual : float, default 0.5
        As of `attention_rollout`.
    queries, keys : sequence of int, optional
        Only these output tokens, only these input tokens; default all.  Negative numbers count from the end.

    Returns
    -------
    ndarray of float64, shape (queries, keys)
        From 0 to 1.  Rows sum to 1 or more: every input token is asked for alone, and pipes are free each time.

    Raises
    ------
    ValueError
        As from `attention_rollout`; too large a graph, where layers * L^2 * queries * keys is beyond 2e9; a token that does not exist.
    TypeError
        As from `attention_rollout`.
    ImportError
        Without SciPy, whose `scipy.sparse.csgraph.maximum_flow` is called for each pair (`pip install qkvc[analysis]`).

    Notes
    -----
    Capacities are rounded to 2^-30; a flow is off by at most 2^-31 for each edge of the smallest cut, so by at most layers * L * 2^-31 in
    practice (of a few layers and tokens, 1e-7).

    References
    ----------
    Abnar & Zuidema, "Quantifying attention flow in transformers" (2020).
    """
    from scipy.sparse import csr_array, csr_matrix
    from scipy.sparse.csgraph import maximum_flow

    who = "attention_flow"
    layers = _layers(weights, residual, who)
    depth, length = layers.shape[:2]
    outputs, inputs = (_chosen(name, x, length, who) for name, x in (("queries", queries), ("keys", keys)))
    work = depth * length**2 * len(outputs) * len(inputs)
    if work > MOST_WORK:
        wanted = f"layers * L^2 * queries * keys up to {MOST_WORK:g} (choose some queries and keys)"
        raise ValueError(bad("weights", wanted, f"{work:.3g}", who))
    layer, i, j = np.nonzero(layers)
    held = np.rint(layers[layer, i, j] * WHOLE).astype(np.int32)
    nodes = (depth + 1) * length
    rows, columns = (layer + 1) * length + i, layer * length + j
    # The matrix class, not the array: SciPy 1.11's maximum_flow knows csr_matrix alone.
    graph: Any = csr_matrix(csr_array((held, (rows, columns)), shape=(nodes, nodes)))
    flows = [[maximum_flow(graph, depth * length + int(i), int(j)).flow_value for j in inputs] for i in outputs] if depth else []
    if not depth:
        return np.asarray(outputs[:, np.newaxis] == inputs, np.float64)
    return np.reshape(flows, (len(outputs), len(inputs))) / WHOLE


def _chosen(name: str, x: Any, length: int, who: str) -> NDArray[np.int64]:
    """Indices of tokens, from 0."""
    if x is None or np.size(x) == 0:
        return np.arange(length if x is None else 0)
    indices = integers_within(name, x, -length, length - 1, who)
    if indices.ndim != 1:
        raise ValueError(bad(name, "a sequence of integers", f"shape {indices.shape}", who))
    return indices % length


def _layers(weights: Any, residual: Any, who: str) -> NDArray[np.float64]:
    """A_l of every layer, (layers, L, L)."""
    share = as_finite("residual", residual, who)
    if not 0 <= share <= 1:
        raise ValueError(bad("residual", "a share from 0 to 1", str(share), who))
    w = as_weights(weights, who, "shape (layers, H, L, L)", axes=4)
    if w.ndim != 4 or w.shape[-1] != w.shape[-2] or not w.shape[1]:
        raise ValueError(bad("weights", "shape (layers, H, L, L)", f"shape {w.shape}", who))
    mixed = share * np.eye(w.shape[-1]) + (1 - share) * w.mean(1)
    total = mixed.sum(-1, keepdims=True)
    if (total == 0).any():
        raise ValueError(bad("weights", "a key for every query where residual is 0", "rows of 0", who))
    return np.asarray(mixed / total)
