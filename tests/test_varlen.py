"""Ragged batches: every sequence as if it were alone, whatever lies before and behind it, and whatever the index arrays say."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import qkvc

from .options import DTYPES, HALVES, Arrays, operands_in, option
from .support import MEMORY, assert_refused, assert_result, assert_same_bits
from .test_guard_pages import Guarded

# Queries and keys of each sequence: by tiles, with swapped roles, by both; empty ones, remainders, several blocks and pieces.
LENGTHS = {
    "prompts": ((70, 70), (3, 3), (0, 5), (140, 150), (20, 0), (33, 300)),
    "steps": ((1, 300), (2, 31), (1, 1), (3, 1000), (0, 0), (1, 129)),
    "prompts and steps": ((1, 700), (100, 130), (2, 32), (0, 40), (1, 20), (50, 50), (2, 0)),
    "one": ((17, 33),),
    "empty ones": ((0, 0), (0, 7), (0, 0)),
    "none": (),
}
OPTIONS = ("plain", "causal", "top-left", "window", "softcap", "alibi", "sinks", "head_scale", "everything")
HEADS, DIMS = (4, 2), (40, 24)


class Ragged(NamedTuple):
    arrays: Arrays  # heads first
    q: NDArray[np.int64]  # cu_seqlens_q
    k: NDArray[np.int64]

    def alone(self, i: int) -> list[NDArray[Any]]:
        starts = (self.q, self.k, self.k)
        return [x[..., at[i] : at[i + 1], :] for x, at in zip(self.arrays, starts, strict=True)]


def ragged(rng: np.random.Generator, lengths: str, dtype: str = "float32", heads: tuple[int, int] = HEADS) -> Ragged:
    starts = np.cumsum(((0, 0), *LENGTHS[lengths]), axis=0)
    return Ragged(operands_in(dtype, rng, (), heads, tuple(starts[-1]), DIMS), *starts.T)


def options_of(rng: np.random.Generator, kind: str, batch: Ragged, heads: int = HEADS[0]) -> dict[str, Any]:
    """Numbers for each sequence wherever an option takes them."""
    l_q, l_k = np.diff(batch.q), np.diff(batch.k)
    if kind == "top-left":
        return {"causal": kind}
    if kind == "window":
        return {"window": (40, 2), "q_offset": l_k - l_q - rng.integers(0, 3, l_q.size)}
    if kind == "everything":
        together = {name: x for other in OPTIONS[3:-1] for name, x in options_of(rng, other, batch, heads).items()}
        return {**together, "causal": True}
    return option(rng, kind, l_q.shape, heads, (l_q, l_k))  # type: ignore[arg-type]  # offsets are arrays then


def share(options: dict[str, Any], i: int) -> dict[str, Any]:
    return {name: x[i] if isinstance(x, np.ndarray) else x for name, x in options.items()}


@pytest.mark.parametrize("dtype", DTYPES + HALVES)
@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_every_sequence_is_what_it_is_alone(isa: str, lengths: str, kind: str, dtype: str, rng: np.random.Generator) -> None:
    """The oracle's numbers, and the bits of `attention`, for any number of threads."""
    batch = ragged(rng, lengths, dtype)
    options = options_of(rng, kind, batch)
    for threads in (1, 2, 3, 7):
        got = qkvc.attention_varlen_with_lse(*batch.arrays, batch.q, batch.k, layout="bhld", num_threads=threads, **options)
        for i in range(batch.q.size - 1):
            alone, mine = batch.alone(i), slice(batch.q[i], batch.q[i + 1])
            one = qkvc.AttentionOutput(got.out[:, mine], got.lse[:, mine])
            if threads == 1:
                assert_result(one, *alone, f"sequence {i}", **share(options, i))
            expected = qkvc.attention_with_lse(*alone, **share(options, i))
            assert_same_bits(one.out, expected.out, f"sequence {i}, {threads} threads")
            assert_same_bits(one.lse, expected.lse, f"lse of sequence {i}, {threads} threads")


@pytest.mark.parametrize("lengths", ["prompts", "steps", "prompts and steps"])
def test_layouts_memory_and_one_head(isa: str, lengths: str, rng: np.random.Generator) -> None:
    """Tokens before heads unless `layout` says otherwise, any strides, `out` written in place, no axis for one head."""
    batch = ragged(rng, lengths)
    whole = qkvc.attention_varlen_with_lse(*batch.arrays, batch.q, batch.k, layout="bhld")
    tokens = [x.swapaxes(0, 1) for x in batch.arrays]
    for name, memory in MEMORY.items():
        out = np.full((*tokens[0].shape[:2], DIMS[1]), np.nan, np.float32)
        got = qkvc.attention_varlen_with_lse(*map(memory, tokens), batch.q.tolist(), batch.k.astype(np.uint16), out=out)
        assert got.out is out
        assert_same_bits(out.swapaxes(0, 1), whole.out, name)
        assert_same_bits(got.lse, whole.lse, name)
    one = ragged(rng, lengths, heads=(1, 1))
    flat = qkvc.attention_varlen_with_lse(*(x[0] for x in one.arrays), one.q, one.k)
    expected = qkvc.attention_varlen_with_lse(*one.arrays, one.q, one.k, layout="bhld")
    assert_same_bits(flat.out, expected.out[0])
    assert_same_bits(flat.lse, expected.lse[0])
    rounded = qkvc.attention_varlen(*batch.arrays, batch.q, batch.k, layout="bhld", precision="bf16")
    for i in range(batch.q.size - 1):
        assert_same_bits(rounded[:, batch.q[i] : batch.q[i + 1]], qkvc.attention(*batch.alone(i), precision="bf16"), f"sequence {i}")


@pytest.mark.parametrize("lengths", ["steps", "prompts and steps"])
@pytest.mark.parametrize("heads", [(1, 1), (16, 1), (3, 3)], ids=str)
def test_few_queries_in_pieces(isa: str, heads: tuple[int, int], lengths: str, rng: np.random.Generator) -> None:
    """So few heads that long sequences are cut and short ones are not."""
    batch = ragged(rng, lengths, heads=heads)
    for threads in (1, 2, 7):
        got = qkvc.attention_varlen(*batch.arrays, batch.q, batch.k, layout="bhld", num_threads=threads)
        for i in range(batch.q.size - 1):
            assert_same_bits(got[:, batch.q[i] : batch.q[i + 1]], qkvc.attention(*batch.alone(i)), f"sequence {i}, {threads} threads")


@pytest.mark.parametrize("dtype", DTYPES + HALVES)
@pytest.mark.parametrize("lengths", ["prompts", "steps", "prompts and steps"])
def test_neighbours_are_apart(isa: str, lengths: str, dtype: str, rng: np.random.Generator) -> None:
    """NaN in one sequence reaches that one alone, and all of it."""
    batch = ragged(rng, lengths, dtype)
    clean = qkvc.attention_varlen_with_lse(*batch.arrays, batch.q, batch.k, layout="bhld")
    for i, (l_q, l_k) in enumerate(LENGTHS[lengths]):
        bad = Ragged(tuple(x.copy() for x in batch.arrays), batch.q, batch.k)  # type: ignore[arg-type]
        for x in bad.alone(i):
            x[...] = np.nan
        got = qkvc.attention_varlen_with_lse(*bad.arrays, batch.q, batch.k, layout="bhld")
        mine = np.arange(batch.q[-1])
        mine = (batch.q[i] <= mine) & (mine < batch.q[i + 1])
        assert_same_bits(got.out[:, ~mine], clean.out[:, ~mine], f"sequence {i}")
        assert_same_bits(got.lse[:, ~mine], clean.lse[:, ~mine], f"sequence {i}")
        assert np.isnan(got.out[:, mine]).all() or l_q == 0 or l_k == 0


@pytest.mark.parametrize("dtype", DTYPES + HALVES)
@pytest.mark.parametrize("side", ["end", "start"])
def test_nothing_beside_the_arrays(isa: str, side: str, dtype: str, rng: np.random.Generator) -> None:
    numbers = rng.standard_normal(40_000).astype(dtype)
    inputs = [Guarded(numbers.nbytes, np.roll(numbers, n * 7919)) for n in range(3)]
    memory = Guarded(numbers.nbytes)
    for lengths, dims in itertools.product(("prompts", "steps", "prompts and steps"), ((8, 8), (17, 9), (1, 16))):
        starts = np.cumsum(((0, 0), *LENGTHS[lengths]), axis=0)
        shapes = ((starts[-1, 0], 2, dims[0]), (starts[-1, 1], 1, dims[0]), (starts[-1, 1], 1, dims[1]))
        arrays = tuple(x.place(shape, dtype, side) for x, shape in zip(inputs, shapes, strict=True))
        memory.bytes[:] = 0xA5
        out = memory.place((starts[-1, 0], 2, dims[1]), dtype, side)
        qkvc.attention_varlen(*arrays, *starts.T, out=out, causal="bottom-right")
        rest = memory.bytes[: -out.nbytes] if side == "end" else memory.bytes[out.nbytes :]
        assert (rest == 0xA5).all(), f"{lengths} {dims}: written beside out"
        for i in range(len(starts) - 1):
            (q, k), (q_end, k_end) = starts[i : i + 2]
            alone = (arrays[0][q:q_end], arrays[1][k:k_end], arrays[2][k:k_end])
            assert_same_bits(out[q:q_end], qkvc.attention(*alone, causal="bottom-right", layout="blhd"), f"{lengths} {dims} {i}")


# Each row changes a good call: query (7, 4, 8), key (9, 2, 8) and value (9, 2, 6) of three sequences.
REFUSED: list[tuple[dict[str, Any], Any, tuple[str, ...]]] = [
    *[({name: x}, exception, (name, *words))
      for name, rows in (("cu_seqlens_q", "7"), ("cu_seqlens_k", "9"))
      for x, exception, words in (
          (None, TypeError, ("None",)),
          ("abc", TypeError, ("integers", "<U3")),
          ([0.0, 2, 3, int(rows)], TypeError, ("integers", "float64")),
          (np.array([0, 1, 1, 1], bool), TypeError, ("integers", "bool")),
          ([], TypeError, ("integers", "float64")),
          (np.zeros(0, int), ValueError, ("ascend", "(0,)")),
          (int(rows), ValueError, ("ascend", "()")),
          ([[0, 2, 3, int(rows)]], ValueError, ("ascend", "(1, 4)")),
          ([1, 2, 3, int(rows)], ValueError, ("0", rows, "1 to " + rows)),
          ([0, 2, 3, int(rows) - 1], ValueError, (rows, f"0 to {int(rows) - 1}")),
          ([0, 2, 3, int(rows) + 1], ValueError, (rows, str(int(rows) + 1))),
          ([0, 4, 3, int(rows)], ValueError, ("ascend", "3 behind 4")),
          ([0, -1, 3, int(rows)], ValueError, ("-1",)),
          ([0, 2**62, 3, int(rows)], ValueError, (str(2**62),)),
          (np.array([0, 2**64 - 1, 3, int(rows)], np.uint64), ValueError, (str(2**64 - 1),)),
          ([0, 2**70, 3, int(rows)], (TypeError, ValueError), ("integers",)),
          ([0, int(rows)], ValueError, ("cu_seqlens_k", "integers")),
      )],
    ({"query": np.ones((1, 7, 4, 8))}, ValueError, ("query", "batch axes", "1")),
    ({"query": np.ones((7, 3, 8))}, ValueError, ("query", "heads", "3")),
    ({"value": np.ones((8, 2, 6))}, ValueError, ("value", "9")),
    ({"value": None}, TypeError, ("value",)),
    ({"layout": "bhld"}, ValueError, ("query", "heads", "9", "7")),
    ({"causal": True}, ValueError, ("causal", "1 queries against 3 keys", "bottom-right")),
    ({"window": (3, 0)}, ValueError, ("window", "1 queries against 3 keys")),
    ({"q_offset": 3}, ValueError, ("q_offset",)),
    ({"causal": True, "q_offset": [1, 2]}, ValueError, ("q_offset", "(3,)", "(2,)")),
    ({"sinks": np.ones((2, 4))}, ValueError, ("sinks", "(3, 4)", "(2, 4)")),
    ({"out": np.ones((7, 4, 5))}, ValueError, ("out", "(7, 4, 6)")),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "exception", "words"), REFUSED, ids=lambda x: repr(x)[:60] if isinstance(x, dict) else "")
def test_misuse(changed: dict[str, Any], exception: Any, words: tuple[str, ...]) -> None:
    good = {"query": np.ones((7, 4, 8)), "key": np.ones((9, 2, 8)), "value": np.ones((9, 2, 6)), "out": np.full((7, 4, 6), np.nan),
            "cu_seqlens_q": [0, 2, 3, 7], "cu_seqlens_k": [0, 2, 5, 9]}  # fmt: skip
    for function in (qkvc.attention_varlen, qkvc.attention_varlen_with_lse):
        message = assert_refused(lambda function=function: function(**{**good, **changed}), exception, *words)
        assert np.isnan(good["out"]).all(), "out was written"
        assert message.startswith("attention: "), message


@pytest.mark.parametrize("name", ["mask", "bias", "key_lengths"])
def test_options_of_rectangles_are_not_taken(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        qkvc.attention_varlen(np.ones((3, 8)), np.ones((3, 8)), np.ones((3, 8)), [0, 3], [0, 3], **{name: None})


def test_as_many_queries_as_keys_need_no_alignment(rng: np.random.Generator) -> None:
    starts = np.array([0, 3, 3, 60, 101])
    q, k, v = operands_in("float32", rng, (), (2, 2), (101, 101), (8, 8))
    got = qkvc.attention_varlen(q, k, v, starts, starts, causal=True, layout="bhld")
    for i in range(4):
        mine = slice(starts[i], starts[i + 1])
        assert_same_bits(got[:, mine], qkvc.attention(q[:, mine], k[:, mine], v[:, mine], causal=True))
