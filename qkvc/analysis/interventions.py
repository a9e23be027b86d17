"""Interventions, as edits that a model's `watch` takes: edges knocked out, values overridden, heads removed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qkvc._coerce import as_array, as_count, as_listed, as_real, bad, integers_within, shape_text
from qkvc.models.watch import Edit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import ArrayLike, NDArray

FARTHEST = 1 << 31


def _numbers(name: str, x: Iterable[int], limit: int, who: str) -> NDArray[np.int64]:
    given = as_listed(name, x, "a sequence of integers", who)
    return integers_within(name, given or np.empty(0, np.int64), 0, limit - 1, who)


def remove_heads(layer: int, heads: Iterable[int], num_heads: int) -> Edit:
    """An edit by which heads of a layer bring nothing back: their `head_scale` is 0.

    Parameters
    ----------
    layer : int
        0 is the first.
    heads : iterable of int
        0 to ``num_heads - 1``.
    num_heads : int
        Of the layer.

    Returns
    -------
    Edit

    Raises
    ------
    ValueError, TypeError
        A head that there is not, numbers that are no integers.
    """
    count = as_count("num_heads", num_heads, "remove_heads")
    scale = np.ones(count)
    scale[_numbers("heads", heads, count, "remove_heads")] = 0
    return Edit(as_count("layer", layer, "remove_heads", 0), head_scale=scale)


def knock_out(layer: int, edges: Iterable[tuple[int, int]], length: int, *, heads: Iterable[int] | None = None, num_heads: int = 1) -> Edit:
    """An edit by which queries may not attend to some keys; the weights that are left still sum to 1.

    The edges become the `mask` of `qkvc.attention`, length x length bits a head; no scores and no weights are held.

    Parameters
    ----------
    layer : int
        0 is the first.
    edges : iterable of (int, int)
        Pairs of a query (who reads) and a key (what is read), 0 to ``length - 1``.  A query that loses all its keys gets 0.
    length : int
        L, the text's number of tokens.
    heads : iterable of int, optional
        Where the edges are knocked out; default: in all heads.
    num_heads : int, default 1
        Of the layer; needed with `heads`.

    Returns
    -------
    Edit
        With a mask of shape (num_heads, L, L) if `heads` are given, else (1, L, L).

    Raises
    ------
    ValueError, TypeError
        Tokens or heads that there are not, edges that are not pairs of integers.

    References
    ----------
    Geva et al., "Dissecting Recall of Factual Associations in Auto-Regressive Language Models" (2023), section 5: attention knockout.

    Examples
    --------
    >>> from qkvc.analysis import knock_out
    >>> knock_out(0, [(2, 0)], 3).mask.astype(int)
    array([[[1, 1, 1],
            [1, 1, 1],
            [0, 1, 1]]])
    """
    who = "knock_out"
    size = as_count("length", length, who)
    given = as_listed("edges", edges, "pairs of a query and a key", who)
    pairs = integers_within("edges", given or np.empty((0, 2), np.int64), 0, size - 1, who)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(bad("edges", "pairs of a query and a key", shape_text(pairs), who))
    count = 1 if heads is None else as_count("num_heads", num_heads, who)
    chosen = np.arange(1) if heads is None else _numbers("heads", heads, count, who)
    mask = np.ones((count, size, size), np.bool_)
    mask[chosen[:, np.newaxis], pairs[:, 0], pairs[:, 1]] = False
    return Edit(as_count("layer", layer, who, 0), mask=mask)


def override_values(layer: int, values: ArrayLike, tokens: Iterable[int], heads: Iterable[int] | None = None) -> Edit:
    """An edit by which tokens carry other values; who attends to them, and how much, stays as it is.

    Parameters
    ----------
    layer : int
        0 is the first.
    values : array_like
        What broadcasts to (heads chosen, tokens chosen, Dv): 0 zeroes the values (Mohebbi et al. 2023), those of another text's
        `Watch.value` patch them in.
    tokens : iterable of int
        Whose values.
    heads : iterable of int, optional
        Of which key heads, 0 to H_kv - 1; default: all.

    Returns
    -------
    Edit
        `watch` raises ValueError where the text has no such token, the layer no such head, or the values have another shape.

    Raises
    ------
    ValueError, TypeError
        Numbers that are no integers of 0 or more, values that are no real numbers.

    References
    ----------
    Meng et al., "Locating and Editing Factual Associations in GPT" (2022), and Wang et al., "Interpretability in the Wild" (2022), for
    patching; Mohebbi et al., "Quantifying Context Mixing in Transformers" (2023), for zeroing.

    Examples
    --------
    >>> import numpy as np
    >>> from qkvc.analysis import override_values
    >>> override_values(0, 0, [1]).value(np.ones((2, 3, 1)))[..., 0]
    array([[1., 0., 1.],
           [1., 0., 1.]])
    """
    who = "override_values"
    private = np.array(as_real("values", as_array("values", values, who), who))
    columns = _numbers("tokens", tokens, FARTHEST, who)
    rows = None if heads is None else _numbers("heads", heads, FARTHEST, who)

    def change(value: NDArray[Any]) -> NDArray[Any]:
        for name, chosen, size in (("heads", rows, value.shape[0]), ("tokens", columns, value.shape[1])):
            if chosen is not None and chosen.size and chosen.max() >= size:
                raise ValueError(bad(name, f"numbers below {size}", str(chosen.max()), who))
        at = np.ix_(np.arange(len(value)) if rows is None else rows, columns)
        wanted = (*at[0].shape[:1], *at[1].shape[1:], value.shape[2])
        try:
            fitting = np.broadcast_to(private, wanted)
        except ValueError:
            raise ValueError(bad("values", f"what broadcasts to {wanted}", shape_text(private), who)) from None
        value[at] = fitting
        return value

    return Edit(as_count("layer", layer, who, 0), value=change)


__all__ = ["knock_out", "override_values", "remove_heads"]
