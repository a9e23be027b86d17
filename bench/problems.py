"""The arrays of a case, its useful work, and its result in more digits than any contestant has."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from typing import Any, Protocol
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from .cases import Case

Floats = NDArray[Any]

WINDOW = 128  # keys on either side of a query in the "window" mask
SOFTCAP = 50.0  # Gemma 2


class CannotExpress(Exception):
    """The rival has no way to ask for this."""


class Task(Protocol):
    """What measuring needs of a problem."""

    case: Case

    @property
    def flops(self) -> int:
        """Useful work."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a result."""

    @property
    def rows(self) -> slice:
        """Those of a result, along its last axis but one, that `reference` has."""

    @property
    def reference(self) -> Floats:
        """The result, more precise than any contestant's."""


class Problem:
    """Attention: `(B, H, L, D)` whatever lies in memory."""

    def __init__(self, case: Case) -> None:
        self.case = c = case
        rng = np.random.default_rng(crc32(case.name.encode()))
        if c.dtype == "bfloat16":
            import_module("ml_dtypes")  # by which NumPy knows the name
        self.query = self._normal(rng, c.heads, c.queries, c.dim)
        self.key = self._normal(rng, c.kv_heads, c.keys, c.dim)
        self.value = self._normal(rng, c.kv_heads, c.keys, c.v_dim)
        self.mask: NDArray[np.bool_] | None = None
        self.bias: Floats | None = None
        if c.mask == "padding":  # sentences of half to full length, as a tokenizer pads them
            lengths = rng.integers(c.keys // 2 + 1, c.keys + 1, size=(c.batch, 1, 1, 1))
            self.mask = np.arange(c.keys) < lengths
        elif c.mask == "window":
            self.mask = (self._distance() <= WINDOW)[None, None]
        elif c.mask == "random":  # no block without work, so a tenth of it is in vain
            self.mask = rng.random((1, 1, c.queries, c.keys)) < 0.9
            self.mask[..., 0] = True  # nobody is left without a key, where libraries differ
        elif c.mask == "bias":  # one table per head, as T5's relative positions
            self.bias = self._random(rng, 1, c.heads, c.queries, c.keys)
        self.slopes: Floats | None = None
        if c.option == "alibi":  # powers of two: their products with a distance are exact, whoever computes them
            self.slopes = np.ldexp(1.0, -1 - np.arange(c.heads) % 8).astype(c.dtype)
            self.bias = -self.slopes[None, :, None, None] * self._distance().astype(c.dtype)
        self.sinks: Floats | None = self._random(rng, c.heads) if c.option == "sinks" else None
        self.softcap = SOFTCAP if c.option == "softcap" else 0.0

    def _distance(self) -> NDArray[np.int64]:
        distance: NDArray[np.int64] = np.abs(np.arange(self.case.keys) - np.arange(self.case.queries)[:, None])
        return distance

    def _normal(self, rng: np.random.Generator, heads: int, length: int, dim: int) -> Floats:
        swapped = self.case.layout == "blhd"
        x = self._random(rng, self.case.batch, *((length, heads) if swapped else (heads, length)), dim)
        return x.swapaxes(1, 2) if swapped else x

    def _random(self, rng: np.random.Generator, *shape: int) -> Floats:
        x: Floats = rng.standard_normal(shape, dtype=np.float64 if self.case.dtype == "float64" else np.float32)
        return x.astype(self.case.dtype, copy=False)

    @property
    def shape(self) -> tuple[int, ...]:
        c = self.case
        return (c.batch, c.heads, c.queries, c.v_dim)

    @property
    def rows(self) -> slice:
        """All in float64 where float32 is measured, some 64 in long double where float64 is: no BLAS helps there."""
        return slice(None, None, max(1, self.case.queries // 64) if self.case.dtype == "float64" else 1)

    @property
    def wide(self) -> type[np.floating[Any]]:
        """What the reference is computed in."""
        return np.longdouble if self.case.dtype == "float64" else np.float64

    @cached_property
    def limits(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The first key that each query may see by its position, and the one after the last."""
        c = self.case
        i = np.arange(c.queries)
        first = np.maximum(i - c.window, 0) if c.window else np.zeros_like(i)
        limit = np.minimum(i + 1 + c.diagonal, c.keys) if c.causal or c.window else np.full_like(i, c.keys)
        return first, limit

    def seen(self, i: NDArray[np.int64], keys: slice) -> NDArray[np.bool_]:
        """Whether queries `i` may by their positions see `keys`."""
        first, limit = (x[i, None] for x in self.limits)
        j = np.arange(keys.start, keys.stop)
        result: NDArray[np.bool_] = (first <= j) & (j < limit)
        return result

    @property
    def vast(self) -> bool:
        """Is a dense mask out of proportion to the work that is left by it?"""
        return self.case.window > 0 and self.case.queries * self.case.keys > 1 << 27

    @cached_property
    def allowed(self) -> NDArray[np.bool_]:
        """Who may attend to whom; broadcasts to (B, H, L_q, L_k)."""
        c = self.case
        if self.vast:
            raise CannotExpress(f"it takes a window as a mask of {c.queries} x {c.keys} numbers")
        seen = self.seen(np.arange(c.queries), slice(0, c.keys))[None, None]
        return seen if self.mask is None else seen & self.mask

    @cached_property
    def flops(self) -> int:
        """A multiplication and an addition per allowed pair and element of key and value."""
        c = self.case
        if self.mask is None:
            first, limit = self.limits
            pairs = c.batch * int(np.sum(limit - first))
        else:
            pairs = int(np.count_nonzero(np.broadcast_to(self.allowed, (c.batch, 1, c.queries, c.keys))))
        return 2 * (c.dim + c.v_dim) * c.heads * pairs

    def weights(self, b: int, h: int, i: NDArray[np.int64], keys: slice) -> tuple[Floats, Floats, Floats]:
        """Scores and weights of queries `i` of a head, and the logarithm of the sum of exp(scores), in blocks that fit anywhere."""
        c, wide = self.case, self.wide
        scores = self.query[b, h, i].astype(wide) @ self.key[b, h // c.group, keys].astype(wide).T / np.sqrt(wide(c.dim))
        if self.softcap:
            scores = self.softcap * np.tanh(scores / self.softcap)
        if self.bias is not None:
            scores += self.bias[0, h][i, keys]
        if c.causal or c.window:
            scores[~self.seen(i, keys)] = -np.inf
        if self.mask is not None:
            scores[~np.broadcast_to(self.mask, (c.batch, c.heads, c.queries, c.keys))[b, h][i, keys]] = -np.inf
        sink = wide(-np.inf if self.sinks is None else self.sinks[h])
        top = np.maximum(scores.max(axis=-1, keepdims=True), sink)
        weights = np.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True) + np.exp(sink - top)
        return scores, weights / total, (top + np.log(total))[:, 0]

    def blocks(self) -> Iterator[tuple[int, int, slice, NDArray[np.int64], slice]]:
        """Batch, head, rows of the reference, the queries that they are, and the keys that these may see."""
        c = self.case
        first, limit = self.limits
        chosen = np.arange(c.queries)[self.rows]
        for b, h in np.ndindex(c.batch, c.heads):
            for rows in row_blocks(len(chosen), 512):
                i = chosen[rows]
                yield b, h, rows, i, slice(int(first[i[0]]), int(limit[i[-1]]))

    @cached_property
    def reference(self) -> Floats:
        """softmax(QKᵀ/√D + bias)V."""
        c = self.case
        out = np.empty((c.batch, c.heads, len(range(c.queries)[self.rows]), c.v_dim), self.wide)
        for b, h, rows, i, keys in self.blocks():
            _, weights, _ = self.weights(b, h, i, keys)
            out[b, h, rows] = weights @ self.value[b, h // c.group, keys].astype(self.wide)
        return out


class Stats(Problem):
    """Statistics of the weights, each in units of its largest, so that one tolerance does for all: (B, H, 4, L)."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.case.batch, self.case.heads, 4, self.case.queries)

    @property
    def rows(self) -> slice:
        return slice(None)

    @cached_property
    def _exact(self) -> Floats:
        c = self.case
        lse, entropy, distance, mass = np.zeros((4, c.batch, c.heads, c.queries))
        for b, h, rows, i, keys in self.blocks():
            scores, weights, lse[b, h, rows] = self.weights(b, h, i, keys)
            entropy[b, h, rows] = lse[b, h, rows] - np.sum(weights * np.where(weights > 0, scores, 0), axis=-1)
            distance[b, h, rows] = np.sum(weights * np.abs(np.arange(keys.start, keys.stop) - i[:, None]), axis=-1)
            mass[b, h, keys] += weights.sum(axis=0)
        return np.stack([lse, entropy, distance, mass], axis=2)

    @cached_property
    def _units(self) -> Floats:
        units: Floats = np.abs(self._exact).max(axis=(0, 1, 3))[:, None]
        return units

    @cached_property
    def reference(self) -> Floats:
        return self._exact / self._units

    def result(self, parts: tuple[Floats, Floats, Floats, Floats]) -> Floats:
        """Of lse, entropy, distance and mass of each key."""
        return np.stack(parts, axis=2) / self._units


def row_blocks(length: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows that cover `length`."""
    return (slice(i, min(i + size, length)) for i in range(0, length, size))
