"""What a call would do, said beforehand: counts against dense masks, plans against calls, messages against attention's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from math import ceil
from time import thread_time
from typing import Any

import numpy as np
import pytest

import qkvc
from qkvc import _kernels
from qkvc.explanation import READ_BYTES, ROUNDED

from .reference import problem
from .support import run_child
from .test_memory import EXACT, METER

MACHINE = {"peak": 100.0, "bandwidth": 10.0, "overhead": 1e-6}  # so that nothing is measured


def explain(query: Any, key: Any = None, value: Any = None, **options: Any) -> qkvc.Explanation:
    key = query if key is None else key
    return qkvc.explain(query, key, key if value is None else value, **{**MACHINE, **options})


SIZES = ((2, 6, 150, 40), (2, 2, 310, 40), (2, 2, 310, 24))  # 450 queries of a group: 10 tiles of 48, their last block of 54 keys

# No query of any is without a key: such a tile would be done twice.
POSITIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "top-left": {"causal": "top-left"},
    "bottom-right": {"causal": "bottom-right"},
    "offsets": {"causal": True, "q_offset": [100, 7]},
    "window": {"causal": "bottom-right", "window": (70, 0)},
    "both sides": {"window": (33, 150), "q_offset": 40},
    "lengths": {"key_lengths": [300, 129]},
    "lengths and window": {"key_lengths": [310, 260], "causal": "bottom-right", "window": (200, 0)},
}


def empties(sizes: tuple[tuple[int, ...], ...] = SIZES, dtype: str = "float32") -> list[Any]:
    return [np.zeros(shape, dtype) for shape in sizes]


def walked(allowed: Any, kv_heads: int, vectors: int, lanes: int) -> tuple[int, int, int, int]:
    """Tiles, blocks, (lane, key) pairs and key rows, from the dense mask: every tile from its first to its last key, in whole segments."""
    tiles = blocks = pairs = rows = 0
    *_, heads, queries, keys = allowed.shape
    for part in allowed.reshape(-1, heads // kv_heads, queries, keys):
        seen = part.swapaxes(0, 1).reshape(-1, keys)  # query by query, its heads side by side
        count = ceil(len(seen) / lanes)
        cuts = [count * i // ceil(count / vectors) * lanes for i in range(ceil(count / vectors) + 1)]
        for begin, end in pairwise(cuts):
            tile = seen[begin:end]
            first, last = tile.any(axis=0).nonzero()[0][[0, -1]]
            tiles += 1
            blocks += last // 128 - first // 128 + 1
            rows += last + 1 - first // 16 * 16
            for row in range(0, len(tile), lanes):
                pairs += lanes * (tile[row : row + lanes].any(axis=0).nonzero()[0][-1] + 1 - first // 16 * 16)
    return tiles, blocks, pairs, rows


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", POSITIONS)
def test_counts(isa: str, name: str, dtype: str) -> None:
    arrays, options = empties(dtype=dtype), POSITIONS[name]
    allowed = problem(*arrays, **options).allowed
    e = explain(*arrays, **options, num_threads=1)
    _, vectors, _ = _kernels.tile_shape()
    tiles, blocks, pairs, rows = walked(allowed, 2, vectors, e.lanes)
    assert (e.kernels, e.dtype, e.tile_vectors, e.narrow) == (isa, dtype, vectors, False)
    assert (e.tiles, e.blocks, e.tiles_again) == (tiles, blocks, 0)
    assert e.blocks_in_all == tiles * 3
    assert (e.pairs, e.flops, e.flops_computed) == (allowed.sum(), 128 * allowed.sum(), 128 * pairs)
    size = np.dtype(dtype).itemsize
    read = [h.any(axis=(0, 1)).nonzero()[0] for h in allowed.reshape(4, 3, 150, 310)]
    once = sum(int(keys[-1] + 1 - keys[0] // 16 * 16) for keys in read)
    assert e.bytes_read == size * (arrays[0].size + once * 64)
    assert e.bytes_reread == size * (rows - once) * 64
    assert e.bytes_written == size * 2 * 6 * 150 * 24


def test_masks_and_biases_are_looked_at(isa: str, rng: np.random.Generator) -> None:
    arrays = empties()
    mask = rng.random((2, 1, 150, 310)) < 0.5
    mask[0, 0, :, 200:] = False  # padding: the third block is skipped, the second ends early
    bias = np.where(rng.random((6, 150, 1)) < 0.1, -np.inf, 0).astype(np.float32)
    allowed = problem(*arrays, mask=mask, bias=bias, causal="bottom-right").allowed
    e = explain(*arrays, mask=mask, bias=bias, causal="bottom-right")
    assert e.pairs == allowed.sum()
    assert e.tiles_again  # for the queries that the bias shuts out
    assert 0 < e.blocks_masked <= e.blocks < explain(*arrays, causal="bottom-right").blocks
    assert explain(*arrays, mask=mask[:1]).tiles_again == 0
    whole = explain(*arrays, mask=np.ones((310,), bool), bias=np.zeros((150, 310), np.float32))
    assert (whole.blocks_masked, whole.blocks) == (0, whole.blocks_in_all)
    assert whole.bytes_read - explain(*arrays).bytes_read == 310 + 150 * 310 * 4  # each number once, whoever shares it


def test_a_query_without_keys_is_work_done_twice() -> None:
    arrays = empties()
    mask = np.ones((150, 310), bool)
    mask[0] = False
    e, plain = explain(*arrays, mask=mask), explain(*arrays)
    assert e.tiles_again == 4  # the first tile of each head
    assert e.arithmetic > 1.1 * plain.arithmetic
    assert explain(*arrays, key_lengths=0).tiles_again == 0  # nothing to do, not even twice


OPTIONS: dict[str, dict[str, Any]] = {
    "mask": {"mask": np.ones((150, 310), bool)},
    "bias": {"bias": np.ones((150, 310))},
    "alibi_slopes": {"alibi_slopes": np.ones(6), "causal": "bottom-right"},
    "sinks": {"sinks": np.zeros(6)},
    "softcap": {"softcap": 30.0},
    "scale": {"scale": 1.0},
    "head_scale": {"head_scale": np.ones(6)},
    "num_threads": {"num_threads": 2},
    "out": {"out": np.ones((2, 6, 150, 24), np.float32)},
    **POSITIONS,
}


@pytest.mark.parametrize("name", OPTIONS)
def test_shapes_say_what_arrays_say(name: str) -> None:
    options = OPTIONS[name]
    shapes = {key: x.shape if key in ("mask", "bias") else x for key, x in options.items()}
    assert explain(*SIZES, **shapes) == explain(*empties(), **options)
    if "out" in options:
        assert (options["out"] == 1).all()


@pytest.mark.parametrize("name", ["bias", "alibi_slopes", "softcap"])
def test_options_that_cost(isa: str, name: str) -> None:
    options = dict(OPTIONS[name])
    plain = {"causal": options["causal"]} if "causal" in options else {}
    assert 1.02 < explain(*SIZES, **options).arithmetic / explain(*SIZES, **plain).arithmetic < 3


def test_layouts_batches_and_ranks() -> None:
    laid = [(b, length, h, d) for b, h, length, d in SIZES]
    assert explain(*laid, layout="blhd") == explain(*SIZES)
    query, key, value = empties()
    shared = [np.broadcast_to(x[:1], x.shape) for x in (key, value)]
    assert explain(query, key[0], value[0]) == explain(query, *shared)
    assert explain(query, *shared).bytes_read == explain(query, key, value).bytes_read - key[0].nbytes - value[0].nbytes
    flat = explain((30, 8), (50, 8), (50, 8))
    assert flat == explain((1, 30, 8), (1, 50, 8), (1, 50, 8))


def test_empty_calls() -> None:
    nothing = explain((2, 0, 8), (2, 5, 8))
    assert (nothing.tiles, nothing.blocks, nothing.bytes_read, nothing.arithmetic) == (0, 0, 0, 0)
    no_keys = explain((2, 5, 8), (2, 0, 8))
    assert (no_keys.blocks, no_keys.pairs, no_keys.tiles_again, no_keys.bytes_written) == (0, 0, 0, 2 * 5 * 8 * 4)
    assert "0 B" in str(nothing)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_few_queries_have_their_roles_swapped(isa: str, dtype: str) -> None:
    """Every key row is read once for all heads of a group, nothing is computed for a lane that is empty, and blocks wait in parts."""
    query, key, value = empties(((2, 4, 1, 40), (2, 2, 700, 40), (2, 2, 700, 24)), dtype)
    size = query.dtype.itemsize
    options = {"key_lengths": [700, 300], "causal": "bottom-right"}
    for threads in (1, 3):
        e = explain(query, key, value, **options, num_threads=threads)
        assert (e.kernels, e.narrow, e.tiles, e.tile_queries) == (isa, False, 4, 2)
        assert e.pieces == 2 * e.threads  # eight for each thread that the work is worth, among four key heads
        assert (e.blocks, e.blocks_in_all, e.tiles_again) == (2 * 6 + 2 * 3, 4 * 6, 0)
        assert (e.pairs, e.flops) == (4 * (700 + 300), 2 * 64 * e.pairs)
        assert e.flops_computed == e.flops
        assert (e.bytes_read, e.bytes_reread) == (size * (query.size + 2 * (700 + 300) * 64), 0)
        assert e.bytes_written == size * 2 * 4 * 24
        assert 2 * 12 * 2 * 24 * max(size, 4) < e.parts < 2 * 12 * 2 * (24 + 64) * max(size, 4)  # Dv and m and l, up to whole vectors
        assert f"keys in {e.lanes} lanes, in {e.pieces} pieces a head" in str(e)
        assert "for parts of the keys" in str(e)
    whole = explain(*empties(((2, 4, 1, 40), (2, 2, 40, 40), (2, 2, 40, 24)), dtype), num_threads=1)
    assert (whole.pieces, whole.parts) == (1, 0)
    assert explain((4, 1, 40), (2, 31, 40)).pieces == 0
    assert "tiles" in repr(explain((4, 1, 40), (2, 31, 40)))
    shut = explain(query, key, value, key_lengths=[700, 0], num_threads=1)
    masked = explain(query, key, value, mask=np.arange(2)[:, np.newaxis, np.newaxis, np.newaxis] + np.arange(700) > 0, num_threads=1)
    assert (shut.tiles_again, masked.tiles_again) == (0, 0)
    again = explain(query, key, value, mask=np.arange(4)[:, np.newaxis, np.newaxis] > np.zeros(700), num_threads=1)
    assert (again.tiles_again, again.arithmetic > 2 * shut.arithmetic) == (2, True)  # head 0 sees nothing: by tiles, twice


def test_a_ragged_batch_is_its_sequences(isa: str) -> None:
    """What is counted of each alone, and steps of decoding stand beside prompts."""
    lengths = (4, 300), (100, 130), (0, 50), (60, 60), (1, 700), (0, 0)
    starts = [np.cumsum([0, *side]) for side in zip(*lengths, strict=True)]
    options = {"causal": "bottom-right", "num_threads": 1}
    ragged = {**options, "cu_seqlens_q": starts[0], "cu_seqlens_k": starts[1]}
    sizes = (165, 6, 40), (1240, 2, 40), (1240, 2, 24)
    e = explain(*sizes, **ragged)
    alone = [explain((6, q, 40), (2, k, 40), (2, k, 24), **options) for q, k in lengths if q]
    for name in (
        "tiles", "few", "blocks", "blocks_in_all", "blocks_clipped", "pairs", "flops", "flops_computed", "bytes_read", "bytes_written",
        "bytes_reread",
    ):  # fmt: skip
        assert getattr(e, name) == sum(getattr(each, name) for each in alone), name
    assert (e.few, e.pieces, e.tile_vectors) == (2, 1, max(each.tile_vectors for each in alone))
    assert f"of 2 key heads, keys in {e.lanes} lanes, in 1 pieces a head; beside them tiles, {e.tiles - 2} of up to" in str(e)
    assert explain(*empties(sizes), **ragged) == e
    assert explain(*[(size[1], size[0], size[2]) for size in sizes], **ragged, layout="bhld") == e
    keys = (12400, 2, 40)
    steps = explain((3, 6, 40), keys, cu_seqlens_q=range(4), cu_seqlens_k=[0, 3000, 10000, 12400], num_threads=3)
    assert (steps.few, steps.tiles, steps.tile_queries) == (6, 6, 3)
    assert (steps.threads, steps.parts > 0) == (3, True)
    assert "3 of each of 6 key heads" in str(steps)


def test_lower_precision(isa: str) -> None:
    """The tiles are those of bfloat16 arrays; the result stays float32, and somebody has to round."""
    e, half, single = explain(*SIZES, precision="bf16"), explain(*SIZES, dtype="bfloat16"), explain(*SIZES)
    assert (e.dtype, e.copies, e.flops_computed, e.bytes_read) == (half.dtype, half.copies, half.flops_computed, half.bytes_read)
    assert (e.dtype == "bfloat16") == isa.endswith("bf16")
    assert (e.arithmetic, e.bytes_written) == (half.arithmetic, single.bytes_written)
    assert e.memory * 10e9 == pytest.approx(e.bytes_read + e.bytes_written + ROUNDED * sum(map(np.prod, SIZES)))


def test_few_queries_wait_for_memory_or_hide_it() -> None:
    """So much of the shorter part is hidden behind the longer."""
    sizes = (8, 1, 64), (8, 9000, 64)
    slow, fast = (explain(*sizes, num_threads=1, bandwidth=speed) for speed in (1.0, 1000.0))
    longer, shorter = slow.bytes_read + slow.bytes_written, fast.bytes_read + fast.bytes_written
    assert (slow.bound, slow.memory) == ("memory", longer / 1e9)
    assert (fast.bound, fast.memory) == ("arithmetic", pytest.approx(0.35 * shorter / 1e12))
    assert slow.arithmetic == pytest.approx(0.35 * fast.arithmetic)


def test_few_queries_take_the_narrow_set() -> None:
    widest = qkvc.kernels()[0]
    if "avx512" not in widest:
        pytest.skip(f"only AVX-512 has a narrow set, and this CPU has {widest}")
    few, many = explain((1, 8, 20, 64), (1, 8, 300, 64)), explain((1, 8, 16, 64), (1, 8, 300, 64))
    assert (few.kernels, few.narrow, few.lanes, few.tile_queries) == ("avx2", True, 8, 20)
    assert (many.kernels, many.narrow, many.lanes, many.tile_queries) == (widest, False, 16, 16)
    assert "half the lanes" in str(few)


def test_storage_and_what_multiplies_it(isa: str) -> None:
    """bfloat16 goes in pairs where the CPU can, everything else of 16 bits is widened; half the bytes are read."""
    half, single = explain((2, 4, 100, 64), dtype="bfloat16"), explain((2, 4, 100, 64))
    assert (half.bytes_read, half.bytes_written, half.flops) == (single.bytes_read // 2, single.bytes_written // 2, single.flops)
    widened = tuple(f"{name}: its 16-bit numbers are widened" for name in ("key", "value"))
    pairs = isa.endswith("bf16")
    assert half.dtype == ("bfloat16" if pairs else "float32")
    assert half.copies == (("value: its 16-bit numbers are put into pairs",) if pairs else widened)
    assert explain((2, 4, 100, 64), dtype="float16").copies == widened
    assert len(explain((2, 4, 100, 63), dtype="bfloat16").copies) == 2
    for dtype, dim, copies in (
        ("bfloat16", 64, ()),
        ("float16", 63, ()),
        ("bfloat16", 63, ("key: its 16-bit numbers are put into pairs",)),
    ):
        few = explain((2, 4, 1, dim), (2, 4, 100, dim), dtype=dtype)  # widened and paired as they are loaded, but for an odd width
        assert few.copies == (copies if pairs else ())
        assert few.arithmetic > 0
    key = np.ones((2, 4, 100, 64), np.float32)
    mixed = explain(key, key.astype("bfloat16"), key)
    assert (mixed.dtype, mixed.copies, mixed.narrow) == ("float32", widened[:1], False)


def test_copies_and_their_reasons() -> None:
    query, key, value = empties(((1, 2, 100, 64),) * 3)
    apart = np.zeros((1, 2, 100, 1024), np.float32)[..., :64]
    across = np.zeros((1, 2, 64, 100), np.float32).swapaxes(-1, -2)
    plain, copied = explain(query, key, value), explain(query, across, apart)
    assert (plain.copies, plain.scratch + 2 * 100 * 64 * 4) == ((), copied.scratch)
    assert copied.copies == ("key: its columns are not adjacent", "value: its rows lie a multiple of 4096 bytes apart")
    assert copied.arithmetic > explain(query, key, apart).arithmetic > plain.arithmetic
    assert explain(query[..., :1, :], across, apart).copies == copied.copies[:1]  # few queries read rows where they lie
    assert explain(query[..., :1, :], apart, apart).copies == ()


# --- against what really runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("queries", "options"), [(700, ""), (700, "bias=np.zeros((700, 700), np.float32)"), (3, "")])
def test_scratch_is_what_a_call_takes(threads: int, queries: int, options: str) -> None:
    """The process grows by it, with the parts of few queries: what the small call before left behind is given back first."""
    printed = run_child(
        METER
        + f"""
q, k, v, out = arrays(2, {queries}, {700 if queries == 700 else 20000}, 96)
k = np.concatenate([k, k])
v = np.concatenate([v, v])[..., ::-1]
small = np.ones((40, 40, 8), np.float32)
qkvc.attention(small, small, small, out=small.copy(), num_threads={threads})
options = dict({options})
grown = growth(lambda: qkvc.attention(q, k, v, out=out, num_threads={threads}, **options))
machine = dict(peak=1, bandwidth=1, overhead=1, num_threads={threads})
before, e = (qkvc.explain(*x, **machine) for x in ((small,) * 3, (q, k, v)))
print(grown, e.scratch * e.threads + e.parts - before.scratch * before.threads)
""",
        **EXACT,
    )
    grown, said = map(int, printed.split())
    assert said > 60_000
    assert abs(grown - said) <= 16384  # pages, and a few Python objects


@pytest.mark.parametrize(
    ("shape", "keys", "threads", "why"),
    [
        ((1, 4, 600, 64), 600, 3, "as many as allowed"),
        ((1, 1, 40, 64), 40, 1, "the work is worth no more, of 3 allowed"),
        ((1, 1, 8, 1024), 8, 1, "the work is worth no more, of 3 allowed"),
        ((1, 1, 2, 65536), 31, 1, "there are no more tiles, of 3 allowed"),
        ((1, 1, 2, 512), 6000, 3, "as many as allowed"),
        ((1, 1, 2, 16384), 129, 2, "there are no more pieces, of 3 allowed"),
    ],
)
def test_threads_are_those_that_a_call_takes(shape: tuple[int, ...], keys: int, threads: int, why: str) -> None:
    others = (*shape[:2], keys, shape[3])
    e = explain(shape, others, num_threads=3)
    assert (e.threads, e.threads_why) == (threads, why)
    started = run_child(f"""
        import numpy as np, qkvc
        from qkvc import _kernels
        q, k = np.ones({shape}, np.float32), np.ones({others}, np.float32)
        qkvc.attention(q, k, k, num_threads=3)
        print(_kernels.pool_started())
    """)
    assert int(started) + 1 == threads


@pytest.mark.parametrize("tiles", range(2, 8))
def test_the_busiest_thread_counts(tiles: int) -> None:
    """Equal tiles: the last one of an odd number leaves a thread idle."""
    lanes, vectors, _ = _kernels.tile_shape()
    shape = (tiles, 4 * lanes * vectors, 64)
    one, three = explain(shape, num_threads=1), explain(shape, num_threads=3)
    assert (one.tiles, three.tiles, three.threads) == (4 * tiles,) * 2 + (3,)
    # The peak given is that of all threads, so three of it would each take a third of the time.
    np.testing.assert_allclose(three.arithmetic / one.arithmetic, ceil(4 * tiles / 3) / (4 * tiles) * 3)


# --- the prediction ---------------------------------------------------------------------------------------------------------------------


def test_the_time_is_that_of_its_parts() -> None:
    e = explain(*SIZES, num_threads=1)
    assert e.memory == (e.bytes_read + e.bytes_written) / 10e9
    assert e.overhead == 1e-6
    assert e.seconds == e.arithmetic + e.memory + e.overhead
    assert explain(*SIZES, num_threads=1, peak=200.0).arithmetic == e.arithmetic / 2
    assert e.bound == "arithmetic"
    assert explain(*SIZES, bandwidth=0.01).bound == "memory"
    assert explain(*SIZES, overhead=1.0).bound == "overhead"
    assert 0.5 < e.flops_computed / (e.arithmetic * 100e9) < 0.95 or e.kernels == "portable"


def test_what_was_measured_is_kept() -> None:
    first, second = (qkvc.explain((1, 1, 3, 4), (1, 1, 3, 4), (1, 1, 3, 4)) for _ in range(2))
    assert first == second
    assert first.peak > 0.1
    assert first.bandwidth > 0.1
    assert 0 < first.overhead < 1
    assert first.bound == "overhead"


CASES: list[tuple[Any, Any, dict[str, Any]]] = [
    ((1, 4, 2048, 64), None, {}),
    ((1, 4, 1024, 128), None, {"causal": True}),
    ((1, 12, 1024, 64), None, {"causal": True}),
    ((8, 12, 128, 64), None, {}),
    ((8, 12, 197, 64), None, {}),
    ((8, 12, 128, 32), None, {}),
    ((2, 8, 512, 40), None, {}),
    ((1, 4, 512, 256), None, {}),
    ((4, 8, 64, 64), (4, 8, 1500, 64), {}),
    ((1, 32, 256, 128), (1, 8, 256, 128), {"causal": True}),
    ((8, 12, 1, 64), (8, 12, 1024, 64), {}),
    ((1, 12, 16, 64), (1, 12, 4096, 64), {}),
    ((1, 4, 4096, 64), None, {"window": (256, 0)}),
    ((1, 8, 512, 64), None, {"bias": np.ones((8, 512, 512), np.float32)}),
    ((1, 8, 512, 64), None, {"softcap": 30.0}),
    ((8, 12, 17, 64), None, {}),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_predictions(dtype: str, rng: np.random.Generator, figures: list[str]) -> None:
    """How good they are is printed, not judged: on one thread and in its CPU time, which a busy machine disturbs least."""
    buffer, peaks, calls = np.ones(READ_BYTES // 4, np.float32), [], []
    reads = [buffer.nbytes / 1e9 / seconds_of(partial(_kernels.read_rate, buffer, 1)) for _ in range(5)]
    for shape, keys, options in CASES:
        q, k = rng.standard_normal(shape).astype(dtype), rng.standard_normal(keys or shape).astype(dtype)
        arguments, times = (q, k, k.copy()), []
        for _ in range(7):
            peaks.append(_kernels.fma_peak(1, 0.001, dtype))
            times.append(seconds_of(partial(qkvc.attention, *arguments, **options, num_threads=1)))
        calls.append((arguments, options, min(times)))
    machine = {"peak": max(peaks), "bandwidth": max(reads), "num_threads": 1}
    ratios = [qkvc.explain(*arguments, **options, **machine).seconds / seconds for arguments, options, seconds in calls]
    near = sum(0.8 <= ratio <= 1.25 for ratio in ratios)
    figures.append(f"explain, {dtype}: predicted / measured {' '.join(f'{r:.2f}' for r in ratios)}; {near} of {len(ratios)} within 25 %")


def seconds_of(call: Callable[[], Any]) -> float:
    start = thread_time()
    call()
    return thread_time() - start


# --- what it says -----------------------------------------------------------------------------------------------------------------------


def test_every_number_is_told() -> None:
    e = explain(*SIZES)
    told = e.as_dict()
    assert json.loads(json.dumps(told)) == told
    assert told["seconds"] == e.seconds
    assert told["bound"] == e.bound
    text = str(e)
    for words in ("float32", f"{e.tiles} of up to", f"{e.blocks} of {e.blocks_in_all}", "100 GFLOP/s, 10 GB/s", "bound by arithmetic"):
        assert words in text
    assert "\n" not in repr(e)
    assert e.kernels in repr(e)
    with pytest.raises(AttributeError):
        e.threads = 7  # type: ignore[misc]


@pytest.mark.parametrize(
    "wrong",
    [
        {"mask": np.ones((150, 310))}, {"mask": np.ones((7, 310), bool)}, {"bias": np.ones((7, 310))}, {"causal": True},
        {"causal": "up"}, {"q_offset": 1}, {"window": (1, 2)}, {"window": 3}, {"key_lengths": 311}, {"softcap": 0.0},
        {"scale": np.inf}, {"alibi_slopes": np.ones(5), "causal": "top-left"}, {"sinks": np.ones(5)}, {"head_scale": "x"},
        {"layout": "bhdl"}, {"layout": "blhd"}, {"precision": "half"}, {"num_threads": 0}, {"out": np.ones(3)},
    ],
    ids=str,
)  # fmt: skip
def test_attention_and_its_explanation_refuse_alike(wrong: dict[str, Any]) -> None:
    messages = []
    for refuse in (qkvc.attention, explain):
        with pytest.raises((TypeError, ValueError)) as caught:
            refuse(*empties(), **wrong)
        messages.append((caught.type, str(caught.value)))
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (((1, -2, 3),), {}, ValueError, "query: expected a shape with sizes of 0 or more, got (1, -2, 3)"),
        (((1 << 30, 1 << 30, 64),), {}, ValueError, "query: expected a shape that fits into memory"),
        (((3, 4), (5, 4), (5,)), {}, ValueError, "value: expected an array (..., heads, length, dim)"),
        (((3, 4), (5, 6)), {}, ValueError, "key: expected the query's last axis, 4"),
        (((3, 4),), {"dtype": "longdouble"}, TypeError, "float16"),
        (((3, 4),), {"dtype": "x"}, TypeError, "dtype: expected float64, float32, float16 or bfloat16, got 'x'"),
        (((3, 4),), {"peak": 0}, ValueError, "peak: expected a number above 0, got 0"),
        (((3, 4),), {"bandwidth": float("nan")}, ValueError, "bandwidth: expected a number above 0, got nan"),
        (((3, 4),), {"cu_seqlens_q": [0, 3]}, TypeError, "cu_seqlens_q: expected both it and cu_seqlens_k, or none of them, got one"),
        (((3, 4),), {"cu_seqlens_k": [0, 3]}, TypeError, "cu_seqlens_q: expected both it and cu_seqlens_k"),
        (((3, 4),), {"cu_seqlens_q": [0, 3], "cu_seqlens_k": [0, 3], "mask": (3, 3)}, TypeError, "no mask, bias or key_lengths beside it"),
        (((3, 4),), {"cu_seqlens_q": [0, 3], "cu_seqlens_k": [0, 4]}, ValueError, "cu_seqlens_k: expected"),
        (((3, 4),), {"overhead": -1.0}, ValueError, "overhead: expected a number above 0, got -1.0"),
    ],
)
def test_misuse(arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        explain(*arguments, **options)
    assert words in str(caught.value)
