"""Rotary position embedding: queries and keys are turned by their positions, so that their products know the distance alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from qkvc._coerce import (
    FARTHEST,
    as_above_zero,
    as_count,
    as_flag,
    as_operand,
    as_positions,
    as_real_dtype,
    bad,
    check_layout,
    check_out,
    integers_within,
    shape_text,
)
from qkvc._kernels import undisturbed
from qkvc._rotary import turn

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from qkvc.functional import Layout

    Array = NDArray[Any]

WHO = "rope"
KEPT = 1 << 19  # cosines, and as many sines, of a table that is kept: 8192 positions of width 128, 4 MB in float32


@dataclass(frozen=True)
class Llama3Scaling:
    """How Llama 3.1 stretches the context it was trained for: wavelengths beyond it grow by `factor`, short ones stay.

    Parameters
    ----------
    factor : float
        By which long wavelengths grow.
    low_freq_factor, high_freq_factor : float
        Wavelengths above ``original_max_position / low_freq_factor`` are long, those below ``original_max_position / high_freq_factor``
        short; the frequencies between go from one to the other in a straight line.
    original_max_position : int
        The length of the context in training.

    Raises
    ------
    ValueError, TypeError
        Numbers that are not above 0, or a `low_freq_factor` that is not below `high_freq_factor`.

    Notes
    -----
    The defaults are those of Llama 3.1; a checkpoint's `config.json` has them under "rope_scaling", the last one as
    "original_max_position_embeddings".
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192

    def __post_init__(self) -> None:
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            object.__setattr__(self, name, as_above_zero(name, getattr(self, name), WHO))
        object.__setattr__(self, "original_max_position", as_count("original_max_position", self.original_max_position, WHO))
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(bad("low_freq_factor", f"less than high_freq_factor, {self.high_freq_factor}", str(self.low_freq_factor), WHO))

    def apply(self, frequencies: NDArray[np.float64]) -> NDArray[np.float64]:
        """The frequencies, in radians a position, as the stretched model has them."""
        turns = self.original_max_position * frequencies / (2 * np.pi)
        kept = np.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1)
        return np.asarray(frequencies * (kept + (1 - kept) / self.factor))


@dataclass(frozen=True)
class RopeConfig:
    """How a model turns its queries and keys; what `rope` takes by keywords and `MultiHeadAttention` as one.

    Parameters
    ----------
    base : float, default 10000
        Pair ``i`` turns by ``base ** (-2 i / dim)`` radians a position ("rope_theta" in checkpoints).
    dim : int, optional
        How many of a head's numbers are turned, the first ones; even; default all.
    interleaved : bool, default False
        Pairs are (0, 1), (2, 3) ... (RoFormer, GPT-J) instead of (0, dim / 2), (1, dim / 2 + 1) ... (GPT-NeoX, LLaMA, Qwen).
    scaling : float or Llama3Scaling, optional
        A number divides the positions (Chen et al., 2023).

    Raises
    ------
    ValueError, TypeError
        The message names the argument, what came and what was wanted.
    """

    base: float = 10000.0
    dim: int | None = None
    interleaved: bool = False
    scaling: float | Llama3Scaling | None = None

    def __post_init__(self) -> None:
        # Python's own numbers, whatever came: what is equal is found again among the tables, and a repr can be read back.
        object.__setattr__(self, "base", as_above_zero("base", self.base, WHO))
        object.__setattr__(self, "dim", None if self.dim is None else as_count("dim", self.dim, WHO))
        object.__setattr__(self, "interleaved", as_flag("interleaved", self.interleaved, WHO))
        if self.dim is not None and self.dim % 2:
            raise ValueError(bad("dim", "an even number", str(self.dim), WHO))
        if self.scaling is not None and not isinstance(self.scaling, Llama3Scaling):
            object.__setattr__(self, "scaling", as_above_zero("scaling", self.scaling, WHO))

    def frequencies(self, head_dim: int) -> NDArray[np.float64]:
        """By how many radians each pair of a head turns from one position to the next.

        Parameters
        ----------
        head_dim : int
            D.

        Returns
        -------
        ndarray of float64, shape (dim / 2,)

        Raises
        ------
        ValueError
            A `dim` beyond `head_dim`, or none where `head_dim` is odd.
        """
        dim = head_dim if self.dim is None else self.dim
        if dim % 2 or dim > head_dim:
            raise ValueError(bad("dim", f"an even number up to the width of a head, {head_dim}", str(dim), WHO))
        frequencies: NDArray[np.float64] = self.base ** (-np.arange(0, dim, 2) / dim)
        if isinstance(self.scaling, Llama3Scaling):
            return self.scaling.apply(frequencies)
        return frequencies if self.scaling is None else frequencies / self.scaling

    def tables(self, positions: ArrayLike, head_dim: int, dtype: DTypeLike = "float32") -> tuple[Array, Array]:
        """Cosines and sines for `rotate`.

        Parameters
        ----------
        positions : array_like of int, any shape
        head_dim : int
            D.
        dtype : {"float32", "float64"}
            Angles are computed in float64, and their cosines and sines rounded to this.

        Returns
        -------
        (ndarray, ndarray), each of shape (positions.shape..., dim / 2), read-only

        Raises
        ------
        ValueError, TypeError
            Positions that are not integers up to 2**53, a `dim` that does not fit, another dtype.
        """
        where = integers_within("positions", positions, -FARTHEST, FARTHEST, WHO)
        table = turns(self, as_count("head_dim", head_dim, WHO), where, as_real_dtype(dtype, WHO))
        return table[..., 0, :], table[..., 1, :]


def turns(config: RopeConfig, head_dim: int, positions: NDArray[np.int64], dtype: np.dtype[Any]) -> Array:
    """Cosines and sines, (..., 2, dim / 2).  The last four tables are kept, unless they are large: all layers of a model want the same."""
    pairs = (config.dim or head_dim) // 2
    compute = _kept if positions.size * pairs <= KEPT else _kept.__wrapped__
    return compute(config, head_dim, positions.shape, positions.tobytes(), dtype)


@lru_cache(maxsize=4)
def _kept(config: RopeConfig, head_dim: int, shape: tuple[int, ...], positions: bytes, dtype: np.dtype[Any]) -> Array:
    """Undisturbed, as others will get what was made for one."""
    return undisturbed(_made, config, head_dim, shape, positions, dtype)


def _made(config: RopeConfig, head_dim: int, shape: tuple[int, ...], positions: bytes, dtype: np.dtype[Any]) -> Array:
    angles = np.frombuffer(positions, np.int64).reshape(*shape, 1) * config.frequencies(head_dim)
    table = np.empty((*shape, 2, angles.shape[-1]), dtype)
    table[..., 0, :], table[..., 1, :] = np.cos(angles), np.sin(angles)
    table.flags.writeable = False
    return table


def rope(
    x: ArrayLike,
    positions: ArrayLike | None = None,
    *,
    base: float = 10000.0,
    dim: int | None = None,
    interleaved: bool = False,
    scaling: float | Llama3Scaling | None = None,
    layout: Layout = "bhld",
    out: Array | None = None,
    num_threads: int | None = None,
) -> Array:
    """Turn queries or keys by their positions: rotary position embedding.

    Each pair (a, b) of a token's numbers becomes (a cos t - b sin t, b cos t + a sin t) with t = position * base ** (-2 i / dim) for pair
    ``i``.  The product of a query and a key that were both turned depends on the difference of their positions alone.

    Parameters
    ----------
    x : array_like, shape (..., H, L, D) or (L, D)
        Queries or keys, of the dtypes of `qkvc.attention`; float16 and bfloat16 are computed in float32 and rounded once.
    positions : int or array_like of int, optional
        An integer is the position of the first token, which the others follow; default 0.  Or one for each token, (..., L), on leading
        axes that broadcast to the batch.
    base, dim, interleaved, scaling
        As of `RopeConfig`.
    layout : {"bhld", "blhd"}, default "bhld"
        "blhd" means that x is (..., L, H, D).
    out : ndarray of the result's dtype and shape, optional
        Where to write the result; `x` itself, or memory that x does not use.
    num_threads : int, optional
        As of `qkvc.attention`.

    Returns
    -------
    ndarray, shape of x

    Raises
    ------
    ValueError, TypeError
        Shapes or options that do not fit together; the message names the argument, what came and what was wanted.

    Notes
    -----
    Angles are computed in float64, so positions in the millions cost float32 nothing.  Cosines and sines are rounded to the dtype that is
    computed in; the last few tables are kept, at most 16 MB of them in float32.  Bits do not depend on threads, layout, strides or kernel
    set.

    References
    ----------
    Su et al., "RoFormer" (2021), equation 34.

    Examples
    --------
    >>> import numpy as np, qkvc
    >>> key = np.random.default_rng(0).standard_normal((2, 8, 10, 64), dtype=np.float32)
    >>> turned = qkvc.rope(key, base=500000.0)
    >>> np.array_equal(qkvc.rope(key[:, :, 7:], 7, base=500000.0), turned[:, :, 7:])
    True
    """
    config = RopeConfig(base, dim, interleaved, scaling)
    array, batch, length = _vectors(x, layout, WHO)
    where = as_positions("positions", 0 if positions is None else positions, batch, length, WHO)
    return _turned(x, array, turns(config, array.shape[-1], where, _computed(array.dtype)), interleaved, layout, out, num_threads, WHO)


def rotate(
    x: ArrayLike,
    cos: ArrayLike,
    sin: ArrayLike,
    *,
    interleaved: bool = False,
    layout: Layout = "bhld",
    out: Array | None = None,
    num_threads: int | None = None,
) -> Array:
    """`rope` with the cosines and sines given: those of `RopeConfig.tables`, or of any other way to choose angles.

    Parameters
    ----------
    x : array_like, shape (..., H, L, D) or (L, D)
        As of `rope`.
    cos, sin : array_like, shape (..., L, n), with n up to D / 2
        For the pairs of each token, on axes that broadcast to those of x without the heads, in both layouts.  Of x the first 2 n numbers
        of a token are turned.  They are rounded to the dtype of `x`, or to float32 where that has 16 bits.
    interleaved, layout, out, num_threads
        As of `rope`.

    Returns
    -------
    ndarray, shape of x

    Raises
    ------
    ValueError, TypeError
        Shapes or options that do not fit together; the message names the argument, what came and what was wanted.
    """
    who = "rotate"
    as_flag("interleaved", interleaved, who)
    array, batch, length = _vectors(x, layout, who)
    tables = [np.atleast_2d(as_operand(name, table, who)) for name, table in (("cos", cos), ("sin", sin))]
    wanted = (*batch, length, tables[0].shape[-1])
    for name, table in zip(("cos", "sin"), tables, strict=True):
        try:
            fits = table.shape == tables[0].shape and np.broadcast_shapes(table.shape, wanted) == wanted
        except ValueError:
            fits = False
        if not fits or 2 * wanted[-1] > array.shape[-1]:
            size = f"one number for each pair of {array.shape[-1]} numbers or fewer of a token"
            raise ValueError(bad(name, f"{size}, on axes that broadcast to {wanted[:-1]}; cos and sin alike", shape_text(table), who))
    table = np.stack([undisturbed(table.astype, _computed(array.dtype)) for table in tables], -2)
    return _turned(x, array, table, interleaved, layout, out, num_threads, who)


def _computed(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype


def _vectors(x: Any, layout: Any, who: str) -> tuple[Array, tuple[int, ...], int]:
    """The array, its batch and its length."""
    array = as_operand("x", x, who)
    check_layout(layout, who)
    if array.ndim < 2:
        raise ValueError(bad("x", "shape (L, D) or one with heads too", shape_text(array), who))
    return array, array.shape[:-3], array.shape[-3 if layout == "blhd" and array.ndim > 2 else -2]


def _turned(x: Any, array: Array, table: Array, interleaved: bool, layout: str, out: Any, num_threads: int | None, who: str) -> Array:
    """A copy, or `out`, turned in its place; in a copy first where `out` has 16 bits, or the numbers of a token are not adjacent in it."""
    if out is not None:
        check_out(out, array.shape, {} if out is x else {"x": x}, who, array.dtype)
    direct = out is not None and out.dtype == table.dtype and out.strides[-1] == out.itemsize
    place = out if direct else np.empty(array.shape, table.dtype)
    if array.ndim > 2:
        table = table[..., np.newaxis, :, :] if layout == "blhd" else table[..., np.newaxis, :, :, :]
    turn(place, table, interleaved, source=array, num_threads=num_threads)
    if out is None:
        return place if place.dtype == array.dtype else undisturbed(place.astype, array.dtype)
    if not direct:
        undisturbed(np.copyto, out, place)
    return np.asarray(out)
