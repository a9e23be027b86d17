"""What runs: kernel sets, threads, and a report of both."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Literal

import numpy as np

from qkvc import _kernels
from qkvc._cpu import available_cpus


def kernels() -> tuple[str, ...]:
    """Names of the kernel sets this CPU can run, best first: of "avx512bf16" (AVX-512 with products of bfloat16 pairs), "avx512",
    "avx2" and "portable", or "neon" and "portable"."""
    return _kernels.kernels()


@contextmanager
def use_kernels(name: str) -> Iterator[None]:
    """Compute with the kernel set `name` inside a ``with`` block, for tests and measurements.

    The choice is the process's, not the thread's: calls of other threads change with it.  The environment's ``QKVC_ISA`` chooses at
    import.

    Parameters
    ----------
    name : str
        One of `kernels()`.

    Raises
    ------
    ValueError
        This CPU cannot run a set of that name.
    """
    before = _kernels.active_kernels()
    _kernels.select_kernels(name)
    try:
        yield
    finally:
        _kernels.select_kernels(before)


def set_num_threads(n: int) -> None:
    """Set how many threads a call may use, the caller's included.

    Parameters
    ----------
    n : int
        1 or more.  Small calls take fewer.  The default is what affinity and the control group's quota allow, or ``QKVC_NUM_THREADS``.

    Raises
    ------
    TypeError, ValueError
        n is not an integer of 1 or more.
    """
    _kernels.set_num_threads(n)


def get_num_threads() -> int:
    """How many threads a call may use, the caller's included."""
    return _kernels.get_num_threads()


def show_config(mode: Literal["stdout", "dicts"] = "stdout") -> dict[str, Any] | None:
    """Say what runs: versions, kernel set, tile, threads.

    Parameters
    ----------
    mode : {"stdout", "dicts"}, default "stdout"
        Print JSON, or return the dictionary.

    Returns
    -------
    dict or None

    Raises
    ------
    ValueError
        Any other mode.
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f'show_config: mode: expected "stdout" or "dicts", got {mode!r}')
    lanes, vectors, block = _kernels.tile_shape()
    config: dict[str, Any] = {
        "qkvc": version("qkvc"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "kernels": {
            "in use": _kernels.active_kernels(),
            "available": list(kernels()),
            "dtypes": ["float32", "float64", "float16", "bfloat16"],
        },
        "tile": {"queries": lanes * vectors, "lanes": lanes, "keys per block": block},
        "threads": {"in use": get_num_threads(), "available CPUs": available_cpus(), "started": _kernels.pool_started()},
    }
    if mode == "dicts":
        return config
    json.dump(config, sys.stdout, indent=2)
    print()
    return None
