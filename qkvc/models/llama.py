"""LLaMA and what is built like it, Qwen2 and Qwen3: decoders that go on with a text, in NumPy and qkvc."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import qkvc
from qkvc._linear import project

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float32]
    Tensors = Mapping[str, NDArray[Any]]


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    normed: Array = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + np.float32(eps)) * weight
    return normed


def rope_of(config: Mapping[str, Any]) -> qkvc.RopeConfig:
    """How positions turn heads: of today's `config.json`, where it is one dict, or of earlier ones."""
    told = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0), **(config.get("rope_scaling") or {})}
    kind, scaling = told.get("rope_type", "default"), None
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        scaling = qkvc.Llama3Scaling(*(told[name] for name in names))
    elif kind != "default":
        raise ValueError(f'Llama: config: expected rope_type "default" or "llama3", got {kind!r}')
    return qkvc.RopeConfig(float(told["rope_theta"]), scaling=scaling)


class Layer:
    """One decoder block: attention, then the gated feed-forward network, each of a normalised input and added to it."""

    def __init__(self, tensors: Tensors, prefix: str, config: Mapping[str, Any]) -> None:
        self.eps = float(config["rms_norm_eps"])
        own = {name.removeprefix(prefix): np.asarray(x, np.float32) for name, x in tensors.items() if name.startswith(prefix)}
        self.attention = qkvc.MultiHeadAttention.from_state(
            own,
            config["num_attention_heads"],
            prefix="self_attn.",
            rope=rope_of(config),
            qk_norm=self.eps if "self_attn.q_norm.weight" in own else None,
        )
        self.gate, self.up, self.down = (own[f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        self.norm_1, self.norm_2 = own["input_layernorm.weight"], own["post_attention_layernorm.weight"]

    def __call__(self, x: Array, cache: qkvc.KVCache | None) -> Array:
        how: dict[str, Any] = {"causal": True} if cache is None else {"cache": cache}
        x = x + self.attention(rms_norm(x, self.norm_1, self.eps), **how)  # the caller's own x stays
        hidden = rms_norm(x, self.norm_2, self.eps)
        gate = project(hidden, self.gate)
        gate *= (1 + np.tanh(gate / 2)) / 2  # SiLU, x / (1 + exp(-x)), without an exp that overflows
        x += project(gate * project(hidden, self.up), self.down)
        return x


class Llama:
    """A text's token numbers to scores of every next token.

    Parameters
    ----------
    config : dict
        The values of the model's `config.json`.
    tensors : dict of ndarray
        The weights, by their names in the checkpoint; computed with in float32.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Tensors) -> None:
        self.eps = float(config["rms_norm_eps"])
        self.words, self.norm = (np.asarray(tensors[f"model.{name}.weight"], np.float32) for name in ("embed_tokens", "norm"))
        self.head = np.asarray(tensors["lm_head.weight"], np.float32) if "lm_head.weight" in tensors else self.words
        self.layers = [Layer(tensors, f"model.layers.{index}.", config) for index in range(config["num_hidden_layers"])]

    def caches(self, batch: int, capacity: int, **options: Any) -> list[qkvc.KVCache]:
        """An empty cache for each layer; options as of `qkvc.KVCache`."""
        parts = (layer.attention for layer in self.layers)
        return [qkvc.KVCache(batch, part.num_kv_heads, capacity, part.head_dim, **options) for part in parts]

    def states(self, ids: ArrayLike, caches: Sequence[qkvc.KVCache] | None = None) -> Array:
        """The vectors of tokens (B, L), which with `caches` follow what those have: (B, L, E)."""
        x = self.words[np.asarray(ids)]
        for index, layer in enumerate(self.layers):
            x = layer(x, None if caches is None else caches[index])
        return rms_norm(x, self.norm, self.eps)

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
