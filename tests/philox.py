"""Philox 4x32-10 (Salmon et al. 2011) in NumPy, and the weights that dropout keeps by it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]  # of 32 bits each


def philox(counter: tuple[Any, ...], key: tuple[int, int]) -> tuple[Words, ...]:
    """Random123's definition, word by word."""
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    for i in range(10):
        k0, k1 = (np.uint64((k + i * step) % 2**32) for k, step in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True))
        product0, product1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = product1 >> half ^ c1 ^ k0, product1 & low, product0 >> half ^ c3 ^ k1, product0 & low
    return c0, c1, c2, c3


def numbers(seed: int, items: int, heads: int, rows: int, keys: int) -> Words:
    """32 bits for every weight, (items, heads, rows, keys)."""
    item, head, row, key = np.ogrid[:items, :heads, :rows, : -(-keys // 4)]
    four = np.stack(philox((key, row, head, item), (seed % 2**32, seed >> 32)), -1)
    return four.reshape(items, heads, rows, 4 * key.shape[-1])[..., :keys]
