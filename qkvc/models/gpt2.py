"""GPT-2, the decoder with learned positions, in NumPy and qkvc."""

from __future__ import annotations

from collections.abc import Mapping
from math import pi, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from qkvc._coerce import as_above_zero
from qkvc._layers import layer_norm
from qkvc._linear import project
from qkvc.models.decoder import Decoder, DecoderLayer
from qkvc.models.tensors import Config, Tensors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qkvc.models.watch import Array


def gelu_tanh(x: Array) -> Array:
    """x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), in the memory of x: GPT-2 was trained with it, not with the error function."""
    inner = np.square(x)
    inner *= np.float32(0.044715)
    inner += 1
    inner *= x
    inner *= np.float32(sqrt(2 / pi))
    np.tanh(inner, out=inner)
    inner += 1
    inner *= np.float32(0.5)
    x *= inner
    return x


class Layer(DecoderLayer):
    """With layer norms, and weights that the checkpoint has as (in, out)."""

    def __init__(self, tensors: Tensors, width: int, inner: int, heads: int, eps: float) -> None:
        self.eps = eps
        self.attention = tensors.under("attn.").attention(width, heads, "gpt2")
        self.up = tensors.take("mlp.c_fc.weight", width, inner).T, tensors.take("mlp.c_fc.bias", inner)
        self.down = tensors.take("mlp.c_proj.weight", inner, width).T, tensors.take("mlp.c_proj.bias", width)
        self.norm_1, self.norm_2 = tensors.pair("ln_1", width), tensors.pair("ln_2", width)

    def reads(self, x: Array) -> Array:
        return layer_norm(x, *self.norm_1, self.eps)

    def after(self, x: Array, attended: Array) -> Array:
        x = x + attended
        x += project(gelu_tanh(project(layer_norm(x, *self.norm_2, self.eps), *self.up)), *self.down)
        return x


class GPT2(Decoder):
    """A text's token numbers to scores of every next token.

    Parameters
    ----------
    config : dict
        The values of the model's `config.json`.
    tensors : dict of ndarray
        The weights, by their names in the checkpoint, before which there may be "transformer."; computed with in float32.
    tokenizer : tokenizers.Tokenizer, optional
        Without one the model is given token numbers.

    Raises
    ------
    ValueError, TypeError
        A tensor that is missing or of another shape; an activation or a scaling that is not computed here.

    References
    ----------
    Radford et al., "Language Models are Unsupervised Multitask Learners" (2019).
    """

    max_tokens: int

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Any], tokenizer: Any = None) -> None:
        told = Config(config, "GPT2")
        told.only("activation_function", "gelu_new", "gelu_pytorch_tanh")
        told.only("scale_attn_weights", True)
        for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
            told.only(name, False)
        found = Tensors(tensors, "GPT2", "transformer." if "transformer.wte.weight" in tensors else "")
        width, heads, layers, vocabulary, self.max_tokens = (
            told.count(name) for name in ("n_embd", "n_head", "n_layer", "vocab_size", "n_positions")
        )
        inner = told.count("n_inner", 4 * width)
        self.eps = as_above_zero("config: layer_norm_epsilon", told.get("layer_norm_epsilon", 1e-5), "GPT2")
        self.words, self.positions = found.take("wte.weight", vocabulary, width), found.take("wpe.weight", self.max_tokens, width)
        tied = told.flag("tie_word_embeddings", True)
        self.head = self.words if tied else Tensors(tensors, "GPT2").take("lm_head.weight", vocabulary, width)
        self.norm = found.pair("ln_f", width)
        self.layers = [Layer(found.under(f"h.{index}."), width, inner, heads, self.eps) for index in range(layers)]
        self._speak(tokenizer)

    def _embedded(self, ids: NDArray[np.int64], first: Any = 0) -> Array:
        x: Array = self.words[ids] + self.positions[first + np.arange(ids.shape[-1])]
        return x

    def _finished(self, x: Array) -> Array:
        return layer_norm(x, *self.norm, self.eps)
