"""Checkpoints: safetensors files that are either whole or not there, and that know whether they are what was written."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from qkvc._coerce import as_array, bad
from qkvc._files import write_whole
from qkvc.nn.layer import Array

WHO = "save_checkpoint"


class DamagedCheckpoint(ValueError):
    """A file that is no checkpoint, or no longer the one that was written."""


def _checksum(tensors: Mapping[str, Array], about: str) -> str:
    """CRC-32 of everything in the file, names and shapes included."""
    sum_ = zlib.crc32(about.encode())
    for name in sorted(tensors):
        x = tensors[name]
        sum_ = zlib.crc32(x.tobytes(), zlib.crc32(f"{name} {x.dtype} {x.shape}".encode(), sum_))
    return f"{sum_:08x}"


def save_checkpoint(path: str | os.PathLike[str], tensors: Mapping[str, Array], about: Mapping[str, Any]) -> None:
    """Write a checkpoint, by the package safetensors: the same bytes for the same tensors, and whole or not at all.

    Parameters
    ----------
    path : path
        Where; a file that is there is replaced.
    tensors : dict of ndarray
    about : dict
        What JSON can hold: sizes, steps, the history of a run.

    Raises
    ------
    OSError
        No room, no permission; what was at `path` is still there, and nothing else.
    ValueError, TypeError
        Arrays or names that safetensors cannot keep, something that JSON cannot hold; `path` is as it was.
    ModuleNotFoundError
        No safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save

    text, arrays = json.dumps(about), {name: _as_kept(name, x) for name, x in tensors.items()}
    metadata = {"qkvc": f"{_checksum(arrays, text)} {text}"}  # one entry: safetensors writes several in any order
    try:
        data = save(arrays, metadata)
    except SafetensorError as error:
        raise TypeError(bad("tensors", "arrays of dtypes that safetensors keeps", f"what it refuses: {error}"[:200], WHO)) from None
    write_whole(path, [data])


def _as_kept(name: Any, x: Any) -> Array:
    """As it will be read: in the machine's byte order, adjacent, and without a dimension if it has none."""
    if not isinstance(name, str) or name == "__metadata__":  # which safetensors would write, and then not read
        raise ValueError(bad("tensors", 'names other than "__metadata__"', repr(name)[:40], WHO))
    array = as_array(f"tensors, {name}", x, WHO)
    return np.asarray(array, array.dtype.newbyteorder("="), order="C")


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read what `save_checkpoint` wrote.

    Parameters
    ----------
    path : path

    Returns
    -------
    tensors : dict of ndarray
    about : dict

    Raises
    ------
    DamagedCheckpoint
        A file that is cut off, changed, or not a checkpoint; a ValueError.
    OSError
        No such file.
    ModuleNotFoundError
        No safetensors.
    """
    from safetensors import SafetensorError, safe_open

    with open(path, "rb"):  # safetensors' own message does not name the file
        pass
    try:
        with safe_open(os.fspath(path), framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except SafetensorError as error:
        raise DamagedCheckpoint(
            f"load_checkpoint: path: expected a whole checkpoint, got {path}, of which safetensors says: {error}"
        ) from None
    checksum, _, text = metadata.get("qkvc", "").partition(" ")
    if checksum != _checksum(tensors, text):
        raise DamagedCheckpoint(f"load_checkpoint: path: expected a checkpoint as it was written, got {path}, whose checksum differs")
    about: dict[str, Any] = json.loads(text)
    return tensors, about
