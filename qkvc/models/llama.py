"""LLaMA, Qwen2 and Qwen3: decoders that go on with a text, in NumPy and qkvc."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import qkvc
from qkvc._coerce import as_above_zero, bad
from qkvc._forms import FORMS
from qkvc._linear import project
from qkvc.models.decoder import Decoder, DecoderLayer
from qkvc.models.tensors import Config, Tensors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qkvc.models.watch import Array


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    normed: Array = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + np.float32(eps)) * weight
    return normed


def rope_of(told: Config) -> qkvc.RopeConfig:
    """How positions turn heads: of today's `config.json`, where it is one dict, or of earlier ones."""
    own, earlier = told.get("rope_parameters", {}), told.get("rope_scaling", {})
    for name, given in (("rope_parameters", own), ("rope_scaling", earlier)):
        if not isinstance(given, Mapping):
            raise TypeError(bad(f"config: {name}", "an object", type(given).__name__, "Llama"))
    # Where there is the one dict, it tells all; other models have one of these for each kind of layer in it.
    rope = Config(own or {"rope_theta": told.get("rope_theta", 10000.0), **earlier}, "Llama")
    for where in (told, rope):
        where.only("partial_rotary_factor", 1)
    kind = rope.get("rope_type", rope.get("type", "default"))  # "type" in the earliest
    scaling: float | qkvc.Llama3Scaling | None = None
    if kind == "linear":
        scaling = rope.get("factor")
    elif kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        scaling = qkvc.Llama3Scaling(*(rope.get(name) for name in names))
    elif kind != "default":
        raise ValueError(bad("config: rope_type", '"default", "linear" or "llama3"', repr(kind), "Llama"))
    return qkvc.RopeConfig(rope.get("rope_theta"), scaling=scaling)


class Layer(DecoderLayer):
    """With RMS norms and a gated feed-forward network."""

    def __init__(self, tensors: Tensors, width: int, inner: int, eps: float, attention: Mapping[str, Any]) -> None:
        self.eps = eps
        own = tensors.under("self_attn.")
        self.attention = own.attention(width, **attention, qk_norm=eps if "q_norm.weight" in own else None)
        shapes = {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
        self.gate, self.up, self.down = (tensors.take(f"mlp.{name}_proj.weight", *shape) for name, shape in shapes.items())
        self.norm_1, self.norm_2 = (tensors.take(f"{name}_layernorm.weight", width) for name in ("input", "post_attention"))

    def reads(self, x: Array) -> Array:
        return rms_norm(x, self.norm_1, self.eps)

    def after(self, x: Array, attended: Array) -> Array:
        x = x + attended
        hidden = rms_norm(x, self.norm_2, self.eps)
        gate = project(hidden, self.gate)
        gate *= (1 + np.tanh(gate / 2)) / 2  # SiLU, x / (1 + exp(-x)), without an exp that overflows
        x += project(gate * project(hidden, self.up), self.down)
        return x


class Llama(Decoder):
    """A text's token numbers to scores of every next token.

    Parameters
    ----------
    config : dict
        The values of the model's `config.json`.
    tensors : dict of ndarray
        The weights, by their names in the checkpoint, "model." before them or not; computed with in float32.
    tokenizer : tokenizers.Tokenizer, optional
        Without one the model is given token numbers.

    Raises
    ------
    ValueError, TypeError
        A tensor that is missing or of another shape; an activation, a window or a rotation that is not computed here.

    References
    ----------
    Touvron et al., "LLaMA" (2023); Yang et al., "Qwen2" and "Qwen3" Technical Reports (2024, 2025).
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Any], tokenizer: Any = None) -> None:
        told, found = Config(config, "Llama"), Tensors(tensors, "Llama")
        body = found.under("" if "embed_tokens.weight" in found else "model.")
        told.only("hidden_act", "silu")
        for name in ("mlp_bias", "use_sliding_window"):
            told.only(name, False)
        width, inner, layers, vocabulary = (
            told.count(name) for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
        )
        heads = told.count("num_attention_heads")
        self.eps = as_above_zero("config: rms_norm_eps", told.get("rms_norm_eps", 1e-6), "Llama")
        self.words, self.norm = body.take("embed_tokens.weight", vocabulary, width), body.take("norm.weight", width)
        tied = told.flag("tie_word_embeddings", "lm_head.weight" not in found)
        self.head = self.words if tied else found.take("lm_head.weight", vocabulary, width)
        kind = told.get("model_type", None)
        attention = {
            "heads": heads,
            "form": kind if kind in FORMS else None,  # by its tensors, where it is not said
            "kv_heads": told.count("num_key_value_heads", heads),
            "head_dim": told.count("head_dim", width // heads),
            "rope": rope_of(told),
        }
        parts = (body.under(f"layers.{index}.") for index in range(layers))
        self.layers = [Layer(part, width, inner, self.eps, attention) for part in parts]
        self._speak(tokenizer)

    def _embedded(self, ids: NDArray[np.int64], first: Any = 0) -> Array:
        return self.words[ids]

    def _finished(self, x: Array) -> Array:
        return rms_norm(x, self.norm, self.eps)
