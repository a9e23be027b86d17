"""BERT, the encoder: every token sees all others; in NumPy and qkvc."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import qkvc
from qkvc._coerce import as_above_zero
from qkvc._layers import layer_norm
from qkvc._linear import project
from qkvc.models.tensors import Config, Tensors
from qkvc.models.watch import Model

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from qkvc.models.watch import Array, Precision


def spread(tokens: Array, present: NDArray[np.bool_]) -> Array:
    """Tokens (T, ...), one sentence after the other, as (B, L, ...), zeros behind the end of each; a view where none is shorter."""
    if len(tokens) == present.size:
        return tokens.reshape(*present.shape, *tokens.shape[1:])
    padded = np.zeros((*present.shape, *tokens.shape[1:]), dtype=np.float32)
    padded[present] = tokens
    return padded


class Layer:
    """One encoder block: attention, then the feed-forward network, each added to its input and normalised."""

    def __init__(self, tensors: Tensors, width: int, inner: int, heads: int, eps: float, precision: Precision) -> None:
        self.eps, self.precision = eps, precision
        self.attention = tensors.attention(width, heads, "bert")
        self.up, self.down = tensors.pair("intermediate.dense", inner, width), tensors.pair("output.dense", width, inner)
        self.norm_1, self.norm_2 = (tensors.norm(f"{name}.LayerNorm", width) for name in ("attention.output", "output"))

    def __call__(self, x: Array, present: NDArray[np.bool_], lengths: NDArray[np.int64] | None) -> Array:
        """Only tokens that exist are projected, (T, E); attention alone sees them as sentences with padding."""
        query, key, value = (spread(part, present) for part in self.attention.project(x))
        heads = qkvc.attention(query, key, value, key_lengths=lengths, layout="blhd", precision=self.precision)[present]
        return self.after(x, self.attention.output(heads.swapaxes(0, 1)))

    def reads(self, x: Array) -> Array:
        """The states as they are: the norm of the layer before is behind its sum."""
        return x

    def after(self, x: Array, attended: Array) -> Array:
        """The two sums and the network between them."""
        x = layer_norm(attended, *self.norm_1, self.eps, residual=x)
        hidden = layer_norm(project(project(x, *self.up, gelu=True), *self.down), *self.norm_2, self.eps, residual=x)
        return hidden


class Bert(Model):
    """Texts to a vector for each token, which knows of all the others.

    Parameters
    ----------
    config : dict
        The values of the model's `config.json`.
    tensors : dict of ndarray
        The weights, by their names in the checkpoint, before which there may be "bert."; computed with in float32.
    tokenizer : tokenizers.Tokenizer, optional
        Without one the model is given token numbers.  Its padding and truncation are switched off.
    precision : {"bf16"}, optional
        Of attention, as of `qkvc.attention`.

    Raises
    ------
    ValueError, TypeError
        A tensor that is missing or of another shape; an activation or a kind of positions that is not computed here.

    Notes
    -----
    All tokens are of type 0, a first sentence's.  What stands on the encoder, as a pooler, is left out.

    References
    ----------
    Devlin et al., "BERT" (2019).
    """

    causal = False
    layers: list[Layer]
    max_tokens: int

    def __init__(
        self, config: Mapping[str, Any], tensors: Mapping[str, Any], tokenizer: Any = None, *, precision: Precision = None
    ) -> None:
        who = type(self).__name__
        told = Config(config, who)
        told.only("hidden_act", "gelu")
        told.only("position_embedding_type", "absolute")
        told.only("is_decoder", False)
        prefix = "bert." if "bert.embeddings.word_embeddings.weight" in tensors else ""
        found, self.precision = Tensors(tensors, who, prefix), precision
        names = ("hidden_size", "intermediate_size", "num_attention_heads", "max_position_embeddings", "num_hidden_layers")
        width, inner, heads, self.max_tokens, layers = (told.count(name) for name in names)
        self.eps = as_above_zero("config: layer_norm_eps", told.get("layer_norm_eps", 1e-12), who)
        embeddings = found.under("embeddings.")
        self.words = embeddings.take("word_embeddings.weight", told.count("vocab_size"), width)
        types = embeddings.take("token_type_embeddings.weight", told.count("type_vocab_size", 2), width)
        self.positions = embeddings.take("position_embeddings.weight", self.max_tokens, width) + types[0]
        self.norm = embeddings.norm("LayerNorm", width)
        parts = (found.under(f"encoder.layer.{index}.") for index in range(layers))
        self.layers = [Layer(part, width, inner, heads, self.eps, precision) for part in parts]
        self._speak(tokenizer)

    def _embedded(self, ids: NDArray[np.int64]) -> Array:
        return layer_norm(self.words[ids] + self.positions[: len(ids)], *self.norm, self.eps)

    def tokenize(self, sentences: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Token numbers (B, L), padded with 0, and the lengths (B,)."""
        if isinstance(sentences, str):
            raise TypeError("sentences: expected a sequence of strings, got one string")
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(list(sentences))]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        ids = np.zeros((len(rows), lengths.max(initial=0)), dtype=np.int64)
        for padded, row in zip(ids, rows, strict=True):
            padded[: len(row)] = row
        return ids, lengths

    def _states(self, ids: ArrayLike, lengths: ArrayLike) -> Iterator[Array]:
        """The vectors of all tokens that exist, (T, E), one sentence after the other: the embeddings, then the output of each layer."""
        ids, lengths = np.asarray(ids, dtype=np.int64), np.asarray(lengths, dtype=np.int64)
        present = np.arange(ids.shape[1]) < lengths[:, np.newaxis]
        shorter = None if present.all() else lengths
        x = layer_norm(self.words[ids[present]] + self.positions[present.nonzero()[1]], *self.norm, self.eps)
        yield x
        for layer in self.layers:
            x = layer(x, present, shorter)
            yield x

    def hidden_states(self, ids: ArrayLike, lengths: ArrayLike) -> Array:
        """The token vectors, (layers + 1, B, L, E): the embeddings, then the output of each layer; zeros for the padding."""
        present = np.arange(np.shape(ids)[1]) < np.asarray(lengths)[:, np.newaxis]
        return np.stack([spread(x, present) for x in self._states(ids, lengths)])
