"""The functions: names, defaults and docstrings.  What they do is decided in _plan.pyx and done in _attention.pyx."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

try:
    from numpy.lib.array_utils import normalize_axis_tuple
except ImportError:  # NumPy 1.26
    from numpy.core.numeric import normalize_axis_tuple  # type: ignore[no-redef]

from qkvc._attention import attend_arrays
from qkvc._coerce import as_real, check_out
from qkvc._softmax import logsumexp_rows, softmax_rows

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Causal = bool | Literal["top-left", "bottom-right"]
    Layout = Literal["bhld", "blhd"]
    Window = tuple[int, int]
    Axis = int | tuple[int, ...] | None


class AttentionOutput(NamedTuple):
    """What `attention_with_lse` returns."""

    out: NDArray[Any]
    lse: NDArray[Any]


def attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    causal: Causal = False,
    q_offset: ArrayLike | None = None,
    window: Window | None = None,
    key_lengths: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    head_scale: ArrayLike | None = None,
    dropout_p: float = 0.0,
    rng: np.random.Generator | int | None = None,
    layout: Layout = "bhld",
    precision: Literal["bf16"] | None = None,
    out: NDArray[Any] | None = None,
    num_threads: int | None = None,
) -> NDArray[Any]:
    """Scaled dot-product attention, softmax(scale * Q K^T + bias) V, without ever holding the L_q x L_k matrix.

    Parameters
    ----------
    query : array_like, shape (..., H_q, L_q, D) or (L_q, D)
        What is asked.  Leading axes are the batch and broadcast as in NumPy; any strides are read in place.  Query, key and value are
        float64, float32, float16 or bfloat16 (of `ml_dtypes`), or count as float64 (integers, bools).  Where they differ, the result is
        float64 if one of them is, else float32.  Arrays of 16 bits are read as they are, and computed in float32.
    key : array_like, shape (..., H_kv, L_k, D) or (L_k, D)
        What the queries are matched with.  ``H_kv`` divides ``H_q``: query head ``h`` attends to key head ``h // (H_q // H_kv)``
        (grouped-query attention), and nothing is repeated in memory.
    value : array_like, shape (..., H_kv, L_k, Dv) or (L_k, Dv)
        What is carried to the output.
    mask : array_like of bool, broadcasts to (..., H_q, L_q, L_k) in every layout, optional
        True where a query may attend to a key.  A masked key cannot reach the output, not even as NaN.
    bias : array_like of float, broadcasts to (..., H_q, L_q, L_k) in every layout, optional
        Added to the scaled scores, in natural-logarithm units.  Exactly ``-inf`` means masked; any finite number is only added.
    causal : bool or {"top-left", "bottom-right"}, default False
        Query ``i`` at position ``p`` attends to keys ``j <= p``.  True means ``p = i`` and asks for ``L_q == L_k``; otherwise choose
        "top-left" (``p = i``: torch, JAX) or "bottom-right" (``p = i + L_k - L_q``, with `key_lengths` ``p = i + key_lengths - L_q``:
        FlashAttention, KV caches).
    q_offset : array_like of int, broadcasts to the batch, optional
        Position of query row 0, instead of the two alignments; for ``causal=True``, `window` and `alibi_slopes`.
    window : (int, int), optional
        (left, right): the query at position ``p`` attends to keys ``p - left <= j <= p + right``, -1 for no limit; together with `causal`
        and masks, both hold.  Time and memory traffic follow the window, not L_k.  Asks for positions as `causal` does.
    key_lengths : array_like of int, broadcasts to the batch, optional
        How many keys of each batch item exist, 0 to L_k.  The rest is never read.
    alibi_slopes : array_like of float, broadcasts to (..., H_q), optional
        ``-slope * abs(p - j)`` is added to the score (Press et al. 2021).  Asks for positions as `causal` does.
    sinks : array_like of float, broadcasts to (..., H_q), optional
        One more score per head that takes its share of the softmax and carries no value; -inf for none.  `lse` includes it.
    softcap : float, optional
        ``softcap * tanh(score / softcap)`` instead of the scaled score, before ALiBi, bias and masks (Gemma 2, 2024).
    scale : float, optional
        Default ``1 / sqrt(D)``.
    head_scale : array_like of float, broadcasts to (..., H_q), optional
        The head's output is multiplied by it: 0 knocks a head out.
    dropout_p : float, default 0.0
        Each weight is dropped, becomes 0, with this probability, and the others are multiplied by ``1 / (1 - dropout_p)``; `lse` is that of
        all of them.  From 0 to below 1.
    rng : int or numpy.random.Generator, optional
        The seed of `dropout_p`, 64 bits; or where one is drawn from, by default what NumPy takes from the operating system.  With a seed, a
        weight is dropped or not by its batch item, query head, query row and key alone, in every dtype, on every instruction set.
    layout : {"bhld", "blhd"}, default "bhld"
        "blhd" reads query, key, value and writes the result as (..., L, H, D); only strides change.
    precision : {"bf16"}, optional
        "bf16" rounds query, key and value to bfloat16 first, for speed: the result keeps its dtype and some 8 bits.  Nothing is rounded
        unless this says so.  Not for float64.
    out : ndarray of the result's dtype, optional
        Where to write the result.  It may not share memory with an input.
    num_threads : int, optional
        Threads this call may use, the caller's included.  Default `get_num_threads()`.

    Returns
    -------
    ndarray, shape (..., H_q, L_q, Dv), in layout "blhd" (..., L_q, H_q, Dv); (L_q, Dv) where all inputs have two axes
        A query that may attend to nothing gets zeros.

    Raises
    ------
    ValueError
        Shapes, lengths or options that do not fit together; the message names the argument, what came and what was wanted.
    TypeError
        Another dtype, a mask that is not bool, anything not array-like.
    MemoryError
        No memory for the result or the scratch (under 1 MB per thread for D and Dv up to 640, at any length).

    Notes
    -----
    Bits do not depend on threads, batch, heads, neighbours, layout or strides (docs/arithmetic.md).

    References
    ----------
    Vaswani et al., "Attention Is All You Need" (2017), equation 1.  Milakov & Gimelshein, "Online normalizer calculation for softmax"
    (2018).  Dao, "FlashAttention-2" (2023), algorithm 1.  Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011),
    Philox 4x32-10, for `rng`.

    Examples
    --------
    >>> import numpy as np, qkvc
    >>> q = np.ones((2, 4, 3, 8), np.float32)           # batch 2, 4 heads, 3 queries of dimension 8
    >>> k = v = np.ones((2, 2, 5, 8), np.float32)       # 2 key heads, 5 keys
    >>> qkvc.attention(q, k, v, causal="bottom-right").shape
    (2, 4, 3, 8)
    """
    return attend_arrays(
        query,
        key,
        value,
        mask,
        bias,
        causal,
        q_offset,
        window,
        key_lengths,
        alibi_slopes,
        sinks,
        softcap,
        scale,
        head_scale,
        dropout_p,
        rng,
        layout,
        precision,
        out,
        num_threads,
        False,
    )


def attention_with_lse(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    causal: Causal = False,
    q_offset: ArrayLike | None = None,
    window: Window | None = None,
    key_lengths: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    head_scale: ArrayLike | None = None,
    dropout_p: float = 0.0,
    rng: np.random.Generator | int | None = None,
    layout: Layout = "bhld",
    precision: Literal["bf16"] | None = None,
    out: NDArray[Any] | None = None,
    num_threads: int | None = None,
) -> AttentionOutput:
    """`attention`, and the logarithm of each query's sum of exp(scores).

    Parameters, errors and sources are those of `attention`.

    Returns
    -------
    out : ndarray
        As from `attention`.
    lse : ndarray of float32, or float64 for float64, shape (..., H_q, L_q) in every layout, (L_q,) where all inputs have two axes
        Natural logarithm; ``-inf`` for a query that may attend to nothing.
    """
    arrays = attend_arrays(
        query,
        key,
        value,
        mask,
        bias,
        causal,
        q_offset,
        window,
        key_lengths,
        alibi_slopes,
        sinks,
        softcap,
        scale,
        head_scale,
        dropout_p,
        rng,
        layout,
        precision,
        out,
        num_threads,
        True,
    )
    return AttentionOutput(*arrays)


def _rows(who: str, x: ArrayLike, axis: Axis) -> tuple[NDArray[Any], tuple[int, ...]]:
    """x with `axis` moved behind the others, in rows of memory, and the axes that were moved."""
    array = as_real("x", x, who)
    axes = tuple(range(array.ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = normalize_axis_tuple(axes, array.ndim, "axis") if array.ndim else ()
    moved = np.moveaxis(array, axes, range(array.ndim - len(axes), array.ndim))
    return np.asarray(moved, order="C"), axes


def softmax(x: ArrayLike, axis: Axis = -1, *, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """exp(x) / sum(exp(x)) along an axis, stable for numbers of any size.

    Parameters
    ----------
    x : array_like of float32 or float64, any shape
        Integers and bools count as float64.
    axis : int, tuple of int or None, default -1
        Along which the result sums to 1; None is all axes.
    out : ndarray of the dtype of the result, shape of x, optional
        Where to write; it may be x itself.

    Returns
    -------
    ndarray of the dtype of x, shape of x
        Computed in it, within 4 ULP, denormal numbers included.  NaN in a row, or a row that is all -inf or has +inf, gives NaN,
        as in `scipy.special.softmax`.

    Raises
    ------
    TypeError
        x is of another dtype.
    ValueError
        An axis that x does not have (numpy.exceptions.AxisError), an `out` that does not fit, or no elements along the axis.
    """
    rows, axes = _rows("softmax", x, axis)
    n = int(np.prod(rows.shape[rows.ndim - len(axes) :], dtype=np.intp))
    if n == 0 and rows.ndim and rows.size == 0 and np.prod(rows.shape[: rows.ndim - len(axes)]) != 0:
        raise ValueError("softmax: x: expected at least one element along the axis, got none")
    last = tuple(range(rows.ndim - len(axes), rows.ndim))
    result = np.empty_like(rows) if out is None else out
    if out is not None:
        check_out(out, np.shape(x), {}, "softmax", rows.dtype)
        apart = out.ctypes.data == rows.ctypes.data or not np.may_share_memory(out, rows)
        if axes != last or not out.flags.c_contiguous or not apart:
            result = np.empty_like(rows)
    softmax_rows(rows.reshape(-1, max(n, 1)), result.reshape(-1, max(n, 1)))
    if result is out:
        return out
    back = np.moveaxis(result, last, axes)
    if out is None:
        return np.asarray(back, order="C")
    out[...] = back
    return out


def logsumexp(x: ArrayLike, axis: Axis = -1) -> NDArray[Any] | np.floating[Any]:
    """log(sum(exp(x))) along an axis, stable for numbers of any size.

    Parameters
    ----------
    x : array_like of float32 or float64, any shape
        Integers and bools count as float64.
    axis : int, tuple of int or None, default -1
        Along which to sum; None is all axes.

    Returns
    -------
    ndarray of the dtype of x, shape of x without the axes; a scalar where none is left
        Within 4 ULP of the largest of 1, abs(x) and abs(result).  ``-inf`` where there is nothing to sum, as in
        `scipy.special.logsumexp`.

    Raises
    ------
    TypeError
        x is of another dtype.
    ValueError
        An axis that x does not have (numpy.exceptions.AxisError).
    """
    rows, axes = _rows("logsumexp", x, axis)
    shape = rows.shape[: rows.ndim - len(axes)]
    result = np.empty(shape, rows.dtype)
    if rows.size == 0:
        result.fill(-np.inf)
    else:
        logsumexp_rows(rows.reshape(result.size, -1), result.reshape(-1))
    return result if shape else result[()]


def split_heads(x: ArrayLike, num_heads: int) -> NDArray[Any]:
    """(..., L, H * D) seen as (..., H, L, D): a view, nothing moves.

    Parameters
    ----------
    x : array_like, shape (..., L, H * D)
    num_heads : int
        H; must divide the last axis.

    Returns
    -------
    ndarray, shape (..., H, L, D)

    Raises
    ------
    TypeError, ValueError
        x has no such axes, or num_heads does not divide the last one.
    """
    array = np.asanyarray(x)
    if isinstance(num_heads, bool) or not hasattr(num_heads, "__index__"):
        raise TypeError(f"split_heads: num_heads: expected an integer, got {type(num_heads).__name__}")
    if array.ndim < 2:
        raise ValueError(f"split_heads: x: expected an array (..., length, heads * dim), got shape {array.shape}")
    if num_heads < 1 or array.shape[-1] % num_heads:
        raise ValueError(f"split_heads: num_heads: expected a divisor of the last axis, {array.shape[-1]}, got {num_heads}")
    split = array.reshape(*array.shape[:-1], num_heads, array.shape[-1] // num_heads)
    return np.swapaxes(split, -3, -2)


def concat_heads(x: ArrayLike) -> NDArray[Any]:
    """(..., H, L, D) as (..., L, H * D): the way back from `split_heads`.

    A view of what `split_heads` or `attention(..., layout="blhd")` laid out; a copy of anything else.

    Parameters
    ----------
    x : array_like, shape (..., H, L, D)

    Returns
    -------
    ndarray, shape (..., L, H * D)

    Raises
    ------
    ValueError
        x has fewer than three axes.
    """
    array = np.asanyarray(x)
    if array.ndim < 3:
        raise ValueError(f"concat_heads: x: expected an array (..., heads, length, dim), got shape {array.shape}")
    swapped = np.swapaxes(array, -3, -2)
    return swapped.reshape(*swapped.shape[:-2], swapped.shape[-2] * swapped.shape[-1])


__all__ = [
    "AttentionOutput",
    "attention",
    "attention_with_lse",
    "concat_heads",
    "logsumexp",
    "softmax",
    "split_heads",
]
