"""Shapes, dtypes and every option with numbers that suit a shape: what the tests of several promises go through."""

from __future__ import annotations

from typing import Any

import ml_dtypes  # noqa: F401  # NumPy knows "bfloat16" by it
import numpy as np
from numpy.typing import NDArray

from .support import normal, operands

#         batch, (H_q, H_kv), (L_q, L_k), (D, Dv): few queries, one tile, many tiles, several blocks, groups, remainders everywhere
SHAPES = (
    ((), (1, 1), (1, 1), (1, 1)),
    ((2,), (4, 2), (3, 7), (5, 4)),
    ((2,), (2, 2), (33, 33), (17, 9)),
    ((), (7, 1), (1, 300), (40, 24)),
    ((3,), (2, 1), (65, 140), (16, 33)),
    ((), (3, 3), (140, 65), (8, 8)),
    ((1,), (2, 1), (50, 520), (32, 16)),
)
DTYPES = ("float32", "float64")
HALVES = ("float16", "bfloat16")  # stored so, computed in float32
STORAGE = (*DTYPES, *HALVES, "int8")  # of a KVCache
Arrays = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def operands_in(dtype: str, rng: np.random.Generator, *shape: Any) -> Arrays:
    """N(0, 1), in float64 with all its digits."""
    arrays = operands(rng, *shape)
    q, k, v = (x * rng.uniform(0.5, 2, x.shape) if dtype == "float64" else x.astype(dtype) for x in arrays)
    return q, k, v


# Alone, in this order, and all at once.
OPTIONS = ("plain", "causal", "mask", "bias", "lengths", "window", "softcap", "alibi", "sinks", "head_scale", "everything")


def option(rng: np.random.Generator, name: str, batch: tuple[int, ...], heads: int, lengths: tuple[int, int]) -> dict[str, Any]:
    """Arrays have the full shape, so that an item's or a head's share of each can be cut out."""
    l_q, l_k = lengths
    if name == "causal":
        return {"causal": "bottom-right"}
    if name == "mask":
        return {"mask": rng.random((*batch, heads, l_q, l_k)) < 0.6}
    if name == "bias":
        return {"bias": normal(rng, *batch, heads, l_q, l_k)}
    if name == "lengths":
        return {"key_lengths": rng.integers(0, l_k + 1, batch), "causal": "bottom-right"}
    if name == "window":
        return {"window": (l_k // 3, 2), "q_offset": l_k - l_q}
    if name == "softcap":
        return {"softcap": 1.5}
    if name == "alibi":
        return {"alibi_slopes": 2.0 ** -rng.uniform(1, 8, (*batch, heads)), "q_offset": l_k - l_q}
    if name == "sinks":
        sinks = rng.normal(0, 3, (*batch, heads))
        return {"sinks": np.where(rng.random(sinks.shape) < 0.2, -np.inf, sinks)}
    if name == "head_scale":
        return {"head_scale": normal(rng, *batch, heads)}
    if name == "everything":
        together: dict[str, Any] = {}
        for other in OPTIONS[1:-1]:
            together |= option(rng, other, batch, heads, lengths)
        del together["q_offset"]  # "bottom-right" says where the queries are
        return together
    return {}
