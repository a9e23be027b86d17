"""Layers without some of their heads: what ablation by zero computes, in less time and memory."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from qkvc._coerce import as_listed, bad, integers_within
from qkvc.analysis._given import check_layer, check_model
from qkvc.analysis.ablation import as_pairs
from qkvc.multihead import MultiHeadAttention

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from qkvc.models.watch import Model

    M = TypeVar("M", bound=Model)

WHO = "prune_heads"


def _kept(attention: MultiHeadAttention, heads: Iterable[int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The query heads that stay, and the key heads; every group that stays must have as many."""
    listed = as_listed("heads", heads, "a sequence of integers", WHO)
    given = integers_within("heads", listed or np.empty(0, np.int64), 0, attention.num_heads - 1, WHO)
    left = np.setdiff1d(np.arange(attention.num_heads), given)
    if not left.size:
        raise ValueError(bad("heads", f"fewer than all {attention.num_heads} heads", "all of them", WHO))
    groups, counts = np.unique(left // (attention.num_heads // attention.num_kv_heads), return_counts=True)
    if (counts != counts[0]).any():
        wanted = "whole groups of heads, or as many of each group that stays, since heads share keys evenly"
        got = ", ".join(f"{n} left of group {g}" for g, n in zip(groups, counts, strict=True))
        raise ValueError(bad("heads", wanted, got, WHO))
    return left, groups


def prune_heads(attention: MultiHeadAttention, heads: Iterable[int]) -> MultiHeadAttention:
    """The layer without these heads: rows of W_Q, W_K and W_V and columns of W_O are left out.

    ``prune_heads(m, heads)(x)`` is ``m(x, head_scale=s)``, s being 0 for these heads and 1 for the others, but for rounding: a sum without
    its zeros has other partial sums.

    Parameters
    ----------
    attention : MultiHeadAttention
        Not changed, and nothing is shared with it.
    heads : iterable of int
        0 to H - 1, in any order.  In a layer with groups, whole groups, or as many from each group that stays.

    Returns
    -------
    MultiHeadAttention
        Of the same widths E and D, with ``H - len(set(heads))`` heads, numbered in their order; `frozen` as it was.

    Raises
    ------
    ValueError
        A head that there is not, all heads, groups that would be unequal.
    TypeError
        Numbers that are not integers.

    References
    ----------
    Michel, Levy & Neubig, "Are Sixteen Heads Really Better than One?" (2019), section 4.

    Examples
    --------
    >>> import qkvc
    >>> from qkvc.analysis import prune_heads
    >>> prune_heads(qkvc.MultiHeadAttention(64, 8, rng=0), [1, 5])
    MultiHeadAttention(embed_dim=64, num_heads=6, head_dim=8)  # heads of 8, float32, 12,496 parameters
    """
    check_layer(attention, WHO)
    left, groups = _kept(attention, heads)
    sizes: dict[str, Any] = {"num_kv_heads": len(groups), "head_dim": attention.head_dim, "kdim": attention.kdim, "vdim": attention.vdim}
    has = {"qkv_bias": attention.q_bias, "out_bias": attention.out_bias, "extra_kv": attention.extra_key}
    sizes |= {name: part is not None for name, part in has.items()} | {"rope": attention.rope, "qk_norm": attention.qk_norm}
    pruned = MultiHeadAttention(attention.embed_dim, len(left), **sizes, dtype=attention.dtype, rng=0)
    for name, chosen in (("q", left), ("k", groups), ("v", groups)):
        for kind in ("weight", "bias"):
            if (part := getattr(attention, f"{name}_{kind}")) is not None:
                rows = part.reshape(-1, attention.head_dim, *part.shape[1:])[chosen]
                getattr(pruned, f"{name}_{kind}")[...] = rows.reshape(-1, *part.shape[1:])
    pruned.W_O[...] = attention.W_O[left]
    for name in ("out_bias", "q_norm", "k_norm"):
        if (part := getattr(attention, name)) is not None:
            getattr(pruned, name)[...] = part
    for name in ("extra_key", "extra_value"):
        if (part := getattr(attention, name)) is not None:
            getattr(pruned, name)[...] = part[groups]
    pruned.frozen = attention.frozen
    return pruned


def prune_model(model: M, heads: Iterable[tuple[int, int]]) -> M:
    """The model without these heads: `prune_heads` of each layer.

    Parameters
    ----------
    model : Bert, GPT2, Llama or MiniLM
        Not changed; all that is not attention is shared with it.
    heads : iterable of (layer, head)

    Returns
    -------
    of the type of `model`

    Raises
    ------
    ValueError, TypeError
        As from `prune_heads`; a layer that there is not.
    """
    check_model(model, "prune_model")
    pairs = as_pairs(heads, model, "prune_model")
    pruned = copy.copy(model)
    layers = [copy.copy(layer) for layer in model.layers]
    for index, layer in enumerate(layers):
        gone = [head for at, head in pairs if at == index]
        if gone:
            layer.attention = prune_heads(layer.attention, gone)
    pruned.layers = layers
    return pruned


__all__ = ["prune_heads", "prune_model"]
