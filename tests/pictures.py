"""Inputs whose result is a picture of who may attend to whom: all scores are equal and value is the identity.

Row i of the output is then what query i may attend to, divided by how many that are, and 1/n is exact to the last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def uniform(l_q: int, l_k: int, heads: tuple[int, int] = (1, 1), batch: tuple[int, ...] = ()) -> tuple[Any, Any, Any]:
    """All scores are 0 and the values are the identity."""
    key = np.ones((*batch, heads[1], l_k, 3), dtype=np.float32)
    value = np.broadcast_to(np.eye(l_k, dtype=np.float32), (*batch, heads[1], l_k, l_k))
    return np.zeros((*batch, heads[0], l_q, 3), dtype=np.float32), key, value


def picture(text: str, batch: tuple[int, ...] = (), heads: int = 1) -> np.ndarray:
    """Written "10 11" or, with a batch, "10 11 | 11 11": one word per query, one group per batch item or head."""
    rows = [[list(map(int, row)) for row in item.split()] for item in text.split("|")]
    array = np.array(rows, dtype=np.float32)
    return np.broadcast_to(array.reshape(*batch, -1, *array.shape[1:]), (*batch, heads, *array.shape[1:]))


def bool_mask(text: str) -> np.ndarray:
    return np.array([[c == "1" for c in row] for row in text.split()])


def bias_of(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def weights_of(allowed: np.ndarray) -> np.ndarray:
    """Equal weights over the allowed keys, zeros where there are none."""
    count = allowed.sum(-1, keepdims=True)
    return np.divide(allowed, count, out=np.zeros_like(allowed), where=count > 0)
