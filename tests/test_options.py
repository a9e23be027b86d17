"""Every option alone, by pairs and at once, on every kernel set, in both dtypes, each element within its bound; and what holds exactly."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import qkvc

from .options import DTYPES, HALVES, OPTIONS, SHAPES, Arrays, operands_in, option
from .reference import PAIRS, certificate, exact_for, lse_type, reference, result_type, shortening, unit_of
from .support import MEMORY, assert_attention, assert_same_bits, in_pairs, operands, share_of_bound


def assert_within_bounds(arrays: Arrays, options: dict[str, Any], what: object) -> float:
    """Both results against the oracle and the certificate; the largest error in units of its bound."""
    got = qkvc.attention_with_lse(*arrays, **options)
    exact, dtype = exact_for(*arrays), result_type(*arrays)
    expected = reference(*arrays, dtype=exact, **options)
    bounds = certificate(*arrays, unit=unit_of(dtype), weights_lose=in_pairs(*arrays) * PAIRS, dtype=exact, **options)
    return max(
        share_of_bound(f"out, {what}", got.out, expected.out, bounds.out + shortening(dtype, expected.out), dtype),
        share_of_bound(f"lse, {what}", got.lse, expected.lse, bounds.lse, lse_type(*arrays)),
    )


# --- values ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES + HALVES)
@pytest.mark.parametrize("name", OPTIONS)
def test_values(isa: str, rng: np.random.Generator, name: str, dtype: str, figures: list[str]) -> None:
    worst = 0.0
    for shape in SHAPES:
        batch, heads, lengths, _ = shape
        for _ in range(2):
            arrays = operands_in(dtype, rng, *shape)
            worst = max(worst, assert_within_bounds(arrays, option(rng, name, batch, heads[0], lengths), f"{name} {shape}"))
    if name == "everything":
        figures.append(f"error / certificate, {isa}, {dtype}, all options at once: largest {worst:.3f}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_pairs(isa: str, rng: np.random.Generator, dtype: str) -> None:
    for one, other in itertools.combinations(OPTIONS[1:-1], 2):
        for shape in SHAPES[2:5]:
            batch, heads, lengths, _ = shape
            both = {**option(rng, one, batch, heads[0], lengths), **option(rng, other, batch, heads[0], lengths)}
            if "causal" in both:
                both.pop("q_offset", None)
            assert_within_bounds(operands_in(dtype, rng, *shape), both, f"{one} and {other}, {shape}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_windows(isa: str, rng: np.random.Generator, dtype: str) -> None:
    """Both edges against every edge of tiles and blocks, at every place of the queries among the keys."""
    for l_q, l_k in ((1, 300), (7, 40), (50, 33), (70, 260), (49, 400)):
        arrays = operands_in(dtype, rng, (3,), (2, 1), (l_q, l_k), (6, 6))
        for left, right in itertools.product((-1, 0, 1, 15, 16, 17, 127, 128, 129, 10**6), (-1, 0, 1, 16, 128, 10**6)):
            offset = int(rng.choice((-l_q, -1, 0, 1, 16, l_k - l_q, l_k - 1, l_k + 200)))
            options: dict[str, Any] = {"window": (left, right)}
            if (left, right) != (-1, -1):
                options["q_offset"] = offset if rng.random() < 0.5 else rng.integers(-l_q, l_k, 3)
            if rng.random() < 0.3:
                options["key_lengths"] = rng.integers(0, l_k + 1, 3)
            assert_attention(*arrays, **options, what=f"{(l_q, l_k)} {options}")


def test_per_head_numbers_in_any_form(isa: str, rng: np.random.Generator) -> None:
    """Scalars, lists, (H,), (batch, H) and what broadcasts; any memory; floats and integers of any width, none of which promotes."""
    q, k, v = operands(rng, (3,), (4, 2), (5, 33), (8, 6))
    forms: list[Any] = [2, 0.5, [1, 2, 3, 4], np.float16(0.5), np.arange(4), np.arange(12.0).reshape(3, 4) / 8, np.ones((3, 1)),
                        np.ones((1, 4)), (np.arange(24.0) / 8)[::2].reshape(3, 4), np.arange(8, dtype=">f8")[::-2]]  # fmt: skip
    for form in forms:
        for name in ("alibi_slopes", "sinks", "head_scale"):
            options: dict[str, Any] = {name: form, **({"q_offset": 28} if name == "alibi_slopes" else {})}
            assert_attention(q, k, v, **options, what=f"{name} {form!r}")


# --- laws that hold to the bit ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_options_that_say_nothing_change_no_bit(isa: str, rng: np.random.Generator, dtype: str) -> None:
    for shape in SHAPES:
        arrays = operands_in(dtype, rng, *shape)
        expected = qkvc.attention_with_lse(*arrays)
        for nothing in (
            {"window": (-1, -1)},
            {"window": (10**6, 10**6), "q_offset": 0},
            {"sinks": -np.inf},
            {"head_scale": 1.0},
            {"alibi_slopes": 0.0, "q_offset": 3},
            {"window": None, "softcap": None, "alibi_slopes": None, "sinks": None, "head_scale": None},
        ):
            got = qkvc.attention_with_lse(*arrays, **nothing)  # type: ignore[arg-type]
            assert_same_bits(got.out, expected.out, f"{nothing} {shape}")
            assert_same_bits(got.lse, expected.lse, f"{nothing} {shape}")


@pytest.mark.parametrize("dtype", DTYPES + HALVES)
def test_a_window_is_its_mask(isa: str, rng: np.random.Generator, dtype: str) -> None:
    """Skipping keys must not differ from masking them, with every other option beside it."""
    for l_q, l_k in ((40, 40), (50, 180), (130, 600), (5, 3), (1, 700)):
        arrays = operands_in(dtype, rng, (), (4, 2), (l_q, l_k), (16, 12))
        away = np.arange(l_k) - (np.arange(l_q)[:, np.newaxis] + l_k - l_q)
        beside = {"softcap": 2.0, "sinks": rng.standard_normal(4), "head_scale": rng.standard_normal(4), "alibi_slopes": rng.random(4)}
        for left, right in ((0, 0), (5, 2), (-1, 3), (130, -1), (128, 0), (l_k, l_q)):
            inside = (away >= -left if left >= 0 else True) & (away <= right if right >= 0 else True) & np.ones((l_q, l_k), bool)
            expected = qkvc.attention_with_lse(*arrays, mask=inside, q_offset=l_k - l_q, **beside)
            got = qkvc.attention_with_lse(*arrays, window=(left, right), q_offset=l_k - l_q, **beside)
            assert_same_bits(got.out, expected.out, f"{(left, right)} {(l_q, l_k)}")
            assert_same_bits(got.lse, expected.lse, f"{(left, right)} {(l_q, l_k)}")


def test_windows_of_equal_reach_give_every_query_its_own_bits(isa: str, rng: np.random.Generator) -> None:
    """A query's bits depend on what it sees, not on which queries share its tile."""
    q, k, v = operands(rng, (), (2, 1), (150, 400), (16, 12))
    options = {"softcap": 2.0, "sinks": [0.5, -0.5], "alibi_slopes": [0.5, 0.25]}
    whole = qkvc.attention_with_lse(q, k, v, window=(100, 20), q_offset=200, **options)
    for i in (0, 1, 15, 16, 47, 48, 70, 149):
        alone = qkvc.attention_with_lse(q[:, i : i + 1], k, v, window=(100, 20), q_offset=200 + i, **options)
        assert_same_bits(alone.out, whole.out[:, i : i + 1], f"query {i}")
        assert_same_bits(alone.lse, whole.lse[:, i : i + 1], f"query {i}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_power_of_two_as_head_scale_is_exact(isa: str, rng: np.random.Generator, dtype: str) -> None:
    q, k, v = operands_in(dtype, rng, (2,), (4, 2), (33, 150), (16, 12))
    plain = qkvc.attention_with_lse(q, k, v)
    got = qkvc.attention_with_lse(q, k, v, head_scale=[2, -0.5, 0, 1])
    factor = np.array([2, -0.5, 0, 1], dtype)[:, np.newaxis, np.newaxis]
    np.testing.assert_array_equal(got.out, plain.out * factor)
    assert_same_bits(got.lse, plain.lse, "head_scale is not in lse")


def test_scores_beyond_the_cap_are_the_cap(isa: str) -> None:
    """Far out the tangent is 1 in either precision, so the score is the cap itself: no overflow, no NaN, also from +-inf."""
    for dtype in DTYPES:
        key = np.array([[1e3], [-1e3], [1e30], [np.inf], [-np.inf]], dtype)
        got = qkvc.attention_with_lse(np.ones((1, 1), dtype), key, np.eye(5, dtype=dtype), softcap=4.0)
        weights = np.exp([4.0, -4, 4, 4, -4])
        tolerance = 1e-6 if dtype == "float32" else 2e-15
        np.testing.assert_allclose(got.out[0], weights / weights.sum(), rtol=tolerance)
        np.testing.assert_allclose(got.lse, np.log(weights.sum(keepdims=True)), rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_scores_keep_their_digits_under_the_cap(isa: str, dtype: str) -> None:
    """tanh x is x near 0: a softcap by a formula that cancels there would lose the score."""
    scores = np.array([[1e-3], [1e-5], [-1e-6], [0]], dtype)
    bias = -50 * np.tanh(scores.T.astype(np.float64) / 50)
    got = qkvc.attention_with_lse(np.full((1, 1), 1, dtype), scores, np.eye(4, dtype=dtype), softcap=50.0, bias=bias)
    np.testing.assert_allclose(got.out[0], 0.25, rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sinks_far_above_and_below_the_scores(isa: str, rng: np.random.Generator, dtype: str) -> None:
    q, k, v = operands_in(dtype, rng, (), (2, 1), (20, 200), (8, 8))
    for sink in (-1e30, -1e4, -200.0, 200.0, 1e4, 1e30):
        assert_attention(q, k, v, sinks=sink, what=f"sink {sink}")
        assert_attention(q, k, v, sinks=[sink, 0], key_lengths=0, what=f"sink {sink}, no keys")


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_numbers_per_head(isa: str, rng: np.random.Generator, dtype: str) -> None:
    """1e30 is the limit: times log2(e) and a distance it is still finite, and at the query's own key nothing times it is nothing."""
    q, k, v = operands_in(dtype, rng, (), (2, 1), (20, 200), (8, 8))
    for size in (1e30, -1e30):
        for name in ("alibi_slopes", "head_scale", "sinks"):
            for mask in (True, rng.random((20, 200)) < 0.5):
                options: dict[str, Any] = {name: size, "mask": mask, **({"q_offset": 50} if name == "alibi_slopes" else {})}
                assert_within_bounds((q, k, v), options, f"{name} {size}")


def test_the_sink_of_a_row_without_keys(isa: str, rng: np.random.Generator) -> None:
    """Nothing is attended, so nothing comes out; the sum of the row is its sink."""
    q, k, v = operands(rng, (), (3, 3), (4, 5), (8, 6))
    got = qkvc.attention_with_lse(q, k, v, mask=np.arange(4)[:, np.newaxis] != 2, sinks=[1.5, -2.25, -np.inf], head_scale=[1, -3, 2])
    np.testing.assert_array_equal(got.out[:, 2], 0)
    np.testing.assert_allclose(got.lse[:, 2], [1.5, -2.25, -np.inf], rtol=2e-7)


# --- dtypes ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("dtypes", itertools.product(("float32", *HALVES), repeat=3), ids="-".join)
def test_storage_is_not_arithmetic(rng: np.random.Generator, dtypes: tuple[str, ...], memory: str) -> None:
    """Query, key and value are each stored as they like, in any memory: computed is what their float32 copies say, and then rounded."""
    arrays = [x.astype(d) for x, d in zip(operands(rng, (2,), (4, 2), (33, 140), (17, 20)), dtypes, strict=True)]
    dtype = result_type(*arrays)
    without_pairs = next(name for name in qkvc.kernels() if not name.endswith("bf16"))
    with qkvc.use_kernels(without_pairs):
        expected = qkvc.attention_with_lse(*(x.astype(np.float32) for x in arrays), causal="bottom-right")
        got = qkvc.attention_with_lse(*map(MEMORY[memory], arrays), causal="bottom-right")
    assert_same_bits(got.out, expected.out.astype(dtype), memory)
    assert_same_bits(got.lse, expected.lse, memory)
    if memory not in ("unaligned", "other byte order", "read-only"):
        out = MEMORY[memory](np.full(got.out.shape, np.nan, dtype))
        with qkvc.use_kernels(without_pairs):
            assert_same_bits(qkvc.attention(*arrays, causal="bottom-right", out=out), got.out, f"out, {memory}")


@pytest.mark.parametrize(
    "dtypes", [("float32",) * 3, ("float16",) * 3, ("bfloat16",) * 3, ("float32", "float16", "bfloat16")], ids="-".join
)
def test_bf16_on_request(isa: str, rng: np.random.Generator, dtypes: tuple[str, ...]) -> None:
    """precision="bf16" is the call on arrays that were rounded first, ties and NaN too; the result keeps its dtype."""
    arrays = [x.astype(d) for x, d in zip(operands(rng, (2,), (4, 2), (33, 140), (17, 20)), dtypes, strict=True)]
    ties = 1 + np.arange(17) / 256
    arrays[0][0, 0, 0] = ties
    arrays[0][1, 0, 3, 2] = np.nan
    rounded = [x.astype("bfloat16") for x in arrays]
    for place in MEMORY.values():
        got = qkvc.attention_with_lse(*map(place, arrays), causal="bottom-right", precision="bf16")
        expected = qkvc.attention_with_lse(*rounded, causal="bottom-right")
        assert got.out.dtype == result_type(*arrays)
        np.testing.assert_array_equal(np.isnan(got.lse), np.isnan(expected.lse))
        np.testing.assert_array_equal(got.lse, expected.lse)
        if got.out.dtype == np.float32:
            np.testing.assert_array_equal(got.out.astype("bfloat16").astype(np.float32), expected.out.astype(np.float32))
    assert np.isnan(got.out[1, 0, 3]).all()
    assert np.isnan(got.out).sum() == 20


@pytest.mark.parametrize("dtype", HALVES)
def test_every_number_of_16_bits_passes(isa: str, dtype: str) -> None:
    """A query with one key returns its value: each of the 65536 comes out as it went in, -0 as +0, NaN as a NaN.  Products of pairs take
    denormals for 0."""
    value = np.arange(1 << 16, dtype=np.uint16).view(dtype).reshape(64, 1, 1024)
    one = np.ones((64, 1, 1), dtype)
    got = qkvc.attention(one, one, value)
    nan = np.isnan(value)
    if in_pairs(value):
        value = np.where(np.abs(value) < np.float32(2.0**-126), 0, value).astype(dtype)
    np.testing.assert_array_equal(got[~nan], value[~nan])
    assert np.isnan(got[nan]).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_results_are_rounded_to_nearest_even(isa: str, rng: np.random.Generator, dtype: str) -> None:
    """Of every kind of float32: ties, denormals of the 16 bits, what overflows, NaN whatever its payload.  head_scale is all there is to
    compute, so NumPy's and ml_dtypes' conversion says what must come out."""
    exponents = rng.integers(1, 255, 4096, dtype=np.uint32)
    numbers = (exponents << 23 | rng.integers(0, 1 << 23, 4096, dtype=np.uint32)).view(np.float32)
    ties = (numbers.view(np.uint32) & np.uint32(0xFFFF8000 if dtype == "bfloat16" else 0xFFFFF000)).view(np.float32)
    small = rng.uniform(0, 2.0**-13, 2048).astype(np.float32)
    for x in (numbers, ties, small, (np.arange(2048) * np.float32(2.0**-25)).astype(np.float32)):
        factors = np.where(np.abs(x) < 1e30, x, np.float32(1))  # the largest head_scale
        one = np.ones((factors.size, 1, 1), dtype)
        with np.errstate(over="ignore"):
            expected = factors.astype(dtype)
        assert_same_bits(qkvc.attention(one, one, one, head_scale=factors).reshape(-1), expected)


def test_float16_is_the_rounded_exact_result(isa: str, rng: np.random.Generator, figures: list[str]) -> None:
    """Within 1 ULP of the correctly rounded result on 99 % of elements and more, at every length."""
    inside = total = 0
    for lengths in ((33, 33), (50, 300), (20, 2000)):
        arrays = [x.astype(np.float16) for x in operands(rng, (2,), (2, 1), lengths, (64, 64))]
        expected = reference(*arrays).out.astype(np.float16)
        apart = np.abs(qkvc.attention(*arrays).view(np.int16).astype(int) - expected.view(np.int16))
        inside, total = inside + int((apart <= 1).sum()), total + apart.size
    figures.append(f"float16 within 1 ULP of the correctly rounded result, {isa}: {inside / total:.4%}")
    assert inside >= 0.99 * total


def test_promotion(isa: str, rng: np.random.Generator) -> None:
    """NumPy's rule over query, key and value; integers and bools are float64; no option promotes; lse has the dtype of out."""
    kinds = ("float32", "float64", "int8", "uint16", "int64", "bool", ">f4", ">f8")
    for dtypes in itertools.product(kinds, repeat=3):
        arrays = [rng.integers(0, 2, shape).astype(dtype) for shape, dtype in zip(((4, 3, 6), (2, 5, 6), (2, 5, 4)), dtypes, strict=True)]
        promoted = np.float32 if {np.dtype(x) for x in dtypes} <= {np.dtype("f4"), np.dtype(">f4")} else np.float64
        got = qkvc.attention_with_lse(*arrays, bias=np.zeros((3, 5), np.float64), sinks=np.zeros(4, np.float64))
        assert got.out.dtype == got.lse.dtype == promoted, dtypes
        assert got.out.dtype.isnative
        assert_attention(*arrays, what=str(dtypes))


def test_float64_is_computed_in_float64(isa: str, rng: np.random.Generator) -> None:
    """Digits that float32 has not, in every operand and number: each must move the result."""
    q, k, v = operands(rng, (), (2, 1), (9, 40), (8, 8))
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    options: dict[str, Any] = {"bias": rng.standard_normal((9, 40)), "sinks": np.array([0.1, 0.2]), "alibi_slopes": np.array([0.3, 0.4]),
                               "head_scale": np.array([0.7, 0.9]), "softcap": 1.7, "scale": 0.37, "q_offset": 31}  # fmt: skip
    before = qkvc.attention_with_lse(q, k, v, **options)
    step = 1 + 2.0**-40
    for name in ("query", "key", "value", "bias", "sinks", "alibi_slopes", "head_scale", "softcap", "scale"):
        changed = {"query": q, "key": k, "value": v, **options}
        changed[name] = changed[name] * step
        got = qkvc.attention_with_lse(**changed)
        moved = np.abs(got.out - before.out).max()
        assert 1e-15 < moved < 1e-10, f"{name}: {moved}"


@pytest.mark.parametrize("memory", MEMORY)
def test_float64_in_any_memory(isa: str, rng: np.random.Generator, memory: str) -> None:
    place = MEMORY[memory]
    arrays = operands_in("float64", rng, (2,), (4, 2), (33, 140), (17, 20))
    bias = rng.standard_normal((2, 4, 33, 140))
    expected = qkvc.attention(*arrays, bias=bias)
    assert_same_bits(qkvc.attention(*map(place, arrays), bias=place(bias)), expected, memory)
