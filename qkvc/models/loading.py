"""Models from directories: config.json, the weights in safetensors, the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from qkvc._coerce import bad
from qkvc.models.bert import Bert
from qkvc.models.gpt2 import GPT2
from qkvc.models.llama import Llama
from qkvc.models.watch import Model

KINDS: dict[str, type[Bert] | type[GPT2] | type[Llama]] = {"bert": Bert, "gpt2": GPT2, "llama": Llama, "qwen2": Llama, "qwen3": Llama}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
Kind = TypeVar("Kind", bound=Model)


def load(directory: str | PathLike[str]) -> Bert | GPT2 | Llama:
    """A model from a directory as Hugging Face's hub has them.

    Parameters
    ----------
    directory : path-like
        With `config.json`, whose "model_type" is bert, gpt2, llama, qwen2 or qwen3; `model.safetensors`, or
        `model.safetensors.index.json` and the files that it names; and `tokenizer.json`, or for bert `vocab.txt`, without which the model
        takes token numbers only.

    Returns
    -------
    Bert, GPT2 or Llama
        Computing in float32.  A tensor is read when its layer is made, so that no more than one is in memory twice.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        It names the file.
    ValueError
        A file that cannot be read, a tensor that is missing or of another shape, a model type, an activation or a kind of positions that is
        not computed here: it names the directory or file, and what was found and expected.
    ModuleNotFoundError
        If safetensors, or tokenizers for a tokenizer that is there, is not installed.

    Examples
    --------
    >>> from qkvc.models import load
    >>> seen = load("gpt2").watch("When Mary and John went to the store")  # doctest: +SKIP
    """
    model: Bert | GPT2 | Llama = read(directory, Model)  # type: ignore[type-abstract, assignment]
    return model


def read(directory: str | PathLike[str], wanted: type[Kind]) -> Kind:
    """The same, of a model that has to be one of the wanted class."""
    path = Path(directory)
    config = read_json(path / "config.json")
    name = config.get("model_type")
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None or not (issubclass(kind, wanted) or issubclass(wanted, kind)):
        known = [name for name, kind in KINDS.items() if issubclass(kind, wanted) or issubclass(wanted, kind)]
        raise ValueError(bad("model_type", f"one of {', '.join(known)}", repr(name), str(path / "config.json")))
    chosen: Any = kind if issubclass(kind, wanted) else wanted
    tensors, tokenizer = Files(path), _tokenizer(path, kind)
    try:
        model: Kind = chosen(config, tensors, tokenizer)
    except (TypeError, ValueError) as error:
        where = "" if str(error).startswith(str(path)) else f"{path}: "  # what a file was refused for names it already
        raise ValueError(f"{where}{error}") from None
    return model


def read_json(file: Path) -> dict[str, Any]:
    """The object in a file."""
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: expected JSON, got what is none ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object, got a {type(content).__name__}")
    return content


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"load: {name} is not installed; get it with: pip install safetensors tokenizers", name=name) from None


class Files(Mapping[str, Any]):
    """The tensors of a directory's safetensors files by their names, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        if (path / WEIGHTS).exists():
            self.where = dict.fromkeys(self._names(path / WEIGHTS), path / WEIGHTS)
        elif (path / INDEX).exists():
            places = read_json(path / INDEX).get("weight_map")
            # Names alone: an index that leads out of its directory is none that anybody has written for a model.
            if not isinstance(places, dict) or not all(isinstance(file, str) and Path(file).name == file for file in places.values()):
                raise ValueError(f"{path / INDEX}: weight_map: expected the name of a file for every tensor, got none or others")
            held = {file: self._names(path / file) for file in sorted(set(places.values()))}
            for name, file in places.items():
                if name not in held[file]:
                    raise ValueError(f"{path / file}: expected the tensor {name}, as {INDEX} says, got none of this name")
            self.where = {name: path / file for name, file in places.items()}
        else:
            others = ", ".join(sorted(file.name for file in path.glob("*.bin"))) or "neither"
            raise FileNotFoundError(f"{path}: expected {WEIGHTS} or {INDEX}, got {others}")

    @staticmethod
    def _open(file: Path) -> Any:
        safetensors = _module("safetensors")
        with suppress(ModuleNotFoundError):
            import_module("ml_dtypes")  # which teaches NumPy bfloat16, and safetensors asks NumPy
        try:
            return safetensors.safe_open(file, framework="numpy")
        except safetensors.SafetensorError as error:
            raise ValueError(f"{file}: expected a safetensors file, got what is none ({error})") from None

    @classmethod
    def _names(cls, file: Path) -> list[str]:
        return list(cls._open(file).keys())

    def __getitem__(self, name: str) -> Any:
        file = self.where[name]
        try:
            return self._open(file).get_tensor(name)
        except (AttributeError, TypeError) as error:  # of NumPy, which has no such dtype
            wanted = "a dtype that NumPy has, or bfloat16 and the package ml_dtypes installed"
            raise ValueError(f"{file}: {name}: expected {wanted}, got another ({error})") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.where)

    def __len__(self) -> int:
        return len(self.where)


def _tokenizer(path: Path, kind: type[Model]) -> Any:
    """That of the directory, or None."""
    file, words = path / "tokenizer.json", path / "vocab.txt"
    try:
        if file.exists():
            return _module("tokenizers").Tokenizer.from_buffer(file.read_bytes())
        if kind is Bert and words.exists():
            file, settings = words, path / "tokenizer_config.json"
            told = read_json(settings) if settings.exists() else {}
            return _module("tokenizers").BertWordPieceTokenizer(
                str(words),
                lowercase=told.get("do_lower_case", True),
                strip_accents=told.get("strip_accents"),
                handle_chinese_chars=told.get("tokenize_chinese_chars", True),
            )
    except (OSError, ModuleNotFoundError):
        raise
    except Exception as error:  # tokenizers raises no other class
        raise ValueError(f"{file}: expected a tokenizer, got what is none ({error})") from None
    return None
