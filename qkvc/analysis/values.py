"""What a weight leaves out, the size of what it brings: value zeroing in closed form, and attention weighted by norms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qkvc._coerce import as_like, as_operand, bad, shape_text
from qkvc.analysis._given import BY_CHANCE, check_layer, refuse
from qkvc.functional import attention
from qkvc.inside import attention_weights

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from qkvc.multihead import MultiHeadAttention

    Array = NDArray[Any]
    Reals = NDArray[np.float64]


def _wide(name: str, x: Any, who: str) -> Array:
    """16 bits as the float32 that they are, so that no result is rounded to them."""
    array = as_operand(name, x, who)
    return array.astype(np.float32) if array.dtype.itemsize == 2 else array


def _distance(length: Reals, dot: Reals, removed: Reals, dtype: np.dtype[Any]) -> Reals:
    """1 - cos between y and y - c, from |y|^2, y.c and |c|^2, of y and c that were computed in a dtype.

    Where little is removed the difference 1 - cos has no digits left; |y|^2 |c|^2 - (y.c)^2, which is the square of the sine times both
    lengths, has them all.
    """
    left = length - 2 * dot + removed
    rounding = 8 * max(float(np.finfo(dtype).eps) ** 2, float(np.finfo(np.float64).eps))  # of a square, and of the squares' difference
    with np.errstate(divide="ignore", invalid="ignore"):
        along = length - dot
        both = np.sqrt(length * np.maximum(left, 0))
        near = (length * removed - dot * dot) / (both * (both + along))
        distance = np.where(4 * removed < length, near, 1 - along / both)
    gone = (left <= rounding * (length + removed)) | (length == 0)
    return np.where(removed == 0, 0.0, np.where(gone, 1.0, np.clip(distance, 0, 2)))


def value_zeroing(query: ArrayLike, key: ArrayLike, value: ArrayLike, **options: Any) -> Reals:
    """How much each head's output for query i turns when the value of key j is zero, for all i and j at once.

    ``1 - cos(out_i, out_i - w_ij v_j)``: the weights stay what they are, as zeroing a value does not touch them, so nothing is computed
    again for any j (Mohebbi et al. zero and run the layer S times).

    Parameters
    ----------
    query, key, value : array_like
        As of `qkvc.attention`, (..., H, L, D), (..., H_kv, S, D) and (..., H_kv, S, Dv), or two axes each.
    **options
        As of `qkvc.attention_weights`, but `layout`, `heads`, `queries`, `dropout_p` and `rng`.

    Returns
    -------
    ndarray of float64, shape (..., H, L, S); (L, S) where all inputs have two axes
        0 (nothing changes: a weight of 0, or a value along the output) to 2 (the output turns round).  A zero vector counts as orthogonal
        to all others: 1 where nothing is left, as of a query with one key.  Rows are not normalised; the paper divides them by their sums.

    Raises
    ------
    ValueError, TypeError
        As from `qkvc.attention`, and for an option that chooses parts or a layout, or drops weights.

    Notes
    -----
    Holds some six arrays of the result's shape, in float64.

    References
    ----------
    Mohebbi, Zuidema, Chrupala & Alishahi, "Quantifying Context Mixing in Transformers" (2023), section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from qkvc.analysis import value_zeroing
    >>> value_zeroing(np.zeros((1, 2)), np.zeros((2, 2)), np.eye(2)).round(4)  # half of each: without one, the other, 45 degrees away
    array([[0.2929, 0.2929]])
    """
    who = "value_zeroing"
    refuse(options, ("layout", "heads", "queries", *BY_CHANCE), who)
    q, k, v = (_wide(name, x, who) for name, x in (("query", query), ("key", key), ("value", value)))
    weights, out = attention_weights(q, k, **options).astype(np.float64), attention(q, k, v, **options)
    y, values = out.astype(np.float64), v.astype(np.float64)
    if values.ndim > 2:
        values = np.repeat(values, weights.shape[-3] // values.shape[-3], axis=-3)
    chosen = weights != 0  # a value that nobody takes reaches nothing, though it be NaN
    dots = np.where(chosen, weights * (y @ values.swapaxes(-1, -2)), 0)
    removed = np.where(chosen, weights**2 * np.square(values).sum(-1)[..., np.newaxis, :], 0)
    return _distance(np.square(y).sum(-1)[..., np.newaxis], dots, removed, out.dtype)


class NormWeighted(NamedTuple):
    """What `norm_weighted_attention` returns, in float64."""

    values: Reals  # (..., H, S): ||f_h(x_j)||, what a head could bring of each token
    heads: Reals  # (..., H, L, S): ||w_hij f_h(x_j)||
    layer: Reals  # (..., L, S): ||sum over h of w_hij f_h(x_j)||


def _brought(attention: MultiHeadAttention, who: str, x: Any, key: Any, value: Any, options: dict[str, Any]) -> tuple[Reals, Reals]:
    """Weights (..., H, L, S) and values (..., H, S, D), a group's values for each of its heads."""
    refuse(options, ("heads", "queries", *BY_CHANCE), who)
    check_layer(attention, who)
    if attention.extra_key is not None:
        raise ValueError(bad("attention", "a layer without an extra key, which belongs to no token", "one with extra_kv", who))
    places = {name: options[name] for name in ("positions", "key_positions") if name in options}
    values = attention.project(x, key, value, **places)[2].swapaxes(-2, -3)
    values = np.repeat(values, attention.num_heads // attention.num_kv_heads, axis=-3).astype(np.float64)
    return attention.weights(x, key, **options).astype(np.float64), values


def _lengths(attention: MultiHeadAttention, weights: Reals, values: Reals) -> tuple[Reals, Reals]:
    """||f_h(x_j)||, and the square of ||sum over h of w_hij f_h(x_j)||.

    From products of two heads' columns of W_O, D x D each, so that no (H, S, E) array is held.
    """
    out = attention.W_O.astype(np.float64)
    norms = np.empty(values.shape[:-1])
    total: Reals = np.zeros(np.broadcast_shapes(weights.shape[:-3], values.shape[:-3]) + weights.shape[-2:])
    for h in range(attention.num_heads):
        for g in range(h + 1):
            product = values[..., h, :, :] @ (out[h].T @ out[g])
            gram = np.einsum("...jd,...jd->...j", product, values[..., g, :, :])
            pair = weights[..., h, :, :] * weights[..., g, :, :]
            total += np.where(pair != 0, (1 if g == h else 2) * pair * gram[..., np.newaxis, :], 0)
        norms[..., h, :] = np.sqrt(np.maximum(gram, 0))  # g was h
    return norms, np.maximum(total, 0)


def norm_weighted_attention(
    attention: MultiHeadAttention, query: ArrayLike, key: ArrayLike | None = None, value: ArrayLike | None = None, **options: Any
) -> NormWeighted:
    """Attention as the size of what moves, not of the weight alone: ||w_hij f_h(x_j)||, f_h(x) = W_O^h (W_V^h x + b_V^h).

    A large weight on a token whose transformed value is tiny, as on [SEP], brings little, and this shows it.

    Parameters
    ----------
    attention : MultiHeadAttention
    query, key, value : array_like
        As of a call of it.
    **options
        As of its `weights`, but `heads`, `queries`, `dropout_p` and `rng`.

    Returns
    -------
    NormWeighted(values, heads, layer)
        `values` (..., H, S), `heads` (..., H, L, S) and `layer` (..., L, S), the length of the sum over heads, which is at most the sum of
        the lengths; 0 or more, in the units of the layer's result.

    Raises
    ------
    ValueError, TypeError
        As from a call of `attention`; a layer with an extra key.

    Notes
    -----
    Holds the weights, (..., H, L, S), twice in float64; time H^2 (L S + S D^2), the lengths of sums being sums over pairs of heads.

    References
    ----------
    Kobayashi, Kuribayashi, Yokoi & Inui, "Attention is Not Only a Weight" (2020), equation 5 and section 3.
    """
    weights, values = _brought(attention, "norm_weighted_attention", query, key, value, options)
    norms, total = _lengths(attention, weights, values)
    heads = np.where(weights != 0, weights * norms[..., np.newaxis, :], 0)
    return NormWeighted(norms, heads, np.sqrt(total))


def layer_value_zeroing(
    attention: MultiHeadAttention,
    query: ArrayLike,
    key: ArrayLike | None = None,
    value: ArrayLike | None = None,
    *,
    plus: ArrayLike | None = None,
    **options: Any,
) -> Reals:
    """How much the layer's result for token i turns when all heads' values of token j are zero: `value_zeroing` behind W_O.

    ``1 - cos(y_i, y_i - sum over h of w_hij f_h(x_j))`` with f_h of `norm_weighted_attention`, in closed form.

    Parameters
    ----------
    attention, query, key, value, **options
        As of `norm_weighted_attention`.
    plus : array_like, shape (..., L, E), optional
        What the result is added to before it is compared: the residual, as in the paper.  Default: nothing.

    Returns
    -------
    ndarray of float64, shape (..., L, S)
        0 to 2, as of `value_zeroing`.

    Raises
    ------
    ValueError, TypeError
        As from `norm_weighted_attention`; a `plus` of another shape than the result's.

    References
    ----------
    Mohebbi, Zuidema, Chrupala & Alishahi, "Quantifying Context Mixing in Transformers" (2023), section 3.
    """
    who = "layer_value_zeroing"
    weights, values = _brought(attention, who, query, key, value, options)
    y: Reals = attention(query, key, value, **options).astype(np.float64)
    if plus is not None:
        if np.shape(plus) != y.shape:
            raise ValueError(bad("plus", f"shape {y.shape}", shape_text(plus), who))
        y = y + as_like("plus", plus, y.shape, y.dtype, who)
    removed = _lengths(attention, weights, values)[1]
    dot = np.zeros_like(removed)
    for h, out in enumerate(attention.W_O.astype(np.float64)):
        w = weights[..., h, :, :]
        dot += np.where(w != 0, w * ((y @ out) @ values[..., h, :, :].swapaxes(-1, -2)), 0)
    return _distance(np.square(y).sum(-1)[..., np.newaxis], dot, removed, attention.dtype)


__all__ = ["NormWeighted", "layer_value_zeroing", "norm_weighted_attention", "value_zeroing"]
