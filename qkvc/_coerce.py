"""Conversions and checks of one argument at a time: the slow road into the plan, and the wording of every message."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qkvc._kernels import bfloat16_bits, undisturbed

_FLOAT32 = np.dtype(np.float32)
_FAR = 1e30  # a number of an option, or its reciprocal: beyond, products with log2(e) and distances leave float32
FARTHEST = 1 << 53  # a position: float64, in which angles are computed, has all integers up to here
_REAL = "float32 or float64, integers or bools (no kernels for other dtypes yet: convert with .astype(numpy.float32))"


def bad(argument: str, expected: str, got: str, who: str = "attention") -> str:
    return f"{who}: {argument}: expected {expected}, got {got}"


def shape_text(x: Any) -> str:
    return f"shape {np.shape(x)}"


def as_array(name: str, x: Any, who: str = "attention") -> NDArray[Any]:
    if type(x) is np.ndarray:
        return x
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


def as_real(name: str, x: Any, who: str = "attention") -> NDArray[Any]:
    """A float32 or float64 array in native byte order, the same memory where that is possible; integers and bools count as float64."""
    array = as_array(name, x, who)
    if array.dtype.kind == "f" and array.dtype.itemsize in (4, 8):
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    if array.dtype.kind not in "iub":
        raise TypeError(bad(name, _REAL, str(array.dtype), who))
    return undisturbed(array.astype, np.float64)


def as_operand(name: str, x: Any, who: str = "attention") -> NDArray[Any]:
    """As `as_real`, and float16 and bfloat16 too, which ml_dtypes defines: known by name, so that nobody needs it who has none of them."""
    array = as_array(name, x, who)
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "f" and size <= 8:
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    if array.dtype.type.__name__ == "bfloat16":  # the type's name: a dtype's takes NumPy 3 us to find
        return array
    if kind not in "fiub" or size > 8:
        raise TypeError(bad(name, "float64, float32, float16 or bfloat16, integers or bools", str(array.dtype), who))
    return as_real(name, array, who)


def as_like(name: str, x: Any, shape: tuple[int, ...], dtype: np.dtype[Any], who: str) -> NDArray[Any]:
    """An array of this shape as the kernels of a dtype can read it: of that dtype, or for float32 of 16 bits; aligned."""
    if type(x) is np.ndarray and x.dtype == dtype and x.shape == shape and x.flags.aligned:  # what `attention` returned
        return x
    array = as_operand(name, x, who)
    if array.shape != shape:
        raise ValueError(bad(name, f"shape {shape}", shape_text(array), who))
    if array.dtype != dtype and (array.dtype.itemsize > 2 or dtype == np.float64):
        array = undisturbed(array.astype, dtype)
    return array if array.flags.aligned else array.copy()


def as_real_dtype(x: Any, who: str) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(x)
    if dtype not in (np.float32, np.float64):
        raise TypeError(bad("dtype", "float32 or float64", str(dtype), who))
    return dtype


def as_operands(query: Any, key: Any, value: Any) -> tuple[Any, Any, Any, np.dtype[Any]]:
    """Query, key and value, and the dtype of the result; a value of None, where only scores are wanted, stays None.

    Beside float64 everything becomes float64.  Beside one another, the others stay as they are: all are computed in float32, which is the
    result where they differ.
    """
    given = [as_operand("query", query), as_operand("key", key)] + ([] if value is None else [as_operand("value", value)])
    dtype = given[0].dtype
    if any(x.dtype == np.float64 for x in given):
        dtype = np.dtype(np.float64)
        given = [x if x.dtype == dtype else undisturbed(x.astype, dtype) for x in given]
    elif any(x.dtype != dtype for x in given):
        dtype = _FLOAT32
    return given[0], given[1], None if value is None else given[2], dtype


def as_precision(precision: Any, dtype: np.dtype[Any], operands: tuple[Any, ...], num_threads: int | None) -> list[Any]:
    """Query, key and value rounded to bfloat16, as its bits."""
    if precision != "bf16":
        raise ValueError(bad("precision", '"bf16" or None', repr(precision)))
    if dtype == np.float64:
        raise ValueError(bad("precision", "None where query, key or value is float64", '"bf16"'))
    return [bfloat16_bits(np.ravel(x).astype(np.float32, copy=False), num_threads).reshape(x.shape) for x in operands]


def as_mask(x: Any) -> NDArray[np.bool_]:
    array = as_array("mask", x)
    if array.dtype.kind == "f":
        wanted = "bool, True where a query may attend (numbers that are added to the scores are `bias`)"
        raise TypeError(bad("mask", wanted, str(array.dtype)))
    if array.dtype != np.bool_:
        raise TypeError(bad("mask", "bool, True where a query may attend", str(array.dtype)))
    return array


def as_bias(x: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """In the dtype of the result, native order and aligned.  Bias never promotes; numbers beyond float32 stay finite."""
    array = as_array("bias", x)
    if array.dtype == np.bool_:
        raise TypeError(bad("bias", "numbers that are added to the scores (True and False are `mask`)", "bool"))
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise TypeError(bad("bias", "real numbers", str(array.dtype)))
    if array.dtype != dtype or not array.dtype.isnative:
        limit = np.finfo(dtype).max
        narrow = undisturbed(array.astype, dtype)
        lost = array.dtype.itemsize > dtype.itemsize
        array = np.where(np.isinf(narrow) & np.isfinite(array), np.copysign(limit, narrow), narrow) if lost else narrow
    return array if array.flags.aligned else array.copy()


def as_per_head(name: str, x: Any, shape: tuple[int, ...], endless: bool, who: str = "attention") -> NDArray[np.float64]:
    """One float64 per batch item and head, a private copy.  `endless` lets -inf pass."""
    array = as_array(name, x, who)
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise TypeError(bad(name, "real numbers", str(array.dtype), who))
    private = np.array(array, dtype=np.float64)
    wrong = private[~((np.abs(private) <= _FAR) | (np.isneginf(private) if endless else False))]
    if wrong.size:
        raise ValueError(bad(name, f"finite numbers up to {_FAR:g}" + (" or -inf" if endless else ""), str(wrong[0]), who))
    try:
        return np.array(np.broadcast_to(private, shape)).reshape(-1)
    except ValueError:
        raise ValueError(bad(name, f"one number per head, broadcasting to {shape}", shape_text(private), who)) from None


def as_window(x: Any) -> tuple[int, int]:
    """(left, right), -1 where open; so far that no length reaches it counts as open too."""
    try:
        left, right = x
    except (TypeError, ValueError):
        got = f"a {type(x).__name__} of {len(x)}" if isinstance(x, (tuple, list)) else repr(x)[:40]
        raise TypeError(bad("window", "a pair (left, right) of integers", got)) from None
    sides = []
    for side in (left, right):
        if isinstance(side, (bool, np.bool_)) or not hasattr(side, "__index__"):
            raise TypeError(bad("window", "a pair (left, right) of integers", f"a {type(side).__name__} in it"))
        if (n := side.__index__()) < -1:
            raise ValueError(bad("window", "numbers of keys of 0 or more, or -1 for all", str(n)))
        sides.append(n if n < 1 << 61 else -1)
    return sides[0], sides[1]


def private_integers(name: str, x: Any, wanted: str, who: str = "attention") -> NDArray[Any]:
    """A copy that is taken first and checked then, so that no other thread can change it between."""
    array = as_array(name, x, who)
    if array.dtype == np.object_ and isinstance(x, int):
        raise ValueError(bad(name, wanted, "one beyond 64 bits", who))
    if array.dtype.kind not in "iu":
        raise TypeError(bad(name, "integers", str(array.dtype), who))
    return np.array(array)


def integers_within(name: str, x: Any, low: int, high: int, who: str = "attention") -> NDArray[np.int64]:
    """A private copy."""
    wanted = f"integers from {low} to {high}"
    private = private_integers(name, x, wanted, who)
    wrong = private[(private < low) | (private > high)]
    if wrong.size:
        raise ValueError(bad(name, wanted, str(wrong[0]), who))
    return private.astype(np.int64, copy=False)


def as_integers(name: str, x: Any, shape: tuple[int, ...], low: int, high: int) -> NDArray[np.int64]:
    """One int64 per batch item, a private copy."""
    private = integers_within(name, x, low, high)
    try:
        return np.array(np.broadcast_to(private, shape)).reshape(-1)
    except ValueError:
        raise ValueError(bad(name, f"one integer, or integers that broadcast to the batch {shape}", shape_text(private))) from None


def as_starts(name: str, x: Any, rows: int) -> NDArray[np.int64]:
    """Where each sequence of a ragged batch starts among all rows, and the end of the last, a private copy."""
    wanted = f"integers that ascend from 0 to {rows}, the number of rows"
    starts = private_integers(name, x, wanted)
    if starts.ndim != 1 or not starts.size:
        raise ValueError(bad(name, wanted, shape_text(starts)))
    falls = starts[1:] < starts[:-1]
    if falls.any():
        i = int(falls.argmax())
        raise ValueError(bad(name, wanted, f"{starts[i + 1]} behind {starts[i]}"))
    if starts[0] != 0 or starts[-1] != rows:
        raise ValueError(bad(name, wanted, f"{starts[0]} to {starts[-1]}"))
    return starts.astype(np.int64, copy=False)


def as_positions(name: str, x: Any, batch: tuple[int, ...], length: int, who: str) -> NDArray[np.int64]:
    """One integer per token, on leading axes that broadcast to the batch; of one integer alone, the first token's, the others follow."""
    if type(x) is int and abs(x) <= FARTHEST:  # what every layer asks at every step of decoding: 0.4 us for 11
        return np.arange(x, x + length)
    given = integers_within(name, x, -FARTHEST, FARTHEST, who)
    positions = given + np.arange(length) if given.ndim == 0 else given
    try:
        fits = positions.shape[-1] == length and np.broadcast_shapes(positions.shape[:-1], batch) == batch
    except ValueError:
        fits = False
    if not fits:
        wanted = f"an integer, or integers of shape (..., {length}), one per token, whose leading axes broadcast to the batch {batch}"
        raise ValueError(bad(name, wanted, shape_text(given), who))
    return positions


def as_finite(name: str, x: Any, who: str = "attention") -> float:
    if isinstance(x, (bool, np.bool_, str)):
        raise TypeError(bad(name, "a finite number", type(x).__name__, who))
    try:
        number = float(x)
    except OverflowError:
        raise ValueError(bad(name, "a finite number", "one beyond float64", who)) from None
    except (TypeError, ValueError):
        raise TypeError(bad(name, "a finite number", type(x).__name__, who)) from None
    if not isfinite(number):
        raise ValueError(bad(name, "a finite number", str(number), who))
    return number


def as_rate(x: Any, name: str = "dropout_p", who: str = "attention") -> float:
    rate = as_finite(name, x, who)
    if not 0 <= rate < 1:
        raise ValueError(bad(name, "a probability from 0 to below 1", str(rate), who))
    return rate


class Seed:
    """64 bits that are drawn when they are first asked for, which a call does when nothing can be wrong any more, and then stay."""

    def __init__(self, rng: Any) -> None:
        self._rng = rng
        if rng is None or isinstance(rng, np.random.Generator):
            return
        if isinstance(rng, (bool, np.bool_)) or not hasattr(rng, "__index__"):
            raise TypeError(bad("rng", "an integer, a numpy.random.Generator or None", type(rng).__name__))
        if not 0 <= rng.__index__() < 1 << 64:
            raise ValueError(bad("rng", "an integer of 64 bits, 0 or more", str(rng)))

    def value(self) -> int:
        if not hasattr(self._rng, "__index__"):
            self._rng = np.random.default_rng(self._rng).integers(1 << 64, dtype=np.uint64)
        return int(self._rng)


def as_above_zero(name: str, x: Any, who: str) -> float:
    if (number := as_finite(name, x, who)) <= 0:
        raise ValueError(bad(name, "a number above 0", str(number), who))
    return number


def as_flag(name: str, x: Any, who: str) -> bool:
    if not isinstance(x, (bool, np.bool_)):
        raise TypeError(bad(name, "True or False", type(x).__name__, who))
    return bool(x)


def as_listed(name: str, x: Any, wanted: str, who: str) -> list[Any]:
    """The items of whatever has some."""
    try:
        return list(x)
    except TypeError:
        raise TypeError(bad(name, wanted, type(x).__name__, who)) from None


def as_count(name: str, n: Any, who: str, least: int = 1) -> int:
    if isinstance(n, (bool, np.bool_)) or not hasattr(n, "__index__"):
        raise TypeError(bad(name, f"an integer of {least} or more", type(n).__name__, who))
    if (count := int(n.__index__())) < least:
        raise ValueError(bad(name, f"an integer of {least} or more", str(count), who))
    return count


def check_layout(layout: Any, who: str) -> None:
    if not isinstance(layout, str):
        raise TypeError(bad("layout", '"bhld" or "blhd"', type(layout).__name__, who))
    if layout not in ("bhld", "blhd"):
        raise ValueError(bad("layout", '"bhld" or "blhd"', repr(layout), who))


def as_softcap(x: Any) -> float:
    cap = as_finite("softcap", x)
    if not 1 / _FAR <= cap <= _FAR:
        raise ValueError(bad("softcap", f"a number above 0 ({1 / _FAR:g} to {_FAR:g}), or None", str(cap)))
    return cap


def _overlaps_itself(array: NDArray[Any]) -> bool:
    """Do two of its elements share memory?  Says yes for some exotic interleavings that do not."""
    reach = array.itemsize
    for stride, size in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < reach:
            return True
        reach = stride * (size - 1) + reach
    return False


def check_out(out: Any, shape: tuple[int, ...], inputs: Mapping[str, Any], who: str = "attention", dtype: np.dtype[Any] = _FLOAT32) -> None:
    """Refuse an `out` that cannot take the result, or that an input is still to be read from."""
    if not isinstance(out, np.ndarray) or isinstance(out, (np.ma.MaskedArray, np.matrix)):
        raise TypeError(bad("out", "a numpy.ndarray", type(out).__name__, who))
    if out.dtype != dtype or not out.dtype.isnative:
        raise ValueError(bad("out", str(dtype), str(out.dtype), who))
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
