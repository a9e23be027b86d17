"""What a call of attention will do, and how long that should take."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from importlib import import_module
from math import prod
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from qkvc._coerce import bad
from qkvc._console import scaled
from qkvc._describe import describe
from qkvc._kernels import active_kernels, fma_peak, read_rate
from qkvc.functional import attention

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from qkvc.functional import Causal, Layout, Window

READ_BYTES = 1 << 28  # several times the last cache of most machines
ROUNDED = 6  # bytes that go through memory for a number that `precision` rounds: a float, then 16 bits
WAKE = 5e-6  # seconds until a sleeping thread has taken its first tile: 5 to 10 us, none while it still spins


class _Costs(NamedTuple):
    """Of a kernel set, in flops of the same time; fitted to one core of a Zen 4, 480 queries and keys, D = 16 to 128.

    Those of few queries: 1 to 6 of them against keys in L2, D = 64 and 128; of AVX-512's float32 and bfloat16 1, 4 and 8 against 64 MB.
    """

    full: float  # speed of the two products in tiles of two or more vectors, as a share of the FMA peak
    single: float  # ... of one vector, which broadcasts as often for fewer FMAs
    softmax: float  # a pair of query and key; exp2 alone is 10.4 cycles for 16 scores, 21 flops each (docs/arithmetic.md)
    softcap: float  # what else is done to a pair, if it is
    slope: float
    mask: float
    bias: float
    few: float  # speed of the products of few queries
    key: float  # a key of theirs, for each of D + Dv: it is loaded and transposed, its value loaded


_COSTS = {
    ("avx512", "float32"): _Costs(0.95, 0.89, 25, 41, 16, 22, 26, 0.87, 6),
    ("avx512", "bfloat16"): _Costs(0.95, 0.62, 56, 82, 32, 44, 52, 0.95, 7),
    ("avx512", "float64"): _Costs(0.88, 0.67, 30, 52, 11, 19, 25, 0.84, 10),
    ("avx2", "float32"): _Costs(0.85, 0.62, 35, 61, 18, 23, 37, 0.60, 9),
    ("avx2", "float64"): _Costs(0.79, 0.43, 42, 92, 23, 32, 54, 0.60, 10),
    ("portable", "float32"): _Costs(0.90, 0.67, 145, 173, 260, 48, 60, 0.50, 5),
    ("portable", "float64"): _Costs(0.90, 0.52, 240, 236, 145, 26, 41, 0.50, 3),
}

# Reading runs ahead of few queries, which have little to do for each key: so much of the shorter of both times is hidden behind the longer.
# One, four and eight queries against 128 MB took 77, 88 and 140 cycles a key at D = 64 where reading alone takes 65 (docs/arithmetic.md).
HIDDEN = 0.65

# Why a block is copied, and what a number of it costs, in flops of the dtype.
_COPIES: dict[str, tuple[str, dict[str, float]]] = {
    "columns": ("its columns are not adjacent", {"float32": 37, "float64": 20, "bfloat16": 74}),  # one by one
    "storage": ("its 16-bit numbers are widened", {"float32": 6}),
    "pairs": ("its 16-bit numbers are put into pairs", {"bfloat16": 3}),
    "rows": ("its rows lie a multiple of 4096 bytes apart", {"float32": 13, "float64": 13, "bfloat16": 13}),
}


@dataclass(frozen=True, repr=False)
class Explanation:
    """What `explain` returns; ``print`` shows it as a table."""

    kernels: str  # that run: a set's name
    narrow: bool  # the set with half the lanes stands in, because the queries would leave too many empty
    dtype: str  # that is computed in
    lanes: int
    pieces: int  # of each head's keys, which lie in the lanes because queries are few, or the most in a ragged batch; 0: queries do
    tiles: int  # of queries, over all heads and batch items; of few queries one for each key head
    few: int  # ... how many those are: none or all, except in a ragged batch
    tile_vectors: int  # in the largest of them
    tile_queries: int
    blocks: int  # of 128 keys that a tile computes, over all tiles ...
    blocks_in_all: int  # ... and would if nothing were masked
    blocks_clipped: int  # through which positions cut
    blocks_masked: int  # in which `mask` has a False
    tiles_again: int  # done twice, because a query in them may attend to nothing
    threads: int
    threads_why: str
    copies: tuple[str, ...]  # what is copied block by block, and why
    scratch: int  # bytes per thread
    parts: int  # bytes in which the blocks of few queries wait to be merged, of all threads together
    pairs: int  # of a query and a key that it may attend to
    flops: int  # of the two products over these pairs
    flops_computed: int  # ... over the lanes and keys of tiles and blocks, or of few queries over these
    bytes_read: int  # of the arguments, each once
    bytes_written: int
    bytes_reread: int  # of keys and values, by the second and later tiles of their head: from cache, if they fit there
    peak: float  # GFLOP/s of the threads
    bandwidth: float  # GB/s
    arithmetic: float  # seconds
    memory: float
    overhead: float

    @property
    def seconds(self) -> float:
        """The predicted time."""
        return self.arithmetic + self.memory + self.overhead

    @property
    def bound(self) -> str:
        """Which part of the time is the largest: "arithmetic", "memory" or "overhead"."""
        return max(("arithmetic", "memory", "overhead"), key=lambda part: float(getattr(self, part)))

    def as_dict(self) -> dict[str, Any]:
        """Every number by name, `seconds` and `bound` too: fit for JSON."""
        return {**asdict(self), "copies": list(self.copies), "seconds": self.seconds, "bound": self.bound}

    def rows(self) -> list[tuple[str, str]]:
        """What is shown, as (what, value)."""
        half = ", with half the lanes: fewer of them stay empty" if self.narrow else ""
        cut = [f"{n:,} {how}" for n, how in ((self.blocks_clipped, "cut by positions"), (self.blocks_masked, "masked")) if n]
        again = f", {self.tiles_again:,} done twice for a query without a key" if self.tiles_again else ""
        parts = f", and {_bytes(self.parts)} in all for parts of the keys" if self.parts else ""
        useful = f" ({self.flops / self.flops_computed:.0%} of them useful)" if self.flops_computed else ""
        return [
            ("kernels", f"{self.kernels} {self.dtype}{half}"),
            ("few queries" if self.few else "tiles", self._tiles() + again),
            ("blocks of keys", ", ".join([f"{self.blocks:,} of {self.blocks_in_all:,}", *cut])),
            ("copied", "; ".join(self.copies) or "nothing"),
            ("threads", f"{self.threads}: {self.threads_why}"),
            ("scratch per thread", f"{_bytes(self.scratch)}{parts}"),
            ("pairs that attend", f"{self.pairs:,}"),
            ("arithmetic", f"{scaled(self.flops_computed, 'FLOP')}{useful}"),
            ("read, written", f"{_bytes(self.bytes_read)}, {_bytes(self.bytes_written)}; {_bytes(self.bytes_reread)} again from cache"),
            ("machine", f"{self.peak:.3g} GFLOP/s, {self.bandwidth:.3g} GB/s"),
            ("predicted time", f"{scaled(self.seconds, 's')}, bound by {self.bound}"),
            ("of which", ", ".join(f"{part} {scaled(getattr(self, part), 's')}" for part in ("arithmetic", "memory", "overhead"))),
        ]

    def _tiles(self) -> str:
        tiles = f"{self.tiles - self.few:,} of up to {self.tile_queries} queries in {self.tile_vectors} x {self.lanes} lanes"
        keys = f"keys in {self.lanes} lanes, in {self.pieces} pieces a head"
        if self.few == self.tiles > 0:
            return f"{self.tile_queries} of each of {self.tiles:,} key heads; {keys}"
        return f"of {self.few:,} key heads, {keys}; beside them tiles, {tiles}" if self.few else tiles

    def __str__(self) -> str:
        return "\n".join(f"{what:<19} {value}" for what, value in self.rows())

    def __repr__(self) -> str:
        tiles = "heads of few queries" if self.few == self.tiles > 0 else "tiles"
        what = f"{self.kernels} {self.dtype}, {self.tiles} {tiles}, threads={self.threads}, {scaled(self.flops_computed, 'FLOP')}"
        return f"<Explanation: {what}, {scaled(self.seconds, 's')}, bound by {self.bound}>"


def _bytes(number: int) -> str:
    return scaled(number, "B")


@lru_cache
def _measured_bandwidth(threads: int) -> float:
    buffer = np.ones(READ_BYTES // 4, np.float32)
    return max(read_rate(buffer, threads)[0] for _ in range(3))


@lru_cache
def _measured_peak(kernels: str, dtype: str, threads: int) -> float:
    """Of the set in use, whose name is only there to measure each of them once."""
    return max(fma_peak(threads, 0.01, dtype) for _ in range(5))


@lru_cache
def _measured_overhead(kernels: str) -> float:
    """Seconds of a call that computes next to nothing."""
    x = np.ones((1, 1), np.float32)
    times = []
    for _ in range(50):
        start = perf_counter()
        for _ in range(20):
            attention(x, x, x)
        times.append((perf_counter() - start) / 20)
    return min(times)


def _as_given(name: str, x: Any, dtype: np.dtype[Any]) -> Any:
    """An array stays what it is; a shape becomes one whose memory is never touched, or, of masks and biases, that lets all through."""
    if not (isinstance(x, tuple) and x and all(isinstance(n, int) and not isinstance(n, bool) for n in x)):
        return x
    if min(x) < 0:
        raise ValueError(bad(name, "a shape with sizes of 0 or more", str(x), "explain"))
    make = {"mask": np.ones, "bias": np.zeros}.get(name, np.empty)
    try:
        return make(x, np.dtype(bool) if name == "mask" else dtype)
    except (MemoryError, ValueError):
        raise ValueError(bad(name, "a shape that fits into memory", str(x), "explain")) from None


def _numbers(x: Any) -> int:
    """How many different numbers an array holds: an axis of stride 0 repeats them."""
    array = np.asarray(x)
    return prod(n for n, stride in zip(array.shape, array.strides, strict=True) if stride)


def _why(told: dict[str, Any]) -> str:
    threads, worth, allowed = told["threads"], told["threads_worth"], told["threads_allowed"]
    if threads < worth:
        return f"there are no more {'pieces' if told['pieces'] else 'tiles'}, of {allowed} allowed"
    return f"the work is worth no more, of {allowed} allowed" if worth < allowed else "as many as allowed"


def _work(told: dict[str, Any], softcap: bool, slopes: bool, bias: bool) -> float:
    """Everything that all threads do, in flops of the same time."""
    name, dtype, columns = told["kernels"].removesuffix("bf16"), told["dtype"], told["dim"] + told["v_dim"]
    cost = _COSTS[(name, dtype) if (name, dtype) in _COSTS else ("avx2", dtype)]
    other = cost.softmax + softcap * cost.softcap + slopes * cost.slope + bias * cost.bias
    other += cost.mask * told["blocks_masked"] / max(told["blocks"], 1)
    tile = 2 * columns / (cost.single if told["tile_vectors"] == 1 else cost.full) + other
    work = tile * (told["pairs_computed"] - told["few_computed"] + told["pairs_again"])
    work += told["lane_overhead"] * columns * told["lanes_in_all"]
    work += (2 * columns / cost.few + other) * told["few_computed"] + cost.key * columns * told["few_rows"]
    rows = told["key_rows"] - (told["few_rows"] if told["few"] < told["tiles"] else 0)  # few queries beside tiles load what those copy
    for copied, width in ((told["copy_key"], told["dim"]), (told["copy_value"], told["v_dim"])):
        work += _COPIES[copied][1][dtype] * rows * width if copied else 0
    return float(work)


def explain(
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
    layout: Layout | None = None,
    precision: Literal["bf16"] | None = None,
    out: NDArray[Any] | None = None,
    num_threads: int | None = None,
    cu_seqlens_q: ArrayLike | None = None,
    cu_seqlens_k: ArrayLike | None = None,
    dtype: DTypeLike = np.float32,
    peak: float | None = None,
    bandwidth: float | None = None,
    overhead: float | None = None,
) -> Explanation:
    """What `attention`, or `attention_varlen`, would do with these arguments, without doing it, and how long it should take.

    Parameters
    ----------
    query, key, value : array_like, or tuple of int
        As of `attention`, or only shapes; their numbers are not looked at.
    mask, bias : array_like, or tuple of int, optional
        As of `attention`, and looked at; of a shape, everything passes.
    causal, q_offset, window, key_lengths, alibi_slopes, sinks, softcap, scale, head_scale, layout, precision, out, num_threads
        As of `attention`.  Nothing is written.
    cu_seqlens_q, cu_seqlens_k : array_like of int, optional
        Both: the call is that of `attention_varlen`, with its arguments and its default layout.
    dtype : dtype_like, default float32
        Of what is given as a shape.
    peak : float, optional
        GFLOP/s of fused multiply-adds by all threads that the call uses.  Default: measured.
    bandwidth : float, optional
        GB/s at which they read memory.  Default: measured.
    overhead : float, optional
        Seconds of a call with next to nothing to compute.  Default: measured.

    Returns
    -------
    Explanation
        Counts are of the call's own plan and tiles; print it, or take `as_dict()`.

    Raises
    ------
    ValueError, TypeError
        What `attention` would raise; a shape or a dtype that is none; a machine that is not faster than 0.

    Notes
    -----
    Measuring takes 0.2 s, once per process for each number of threads and set of kernels.  Counting takes about 1 % of the call, with a
    mask or bias up to a third, and `precision` rounds what it is given.

    Time = arithmetic of the busiest thread + bytes / bandwidth + overhead, where the arithmetic is what tiles compute at the speed that
    the kernel set reaches in cache on a Zen 4.  There, on one core, 26 of 32 calls of 0.2 to 100 ms came out within 8 %; bfloat16 and
    `precision` 0.98 to 1.13 of what was measured, ragged prompts 0.90 and 1.06, and 0.64 where steps among them read rows 4096 bytes apart.
    Where queries are few, 0.65 of the shorter of arithmetic and memory is hidden behind the other and not counted: 0.78 to 1.25 with 1 to 8
    of them against 64 MB.  Left out are: what caches keep from the call before, and that memory is read while tiles compute; keys and
    values reread from beyond L1 (0.5, the portable set at D = 128) or L2; conversion of inputs of another dtype, byte order or alignment,
    but for what `precision` rounds; tiles done again because numbers are not finite; clocks that change, and whoever else computes.
    """
    try:
        if dtype == "bfloat16":  # a name that NumPy knows as soon as ml_dtypes has been imported
            import_module("ml_dtypes")
        kind = np.dtype(dtype)
    except (TypeError, ImportError):
        raise TypeError(bad("dtype", "float64, float32, float16 or bfloat16", repr(dtype), "explain")) from None
    for name, number in (("peak", peak), ("bandwidth", bandwidth), ("overhead", overhead)):
        if number is not None and not 0 < number < float("inf"):
            raise ValueError(bad(name, "a number above 0", str(number), "explain"))
    given = {"query": query, "key": key, "value": value, "mask": mask, "bias": bias}
    q, k, v, m, b = (_as_given(name, x, kind) for name, x in given.items())
    ragged = cu_seqlens_q is not None
    if ragged != (cu_seqlens_k is not None):
        raise TypeError(bad("cu_seqlens_q", "both it and cu_seqlens_k, or none of them", "one", "explain"))
    if ragged and (mask is not None or bias is not None or key_lengths is not None):
        raise TypeError(bad("cu_seqlens_q", "no mask, bias or key_lengths beside it", "one of them", "explain"))
    layout = layout or ("blhd" if ragged else "bhld")
    options = (causal, q_offset, window, key_lengths, alibi_slopes, sinks, softcap, scale, head_scale, layout, precision, out, num_threads)
    told = describe(q, k, v, m, b, *options, (cu_seqlens_q, cu_seqlens_k) if ragged else None)

    item, (q_item, k_item, v_item, out_item) = told["item"], told["items"]
    threads, kernels = told["threads"], active_kernels()
    peak = _measured_peak(kernels, told["dtype"], threads) if peak is None else peak
    bandwidth = _measured_bandwidth(threads) if bandwidth is None else bandwidth
    overhead = _measured_overhead(kernels) if overhead is None else overhead
    read = min(_numbers(q), told["rows"] * told["dim"]) * q_item + min(_numbers(k), told["key_rows_once"] * told["dim"]) * k_item
    read += min(_numbers(v), told["key_rows_once"] * told["v_dim"]) * v_item
    read += (0 if m is None else min(_numbers(m), told["mask_cells"])) + (0 if b is None else min(_numbers(b), told["bias_cells"]) * item)
    written = told["rows"] * told["v_dim"] * out_item
    columns = told["dim"] + told["v_dim"]
    work = _work(told, softcap is not None, alibi_slopes is not None, b is not None)
    moved = read + written + (ROUNDED * sum(map(np.size, (q, k, v))) if precision else 0)
    arithmetic, memory = work * told["share"] * threads / (peak * 1e9), moved / (bandwidth * 1e9)
    hidden = HIDDEN * min(arithmetic, memory) if told["few"] else 0.0
    return Explanation(
        **{field.name: told[field.name] for field in fields(Explanation) if field.name in told},
        threads_why=_why(told),
        copies=tuple(f"{part}: {_COPIES[why][0]}" for part in ("key", "value") if (why := told[f"copy_{part}"])),
        flops=2 * columns * told["pairs"],
        flops_computed=2 * columns * told["pairs_computed"],
        bytes_read=read,
        bytes_written=written,
        bytes_reread=(told["key_rows"] - told["key_rows_once"]) * (told["dim"] * k_item + told["v_dim"] * v_item),
        peak=peak,
        bandwidth=bandwidth,
        arithmetic=arithmetic - (hidden if arithmetic <= memory else 0),
        memory=memory - (hidden if arithmetic > memory else 0),
        overhead=overhead + (WAKE if threads > 1 else 0),
    )
