"""What several test files need: the same numbers in other memory, comparisons, refused calls and child processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import qkvc

from .reference import Reference, reference

ROOT = Path(__file__).parents[1]  # of the repository

# The one tolerance table: absolute error of `out` per unit of the largest |value|, and of `lse` per unit of max(1, |lse|).  Scores of a few
# units are meant (N(0, 1) inputs, default scale), where naive float32 NumPy reaches 5e-7; the sharp tests use `reference.certificate`.
TOLERANCE = {"out": 2e-6, "lse": 2e-6}


def bits(x: NDArray[Any]) -> NDArray[np.uint32]:
    """The bit patterns, so that -0.0 differs from 0.0 and a NaN equals itself."""
    return np.asarray(x, order="C").view(np.uint32)


def assert_same_bits(actual: NDArray[Any], expected: NDArray[Any], what: object = "") -> None:
    assert actual.shape == expected.shape, what
    different = np.argwhere(bits(actual) != bits(expected))
    assert not different.size, f"{what}: {len(different)} of {actual.size} elements differ, the first at {different[0]}"


def assert_close(actual: NDArray[Any], expected: NDArray[Any], atol: float, what: object = "") -> None:
    """Non-finite numbers must be the same ones: a NaN in the reference must not make the comparison pass."""
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    assert actual.dtype == np.float32, what
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite].astype(np.float32), err_msg=str(what))
    error = np.abs(actual[finite].astype(np.float64) - expected[finite])
    worst = error.max(initial=0)
    assert worst <= atol, f"{what}: error {worst:.3g}, allowed {atol:.3g}, in {np.sum(~(error <= atol))} of {actual.size} elements"


def assert_attention(query: Any, key: Any, value: Any, what: object = "", **options: Any) -> Reference:
    """Run attention_with_lse and compare both results with the oracle; `out` and `num_threads` are not the oracle's business."""
    got = qkvc.attention_with_lse(query, key, value, **options)
    meaning = {name: option for name, option in options.items() if name not in ("out", "num_threads")}
    expected = reference(query, key, value, **meaning)
    what = what or {name: np.shape(option) or option for name, option in dict(query=query, key=key, value=value, **meaning).items()}
    finite = np.abs(np.asarray(value, dtype=np.float64))
    assert_close(got.out, expected.out, TOLERANCE["out"] * max(1.0, finite.max(initial=0, where=np.isfinite(finite))), what)
    largest = np.abs(expected.lse).max(initial=1, where=np.isfinite(expected.lse))
    assert_close(got.lse, expected.lse, TOLERANCE["lse"] * largest, what)
    return expected


def normal(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return rng.standard_normal(shape, dtype=np.float32)


def operands(
    rng: np.random.Generator, batch: tuple[int, ...], heads: tuple[int, int], lengths: tuple[int, int], dims: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Query, key and value of N(0, 1) in the layout (..., H, L, D); heads and lengths are (query's, key's), dims is (D, Dv)."""
    query = normal(rng, *batch, heads[0], lengths[0], dims[0])
    return query, normal(rng, *batch, heads[1], lengths[1], dims[0]), normal(rng, *batch, heads[1], lengths[1], dims[1])


# --- the same numbers in other memory; every gap between them holds NaN, so that an ignored stride cannot hide -------------------------


def _gaps(a: NDArray[Any]) -> NDArray[Any]:
    big = np.full([2 * n + 1 for n in a.shape], np.nan, dtype=a.dtype)
    view = big[(slice(1, None, 2),) * a.ndim]
    view[...] = a
    return view


def _padded_rows(a: NDArray[Any], width: int) -> NDArray[Any]:
    big = np.full((*a.shape[:-1], width), np.nan, dtype=a.dtype)
    view = big[..., : a.shape[-1]]
    view[...] = a
    return view


def _reversed(a: NDArray[Any]) -> NDArray[Any]:
    backwards = (slice(None, None, -1),) * a.ndim
    return a[backwards].copy()[backwards]


def _rows_outermost(a: NDArray[Any]) -> NDArray[Any]:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, -2, 0)), 0, -2)


def at_byte(a: NDArray[Any], offset: int) -> NDArray[Any]:
    """The same numbers, `offset` bytes behind the start of a cache line."""
    buffer = np.empty(a.nbytes + 64 + offset, dtype=np.uint8)
    start = -buffer.ctypes.data % 64 + offset
    view = buffer[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def _read_only(a: NDArray[Any]) -> NDArray[Any]:
    copy = a.copy()
    copy.flags.writeable = False
    return copy


MEMORY: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "contiguous": np.ascontiguousarray,
    "fortran": np.asfortranarray,
    "gaps on every axis": _gaps,
    "padded rows": lambda a: _padded_rows(a, a.shape[-1] + 3),
    "rows 4096 bytes apart": lambda a: _padded_rows(a, -(-a.shape[-1] // 1024) * 1024),
    "reversed": _reversed,
    "rows outermost": _rows_outermost,
    "4 bytes off a cache line": lambda a: at_byte(a, 4),
    "unaligned": lambda a: at_byte(a, 1),
    "other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "read-only": _read_only,
}


# --- refused calls ---------------------------------------------------------------------------------------------------------------------


def assert_refused(call: Callable[[], object], exception: type[Exception] | tuple[type[Exception], ...], *words: str) -> str:
    """The call raises exactly this kind of error, in one readable line that has every one of the words (case apart)."""
    with pytest.raises(exception) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message, message
    assert 0 < len(message) < 300, message
    missing = [word for word in words if word.lower() not in message.lower()]
    assert not missing, f"{missing} not in: {message}"
    return message


# --- child processes -------------------------------------------------------------------------------------------------------------------


def run_child(code: str, *, timeout: float = 60, **environment: str) -> str:
    """Run the code in a fresh interpreter under a watchdog and give back what it printed; a crash or a hang fails the test."""
    source = textwrap.dedent(code)
    env = {**os.environ, **environment}
    try:
        done = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-c", source], capture_output=True, text=True, timeout=timeout, env=env, check=False
        )
    except subprocess.TimeoutExpired as hang:
        pytest.fail(f"the child hung for {timeout} s: {hang.stdout!r} {hang.stderr!r}")
    assert done.returncode == 0, f"the child ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
