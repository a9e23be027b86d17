"""qkvc.analysis on arrays: statistics of heads against weights written out in float64."""

from __future__ import annotations

import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import qkvc.analysis
from qkvc.analysis import HeadStatistics, head_statistics, pattern_scores

from .options import OPTIONS, SHAPES, operands_in, option
from .reference import problem, reference_scores
from .support import assert_refused, normal, operands

REACH = ("mask", "causal", "q_offset", "window", "key_lengths")
INF, NAN = np.inf, np.nan


def written_out(query: NDArray[Any], key: NDArray[Any], **options: Any) -> dict[str, NDArray[Any]]:
    """Every number by its definition, query by query."""
    p = reference_scores(query, key, **options)
    allowed, away = (np.broadcast_to(x, p.shape) for x in (getattr(problem(query, key, **options), n) for n in ("allowed", "away")))
    each: dict[str, Any] = {name: np.zeros(p.shape[:-1]) for name in ("entropy", "confidence", "distance", "first_mass")}
    most, some = np.zeros(p.shape[:-1]), allowed.any(-1)
    for row in np.ndindex(p.shape[:-1]):
        w, n = p[row], int(allowed[row].sum())
        each["entropy"][row] = -sum(x * np.log(x) for x in w if x > 0)
        each["confidence"][row], each["first_mass"][row] = max(w), w[0]
        each["distance"][row] = (w * away[row]).sum()
        most[row] = np.log(n) if n else 0
    found = {name: np.where(some, x, 0).sum(-1) / some.sum(-1) for name, x in each.items()}
    found["normalised_entropy"] = np.where(most.sum(-1) > 0, each["entropy"].sum(-1) / most.sum(-1), NAN)
    return {**found, "key_mass": p.sum(-2), **{f"per_query.{name}": x for name, x in each.items()}, "per_query.choices": allowed.sum(-1)}


def close(got: HeadStatistics, expected: dict[str, NDArray[Any]], rtol: float, what: str) -> None:
    for name, wanted in expected.items():
        found = getattr(got.per_query, name[10:]) if name.startswith("per_query.") else getattr(got, name)
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=rtol, err_msg=f"{what}: {name}")


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "head_scale"])
def test_every_option(rng: np.random.Generator, name: str) -> None:
    for shape in SHAPES:
        if shape[2][1] == 0 or shape[2][0] == 0:
            continue
        query, key, _ = operands_in("float64", rng, *shape)
        options = option(rng, name, shape[0], shape[1][0], shape[2])
        options.pop("head_scale", None)
        with np.errstate(all="ignore"):
            expected = written_out(query, key, **options)
        close(head_statistics(query, key, **options), expected, 1e-11, f"{name} {shape}")
        turned = head_statistics(query.swapaxes(-2, -3), key.swapaxes(-2, -3), layout="blhd", **options)
        close(turned, expected, 1e-11, f"{name} {shape}, blhd")


@pytest.mark.parametrize("reach", [{}, {"causal": True}, {"window": (3, 2)}, {"key_lengths": [3, 60]}])
def test_from_keys_and_from_weights_agree(isa: str, rng: np.random.Generator, reach: dict[str, Any]) -> None:
    """From float32 too, as both are computed in float64."""
    query, key, _ = operands(rng, (2,), (4, 2), (60, 60), (16, 4))
    weights = qkvc.attention_weights(np.float64(query), np.float64(key), **reach)
    expected = HeadStatistics.from_weights(weights, **reach)
    got = head_statistics(query, key, **reach)
    for name in ("entropy", "normalised_entropy", "confidence", "distance", "first_mass", "key_mass"):
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name), rtol=1e-13, err_msg=name)
    np.testing.assert_array_equal(got.per_query.choices, expected.per_query.choices)


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([False, "top-left", "bottom-right"]), st.integers(0, 2**32 - 1))
def test_weights_at_positions(l_q: int, l_k: int, causal: Any, seed: int) -> None:
    """`from_weights` stands its queries where attention does."""
    rng = np.random.default_rng(seed)
    query, key = rng.standard_normal((2, 3, l_q, 4)), rng.standard_normal((2, 3, l_k, 4))
    lengths = rng.integers(0, l_k, 2, endpoint=True)
    for reach in ({"causal": causal}, {"causal": causal, "key_lengths": lengths}, {"causal": True, "q_offset": lengths}):
        from_keys = head_statistics(query, key, **reach)
        from_weights = HeadStatistics.from_weights(qkvc.attention_weights(query, key, **reach), **reach)
        for x, y in zip([*from_keys[:-1], *from_keys.per_query], [*from_weights[:-1], *from_weights.per_query], strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-13)


def test_known_heads() -> None:
    """All alike; all on one key; nothing allowed."""
    even = head_statistics(np.zeros((2, 5, 4)), np.zeros((2, 5, 4)), causal=True)
    counts = np.arange(1, 6)
    np.testing.assert_allclose(even.entropy, np.log(counts).mean())
    np.testing.assert_allclose(even.normalised_entropy, 1)
    np.testing.assert_allclose(even.confidence, (1 / counts).mean())
    np.testing.assert_allclose(even.first_mass, (1 / counts).mean())
    np.testing.assert_allclose(even.distance, ((counts - 1) / 2).mean())
    one = HeadStatistics.from_weights(np.eye(5)[::-1])
    assert (one.entropy, one.normalised_entropy, one.confidence, one.first_mass) == (0, 0, 1, 0.2)
    assert one.distance == pytest.approx((4 + 2 + 0 + 2 + 4) / 5)
    np.testing.assert_array_equal(one.key_mass, np.ones(5))
    none = head_statistics(np.ones((1, 3, 4)), np.ones((1, 3, 4)), mask=np.zeros((3, 3), bool))
    assert all(np.isnan(x).all() for x in none[:5])
    assert not any(np.any(x) for x in (none.key_mass, *none.per_query))


def test_queries_without_keys_are_not_counted(rng: np.random.Generator) -> None:
    query, key = normal(rng, 2, 6, 8), normal(rng, 2, 6, 8)
    mask = np.ones((6, 6), bool)
    mask[4:] = False
    got, shorter = head_statistics(query, key, mask=mask), head_statistics(query[:, :4], key)
    for x, y in zip(got[:5], shorter[:5], strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)


def test_sixteen_bits(rng: np.random.Generator) -> None:
    """bfloat16 is what it is in wider numbers: its own kernels would round the weights."""
    query, key = (normal(rng, 2, 70, 16).astype(ml_dtypes.bfloat16) for _ in "qk")
    got, wide = head_statistics(query, key), head_statistics(query.astype(np.float32), key.astype(np.float32))
    for x, y in zip([*got[:-1], *got.per_query], [*wide[:-1], *wide.per_query], strict=True):
        np.testing.assert_array_equal(x, y)


def test_masked_poison_stays_outside(rng: np.random.Generator) -> None:
    query, key, _ = operands(rng, (2,), (2, 2), (7, 7), (8, 8))
    clean = head_statistics(query, key, key_lengths=[5, 7])
    key[0, :, 5:] = NAN
    for x, y in zip(clean[:-1], head_statistics(query, key, key_lengths=[5, 7])[:-1], strict=True):
        np.testing.assert_array_equal(x, y)


def test_no_matrix(rng: np.random.Generator) -> None:
    """Memory follows the tokens, not their square; nor does it with patterns that need no tokens."""
    query, key, _ = operands(rng, (), (2, 2), (6000, 6000), (8, 8))
    for call in (head_statistics, pattern_scores):
        tracemalloc.start()
        call(query, key, causal=True)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 320 * 2 * 6000, f"{call.__name__}: {most} bytes"


def test_misuse(rng: np.random.Generator) -> None:
    x: Any = np.ones((2, 4, 8))
    assert_refused(lambda: head_statistics(x, x, dropout_p=0.5), TypeError, "head_statistics", "options", "dropout_p")  # type: ignore[call-arg]
    assert_refused(lambda: head_statistics(x[0, 0], x), ValueError, "head_statistics", "query", "shape (8,)")
    assert_refused(lambda: head_statistics(x, x[:, :3], causal=True), ValueError, "causal", "top-left")
    assert_refused(lambda: head_statistics(x, x, layout="lbhd"), ValueError, "head_statistics", "layout")  # type: ignore[arg-type]
    assert_refused(lambda: head_statistics(1j * x, x), TypeError, "query", "complex")
    assert_refused(lambda: head_statistics(1e6 * x, 1e6 * x), ValueError, "head_statistics", "scores within 1e+09", "2.83e+12")
    padded = np.array([[0, 0, 0, -INF]] * 3 + [[np.finfo(np.float32).min] * 4])
    assert_refused(lambda: head_statistics(x, x, bias=padded), ValueError, "bias", "3.4e+38", "mask")
    of = HeadStatistics.from_weights
    assert_refused(lambda: of(np.full((2, 2), 0.6)), ValueError, "from_weights", "weights", "1.2")
    assert_refused(lambda: of([[1.5, -0.5]]), ValueError, "weights", "0 or more")
    assert_refused(lambda: of([[NAN, 0]]), ValueError, "weights", "finite")
    assert_refused(lambda: of([0.5, 0.5]), ValueError, "weights", "shape (2,)")
    assert_refused(lambda: of([["a"]]), TypeError, "weights", "real")
    assert_refused(lambda: of(np.eye(2), scale=1.0), TypeError, "from_weights", "scale")  # type: ignore[call-arg]
    assert_refused(lambda: of(np.eye(2), mask=np.ones((3, 3), bool)), ValueError, "mask")


def test_public_names() -> None:
    names = qkvc.analysis.__all__
    for name in names:
        assert getattr(qkvc.analysis, name).__doc__, name
    assert sorted(names, key=lambda n: (not n.isupper(), n[0].islower(), n)) == names
