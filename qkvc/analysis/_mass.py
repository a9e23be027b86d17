"""How much weight falls where, without writing weights down: three ways, by what kind of set of keys is asked for.

A set that all queries share is a column of 0 and 1 in place of the values: attention then gives its mass.  For a set of each query's own,
exp(lse of the set - lse of all) is its mass, by one more sweep under a mask; and where that set is one key at a fixed distance, by a window
of that one key, in time O(L).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from qkvc._coerce import as_array, as_bias, as_mask, as_operands, as_per_head, as_window, bad, check_layout
from qkvc._kernels import undisturbed
from qkvc.functional import attention_with_lse

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from qkvc.functional import Causal, Layout, Window


FARTHEST = 1e9  # of lse: float64 rounds it to 1e-7, which is the relative error of exp(part - lse)


class Options(TypedDict, total=False):
    """What `attention_stats` takes of attention's options."""

    mask: ArrayLike | None
    bias: ArrayLike | None
    causal: Causal
    q_offset: ArrayLike | None
    window: Window | None
    key_lengths: ArrayLike | None
    alibi_slopes: ArrayLike | None
    sinks: ArrayLike | None
    softcap: float | None
    scale: float | None
    layout: Layout
    num_threads: int | None


class Reach(TypedDict, total=False):
    """The options that say which keys a query may attend to."""

    mask: ArrayLike | None
    causal: Causal
    q_offset: ArrayLike | None
    window: Window | None
    key_lengths: ArrayLike | None


class Heads:
    """Query, key and options of a call of attention, and where its weights fall."""

    def __init__(self, query: ArrayLike, key: ArrayLike, options: Any, who: str, known: type = Options) -> None:
        if unknown := sorted(set(options) - set(known.__annotations__)):
            raise TypeError(bad("options", "some of " + ", ".join(known.__annotations__), unknown[0], who))
        # In float64, whatever they are: a head that looks at one key has an entropy of 0.001, of which float32 leaves three digits, and
        # exp(lse - lse) is off by |lse| units of its last place.
        self.query, self.key = (np.asarray(undisturbed(x.astype, np.float64)) for x in as_operands(query, key, None)[:2])
        self.options = {name: option for name, option in options.items() if option is not None}
        self.who = who
        check_layout(self.options.get("layout", "bhld"), who)
        if min(self.query.ndim, self.key.ndim) < 2:
            short = "query" if self.query.ndim < 2 else "key"
            raise ValueError(bad(short, "shape (..., H, L, D) or (L, D)", f"shape {getattr(self, short).shape}", who))

    @property
    def turned(self) -> bool:
        return bool(self.options.get("layout") == "blhd")

    @property
    def lengths(self) -> tuple[int, int]:
        """L_q and L_k."""
        l_q, l_k = (x.shape[-3 if self.turned and x.ndim > 2 else -2] for x in (self.query, self.key))
        return l_q, l_k

    @property
    def batch(self) -> tuple[int, ...]:
        """The axes before heads."""
        try:
            return np.broadcast_shapes(self.query.shape[:-3], self.key.shape[:-3])
        except ValueError:
            raise ValueError(bad("key", f"a batch that broadcasts with {self.query.shape[:-3]}", f"shape {self.key.shape}")) from None

    def uniform(self) -> Heads:
        """The same masks, and scores that are all alike: D = 0, so they cost nothing, and lse is the logarithm of the number of keys."""
        blank = object.__new__(Heads)
        blank.who = self.who
        blank.query, blank.key = self.query[..., :0], self.key[..., :0]
        kept = {name: option for name, option in self.options.items() if name not in ("sinks", "softcap", "scale")}
        if "bias" in kept:
            kept["bias"] = np.where(np.isneginf(as_bias(kept["bias"], self.query.dtype)), -np.inf, 0.0)
        if "alibi_slopes" in kept:
            kept["alibi_slopes"] = 0.0  # not dropped: that q_offset has a use hangs on it
        blank.options = kept
        return blank

    def positions(self) -> NDArray[np.int64]:
        """Where the queries stand among the keys, (..., L_q) with the batch axes of what says so."""
        l_q, l_k = self.lengths
        first: Any = 0
        if "q_offset" in self.options:
            first = self.options["q_offset"]
        elif self.options.get("causal") == "bottom-right":
            first = np.asarray(self.options.get("key_lengths", l_k)) - l_q
        return np.asarray(first, np.int64)[..., np.newaxis] + np.arange(l_q)

    def on_sets(self, sets: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any]]:
        """The mass of sets of keys (..., n, L_k), the same for every query: (n, ..., H, L_q), and lse (..., H, L_q)."""
        value = sets.swapaxes(-1, -2).astype(np.float64)
        if self.key.ndim > 2 or sets.ndim > 2:
            axis = -2 if self.turned else -3
            heads = self.key.shape[axis] if self.key.ndim > 2 else 1
            value = np.expand_dims(value, axis)
            value = np.broadcast_to(value, [heads if i == value.ndim + axis else n for i, n in enumerate(value.shape)])
        out, lse = attention_with_lse(self.query, self.key, value, **self._filled(self.options))
        out = out.swapaxes(-2, -3) if self.turned and out.ndim > 2 else out
        return np.moveaxis(np.minimum(out, 1), -1, 0), lse

    def choices(self) -> NDArray[np.float64]:
        """ln n of the n keys that each query may attend to, -inf for none: (..., H, L_q)."""
        return self.uniform().on_sets(np.zeros((0, self.lengths[1]), np.bool_))[1]

    def on_mask(self, pattern: NDArray[np.bool_], lse: NDArray[Any]) -> NDArray[Any]:
        """The mass of each query's own keys: pattern broadcasts to (..., H, L_q, L_k)."""
        mask = self.options.get("mask")
        both = pattern if mask is None else pattern & as_mask(mask)
        return self._share({**self.options, "mask": both}, lse)

    def at_offset(self, offset: int, lse: NDArray[Any]) -> NDArray[Any]:
        """The mass of the key at position + offset: a window of one key, around positions that are moved."""
        causal = self.options.get("causal", False)
        left, right = as_window(self.options.get("window", (-1, -1)))
        if (causal and offset > 0) or 0 <= left < -offset or 0 <= right < offset:
            return np.zeros_like(lse)
        moved = {name: option for name, option in self.options.items() if name not in ("causal", "alibi_slopes")}
        moved |= {"window": (0, 0), "q_offset": self.positions()[..., 0] + offset if self.lengths[0] else 0}
        if "alibi_slopes" in self.options:
            slopes = as_per_head("alibi_slopes", self.options["alibi_slopes"], lse.shape[:-1] or (1,), endless=False)
            lse = lse + abs(offset) * slopes.reshape(lse.shape[:-1])[..., np.newaxis]
        return self._share(moved, lse)

    def _share(self, options: dict[str, Any], lse: NDArray[Any]) -> NDArray[Any]:
        """exp(lse of the keys that these options leave - lse), 0 where none is left."""
        heads = self.key.shape[:-1]
        kept = self._filled({name: option for name, option in options.items() if name != "sinks"})
        part = attention_with_lse(self.query, self.key, np.zeros((*heads, 0)), **kept).lse
        return self.share(part, lse)

    def share(self, part: NDArray[Any], lse: NDArray[Any]) -> NDArray[Any]:
        """exp(part - lse), from 0, where part is -inf, to 1."""
        some = ~np.isneginf(part)
        far = np.abs(lse, where=some & np.isfinite(lse), out=np.zeros_like(lse)).max(initial=0)
        if far > FARTHEST:
            wanted = f"scores within {FARTHEST:g} (to hide a key take mask, or a bias of -inf: finite ones are added)"
            raise ValueError(bad("query, key, bias", wanted, f"lse of {far:.3g}", self.who))
        share = np.exp(np.where(some, part, 0) - np.where(some, lse, 0))
        return np.where(some, np.minimum(share, 1), 0)

    @staticmethod
    def _filled(options: dict[str, Any]) -> dict[str, Any]:
        """`attention_stats` takes q_offset for its distances alone; attention wants to know what else it is for."""
        if "q_offset" in options and not {"causal", "window", "alibi_slopes"} & set(options):
            return {**options, "alibi_slopes": 0.0}
        return options


def fits(shape: tuple[int, ...], into: tuple[int, ...]) -> bool:
    """Does it broadcast to that shape?"""
    try:
        return np.broadcast_shapes(shape, into) == into
    except ValueError:
        return False


def entropy_of(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """-sum p ln p along the last axis, 0 for p = 0."""
    return np.asarray(0.0 - (p * np.log(p, where=p > 0, out=np.zeros_like(p))).sum(-1))


def mean_over(x: NDArray[Any], counted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The mean along the last axis of what is counted, NaN where nothing is."""
    kept = np.where(counted, x, 0).astype(np.float64, order="C")  # rows of memory, so that NumPy adds them up alike in every layout
    with np.errstate(invalid="ignore"):
        return np.asarray(kept.sum(-1) / counted.sum(-1))


def as_numbers(name: str, x: Any, who: str, wanted: str, axes: int) -> NDArray[np.float64]:
    """Finite numbers in float64, with so many axes at least."""
    array = as_array(name, x, who)
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise TypeError(bad(name, "real numbers", str(array.dtype), who))
    if array.ndim < axes:
        raise ValueError(bad(name, wanted, f"shape {array.shape}", who))
    numbers = array.astype(np.float64, copy=False)
    if not np.isfinite(numbers).all():
        raise ValueError(bad(name, "finite numbers", "others among them", who))
    return numbers


def as_weights(x: Any, who: str, wanted: str = "shape (..., H, L_q, L_k)", axes: int = 2) -> NDArray[np.float64]:
    """As `as_numbers`, not negative, in rows that sum to at most 1."""
    weights = as_numbers("weights", x, who, wanted, axes)
    if (weights < 0).any():
        raise ValueError(bad("weights", "numbers of 0 or more", f"{weights.min():.6g}", who))
    # 1e-2 lets rows of bfloat16 pass, which are rounded weight by weight.
    if weights.size and (most := float(weights.sum(-1).max())) > 1.01:
        raise ValueError(bad("weights", "rows that sum to 1 at most", f"one that sums to {most:.6g}", who))
    return weights
