"""What several test files need: the same numbers in other memory, comparisons, refused calls and child processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import ArrayLike, DTypeLike, NDArray

import qkvc

from .reference import Reference, exact_for, lse_type, reference, result_type

ROOT = Path(__file__).parents[1]  # of the repository

# The one tolerance table: absolute error of `out` per unit of the largest |value|, and of `lse` per unit of max(1, |lse|).  Scores of a few
# units are meant (N(0, 1) inputs, default scale), where naive float32 NumPy reaches 5e-7; the sharp tests use `reference.certificate`.
# float64 has 29 bits more; results of 16 bits are rounded, by 5e-4 and 4e-3.
TOLERANCE = {"out": 2e-6, "lse": 2e-6}
FINER = {"float32": 1.0, "float64": 2.0**-29, "float16": 2.0**9, "bfloat16": 2.0**12}


def bits(x: NDArray[Any]) -> NDArray[Any]:
    """The bit patterns, so that -0.0 differs from 0.0 and a NaN equals itself."""
    return np.asarray(x, order="C").view(f"u{x.dtype.itemsize}")


def assert_same_bits(actual: NDArray[Any], expected: NDArray[Any], what: object = "") -> None:
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), what
    different = np.argwhere(bits(actual) != bits(expected))
    assert not different.size, f"{what}: {len(different)} of {actual.size} elements differ, the first at {different[0]}"


def assert_close(actual: NDArray[Any], expected: NDArray[Any], atol: ArrayLike, what: object = "", dtype: DTypeLike = np.float32) -> None:
    """Non-finite numbers must be the same ones: a NaN in the reference must not make the comparison pass."""
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    assert actual.dtype == dtype, f"{what}: dtype {actual.dtype}"
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite].astype(dtype), err_msg=str(what))
    error, allowed = np.abs(actual[finite] - expected[finite]), np.broadcast_to(atol, expected.shape)[finite]
    wrong = ~(error <= allowed)
    worst = f"error {error.max(initial=0):.3g}, allowed {allowed.max(initial=0):.3g}"
    assert not wrong.any(), f"{what}: {worst}, in {wrong.sum()} of {actual.size} elements"


def assert_attention(query: Any, key: Any, value: Any, what: object = "", **options: Any) -> Reference:
    """Run attention_with_lse and compare both results with the oracle; `out` and `num_threads` are not the oracle's business."""
    got = qkvc.attention_with_lse(query, key, value, **options)
    meaning = {name: option for name, option in options.items() if name not in ("out", "num_threads")}
    return assert_result(got, query, key, value, what, **meaning)


def assert_result(got: qkvc.AttentionOutput, query: Any, key: Any, value: Any, what: object = "", **meaning: Any) -> Reference:
    """Compare both results of a call with the oracle."""
    exact, dtype = exact_for(query, key, value), result_type(query, key, value)
    expected = reference(query, key, value, dtype=exact, **meaning)
    what = what or {name: np.shape(option) or option for name, option in dict(query=query, key=key, value=value, **meaning).items()}
    size = np.abs(np.asarray(value, dtype=exact))
    size = size.max(initial=1, where=np.isfinite(size)) * np.abs(meaning.get("head_scale", 1.0)).max(initial=1)
    assert_close(got.out, expected.out, TOLERANCE["out"] * FINER[dtype.name] * size, what, dtype)
    largest = np.abs(expected.lse).max(initial=1, where=np.isfinite(expected.lse))
    assert_close(got.lse, expected.lse, TOLERANCE["lse"] * FINER[dtype.name] * largest, what, lse_type(query, key, value))
    return expected


def share_of_bound(name: str, actual: NDArray[Any], expected: NDArray[Any], bound: NDArray[Any], dtype: np.dtype[Any]) -> float:
    """The largest error in units of what is allowed; above 1 it fails, as where shape, dtype or a number that is not finite differs."""
    if (actual.shape, actual.dtype) != (expected.shape, dtype):
        raise AssertionError(f"{name}: {actual.dtype}{actual.shape}, expected {dtype}{expected.shape}")
    finite = np.isfinite(expected)
    if (actual[~finite] != expected[~finite]).any():
        raise AssertionError(f"{name}: {actual[~finite][:3]} for {expected[~finite][:3]}")
    smallest = ml_dtypes.finfo(dtype).smallest_subnormal
    ratio = np.abs(actual[finite] - expected[finite]) / (np.broadcast_to(bound, expected.shape)[finite] + smallest)
    if not (ratio <= 1).all():
        raise AssertionError(f"{name}: {(~(ratio <= 1)).sum()} of {actual.size} elements, the worst at {np.max(ratio):.3g} of the bound")
    return float(ratio.max(initial=0))


def _with_bf16() -> bool:
    return bool(qkvc.show_config("dicts")["kernels"]["in use"].endswith("bf16"))  # type: ignore[index]


def in_bytes(query: NDArray[Any]) -> bool:
    """Do few of these queries meet int8 rows where they lie?"""
    return _with_bf16() and query.dtype != np.float64


def in_pairs(*operands: Any) -> bool:
    """Does a call with these take kernels that multiply pairs of bfloat16?"""
    return _with_bf16() and all(np.asarray(x).dtype.name == "bfloat16" for x in operands)


def normal(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return rng.standard_normal(shape, dtype=np.float32)


def operands(
    rng: np.random.Generator, batch: tuple[int, ...], heads: tuple[int, int], lengths: tuple[int, int], dims: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Query, key and value of N(0, 1) in the layout (..., H, L, D); heads and lengths are (query's, key's), dims is (D, Dv)."""
    query = normal(rng, *batch, heads[0], lengths[0], dims[0])
    return query, normal(rng, *batch, heads[1], lengths[1], dims[0]), normal(rng, *batch, heads[1], lengths[1], dims[1])


# --- the same numbers in other memory; every gap between them holds NaN, so that an ignored stride cannot hide -------------------------


def _filled(shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.full(shape, np.nan if dtype.kind in "fV" else 1, dtype)


def _gaps(a: NDArray[Any]) -> NDArray[Any]:
    big = _filled([2 * n + 1 for n in a.shape], a.dtype)
    view = big[(slice(1, None, 2),) * a.ndim]
    view[...] = a
    return view


def _padded_rows(a: NDArray[Any], width: int) -> NDArray[Any]:
    big = _filled((*a.shape[:-1], width), a.dtype)
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
    "one element off a cache line": lambda a: at_byte(a, a.itemsize),
    "unaligned": lambda a: at_byte(a, 1),
    "other byte order": lambda a: a if a.dtype.kind == "V" else a.astype(a.dtype.newbyteorder()),  # bfloat16 has but one
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
