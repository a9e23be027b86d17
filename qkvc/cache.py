"""The keys and values of the tokens that have been, kept for the queries of those that come."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from math import prod
from operator import add, sub
from typing import TYPE_CHECKING, Any

import numpy as np

from qkvc._attention import attend_arrays
from qkvc._coerce import as_count, as_operand, bad, check_layout, integers_within, shape_text
from qkvc._kernels import undisturbed
from qkvc.functional import attention

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from qkvc.functional import Layout

    Array = NDArray[Any]

_DEFAULTS: dict[str, Any] = attention.__kwdefaults__ or {}
WHO = "KVCache"
DTYPES = ("float64", "float32", "bfloat16", "float16", "int8")
ANYWHERE = {"sinks", "softcap", "scale", "head_scale", "precision", "num_threads"}
IN_ORDER = {"mask", "bias", "alibi_slopes", "window"}  # which go by where a key lies, and in a window a key lies where there was room
LINE = 64  # bytes
_TINY = np.finfo(np.float32).tiny
CHUNK = 256  # queries of a call that have a mask at a time, so that it is no L x S matrix


def _dtype(dtype: Any) -> np.dtype[Any]:
    if isinstance(dtype, str) and dtype == "bfloat16":
        import ml_dtypes  # by which NumPy knows it

        dtype = ml_dtypes.bfloat16
    try:
        wanted: np.dtype[Any] = np.dtype(dtype)
    except TypeError:
        raise TypeError(bad("dtype", f"one of {', '.join(DTYPES)}", repr(dtype), WHO)) from None
    if wanted.name not in DTYPES:
        raise TypeError(bad("dtype", f"one of {', '.join(DTYPES)}", str(wanted), WHO))
    return wanted if wanted.isnative else wanted.newbyteorder("=")


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Zeros that begin where a cache line does, as NumPy's need not: vectors that straddle two cost a step of 12 x 1024 x 64 5 %."""
    size = prod(shape) * dtype.itemsize
    memory = np.zeros(size + LINE, np.int8)
    start = -memory.ctypes.data % LINE
    return memory[start : start + size].view(dtype).reshape(shape)


def _in_bytes(x: Array) -> Array:
    """Rows as int8, the largest number of each being 127 or -127, and behind each the float32 that 1 stands for: off by half of it at most.

    A row with a number that is not finite stands for NaN throughout, one of denormal numbers for zeros.
    """
    x = x.astype(np.float32, copy=False)
    unit = np.abs(x).max(axis=-1, initial=0) / np.float32(127)
    numbers = np.divide(x, unit[..., np.newaxis], out=np.zeros_like(x), where=(np.isfinite(unit) & (unit >= _TINY))[..., np.newaxis])
    rows = np.empty((*x.shape[:-1], x.shape[-1] + 4), np.int8)
    rows[..., :-4] = np.rint(numbers, out=numbers)
    rows[..., -4:] = np.where(np.isfinite(unit), unit, np.float32(np.nan))[..., np.newaxis].view(np.int8)
    return rows


class KVCache:
    """Keys and values of a batch of sequences that grow, token by token, where `qkvc.attention` can read them in place.

    Parameters
    ----------
    batch : int
        Sequences, each of a length of its own.
    kv_heads : int
        Heads of keys and values.
    capacity : int
        Tokens of a sequence that there is room for.
    head_dim : int
        Width of a key.
    v_head_dim : int, optional
        Width of a value; default `head_dim`.
    dtype : {"float32", "float64", "bfloat16", "float16", "int8"}
        How numbers are kept, rounded to nearest even.  In int8 a row is 127ths of its largest number, and each number off by half of a
        127th at most.  "bfloat16" needs `ml_dtypes`.
    window : int, optional
        A token sees itself and the `window` - 1 before it, and rows of tokens that nobody will see again are used again: the cache never
        is full.  Of the capacity, what exceeds `keep_first` + `window` is how many tokens can be trimmed, and one less than how many go
        through `attend` together.
    keep_first : int, default 0
        So many first tokens of a sequence stay visible beside the window ("attention sinks": Xiao et al., 2023).

    Raises
    ------
    ValueError, TypeError
        Sizes that do not fit together; the message names the argument, what came and what was wanted.

    Notes
    -----
    The tokens of a sequence stand at 0, 1, 2, ..., whatever has been let go.  A step gives the bits of `qkvc.attention` over the kept keys
    with ``causal="bottom-right"``, in whatever portions they came.  A window's keys lie in the order in which rows fell free: beyond
    `keep_first` + `window` tokens its results agree with those of `qkvc.attention` to rounding, and repeat to the bit.

    `batch` * `kv_heads` * `capacity` * (`head_dim` + `v_head_dim`) numbers; in int8 two of float32 a row more.  No array is copied to
    attend: a block at a time is widened, to the numbers that `keys` gives, and what is computed has the bits of float32 arrays of those.
    (int8 is an array of float32 while queries are float64 or `precision` is given.)

    Where the CPU multiplies bytes (AVX-512 with VNNI and BF16), steps of up to 16 queries of a key head read int8 where it lies, and have
    bits of their own: queries are rounded to 32639ths of their largest number, weights to 65535ths of the largest times its value's unit,
    which is 257th and a quarter at most of what int8 itself has lost (docs/arithmetic.md has the bound).

    Threads may `attend` without new tokens at the same time; who appends, trims or reorders must be alone, as who writes to an array.

    References
    ----------
    Pope et al., "Efficiently Scaling Transformer Inference" (2022), section 3.3.  Xiao et al., "Efficient Streaming Language Models with
    Attention Sinks" (2023), for `keep_first`.

    Examples
    --------
    >>> import numpy as np, qkvc
    >>> cache = qkvc.KVCache(1, 2, 100, 8)
    >>> q, kv = np.ones((1, 4, 5, 8), np.float32), np.ones((1, 2, 5, 8), np.float32)
    >>> cache.attend(q, kv, kv).shape          # 5 tokens, causally
    (1, 4, 5, 8)
    >>> cache.attend(q[:, :, :1], kv[:, :, :1], kv[:, :, :1]).shape, cache.lengths
    ((1, 4, 1, 8), array([6]))
    """

    def __init__(
        self,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        v_head_dim: int | None = None,
        dtype: DTypeLike = "float32",
        window: int | None = None,
        keep_first: int = 0,
    ) -> None:
        self.batch, self.kv_heads = as_count("batch", batch, WHO), as_count("kv_heads", kv_heads, WHO)
        self.capacity, self.head_dim = as_count("capacity", capacity, WHO), as_count("head_dim", head_dim, WHO)
        self.v_head_dim = self.head_dim if v_head_dim is None else as_count("v_head_dim", v_head_dim, WHO)
        self.dtype = _dtype(dtype)
        self.window = None if window is None else as_count("window", window, WHO)
        self.keep_first = as_count("keep_first", keep_first, WHO, least=0)
        if self.window is None and self.keep_first:
            raise ValueError(bad("keep_first", "0, as without a window all tokens are kept", str(keep_first), WHO))
        if self.capacity < self._visible:
            raise ValueError(bad("capacity", f"room for the window and the first tokens, {self._visible} or more", str(capacity), WHO))
        room = (self.batch, self.kv_heads, self.capacity)
        self._bytes = self.dtype == np.int8
        try:
            self._rows = [_zeros((*room, width + 4 * self._bytes), self.dtype) for width in (self.head_dim, self.v_head_dim)]
        except ValueError:
            got = f"{' x '.join(map(str, room))} tokens of {self.head_dim} and {self.v_head_dim} numbers"
            raise ValueError(bad("capacity", "rows that fit into an address space", got, WHO)) from None
        self._lengths: list[int]
        self._written: list[int]  # the most that there have been: so far rows have been written over in a window
        self.reset()

    def __repr__(self) -> str:
        given: dict[str, Any] = {"batch": self.batch, "kv_heads": self.kv_heads, "capacity": self.capacity, "head_dim": self.head_dim}
        given |= {"v_head_dim": self.v_head_dim} if self.v_head_dim != self.head_dim else {}
        given |= {"dtype": str(self.dtype)} if self.dtype != np.float32 else {}
        given |= {"window": self.window} if self.window else {}
        given |= {"keep_first": self.keep_first} if self.keep_first else {}
        inside = ", ".join(f"{name}={value!r}" for name, value in given.items())
        few, many = min(self._lengths), max(self._lengths)
        return f"{WHO}({inside})  # {few if few == many else f'{few} to {many}'} tokens, {self.nbytes:,} bytes"

    def __copy__(self) -> KVCache:
        """Two caches never share rows: each would write over what the other has appended."""
        return deepcopy(self)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many tokens of each sequence have been appended and not trimmed, shape (batch,), a copy: the position of the next."""
        return np.array(self._lengths, np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows, used or not."""
        return sum(rows.nbytes for rows in self._rows)

    def append(self, k: ArrayLike, v: ArrayLike, counts: ArrayLike | None = None) -> None:
        """Take in the next tokens of each sequence.

        Parameters
        ----------
        k : array_like, shape (batch, kv_heads, L, head_dim)
            Already rotated, if they are to be.
        v : array_like, shape (batch, kv_heads, L, v_head_dim)
        counts : int or array_like of int, shape (batch,), optional
            How many of the L are tokens of the sequence, 0 to L; the rest of `k` and `v` is not read.  Default L.

        Raises
        ------
        ValueError, TypeError
            Wrong shapes, dtypes or counts, or more tokens than there is room for.  The cache is as it was.
        """
        who = f"{WHO}.append"
        new = self._checked(k, v, "bhld", who)
        before = self._lengths
        self._store(new, before, self._taken(counts, new[0].shape[2], before, who))

    def attend(
        self,
        q: ArrayLike,
        k: ArrayLike | None = None,
        v: ArrayLike | None = None,
        *,
        counts: ArrayLike | None = None,
        layout: Layout = "bhld",
        **options: Any,
    ) -> Array:
        """What queries find in the cache, after the keys and values that came with them have been appended.

        Parameters
        ----------
        q : array_like, shape (batch, H_q, L, head_dim)
            Causal: of L new tokens each sees up to itself.  Without `k` and `v` they are the last L that were appended.  `kv_heads` divides
            H_q.  Dtypes meet as in `qkvc.attention`; int8 counts as float32.
        k, v, counts : optional
            As of `append`, with the L of `q`.  Rows of the result behind a sequence's count mean nothing.
        layout : {"bhld", "blhd"}, default "bhld"
            "blhd" reads `q`, `k` and `v` and gives the result as (batch, L, H, D).
        **options
            `sinks`, `softcap`, `scale`, `head_scale`, `precision` and `num_threads`, as of `qkvc.attention`; without a window of the cache
            `mask`, `bias`, `alibi_slopes` and `window` too, in which key j is the token at j, up to the longest of `lengths`.

        Returns
        -------
        ndarray, shape (batch, H_q, L, v_head_dim), in layout "blhd" (batch, L, H_q, v_head_dim)

        Raises
        ------
        ValueError, TypeError
            As from `append` and `qkvc.attention`; or queries whose windows are no longer kept.  The cache is as it was.
        """
        who = f"{WHO}.attend"
        if options and (unknown := options.keys() - ANYWHERE - (IN_ORDER if self.window is None else set())):
            why = "" if self.window is None else " in a cache with a window"
            allowed = sorted(ANYWHERE | (IN_ORDER if self.window is None else set()))
            raise TypeError(bad("options", f"some of {', '.join(allowed)}{why}", ", ".join(sorted(unknown)), who))
        check_layout(layout, who)
        query = as_operand("q", q, who)
        query = query if layout == "bhld" or query.ndim != 4 else query.swapaxes(1, 2)
        if query.ndim != 4 or (query.shape[0], query.shape[3]) != (self.batch, self.head_dim) or query.shape[1] % self.kv_heads:
            heads = f"a multiple of {self.kv_heads} heads"
            raise ValueError(bad("q", f"batch {self.batch}, {heads} and width {self.head_dim}", shape_text(q), who))
        count = query.shape[2]
        if k is None or v is None:
            if k is not v or counts is not None:
                raise TypeError(bad("k, v and counts", "k and v, or none of them", "some", who))
            first = [n - count for n in self._lengths]
            self._hold(first, who)
            return self._attended(query, first, layout, options)
        new = self._checked(k, v, layout, who)
        if new[0].shape[2] != count:
            raise ValueError(bad("k", f"{count} tokens, as q has", shape_text(k), who))
        before = self._lengths
        taken = self._taken(counts, count, before, who)
        if self.window is None or max(before) + count <= self._visible:
            try:
                self._store(new, before, taken)
                return self._attended(query, before, layout, options)
            except BaseException:
                self._lengths = before
                raise
        self._attended(query, before, layout, options, keys=0)  # rows that are used again cannot be put back: judge the call before
        step = min(self.capacity - self._visible + 1, CHUNK)
        parts = []
        for at in range(0, max(count, 1), step):
            self._store([x[:, :, at : at + step] for x in new], self._lengths, [min(max(n - at, 0), step) for n in taken])
            parts.append(self._attended(query[:, :, at : at + step], [n + at for n in before], layout, options))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2 if layout == "bhld" else 1)

    def trim(self, n: ArrayLike) -> None:
        """Take back the last n tokens, an int or one for each sequence.

        Raises
        ------
        ValueError, TypeError
            More than there are, or than a window still knows (see `window`), or less than 0.  The cache is as it was.
        """
        who = f"{WHO}.trim"
        lengths = list(map(sub, self._lengths, self._each("n", n, max(self._lengths), who)))
        for i, (have, left) in enumerate(zip(self._lengths, lengths, strict=True)):
            if left < 0:
                raise ValueError(bad("n", f"at most {have} for sequence {i}", str(have - left), who))
        self._hold([n - 1 for n in lengths], who)
        self._lengths = lengths

    def reorder(self, index: ArrayLike) -> None:
        """Sequence i becomes what sequence ``index[i]`` was, as a search with beams asks: shape (batch,)."""
        who = f"{WHO}.reorder"
        order = integers_within("index", index, 0, self.batch - 1, who)
        if order.shape != (self.batch,):
            raise ValueError(bad("index", f"shape ({self.batch},)", shape_text(order), who))
        to = np.flatnonzero(order != np.arange(self.batch))
        used = min(max(self._written), self.capacity)
        for rows in self._rows:
            rows[to, :, :used] = rows[order[to], :, :used]
        self._lengths, self._written = ([old[i] for i in order.tolist()] for old in (self._lengths, self._written))

    def reset(self) -> None:
        """No tokens."""
        self._lengths = [0] * self.batch
        self._written = [0] * self.batch

    def keys(self) -> Array:
        """The keys that the last token sees, a copy in order of position, (batch, kv_heads, L, head_dim); zeros behind a shorter sequence.

        In int8 they are what is computed with, float32.
        """
        return self._kept(0)

    def values(self) -> Array:
        """The values that the last token sees, as `keys`: (batch, kv_heads, L, v_head_dim)."""
        return self._kept(1)

    @property
    def _window(self) -> int:
        return self.window or self.capacity

    @property
    def _visible(self) -> int:
        return self.keep_first + self._window

    def _checked(self, k: Any, v: Any, layout: Layout, who: str) -> list[Array]:
        """Keys and values in layout "bhld", of as many tokens."""
        new = []
        for name, x, width in (("k", k, self.head_dim), ("v", v, self.v_head_dim)):
            array = as_operand(name, x, who)
            array = array if layout == "bhld" or array.ndim != 4 else array.swapaxes(1, 2)
            if array.ndim != 4 or array.shape != (self.batch, self.kv_heads, array.shape[2], width):
                wanted = (self.batch, self.kv_heads, "L", width) if layout == "bhld" else (self.batch, "L", self.kv_heads, width)
                raise ValueError(bad(name, f"shape ({', '.join(map(str, wanted))})", shape_text(x), who))
            new.append(array)
        if new[0].shape[2] != new[1].shape[2]:
            raise ValueError(bad("v", f"{new[0].shape[2]} tokens, as k has", shape_text(v), who))
        return new

    def _each(self, name: str, x: Any, most: int, who: str) -> list[int]:
        """One integer for each sequence."""
        if type(x) is int and 0 <= x <= most:  # as every step that is taken back: 0.3 us for 6
            return [x] * self.batch
        given = integers_within(name, x, 0, most, who)
        if given.shape not in ((), (self.batch,)):
            raise ValueError(bad(name, f"one integer, or one for each of {self.batch} sequences", shape_text(given), who))
        numbers: list[int] = np.broadcast_to(given, self.batch).tolist()
        return numbers

    def _taken(self, counts: Any, count: int, before: list[int], who: str) -> list[int]:
        """How many tokens each sequence gets, for whom there must be room."""
        taken = [count] * self.batch if counts is None else self._each("counts", counts, count, who)
        if self.window is None:
            for i, (have, more) in enumerate(zip(before, taken, strict=True)):
                if have + more > self.capacity:
                    room = f"at most {self.capacity - have} tokens, which the capacity {self.capacity} leaves to sequence {i}"
                    raise ValueError(bad("k", room, str(more), who))
        return taken

    def _hold(self, first: list[int], who: str) -> None:
        """Are the windows of the tokens from `first` on still in their rows?"""
        if self.window is None:
            return
        for i, (at, written) in enumerate(zip(first, self._written, strict=True)):
            lost = written - self.capacity + self.keep_first  # tokens before this have been written over
            if lost > self.keep_first and at - self._window + 1 < lost:
                wanted = f"to go back to token {lost + self._window - 1} of sequence {i} at most, as earlier windows are gone"
                raise ValueError(bad("q" if who.endswith("attend") else "n", wanted, f"token {at}", who))

    def _runs(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(row, token, token behind the last) of neighbours; tokens that later ones would write over are left out."""
        ring = self.capacity - self.keep_first
        if start < self.keep_first:
            yield start, start, min(end, self.keep_first)
        at = max(start, self.keep_first, end - ring)
        while at < end:
            row = self.keep_first + (at - self.keep_first) % ring
            stop = min(end, at + self.capacity - row)
            yield row, at, stop
            at = stop

    def _store(self, new: list[Array], before: list[int], taken: list[int]) -> None:
        """Rows of the tokens behind those `before`, for whom there is room even if another thread has meanwhile taken it."""
        if new[0].dtype == new[1].dtype == self.dtype:
            self._write(new, before, taken)
        else:
            undisturbed(self._write, new, before, taken)
        self._lengths = list(map(add, before, taken))
        self._written = list(map(max, self._written, self._lengths))

    def _write(self, new: list[Array], starts: list[int], taken: list[int]) -> None:
        """First all rows are made that have to be: in a window none could be put back if the next failed."""
        written = []
        even = min(starts) == max(starts) and min(taken) == max(taken)
        for item in [0] if even else range(self.batch):
            which = slice(None) if even else slice(item, item + 1)
            start = starts[item]
            for row, token, stop in self._runs(start, start + taken[item]):
                for rows, x in zip(self._rows, new, strict=True):
                    piece = x[which, :, token - start : stop - start]
                    written.append((rows[which, :, row : row + stop - token], _in_bytes(piece) if self._bytes else piece))
        for place, piece in written:
            place[...] = piece

    def _read(self, part: int, keys: int) -> Array:
        rows = self._rows[part][:, :, :keys]
        return undisturbed(np.multiply, rows[..., :-4], rows[..., -4:].view(np.float32)) if self._bytes else rows

    def _attended(self, query: Array, first: list[int], layout: Layout, options: dict[str, Any], keys: int | None = None) -> Array:
        """Attention of queries that stand at `first` and behind it; before `keys` keys only, if it is said."""
        most, least, count = max(self._lengths), min(self._lengths), query.shape[2]
        length = min(most, self.capacity) if keys is None else keys
        in_bytes = self._bytes and query.dtype != np.float64 and options.get("precision") is None  # else as float32 arrays
        kept = [rows[:, :, :length, :-4] for rows in self._rows] if in_bytes else [self._read(part, length) for part in (0, 1)]
        arrays = [query, *kept] if layout == "bhld" else [x.swapaxes(1, 2) for x in (query, *kept)]
        options = options | {"layout": layout}
        if keys is not None:
            pass
        elif most > self._visible and (count > 1 or least < self.capacity or self.capacity > self._visible):  # else every row is seen
            options["mask"] = self._allowed(first, count, length)
        elif least == most and min(first) == max(first) == most - count:
            options["causal"] = "bottom-right"
        else:
            options |= {"causal": True, "q_offset": np.array(first)}
        if least < length:
            options["key_lengths"] = np.minimum(self._lengths, length)
        arguments: list[Any] = [*arrays, *(_DEFAULTS | options).values(), False, None, in_bytes]
        result: Array = attend_arrays(*arguments)
        return result

    def _allowed(self, first: list[int], count: int, length: int) -> NDArray[np.bool_]:
        """May a query at `first` or behind it see what a row holds?  (batch, 1, count, length)"""
        row, ring = np.arange(length), self.capacity - self.keep_first
        last = np.array(self._lengths)[:, np.newaxis] - 1
        token = np.where(row < self.keep_first, row, last - (last - row) % ring)[:, np.newaxis, :]  # the latest that had this row
        query = (np.array(first)[:, np.newaxis] + np.arange(count))[..., np.newaxis]
        near = (token > query - self._window) & (token >= self.keep_first)
        allowed: NDArray[np.bool_] = (token <= query) & (near | (row < self.keep_first))
        return allowed[:, np.newaxis]

    def _kept(self, part: int) -> Array:
        most = max(self._lengths)
        rows = self._read(part, min(most, self.capacity))
        result = np.zeros((*rows.shape[:2], min(most, self._visible), rows.shape[3]), rows.dtype)
        for item, n in enumerate(self._lengths):
            for start, end, to in ((0, min(n, self.keep_first), 0), (max(self.keep_first, n - self._window), n, self.keep_first)):
                for row, token, stop in self._runs(start, end):
                    result[item, :, to + token - start : to + stop - start] = rows[item, :, row : row + stop - token]
        return result
