"""Attention under the names that other frameworks gave it: their arguments, their alignment, their own errors.

Rows without keys and NaN keep qkvc's meaning: zeros, and NaN only from what is attended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qkvc._coerce import bad
from qkvc.functional import attention

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from qkvc.functional import Causal


def scaled_dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    attn_mask: ArrayLike | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    rng: np.random.Generator | int | None = None,
) -> NDArray[Any]:
    """`torch.nn.functional.scaled_dot_product_attention` on NumPy arrays.

    Parameters
    ----------
    query, key, value : array_like of float, shapes (..., H, L, E), (..., H, S, E), (..., H, S, Ev)
    attn_mask : array_like of bool or float, broadcasts to (..., H, L, S), optional
        bool: True where a query may attend; float: added to the scores.
    dropout_p : float, default 0.0
        The probability with which a weight is dropped.  As in torch, whoever evaluates a model has to say 0.
    is_causal : bool, default False
        Top-left, as in torch: query i attends to keys j <= i whatever L and S are.  Excludes `attn_mask`.
    scale : float, optional
        Default ``1 / sqrt(E)``.
    enable_gqa : bool, default False
        Allow fewer key heads than query heads, in groups.
    rng : int or numpy.random.Generator, optional
        The seed of `dropout_p`, as of `attention`: torch has its own, and other numbers.

    Returns
    -------
    ndarray, shape (..., H, L, Ev)

    Raises
    ------
    ValueError, TypeError
        As from `attention`, and torch's own: a mask beside is_causal, groups of heads without enable_gqa.
    """
    if attn_mask is not None and is_causal:
        raise ValueError(bad("attn_mask", "None beside is_causal=True, as in torch", "both"))
    if not enable_gqa and _heads(query, 3) != _heads(key, 3):
        raise ValueError(bad("key", f"the query's {_heads(query, 3)} heads, or enable_gqa=True", f"{_heads(key, 3)} heads"))
    mask: Any = None
    bias: Any = None
    if attn_mask is not None:
        dtype = np.asarray(attn_mask).dtype
        if dtype == np.bool_:
            mask = attn_mask
        elif dtype.kind == "f" or dtype.name == "bfloat16":
            bias = attn_mask
        else:
            raise TypeError(bad("attn_mask", "bool (True where a query may attend) or float (added to the scores)", str(dtype)))
    causal: Causal = "top-left" if is_causal else False
    return attention(query, key, value, mask=mask, bias=bias, causal=causal, scale=scale, dropout_p=dropout_p, rng=rng)


def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
) -> NDArray[Any]:
    """`jax.nn.dot_product_attention` on NumPy arrays: heads behind lengths.

    Parameters
    ----------
    query : array_like of float, shape (B, T, N, H) or (T, N, H)
    key, value : array_like of float, shape (B, S, K, H) or (S, K, H)
        K divides N: grouped-query attention.
    bias : array_like of float, broadcasts to (B, N, T, S), optional
        Added to the scaled scores.
    mask : array_like of bool, broadcasts to (B, N, T, S), optional
        True where a query may attend.
    scale : float, optional
        Default ``1 / sqrt(H)``.
    is_causal : bool, default False
        Top-left, as in JAX; combines with `mask`.

    Returns
    -------
    ndarray, shape of query (its last axis that of value)

    Raises
    ------
    ValueError, TypeError
        As from `attention`, and for arrays without a heads axis.
    """
    for name, x in (("query", query), ("key", key), ("value", value)):
        if np.ndim(x) < 3:
            raise ValueError(bad(name, "an array (batch, length, heads, dim) or (length, heads, dim)", f"shape {np.shape(x)}"))
    causal: Causal = "top-left" if is_causal else False
    return attention(query, key, value, mask=mask, bias=bias, causal=causal, scale=scale, layout="blhd")


def _heads(x: Any, from_end: int) -> int:
    shape = np.shape(x)
    return shape[-from_end] if len(shape) >= from_end else 1
