"""A language model that learns: LLaMA's blocks, with the gradients of qkvc.nn."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from qkvc._coerce import as_count, as_rate
from qkvc.models.llama import Llama
from qkvc.multihead import MultiHeadAttention
from qkvc.nn import Embedding, FeedForward, Layer, Linear, RMSNorm, SelfAttention, TransformerBlock
from qkvc.nn.layer import Array
from qkvc.rotary import RopeConfig

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

EPS = 1e-6
BASE = 10000.0


class LanguageModel(Layer):
    """Token numbers to scores of the next one, at every position.

    Parameters
    ----------
    vocabulary : int
        How many token numbers there are.
    width : int
        E, of a token's vector.
    layers, heads : int
        How many blocks, and heads in each.
    dropout : float, default 0
        The share of attention's weights that `forward` drops, 0 to below 1; a call of the model drops none.
    dtype : {"float32", "float64"}
    rng : numpy.random.Generator or int, optional
        Of the initial weights, and after them of those that are dropped.

    Attributes
    ----------
    embedding : Embedding
    blocks : list of TransformerBlock
        With RMS norms, rotary embeddings, SwiGLU and no biases.
    norm : RMSNorm
    head : Linear

    Raises
    ------
    ValueError, TypeError
        Sizes that do not fit together.

    Notes
    -----
    12 E^2 numbers a block, and 2 E for each token number.  What leads back to the residual begins smaller by sqrt(2 layers), so that depth
    does not make it grow (Radford et al., 2019).

    Examples
    --------
    >>> import numpy as np
    >>> from qkvc.models import LanguageModel
    >>> from qkvc.nn import AdamW, cross_entropy
    >>> model, text = LanguageModel(256, 64, layers=2, heads=2, rng=0), np.arange(33)[None]
    >>> optimiser, first = AdamW(model.parameters(), lr=1e-2), None
    >>> for _ in range(20):
    ...     loss = cross_entropy(model.forward(text[:, :-1]), text[:, 1:])
    ...     model.zero_grad()
    ...     model.backward(loss.grad)
    ...     length = optimiser.step()
    >>> loss.value < 1 < np.log(256)
    True
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        *,
        layers: int,
        heads: int,
        dropout: float = 0.0,
        dtype: DTypeLike = "float32",
        rng: np.random.Generator | int | None = None,
    ) -> None:
        self.dropout, self.rng = as_rate(dropout, "dropout", "LanguageModel"), np.random.default_rng(rng)
        how: dict[str, Any] = {"dtype": dtype, "rng": self.rng}
        self.embedding = Embedding(vocabulary, width, **how)
        self.blocks = [self._block(width, heads, layers, how) for _ in range(as_count("layers", layers, "LanguageModel"))]
        self.norm = RMSNorm(width, eps=EPS, dtype=dtype)
        self.head = Linear(width, vocabulary, bias=False, **how)

    def _block(self, width: int, heads: int, layers: int, how: dict[str, Any]) -> TransformerBlock:
        attention = MultiHeadAttention(width, heads, qkv_bias=False, out_bias=False, rope=RopeConfig(BASE), **how)
        feed_forward = FeedForward(width, activation="swiglu", bias=False, **how)
        for weight in (attention.out_weight, feed_forward.down.weight.value):
            weight /= sqrt(2 * layers)
        norms = RMSNorm(width, eps=EPS, dtype=how["dtype"]), RMSNorm(width, eps=EPS, dtype=how["dtype"])
        return TransformerBlock(SelfAttention(attention, causal=True, dropout_p=self.dropout), feed_forward, norms)

    def forward(self, ids: ArrayLike, /, rng: np.random.Generator | int | None = None) -> Array:
        """Scores (B, L, vocabulary) of what follows each of the tokens (B, L).

        `rng` says which weights are dropped, others in each block: the same ones from the same seed.  By default it is the model's own.
        """
        generator = self.rng if rng is None else np.random.default_rng(rng)
        x = self.embedding.forward(ids)
        for block in self.blocks:
            x = block.forward(x, generator)
        return self.head.forward(self.norm.forward(x))

    def backward(self, grad: Array) -> None:
        """Gradients of all parameters, given that of the scores."""
        x = self.norm.backward(self.head.backward(grad))
        for block in reversed(self.blocks):
            x = block.backward(x)
        self.embedding.backward(x)

    def llama(self) -> Llama:
        """The same model as `Llama`, which goes on with a text token by token, with a cache: a copy of the weights, in float32."""
        return Llama(self.config(), self.tensors())

    def config(self) -> dict[str, Any]:
        """What a checkpoint in LLaMA's form says in its config.json."""
        attention, feed_forward = self.blocks[0].attention.heads, self.blocks[0].feed_forward
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": len(self.embedding.weight.value),
            "hidden_size": attention.embed_dim,
            "intermediate_size": len(feed_forward.up.weight.value),
            "num_hidden_layers": len(self.blocks),
            "num_attention_heads": attention.num_heads,
            "num_key_value_heads": attention.num_kv_heads,
            "rms_norm_eps": EPS,
            "rope_theta": BASE,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
        }

    def tensors(self) -> dict[str, Array]:
        """Copies of the weights under LLaMA's names."""
        found: dict[str, Layer] = {"model.embed_tokens": self.embedding, "model.norm": self.norm, "lm_head": self.head}
        tensors: dict[str, Array] = {}
        for index, block in enumerate(self.blocks):
            prefix = f"model.layers.{index}."
            tensors |= block.attention.heads.state("llama", prefix=f"{prefix}self_attn.")
            found |= {f"{prefix}input_layernorm": block.norm_1, f"{prefix}post_attention_layernorm": block.norm_2}
            for part in ("gate", "up", "down"):
                found[f"{prefix}mlp.{part}_proj"] = getattr(block.feed_forward, part)
        return tensors | {f"{name}.weight": layer.parameters()["weight"].value.copy() for name, layer in found.items()}
