"""What is not attended cannot reach the output, what is attended cannot be lost: NaN, Inf and huge numbers in every place of both kinds."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import qkvc

from .options import DTYPES, HALVES
from .reference import problem
from .support import MEMORY, assert_same_bits, bits, normal, operands


def from_bits(pattern: int, dtype: str) -> Any:
    return np.array(pattern, f"u{np.dtype(dtype).itemsize}").view(dtype)[()]


def poisons(dtype: str) -> dict[str, Any]:
    kind = np.dtype(dtype).type
    top, size = float(ml_dtypes.finfo(dtype).max), 8 * np.dtype(dtype).itemsize
    infinite = int(kind(np.inf).view(f"u{size // 8}"))
    quiet = 1 << ml_dtypes.finfo(dtype).nmant - 1
    return {
        "quiet NaN": from_bits(infinite | quiet, dtype),
        "negative NaN with a payload": from_bits(1 << size - 1 | infinite | quiet | quiet // 2 + 1, dtype),
        "signalling NaN": from_bits(infinite | 1, dtype),
        "signalling NaN, all bits": from_bits(((1 << size) - 1) ^ quiet, dtype),
        "+inf": kind(np.inf),
        "-inf": kind(-np.inf),
        "huge": kind(0.3 * top),
        "huge, negative": kind(-0.9 * top),
    }


POISON = poisons("float32")
NANS = {name: value for name, value in POISON.items() if "NaN" in name}

# The first crosses no block of 128 keys and no tile, the others do, with remainders; 48 queries fill a tile of AVX-512 exactly.
SIZES = (((1, 1), (1, 6)), ((4, 2), (5, 33)), ((2, 1), (48, 128)), ((3, 3), (50, 150)), ((4, 1), (13, 300)))


def hidden(name: str, rng: np.random.Generator, heads: int, l_q: int, l_k: int) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """Options that hide some keys from all queries, and which ones."""
    never = rng.random(l_k) < 0.4
    never[rng.integers(l_k)] = True
    some = rng.random((heads, l_q, l_k)) < 0.7
    if name == "mask of one row":
        return {"mask": ~never}, never
    if name == "mask":
        return {"mask": some & ~never}, never
    if name == "bias":
        return {"bias": np.where(never, -np.inf, normal(rng, l_q, l_k)).astype(np.float32)}, never
    if name == "mask and bias":
        half = np.arange(l_k) % 2 == 0
        bias = np.where(never & half, -np.inf, normal(rng, heads, 1, l_k)).astype(np.float32)
        return {"mask": ~never | half, "bias": bias}, never
    if name == "key_lengths":
        length = l_k // 2
        return {"key_lengths": length}, np.arange(l_k) >= length
    if name == "causal":
        offset = l_k // 2 - l_q
        return {"causal": True, "q_offset": offset}, np.arange(l_k) > max(offset + l_q - 1, -1)
    if name == "causal beside lengths":
        return {"causal": "bottom-right", "key_lengths": l_k - 3}, np.arange(l_k) >= l_k - 3
    if name == "window":
        first, left, right = l_k // 2 - l_q, l_k // 5, 2
        return {"window": (left, right), "q_offset": first}, outside(first - left, first + l_q + right, l_k)
    if name == "window of one side":
        return {"window": (-1, 0), "q_offset": l_k // 3 - l_q}, outside(0, l_k // 3, l_k)
    if name == "window, causal and lengths":
        length, left = l_k - l_k // 4, l_k // 3
        return {"window": (left, -1), "causal": "bottom-right", "key_lengths": length}, outside(length - l_q - left, length, l_k)
    return {"mask": np.zeros((l_q, 1), bool)}, np.ones(l_k, bool)


def outside(first: int, end: int, l_k: int) -> NDArray[np.bool_]:
    j = np.arange(l_k)
    return (j < first) | (j >= end)


HIDING = ("mask of one row", "mask", "bias", "mask and bias", "key_lengths", "causal", "causal beside lengths", "window",
          "window of one side", "window, causal and lengths", "everything")  # fmt: skip


def beside(rng: np.random.Generator, heads: int, options: dict[str, Any]) -> dict[str, Any]:
    """The options that hide nothing, where they fit."""
    more = {"softcap": 2.0, "sinks": rng.standard_normal(heads), "head_scale": rng.standard_normal(heads)}
    if "causal" in options or "window" in options:
        more["alibi_slopes"] = rng.random(heads)
    return {**options, **more}


@pytest.mark.parametrize(("dtype", "more"), [*((dtype, False) for dtype in DTYPES), *((dtype, True) for dtype in DTYPES + HALVES)])
@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("hiding", HIDING)
def test_keys_nobody_attends_to(isa: str, rng: np.random.Generator, hiding: str, poison: str, dtype: str, more: bool) -> None:
    bad = poisons(dtype)[poison]
    for heads, lengths in SIZES:
        q, k, v = (x.astype(dtype) for x in operands(rng, (2,), heads, lengths, (9, 12)))
        options, never = hidden(hiding, rng, heads[0], *lengths)
        options = beside(rng, heads[0], options) if more else options
        assert not problem(q, k, v, **options).allowed[..., never].any()
        clean = qkvc.attention_with_lse(q, k, v, **options)
        assert np.isfinite(clean.out).all()
        k_bad, v_bad = k.copy(), v.copy()
        k_bad[..., never, :] = v_bad[..., never, :] = bad
        k_one, v_one = k.copy(), v.copy()
        k_one[..., never, 3] = v_one[..., never, 7] = bad
        for what, key, value in (("K", k_bad, v), ("V", k, v_bad), ("K and V", k_bad, v_bad), ("one channel", k_one, v_one)):
            got = qkvc.attention_with_lse(q, key, value, **options)
            assert_same_bits(got.out, clean.out, f"{what} {heads} {lengths}")
            assert_same_bits(got.lse, clean.lse, f"lse, {what} {heads} {lengths}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", POISON)
def test_biases_that_are_masked_out(isa: str, rng: np.random.Generator, poison: str, dtype: str) -> None:
    for heads, lengths in SIZES:
        q, k, v = (x.astype(dtype) for x in operands(rng, (2,), heads, lengths, (9, 12)))
        bias = normal(rng, heads[0], *lengths).astype(dtype)
        for name in HIDING:
            if "bias" in name:
                continue
            options, _ = hidden(name, rng, heads[0], *lengths)
            allowed = problem(q, k, v, **options).allowed[0]
            clean = qkvc.attention_with_lse(q, k, v, bias=bias, **options)
            got = qkvc.attention_with_lse(q, k, v, bias=np.where(allowed, bias, poisons(dtype)[poison]), **options)
            assert_same_bits(got.out, clean.out, f"{name} {lengths}")
            assert_same_bits(got.lse, clean.lse, f"lse, {name} {lengths}")


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("where", ["key", "value"])
def test_a_key_that_some_rows_attend_to(isa: str, rng: np.random.Generator, where: str, poison: str) -> None:
    """Rows that do not see the key keep their bits, though they share a tile with rows that do."""
    for heads, lengths in SIZES:
        q, k, v = operands(rng, (), heads, lengths, (9, 12))
        group = heads[0] // heads[1]
        window = {"causal": "bottom-right", "window": (lengths[1] // 4, -1)}
        for options in ({"mask": rng.random((heads[0], *lengths)) < 0.5}, {"causal": "bottom-right"}, window):
            clean = qkvc.attention(q, k, v, **options)
            allowed = problem(q, k, v, **options).allowed
            for j in {0, lengths[1] // 2, lengths[1] - 1, *rng.integers(0, lengths[1], 3)}:
                head, channel = rng.integers(heads[1]), rng.integers(9)
                bad = {"key": k.copy(), "value": v.copy()}
                bad[where][head, j, channel] = POISON[poison]
                got = qkvc.attention(q, bad["key"], bad["value"], **options)
                touched = allowed[..., j] & (np.arange(heads[0]) // group == head)[:, np.newaxis]
                assert_same_bits(got[~touched], clean[~touched], f"{options.keys()} {lengths} key {j}")
                if "NaN" in poison:
                    hit = got[touched] if where == "key" else got[touched][:, channel]
                    assert np.isnan(hit).all(), f"{options.keys()} {lengths} key {j}: a NaN was lost"
                if where == "value":  # only its own channel
                    others = np.arange(12) != channel
                    assert_same_bits(got[..., others], clean[..., others], f"{options.keys()} {lengths} key {j}")


@pytest.mark.parametrize("poison", NANS)
def test_a_nan_that_is_attended_comes_out(isa: str, rng: np.random.Generator, poison: str) -> None:
    """From every key position, so that no lane, remainder or merge turns it into a number."""
    for heads, lengths in (((1, 1), (3, 140)), ((2, 1), (17, 37)), ((1, 1), (1, 300))):
        q, k, v = operands(rng, (), heads, lengths, (5, 6))
        for j in range(lengths[1]):
            k_bad, v_bad = k.copy(), v.copy()
            k_bad[0, j, j % 5] = v_bad[0, j, j % 6] = NANS[poison]
            got = qkvc.attention_with_lse(q, k_bad, v)
            assert np.isnan(got.out).all(), f"key {j}"
            assert np.isnan(got.lse).all(), f"key {j}"
            got = qkvc.attention_with_lse(q, k, v_bad)
            nan = np.isnan(got.out)
            assert nan[..., j % 6].all(), f"value {j}"
            assert nan.sum() == nan[..., j % 6].size, f"value {j}"
            assert np.isfinite(got.lse).all()
        for i in range(lengths[0]):
            q_bad, bias = q.copy(), np.zeros(lengths, np.float32)
            q_bad[0, i, i % 5] = bias[i, i] = NANS[poison]
            nan = np.isnan(qkvc.attention(q_bad, k, v))
            assert nan[0, i].all(), f"query {i}"
            assert nan.sum() == 6, f"query {i}: other rows are touched"
            nan = np.isnan(qkvc.attention(q, k, v, bias=bias))
            assert nan[:, i].all(), f"bias {i}"
            assert nan.sum() == 6 * heads[0], f"bias {i}: other rows are touched"


def test_infinities_that_are_attended_come_out(isa: str, rng: np.random.Generator) -> None:
    """+inf in V is +inf in its channel where its weight is not 0; with -inf beside it NaN; NaN wins over both."""
    q, k, v = operands(rng, (), (2, 1), (20, 150), (4, 4))
    v[0, 10, 1] = np.inf
    v[0, 140, 2] = -np.inf
    v[0, [3, 130], 3] = np.inf, -np.inf
    got = qkvc.attention(q, k, v)
    assert np.isfinite(got[..., 0]).all()
    assert (got[..., 1] == np.inf).all()
    assert (got[..., 2] == -np.inf).all()
    assert np.isnan(got[..., 3]).all()


def test_batch_neighbours_and_heads_are_apart(isa: str, rng: np.random.Generator) -> None:
    q, k, v = operands(rng, (3,), (4, 2), (30, 70), (8, 8))
    clean = qkvc.attention(q, k, v)
    for x in (q, k, v):
        x[1] = np.nan
        x[2, x.shape[1] // 2 :] = np.inf  # the second key head and its query heads
    got = qkvc.attention(q, k, v)
    assert_same_bits(got[0], clean[0])
    assert_same_bits(got[2, :2], clean[2, :2])
    assert np.isnan(got[1]).all()


def test_overflow_of_finite_numbers_raises_nothing(isa: str, rng: np.random.Generator) -> None:
    q, k, v = operands(rng, (), (1, 1), (20, 40), (8, 8))
    with np.errstate(all="raise"):
        assert np.isnan(qkvc.attention(q * np.float32(1e30), k * np.float32(1e30), v)).all()
        assert np.isfinite(qkvc.attention(q * np.float32(1e-30), k * np.float32(1e-30), v)).all()


@pytest.mark.parametrize("memory", ["gaps on every axis", "padded rows", "rows 4096 bytes apart", "reversed", "rows outermost"])
def test_gaps_of_out_are_untouched(isa: str, rng: np.random.Generator, memory: str) -> None:
    """Every byte between the elements of a strided `out` stays as it was."""
    for lengths, d_v in (((5, 9), 3), ((50, 130), 17), ((16, 16), 64)):
        q, k, v = operands(rng, (2,), (2, 1), lengths, (8, d_v))
        view = MEMORY[memory](np.zeros((2, 2, lengths[0], d_v), np.float32))
        whole = view
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        whole = whole.view(np.uint32)
        whole[...] = 0x7FA5A5A5
        qkvc.attention(q, k, v, out=view)
        expected = np.ascontiguousarray(view)
        assert_same_bits(expected, qkvc.attention(q, k, v))
        view.view(np.uint32)[...] = 0x7FA5A5A5
        np.testing.assert_array_equal(whole, 0x7FA5A5A5)
        assert (bits(expected) != 0x7FA5A5A5).all(), "every element was written"
