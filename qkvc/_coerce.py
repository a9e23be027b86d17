"""Conversions and checks of one argument at a time: the slow road into the plan, and the wording of every message."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NO_KERNELS_YET = "float32 (no kernels for other dtypes yet: convert with .astype(numpy.float32))"


def bad(argument: str, expected: str, got: str, who: str = "attention") -> str:
    return f"{who}: {argument}: expected {expected}, got {got}"


def shape_text(x: Any) -> str:
    return f"shape {np.shape(x)}"


def _as_array(name: str, x: Any, who: str = "attention") -> NDArray[Any]:
    if x is None:
        raise TypeError(bad(name, "an array", "None", who))
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(bad(name, "an array without a mask of its own (its data, and the mask argument)", "a numpy.ma.MaskedArray", who))
    if isinstance(x, np.matrix):
        raise TypeError(bad(name, "an array", "a numpy.matrix, which cannot have heads", who))
    try:
        array = np.asarray(x)
    except (ValueError, TypeError) as error:
        raise TypeError(bad(name, "an array", f"{type(x).__name__}, which NumPy cannot convert ({error})", who)) from None
    return array


def as_float32(name: str, x: Any, who: str = "attention") -> NDArray[np.float32]:
    """A float32 array in native byte order; the same memory where that is possible."""
    array = _as_array(name, x, who)
    if array.dtype.kind != "f" or array.dtype.itemsize != 4:
        raise TypeError(bad(name, _NO_KERNELS_YET, str(array.dtype), who))
    return array if array.dtype.isnative else array.astype(np.float32)


def as_mask(x: Any) -> NDArray[np.bool_]:
    array = _as_array("mask", x)
    if array.dtype.kind == "f":
        wanted = "bool, True where a query may attend (numbers that are added to the scores are `bias`)"
        raise TypeError(bad("mask", wanted, str(array.dtype)))
    if array.dtype != np.bool_:
        raise TypeError(bad("mask", "bool, True where a query may attend", str(array.dtype)))
    return array


def as_bias(x: Any) -> NDArray[np.float32]:
    """float32 in native order and on float boundaries.  Bias never promotes the result; numbers beyond float32 stay finite."""
    array = _as_array("bias", x)
    if array.dtype == np.bool_:
        raise TypeError(bad("bias", "numbers that are added to the scores (True and False are `mask`)", "bool"))
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise TypeError(bad("bias", "real numbers", str(array.dtype)))
    if array.dtype != np.float32 or not array.dtype.isnative:
        limit = np.finfo(np.float32).max
        with np.errstate(over="ignore"):
            narrow = array.astype(np.float32)
        array = np.where(np.isinf(narrow) & np.isfinite(array), np.copysign(limit, narrow), narrow) if array.dtype.itemsize > 4 else narrow
    return array if array.flags.aligned else array.copy()


def as_integers(name: str, x: Any, shape: tuple[int, ...], low: int, high: int) -> NDArray[np.int64]:
    """One int64 per batch item, a private copy that is taken first and checked then, so that no other thread can change it between."""
    array = _as_array(name, x)
    if array.dtype == np.object_ and isinstance(x, int):
        raise ValueError(bad(name, f"integers from {low} to {high}", "one beyond 64 bits"))
    if array.dtype.kind not in "iu":
        raise TypeError(bad(name, "integers", str(array.dtype)))
    private = np.array(array)
    wrong = private[(private < low) | (private > high)]
    if wrong.size:
        raise ValueError(bad(name, f"integers from {low} to {high}", str(wrong[0])))
    try:
        return np.array(np.broadcast_to(private, shape), dtype=np.int64).reshape(-1)
    except ValueError:
        raise ValueError(bad(name, f"one integer, or integers that broadcast to the batch {shape}", shape_text(private))) from None


def as_scale(x: Any) -> float:
    if isinstance(x, (bool, np.bool_, str)):
        raise TypeError(bad("scale", "a finite number", type(x).__name__))
    try:
        scale = float(x)
    except OverflowError:
        raise ValueError(bad("scale", "a finite number", "one beyond float64")) from None
    except (TypeError, ValueError):
        raise TypeError(bad("scale", "a finite number", type(x).__name__)) from None
    if not isfinite(scale):
        raise ValueError(bad("scale", "a finite number", str(scale)))
    return scale


def _overlaps_itself(array: NDArray[Any]) -> bool:
    """Do two of its elements share memory?  Says yes for some exotic interleavings that do not."""
    reach = array.itemsize
    for stride, size in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < reach:
            return True
        reach = stride * (size - 1) + reach
    return False


def check_out(out: Any, shape: tuple[int, ...], inputs: Mapping[str, Any], who: str = "attention") -> None:
    """Refuse an `out` that cannot take the result, or that an input is still to be read from."""
    if not isinstance(out, np.ndarray) or isinstance(out, (np.ma.MaskedArray, np.matrix)):
        raise TypeError(bad("out", "a numpy.ndarray", type(out).__name__, who))
    if out.dtype != np.float32 or not out.dtype.isnative:
        raise ValueError(bad("out", "float32", str(out.dtype), who))
    if out.shape != shape:
        raise ValueError(bad("out", f"shape {shape}", shape_text(out), who))
    if not out.flags.writeable:
        raise ValueError(bad("out", "a writeable array", "a read-only one", who))
    if not out.flags.aligned:
        raise ValueError(bad("out", "an aligned array", "an unaligned one", who))
    if out.size and _overlaps_itself(out):
        raise ValueError(bad("out", "elements that do not share memory", f"strides {out.strides}", who))
    for name, x in inputs.items():
        if isinstance(x, np.ndarray) and np.may_share_memory(out, x):
            try:
                shared = np.shares_memory(out, x, max_work=1_000_000)  # type: ignore[arg-type]  # NumPy's stub knows -1 and 0 only
            except np.exceptions.TooHardError:
                shared = True
            if shared:
                raise ValueError(bad("out", "memory of its own", f"memory that {name} uses too", who))
