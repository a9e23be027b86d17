"""What decoders have in common: a token sees those before it, which a cache can hold, and the last one says what comes next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import qkvc
from qkvc._coerce import bad, integers_within, shape_text
from qkvc._linear import project
from qkvc.models.watch import Model

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from qkvc.models.watch import Array


class DecoderLayer(ABC):
    """One decoder block: attention, then the feed-forward network, each of a normalised input and added to it."""

    attention: qkvc.MultiHeadAttention

    def __call__(self, x: Array, cache: qkvc.KVCache | None) -> Array:
        how: dict[str, Any] = {"causal": True} if cache is None else {"cache": cache}
        return self.after(x, self.attention(self.reads(x), **how))

    @abstractmethod
    def reads(self, x: Array) -> Array:
        """The normalised states."""

    @abstractmethod
    def after(self, x: Array, attended: Array) -> Array:
        """The two sums and the network between them; `x` stays as it is."""


class Decoder(Model):
    """Token numbers to scores of every next token."""

    causal = True
    layers: Sequence[DecoderLayer]
    head: Array

    @abstractmethod
    def _embedded(self, ids: NDArray[np.int64], first: Any = 0) -> Array:
        """The first hidden states of tokens (..., L), of which the first is the `first` of its text."""

    def caches(self, batch: int, capacity: int, **options: Any) -> list[qkvc.KVCache]:
        """An empty cache for each layer; options as of `qkvc.KVCache`."""
        parts = (layer.attention for layer in self.layers)
        return [qkvc.KVCache(batch, part.num_kv_heads, capacity, part.head_dim, **options) for part in parts]

    def states(self, ids: ArrayLike, caches: Sequence[qkvc.KVCache] | None = None) -> Array:
        """The vectors of tokens (B, L), which with `caches` follow what those have: (B, L, E)."""
        ids = integers_within("ids", ids, 0, len(self.words) - 1, type(self).__name__)
        if ids.ndim != 2:
            raise ValueError(bad("ids", "shape (batch, length)", shape_text(ids), type(self).__name__))
        first = 0 if caches is None else caches[0].lengths[:, np.newaxis]
        if self.max_tokens is not None and (last := int(np.max(first, initial=0)) + ids.shape[1]) > self.max_tokens:
            raise ValueError(bad("ids", f"{self.max_tokens:,} tokens at most", f"{last:,} of them", type(self).__name__))
        x = self._embedded(ids, first)
        for index, layer in enumerate(self.layers):
            x = layer(x, None if caches is None else caches[index])
        return self._finished(x)

    def logits(self, states: Array) -> Array:
        """The score of each word as the next, (..., vocabulary)."""
        return project(states, self.head)

    def generate(self, ids: ArrayLike, count: int, caches: Sequence[qkvc.KVCache] | None = None) -> NDArray[np.int64]:
        """The `count` tokens that follow the prompts (B, L), always the likeliest: (B, count).

        Parameters
        ----------
        ids : array_like of int, shape (B, L)
        count : int
        caches : list of KVCache, optional
            Of `caches`; default are float32 ones.  They are at the end of what has been generated but for its last token.
        """
        ids = np.asarray(ids, np.int64)
        caches = self.caches(len(ids), ids.shape[1] + count) if caches is None else caches
        result = np.empty((len(ids), count), np.int64)
        for step in range(count):
            result[:, step] = self.logits(self.states(ids, caches)[:, -1]).argmax(axis=-1)
            ids = result[:, step : step + 1]
        return result
