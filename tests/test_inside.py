"""attention_scores, attention_weights, attention_stats and merge_attention: values, selections, exact laws, bits and misuse."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import qkvc

from .options import DTYPES, HALVES, OPTIONS, SHAPES, operands_in, option
from .pictures import bool_mask, uniform
from .reference import (
    Bounds,
    certificate,
    exact_for,
    lse_type,
    problem,
    reference,
    reference_merge,
    reference_scores,
    reference_stats,
    stats_certificate,
    unit_of,
)
from .support import MEMORY, assert_refused, assert_same_bits, normal, operands, share_of_bound

STAGES = ("raw", "softcap", "bias", "softmax")
INSIDE = tuple(name for name in OPTIONS if name != "head_scale")  # which is of the output
INF, NAN = np.inf, np.nan


def looked_into(rng: np.random.Generator, name: str, shape: Any, dtype: str) -> tuple[NDArray[Any], NDArray[Any], dict[str, Any]]:
    batch, heads, lengths, _ = shape
    query, key, _ = operands_in(dtype, rng, *shape)
    options = option(rng, name, batch, heads[0], lengths)
    options.pop("head_scale", None)
    return query, key, options


def exactly(query: NDArray[Any], key: NDArray[Any], options: dict[str, Any]) -> dict[str, Any]:
    return {**options, "dtype": exact_for(query, key)}


def bound_of(stage: str, bounds: Bounds, expected: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """Scores are turned into natural units once more."""
    return bounds.weight if stage == "softmax" else bounds.score + 4 * unit_of(dtype) * np.where(np.isinf(expected), 0, np.abs(expected))


# --- scores and weights ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES + HALVES)
@pytest.mark.parametrize("name", INSIDE)
def test_scores(isa: str, rng: np.random.Generator, name: str, dtype: str) -> None:
    for shape in SHAPES:
        query, key, options = looked_into(rng, name, shape, dtype)
        exact = exactly(query, key, options)
        bounds = certificate(query, key, unit=unit_of(dtype), **exact)
        for stage in STAGES:
            got = qkvc.attention_scores(query, key, stage=stage, **options)
            expected = reference_scores(query, key, stage, **exact)
            share_of_bound(f"{stage} {name} {shape}", got, expected, bound_of(stage, bounds, expected, dtype), lse_type(query, key))
        assert_same_bits(qkvc.attention_weights(query, key, **options), got, f"weights are the last stage, {name} {shape}")


def test_stages_differ_where_they_should(isa: str) -> None:
    """One number through every stage: scale, cap, ALiBi and bias in this order, then the masks."""
    query, key = np.array([[2.0], [1.0]]), np.array([[1.0], [3.0]])
    options: dict[str, Any] = {"scale": 0.5, "softcap": 2.0, "alibi_slopes": 0.25, "bias": np.array([[0.5, 0], [0, -INF]])}
    raw = np.array([[1, 3], [0.5, 1.5]])
    capped = 2 * np.tanh(raw / 2)
    final = np.array([[capped[0, 0] + 0.5, capped[0, 1] - 0.25], [capped[1, 0] - 0.25, -INF]])
    weights = np.array([np.exp(final[0]) / np.exp(final[0]).sum(), [1, 0]])
    for stage, expected in zip(STAGES, (raw, capped, final, weights), strict=True):
        np.testing.assert_allclose(qkvc.attention_scores(query, key, stage=stage, **options), expected, rtol=1e-15, err_msg=stage)


def test_early_stages_are_of_every_pair(isa: str, rng: np.random.Generator) -> None:
    """Masks, lengths, windows and biases of -inf are nothing before the stage that applies them."""
    query, key, _ = operands(rng, (2,), (4, 2), (9, 150), (8, 8))
    hiding: dict[str, Any] = {"mask": np.zeros((9, 150), bool), "bias": np.full((1, 150), -INF, np.float32), "key_lengths": [0, 7]}
    hiding |= {"causal": "bottom-right", "window": (3, 3)}
    for stage in STAGES[:2]:
        plain = qkvc.attention_scores(query, key, stage=stage, softcap=2.0)
        assert_same_bits(qkvc.attention_scores(query, key, stage=stage, softcap=2.0, **hiding), plain, stage)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_sum_to_one(isa: str, rng: np.random.Generator, dtype: str) -> None:
    """... less the sink's share, and to 0 where nothing is allowed."""
    query, key, value = operands_in(dtype, rng, (2,), (4, 2), (37, 300), (16, 16))
    mask = np.arange(37)[:, np.newaxis] != 5
    tolerance = 400 * unit_of(dtype)
    weights = qkvc.attention_weights(query, key, mask=mask)
    np.testing.assert_allclose(weights.sum(-1), np.broadcast_to(mask[:, 0], (2, 4, 37)), atol=tolerance)
    assert (weights[:, :, 5] == 0).all()
    sinks = rng.standard_normal(4)
    weights = qkvc.attention_weights(query, key, sinks=sinks)
    lse = qkvc.attention_with_lse(query, key, value, sinks=sinks).lse
    np.testing.assert_allclose(weights.sum(-1), 1 - np.exp(sinks[:, np.newaxis] - lse), atol=tolerance)


def test_selections(isa: str, rng: np.random.Generator) -> None:
    """Heads and queries in any order, repeated, negative, none at all: the bits of the whole matrix's rows."""
    for batch, heads, lengths in (((2,), (6, 3), (70, 150)), ((), (4, 1), (1, 300)), ((2, 3), (2, 2), (17, 9))):
        query, key, _ = operands(rng, batch, heads, lengths, (12, 4))
        for name in ("plain", "everything"):
            options = option(rng, name, batch, heads[0], lengths)
            options.pop("head_scale", None)
            whole = qkvc.attention_weights(query, key, **options)
            h, l_q = heads[0], lengths[0]
            for chosen_heads, chosen_queries in (
                ([0], [l_q - 1]),
                (None, [-1, 0, l_q // 2]),
                ([h - 1, 0, -1], None),
                (range(h)[::-1], np.arange(l_q)[::-2]),
                ([1, 1], (0, 0, -1)),
                ([], None),
                (None, []),
                (np.array([-h, 1], np.int8), [0]),
            ):
                got = qkvc.attention_weights(query, key, heads=chosen_heads, queries=chosen_queries, **options)
                expected = whole if chosen_heads is None else whole[..., np.asarray(chosen_heads, int), :, :]
                expected = expected if chosen_queries is None else expected[..., np.asarray(chosen_queries, int), :]
                assert_same_bits(got, expected, f"{name} heads {chosen_heads} queries {chosen_queries}")


def test_selections_keep_positions(isa: str) -> None:
    """A chosen query stands where it stood."""
    query, key, _ = uniform(5, 5)
    got = qkvc.attention_weights(query, key, causal=True, queries=[4, 1])
    np.testing.assert_array_equal(got, np.array([[[0.2] * 5, [0.5, 0.5, 0, 0, 0]]], np.float32))
    got = qkvc.attention_weights(query, key, window=(1, 0), queries=[-2])
    np.testing.assert_array_equal(got, [[[0, 0, 0.5, 0.5, 0]]])


# --- statistics ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", INSIDE)
def test_stats(isa: str, rng: np.random.Generator, name: str, dtype: str) -> None:
    for shape in SHAPES:
        query, key, options = looked_into(rng, name, shape, dtype)
        exact = exactly(query, key, options)
        expected, bounds = reference_stats(query, key, **exact), stats_certificate(query, key, unit=unit_of(dtype), **exact)
        twice = qkvc.attention_stats(query, key, **options)
        once = qkvc.attention_stats(query, key, lse=twice.lse, **options)
        for got, sweeps in ((twice, "two sweeps"), (once, "one sweep")):
            for field, truth, bound in zip(expected._fields, expected, bounds, strict=True):
                share_of_bound(f"{field} {name} {shape}, {sweeps}", getattr(got, field), truth, bound, np.dtype(dtype))
            assert got.top_keys is None
            assert got.top_weights is None


#  question                              (L_q, L_k), options, allowed                                                       distance
PICTURES: list[tuple[str, tuple[int, int], dict[str, Any], str, list[float]]] = [
    ("everything is attended", (2, 4), {}, "1111 1111", [1.5, 1.0]),
    ("causal", (3, 3), {"causal": True}, "100 110 111", [0, 0.5, 1]),
    ("bottom-right", (2, 4), {"causal": "bottom-right"}, "1110 1111", [1, 1.5]),
    ("positions without an alignment count from the top", (1, 4), {"mask": bool_mask("0011")}, "0011", [2.5]),
    ("an offset moves them", (1, 4), {"window": (1, 0), "q_offset": 3}, "0011", [0.5]),
    ("a window on both sides", (3, 3), {"window": (1, 1)}, "110 111 011", [0.5, 2 / 3, 0.5]),
    ("a row without keys", (2, 3), {"mask": bool_mask("000 011")}, "000 011", [0, 0.5]),
    ("no keys at all", (2, 3), {"key_lengths": 0}, "000 000", [0, 0]),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("lengths", "options", "allowed", "distance"), [pytest.param(*row[1:], id=row[0]) for row in PICTURES])
def test_stats_of_pictures(
    isa: str, dtype: str, lengths: tuple[int, int], options: dict[str, Any], allowed: str, distance: list[float]
) -> None:
    """All scores are 0: n keys have an entropy of ln n and each of them 1/n of the mass."""
    query, key, _ = (x.astype(dtype) for x in uniform(*lengths))
    seen = bool_mask(allowed)
    n = seen.sum(-1)
    got = qkvc.attention_stats(query, key, top_k=2, **options)
    tolerance = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(got.entropy[0], np.log(np.maximum(n, 1)), atol=tolerance)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(got.lse[0], np.log(n), atol=tolerance)
    np.testing.assert_array_equal(got.max_score[0], np.where(n > 0, 0, -INF))
    np.testing.assert_allclose(got.distance[0], distance, atol=tolerance)
    np.testing.assert_allclose(got.key_mass[0], (seen / np.maximum(n, 1)[:, np.newaxis]).sum(0), atol=tolerance)
    first = [[*np.flatnonzero(row)[:2], -1, -1][:2] for row in seen]  # ties go to the lower index
    np.testing.assert_array_equal(got.top_keys[0], first)
    np.testing.assert_allclose(got.top_weights[0], (np.array(first) >= 0) / np.maximum(n, 1)[:, np.newaxis], atol=tolerance)


def test_stats_of_a_sharp_row(isa: str) -> None:
    """One key far above the rest: no entropy, all of the mass, its own distance and score."""
    query, key = np.ones((1, 1, 1), np.float32), np.zeros((1, 300, 1), np.float32)
    key[0, 200] = 90
    got = qkvc.attention_stats(query, key, window=(10**6, 10**6), q_offset=50, top_k=1)
    np.testing.assert_allclose([got.entropy, got.distance, got.max_score, got.lse], [[[0]], [[150]], [[90]], [[90]]], atol=2e-5)
    assert got.top_keys.ravel().tolist() == [200]
    np.testing.assert_array_equal(got.key_mass[0] > 0.5, np.arange(300) == 200)


def test_a_sink_is_not_a_key(isa: str) -> None:
    """Two keys and a sink of equal weight: the mass is 2/3, and the entropy has the two keys' terms only."""
    query, key, _ = uniform(1, 2)
    got = qkvc.attention_stats(query, key, sinks=0.0, top_k=3)
    third = 1 / 3
    np.testing.assert_allclose(got.lse, [[np.log(3)]], rtol=3e-7)
    np.testing.assert_allclose(got.entropy, [[-2 * third * np.log(third)]], rtol=5e-7)
    np.testing.assert_allclose(got.key_mass, [[third, third]], rtol=3e-7)
    np.testing.assert_allclose(got.distance, [[third]], rtol=3e-7)
    assert got.top_keys.tolist() == [[[0, 1, -1]]]
    np.testing.assert_allclose(got.top_weights, [[[third, third, 0]]], rtol=3e-7)
    empty = qkvc.attention_stats(query, key, sinks=1.5, key_lengths=0)
    assert (empty.lse.item(), empty.entropy.item(), empty.max_score.item()) == (1.5, 0, -INF)


@pytest.mark.parametrize("dtype", DTYPES)
def test_top_keys(isa: str, rng: np.random.Generator, dtype: str) -> None:
    """Scores that are small integers: many exact ties, and an exact order."""
    for lengths, top_k in (((5, 7), 3), ((50, 300), 5), ((17, 130), 130), ((3, 4), 6), ((20, 140), 1)):
        query = np.ones((2, 4, lengths[0], 1), dtype)
        key = rng.integers(-3, 4, (2, 2, lengths[1], 1)).astype(dtype)
        mask = rng.random((2, 4, *lengths)) < 0.6
        mask[0, 0, 0] = False
        got = qkvc.attention_stats(query, key, mask=mask, scale=1.0, top_k=top_k)
        scores = reference_scores(query, key, "bias", mask=mask, scale=1.0)
        order = np.argsort(-scores, axis=-1, kind="stable")[..., :top_k]
        listed = np.isfinite(np.take_along_axis(scores, order, -1))
        shape = (2, 4, lengths[0], top_k)
        expected, found = np.full(shape, -1), np.zeros(shape)
        expected[..., : order.shape[-1]] = np.where(listed, order, -1)
        weights = reference_scores(query, key, mask=mask, scale=1.0)
        found[..., : order.shape[-1]] = np.where(listed, np.take_along_axis(weights, order, -1), 0)
        assert got.top_keys.dtype == np.int64
        assert got.top_weights.dtype == dtype
        np.testing.assert_array_equal(got.top_keys, expected)
        np.testing.assert_allclose(got.top_weights, found, rtol=64 * unit_of(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_top_keys_of_any_scores(isa: str, rng: np.random.Generator, dtype: str) -> None:
    """Sorted, no key twice, all allowed, and none is left out that is better by more than rounding."""
    for shape in SHAPES[1:]:
        query, key, options = looked_into(rng, "everything", shape, dtype)
        exact = exactly(query, key, options)
        got = qkvc.attention_stats(query, key, top_k=4, **options)
        scores, weights = (reference_scores(query, key, stage, **exact) for stage in ("bias", "softmax"))
        slack = 2 * certificate(query, key, unit=unit_of(dtype), **exact).score.max()
        for row in np.ndindex(scores.shape[:-1]):
            keys = [j for j in got.top_keys[row] if j >= 0]
            visible = np.isfinite(scores[row]).sum()
            assert len(keys) == len(set(keys)) == min(4, visible), f"{row} {keys}"
            assert (np.diff(got.top_weights[row]) <= 0).all()
            if keys:
                others = np.delete(scores[row], keys)
                assert scores[row][keys].min() >= others.max(initial=-INF) - slack, f"{row} {keys}"
                np.testing.assert_allclose(got.top_weights[row][: len(keys)], weights[row][keys], rtol=600 * unit_of(dtype), atol=1e-37)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["plain", "causal", "everything"])
def test_stats_have_the_same_bits(isa: str, rng: np.random.Generator, name: str, dtype: str) -> None:
    """For any number of threads, alone in the batch, in either layout, with one key head's group together or apart."""

    def same(got: qkvc.AttentionStats, expected: list[NDArray[Any]], what: str) -> None:
        for field, x, y in zip(got._fields, got, expected, strict=True):
            assert_same_bits(x, y, f"{field}, {what}")

    for batch, heads, lengths in (
        ((2,), (4, 2), (130, 300)),
        ((1,), (7, 1), (1, 700)),
        ((3,), (2, 2), (257, 65)),
        ((2,), (8, 1), (600, 600)),
    ):
        query, key, _ = operands_in(dtype, rng, batch, heads, lengths, (16, 4))
        options = option(rng, name, batch, heads[0], lengths)
        options.pop("head_scale", None)
        whole = qkvc.attention_stats(query, key, top_k=2, num_threads=1, **options)
        for threads in (1, 2, 3, 7):
            same(qkvc.attention_stats(query, key, top_k=2, num_threads=threads, **options), list(whole), f"{threads} threads")
        swapped = [np.ascontiguousarray(x.swapaxes(-2, -3)) for x in (query, key)]
        same(qkvc.attention_stats(*swapped, top_k=2, layout="blhd", **options), list(whole), "blhd")
        for item in np.ndindex(*batch):
            alone = {k: x[item] if isinstance(x, np.ndarray) else x for k, x in options.items()}
            same(qkvc.attention_stats(query[item], key[item], top_k=2, **alone), [x[item] for x in whole], f"item {item}")
        moved = [MEMORY["gaps on every axis"](x) for x in (query, key)]
        same(qkvc.attention_stats(*moved, top_k=2, **options), list(whole), "gaps")


def test_lse_is_that_of_the_forward_pass(isa: str, rng: np.random.Generator) -> None:
    for shape in SHAPES:
        batch, heads, lengths, _ = shape
        query, key, value = operands(rng, *shape)
        for name in INSIDE:
            options = option(rng, name, batch, heads[0], lengths)
            options.pop("head_scale", None)
            got = qkvc.attention_stats(query, key, **options).lse
            assert_same_bits(got, qkvc.attention_with_lse(query, key, value, **options).lse, f"{name} {shape}")


@pytest.mark.parametrize("bad", [NAN, INF, -INF, 3e38])
def test_what_is_masked_reaches_nothing_inside(isa: str, rng: np.random.Generator, bad: float) -> None:
    for heads, lengths in (((1, 1), (1, 6)), ((4, 2), (5, 33)), ((2, 1), (48, 150)), ((4, 1), (13, 300))):
        query, key, _ = operands(rng, (2,), heads, lengths, (9, 12))
        l_q, l_k = lengths
        hidden = rng.random(l_k) < 0.4
        bias = np.where(hidden, -INF, normal(rng, l_q, l_k)).astype(np.float32)
        offset = l_k // 2 - l_q
        for options in (
            {"mask": ~hidden},
            {"bias": bias},
            {"key_lengths": l_k // 2},
            {"causal": True, "q_offset": offset},
            {"window": (l_k // 5, 1), "q_offset": offset, "alibi_slopes": 0.5, "softcap": 2.0, "sinks": 0.3},
        ):
            never = ~problem(query, key, **options).allowed.any((0, 1, 2))
            poisoned = key.copy()
            poisoned[..., never, :] = bad
            for stage in ("bias", "softmax"):
                clean = qkvc.attention_scores(query, key, stage=stage, **options)
                assert_same_bits(qkvc.attention_scores(query, poisoned, stage=stage, **options), clean, f"{stage} {options.keys()}")
            clean = qkvc.attention_stats(query, key, top_k=3, **options)
            got = qkvc.attention_stats(query, poisoned, top_k=3, **options)
            for field, x, y in zip(got._fields, got, clean, strict=True):
                assert_same_bits(x, y, f"{field} {options.keys()}")


def test_a_nan_that_is_attended_is_seen_inside(isa: str, rng: np.random.Generator) -> None:
    query, key, _ = operands(rng, (), (1, 1), (20, 150), (8, 8))
    key[0, 140, 3] = NAN
    mask = np.arange(20)[:, np.newaxis] != 4
    weights, stats = qkvc.attention_weights(query, key, mask=mask), qkvc.attention_stats(query, key, mask=mask)
    for x in (weights.sum(-1), stats.lse, stats.entropy, stats.distance, stats.max_score):
        np.testing.assert_array_equal(np.isnan(x[0]), mask[:, 0])
    assert np.isnan(stats.key_mass).any()


# --- merging ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["bhld", "blhd"])
def test_merged_parts_are_the_whole(isa: str, rng: np.random.Generator, layout: str, dtype: str) -> None:
    """Cut anywhere, into any number of parts; the sink in one of them."""
    for shape in SHAPES[1:]:
        l_k = shape[2][1]
        query, key, value = operands_in(dtype, rng, *shape)
        sinks = rng.standard_normal(shape[1][0])
        swapped = [x.swapaxes(-2, -3) if layout == "blhd" else x for x in (query, key, value)]
        exact = exact_for(query)
        expected = reference(*swapped, sinks=sinks, layout=layout, dtype=exact)
        bounds = certificate(*swapped, sinks=sinks, layout=layout, unit=unit_of(dtype), dtype=exact)
        for cuts in ([], [l_k // 2], [0, l_k // 3, l_k // 3, l_k], [128], sorted(rng.integers(0, l_k + 1, 6))):
            edges = [0, *cuts, l_k]
            rows = -2 if layout == "bhld" else -3
            parts = [
                qkvc.attention_with_lse(
                    swapped[0], *(np.take(x, np.arange(low, min(high, l_k)), rows) for x in swapped[1:]), layout=layout,
                    sinks=sinks if n == 0 else None,
                )
                for n, (low, high) in enumerate(itertools.pairwise(edges))
            ]  # fmt: skip
            got = qkvc.merge_attention([x.out for x in parts], [x.lse for x in parts], layout=layout)
            assert isinstance(got, qkvc.AttentionOutput)
            what = f"{shape} {cuts}"
            share_of_bound(f"out {what}", got.out, expected.out, 4 * bounds.out, np.dtype(dtype))
            share_of_bound(f"lse {what}", got.lse, expected.lse, 4 * bounds.lse, np.dtype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_merging_is_its_formula(rng: np.random.Generator, dtype: str) -> None:
    """Any numbers, far apart too, and rows that no part has seen."""
    outs = [rng.standard_normal((2, 3, 5, 4)).astype(dtype) for _ in range(4)]
    lses = [rng.normal(0, size, (2, 3, 5)).astype(dtype) for size in (1, 10, 100, 1000)]
    for lse in lses:
        lse[0, 0, 0] = -INF
    lses[0][1], lses[3][1, 2] = -INF, -INF
    expected = reference_merge(outs, lses, dtype=np.longdouble)
    got = qkvc.merge_attention(outs, lses)
    np.testing.assert_allclose(got.out.astype(np.longdouble), expected.out, atol=32 * unit_of(dtype))
    np.testing.assert_allclose(got.lse.astype(np.longdouble), expected.lse, rtol=4 * unit_of(dtype), atol=8 * unit_of(dtype))
    assert (got.out[0, 0, 0] == 0).all()
    assert got.out.dtype == got.lse.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_part_without_keys_changes_no_bit(isa: str, rng: np.random.Generator, dtype: str) -> None:
    query, key, value = operands_in(dtype, rng, (2,), (4, 2), (33, 150), (16, 8))
    whole = qkvc.attention_with_lse(query, key, value)
    nothing = qkvc.attention_with_lse(query, key, value, key_lengths=0)
    for parts in ((whole,), (whole, nothing), (nothing, whole), (nothing, nothing, whole, nothing)):
        got = qkvc.merge_attention([x.out for x in parts], [x.lse for x in parts])
        assert_same_bits(got.out, whole.out, f"{len(parts)} parts")
        assert_same_bits(got.lse, whole.lse, f"{len(parts)} parts")
    got = qkvc.merge_attention([nothing.out] * 2, [nothing.lse] * 2)
    assert_same_bits(got.out, nothing.out)
    assert_same_bits(got.lse, nothing.lse)


# --- ranks, sizes, misuse --------------------------------------------------------------------------------------------------------------


def test_shapes(rng: np.random.Generator) -> None:
    """(L, D) is one head and loses its axis; scores keep (..., H, L_q, L_k) in every layout; zero-size axes give empty results."""
    q, k = normal(rng, 5, 8), normal(rng, 7, 8)
    assert qkvc.attention_scores(q, k).shape == (5, 7)
    assert qkvc.attention_weights(q, k, queries=[1]).shape == (1, 7)
    stats = qkvc.attention_stats(q, k, top_k=2)
    assert [x.shape for x in stats] == [(5,)] * 4 + [(7,)] + [(5, 2)] * 2
    assert stats._fields == ("lse", "max_score", "entropy", "distance", "key_mass", "top_keys", "top_weights")
    q, k = normal(rng, 3, 5, 4, 8), normal(rng, 7, 2, 8)
    for got in (qkvc.attention_scores(q, k, layout="blhd"), qkvc.attention_weights(q, k, layout="blhd")):
        assert got.shape == (3, 4, 5, 7)
    stats = qkvc.attention_stats(q, k, layout="blhd")
    assert [x.shape for x in stats[:5]] == [(3, 4, 5)] * 4 + [(3, 4, 7)]
    for l_q, l_k in ((0, 3), (3, 0), (0, 0)):
        q, k = normal(rng, 2, 4, l_q, 8), normal(rng, 2, 2, l_k, 8)
        for stage in STAGES:
            assert qkvc.attention_scores(q, k, stage=stage).shape == (2, 4, l_q, l_k)
        stats = qkvc.attention_stats(q, k, top_k=2)
        assert stats.key_mass.shape == (2, 4, l_k)
        assert (stats.key_mass == 0).all()
        assert (stats.lse == -INF).all()
        assert (stats.top_keys == -1).all()
        assert (stats.top_weights == 0).all()


def ones(*shape: int, dtype: Any = np.float32) -> NDArray[Any]:
    return np.ones(shape, dtype)


Q, K, V, LSE = ones(2, 4, 3, 8), ones(2, 2, 5, 8), ones(2, 4, 3, 6), ones(2, 4, 3)
#  name                                call                                                                       exception   words
MISUSE: list[tuple[str, Callable[[], object], Any, tuple[str, ...]]] = [
    ("an unknown stage", lambda: qkvc.attention_scores(Q, K, stage="probs"), ValueError, ("stage", *STAGES, "probs")),
    ("a stage of None", lambda: qkvc.attention_scores(Q, K, stage=None), (TypeError, ValueError), ("stage", "raw", "None")),
    ("a head too far", lambda: qkvc.attention_weights(Q, K, heads=[0, 4]), ValueError, ("heads", "4")),
    ("a head too far back", lambda: qkvc.attention_weights(Q, K, heads=[-5]), ValueError, ("heads", "-5", "4")),
    ("a query too far", lambda: qkvc.attention_weights(Q, K, queries=[3]), ValueError, ("queries", "3")),
    ("a query of 10**30", lambda: qkvc.attention_weights(Q, K, queries=[10**30]), (TypeError, ValueError), ("queries",)),
    ("queries as floats", lambda: qkvc.attention_weights(Q, K, queries=[1.0]), TypeError, ("queries", "integers", "float64")),
    ("queries as bools", lambda: qkvc.attention_weights(Q, K, queries=[True, False, True]), TypeError, ("queries", "integers", "bool")),
    ("queries of two axes", lambda: qkvc.attention_weights(Q, K, queries=[[0]]), (TypeError, ValueError), ("queries", "(1, 1)")),
    ("heads a number", lambda: qkvc.attention_weights(Q, K, heads=1), (TypeError, ValueError), ("heads",)),
    ("top_k negative", lambda: qkvc.attention_stats(Q, K, top_k=-1), ValueError, ("top_k", "0", "-1")),
    ("top_k a float", lambda: qkvc.attention_stats(Q, K, top_k=2.0), TypeError, ("top_k", "float")),
    ("top_k True", lambda: qkvc.attention_stats(Q, K, top_k=True), TypeError, ("top_k", "bool")),
    ("lse of another shape", lambda: qkvc.attention_stats(Q, K, lse=ones(4, 3)), ValueError, ("lse", "(2, 4, 3)", "(4, 3)")),
    ("lse in the layout's order", lambda: qkvc.attention_stats(Q, K, lse=ones(2, 3, 4)), ValueError, ("lse", "(2, 4, 3)", "(2, 3, 4)")),
    ("lse of strings", lambda: qkvc.attention_stats(Q, K, lse="abc"), TypeError, ("lse",)),
    ("lse complex", lambda: qkvc.attention_stats(Q, K, lse=ones(2, 4, 3, dtype=complex)), TypeError, ("lse", "complex")),
    ("scores of complex numbers", lambda: qkvc.attention_scores(Q.astype(complex), K), TypeError, ("query", "complex128")),
    ("scores of long doubles", lambda: qkvc.attention_scores(Q.astype(np.longdouble), K), TypeError, ("query", str(np.dtype("g")))),
    ("heads that do not divide", lambda: qkvc.attention_stats(ones(2, 3, 3, 8), K), ValueError, ("heads", "3", "2")),
    ("a float mask", lambda: qkvc.attention_weights(Q, K, mask=ones(3, 5)), TypeError, ("mask", "bool", "bias", "float32")),
    ("causal both ways", lambda: qkvc.attention_weights(Q, K, causal=True), ValueError, ("causal", "top-left", "bottom-right")),
    ("a window both ways", lambda: qkvc.attention_stats(Q, K, window=(1, 1)), ValueError, ("window", "top-left", "bottom-right")),
    ("nothing to merge", lambda: qkvc.merge_attention([], []), ValueError, ("outs", "one")),
    ("more outs than lses", lambda: qkvc.merge_attention([V, V], [LSE]), ValueError, ("lses", "2", "1")),
    ("outs of two shapes", lambda: qkvc.merge_attention([V, ones(2, 4, 3, 5)], [LSE] * 2), ValueError,
     ("outs", "(2, 4, 3, 6)", "(2, 4, 3, 5)")),
    ("an lse that does not fit", lambda: qkvc.merge_attention([V, V], [LSE, ones(2, 3, 4)]), ValueError,
     ("lses", "(2, 4, 3)", "(2, 3, 4)")),
    ("outs in the other layout", lambda: qkvc.merge_attention([V], [LSE], layout="blhd"), ValueError, ("lses", "(2, 3, 4)", "(2, 4, 3)")),
    ("merge in an unknown layout", lambda: qkvc.merge_attention([V], [LSE], layout="bshd"), ValueError, ("layout", "bhld", "bshd")),
    ("outs of complex numbers", lambda: qkvc.merge_attention([V.astype(complex)], [LSE]), TypeError, ("outs", "complex128")),
]  # fmt: skip


@pytest.mark.parametrize(("call", "exception", "words"), [pytest.param(*row[1:], id=row[0]) for row in MISUSE])
def test_misuse(call: Callable[[], object], exception: Any, words: tuple[str, ...]) -> None:
    message = assert_refused(call, exception, *words)
    assert ": expected " in message, message
    assert ", got " in message, message


def test_what_is_of_the_output_is_not_asked_inside() -> None:
    for function in (qkvc.attention_scores, qkvc.attention_weights, qkvc.attention_stats):
        for option_of_the_output in ({"head_scale": 1.0}, {"out": Q}):
            with pytest.raises(TypeError):
                function(Q, K, **option_of_the_output)


def test_chosen_heads_against_a_key_without_heads(rng: np.random.Generator) -> None:
    """A key of two axes is one head that every chosen query head shares."""
    query, key = rng.standard_normal((4, 3, 8), dtype=np.float32), rng.standard_normal((5, 8), dtype=np.float32)
    chosen = qkvc.attention_weights(query, key, heads=[2, 0])
    assert_same_bits(chosen, qkvc.attention_weights(query[[2, 0]], key))
    assert chosen.shape == (2, 3, 5)
