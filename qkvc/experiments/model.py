"""The model of the experiments: attention and nothing else, so that whatever it learns, attention does."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkvc.multihead import MultiHeadAttention
from qkvc.nn import Embedding, Layer, Linear, RMSNorm, SelfAttention
from qkvc.nn.layer import Array
from qkvc.rotary import RopeConfig

BASE = 10.0  # of the rotation: sequences are of 24 tokens at most, and LLaMA's 10000 would leave most of a narrow head unturned


class AttentionModel(Layer):
    """Token numbers to scores of answers, by layers of causal attention with a norm before each and a residual past it.

    Parameters
    ----------
    vocabulary : int
        How many token numbers there are.
    width : int
        E, of a token's vector.
    layers, heads : int
        How many layers, and heads in each.
    answers : int, default 1
        How many tokens are asked for at each position.
    rng : numpy.random.Generator or int, optional

    Attributes
    ----------
    embedding : Embedding
    norms : list of RMSNorm
    attentions : list of SelfAttention
        With rotary embeddings: 4 E^2 + 3 E numbers each, whatever the number of heads.  Biases of queries and keys make heads that look
        at places possible, whatever the tokens.
    norm : RMSNorm
    head : Linear

    Raises
    ------
    ValueError, TypeError
        Sizes that do not fit together.
    """

    def __init__(
        self, vocabulary: int, width: int, *, layers: int, heads: int, answers: int = 1, rng: np.random.Generator | int | None = None
    ) -> None:
        how: dict[str, Any] = {"rng": np.random.default_rng(rng)}
        self.embedding = Embedding(vocabulary, width, **how)
        self.norms = [RMSNorm(width) for _ in range(layers)]
        self.attentions = [
            SelfAttention(MultiHeadAttention(width, heads, out_bias=False, rope=RopeConfig(BASE), **how), causal=True)
            for _ in range(layers)
        ]
        self.norm = RMSNorm(width)
        self.head = Linear(width, answers * vocabulary, bias=False, **how)

    def inputs(self, ids: Array) -> list[Array]:
        """What the attention of each layer is given, (B, L, E) each."""
        given, x = [], self.embedding(ids)
        for norm, attention in zip(self.norms, self.attentions, strict=True):
            given.append(norm(x))
            x = attention(given[-1], x)
        return given

    def forward(self, ids: Array, /) -> Array:
        """Scores (B, L, answers * vocabulary) for tokens (B, L)."""
        x = self.embedding.forward(ids)
        for norm, attention in zip(self.norms, self.attentions, strict=True):
            x = attention.forward(norm.forward(x), plus=x)
        return self.head.forward(self.norm.forward(x))

    def backward(self, grad: Array) -> None:
        """Gradients of all parameters, given that of the scores."""
        x = self.norm.backward(self.head.backward(grad))
        for norm, attention in zip(reversed(self.norms), reversed(self.attentions), strict=True):
            x = norm.backward(attention.backward(x), also=x)
        self.embedding.backward(x)
