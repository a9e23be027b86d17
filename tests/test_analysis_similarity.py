"""qkvc.analysis on arrays: how alike heads are, against SciPy and definitions, and which belong together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, jensenshannon, pdist, squareform

import qkvc
from qkvc.analysis import cka, cluster_heads, cosine_similarity, embed_heads, js_distance

from .support import assert_refused, normal

NAN = np.nan


def weights_of(rng: np.random.Generator, *shape: int) -> Any:
    return qkvc.softmax(2 * rng.standard_normal(shape))


# --- distances and similarities --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 300, 1 << 18])
def test_js_distance(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """However few heads are taken at once."""
    monkeypatch.setattr("qkvc.analysis.similarity.AT_ONCE", at_once)
    weights = weights_of(rng, 2, 4, 7, 9)
    weights[0, 1, 3] = 0  # attends to nothing
    weights[:, 2] *= 0.7  # the rest is a sink's
    got = js_distance(weights)
    assert got.shape == (2, 4, 4)
    for b, g, h in np.ndindex(got.shape):
        rows = [i for i in range(7) if weights[b, g, i].any() and weights[b, h, i].any()]
        by_scipy = np.mean([jensenshannon(weights[b, g, i], weights[b, h, i], base=2) for i in rows])
        np.testing.assert_allclose(got[b, g, h], by_scipy, rtol=1e-12, atol=3e-8)
        p, q = (x[rows] / x[rows].sum(-1, keepdims=True) for x in weights[b, [g, h]])
        m = (p + q) / 2
        divergence = ((p * np.log2(p / m)).sum(-1) + (q * np.log2(q / m)).sum(-1)) / 2
        np.testing.assert_allclose(got[b, g, h], np.sqrt(np.maximum(divergence, 0)).mean(), rtol=1e-6, atol=3e-8)
    np.testing.assert_array_equal(got, got.swapaxes(-1, -2))


def test_js_distance_of_opposites() -> None:
    eye = np.eye(3)
    np.testing.assert_array_equal(js_distance([eye, eye[::-1], eye]), [[0, 2 / 3, 0], [2 / 3, 0, 2 / 3], [0, 2 / 3, 0]])
    assert np.isnan(js_distance(np.zeros((2, 3, 3)))).all()


def test_cosine_similarity(rng: np.random.Generator) -> None:
    x = normal(rng, 3, 5, 6, 4)
    x[1, 2] = 0
    got = cosine_similarity(x)
    for b in range(3):
        flat = np.float64(x[b]).reshape(5, -1)
        with np.errstate(invalid="ignore"):
            expected = np.nan_to_num(1 - cdist(flat, flat, "cosine"))
        np.testing.assert_allclose(got[b], expected, rtol=1e-9, atol=1e-14)
    assert (got[1, 2] == 0).all()


@pytest.mark.parametrize("tokens", [1, 4, 5, 40])
def test_cka(rng: np.random.Generator, tokens: int) -> None:
    """By HSIC of centred Gram matrices, whichever way is taken."""
    outputs = rng.standard_normal((2, 3, tokens, 5))
    outputs[1, 2] = 7.0
    got = cka(outputs)
    centre = np.eye(tokens) - 1 / tokens
    for b, g, h in np.ndindex(got.shape):
        grams = [centre @ x @ x.T @ centre for x in outputs[b, [g, h]]]
        own = np.sqrt(np.trace(grams[0] @ grams[0]) * np.trace(grams[1] @ grams[1]))
        expected = np.trace(grams[0] @ grams[1]) / own if own > 1e-9 else 0
        np.testing.assert_allclose(got[b, g, h], expected, rtol=1e-9, atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(2, 30))
def test_cka_does_not_see_rotations_and_scales(seed: int, tokens: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, 6))
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    np.testing.assert_allclose(cka([x, 3 * x @ turn + 1])[0, 1], 1, rtol=1e-9)


# --- clusters --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-200, 1e-90, 1e90, 1e200])
def test_sizes_of_heads_do_not_matter(rng: np.random.Generator, size: float) -> None:
    """Fourth powers of these are beyond float64."""
    x = rng.standard_normal((3, 9, 4))
    other = x * np.array([1, size, -size])[:, np.newaxis, np.newaxis]
    np.testing.assert_allclose(cka(other), cka(x), rtol=1e-9)
    np.testing.assert_allclose(cosine_similarity(other), cosine_similarity(x) * np.sign([[1, 1, -1], [1, 1, -1], [-1, -1, 1]]), rtol=1e-9)


@pytest.mark.parametrize("tokens", [2, 3, 7, 11, 1001])
def test_cka_of_tokens_that_are_alike(rng: np.random.Generator, tokens: int) -> None:
    """Also where their mean is not exactly they."""
    alike = np.tile(rng.standard_normal(5), (tokens, 1))
    np.testing.assert_array_equal(cka([alike, rng.standard_normal((tokens, 5))]), [[0, 0], [0, pytest.approx(1)]])


def test_clusters(rng: np.random.Generator) -> None:
    places = np.array([5.0, 0, 9, 0.1, 5.2, 9.3, 0.3])[:, np.newaxis]
    apart = squareform(pdist(places))
    for how in ({"count": 3}, {"threshold": 1.0}):
        for method in ("average", "complete", "single", "weighted"):
            got = cluster_heads(apart, method=method, **how)  # type: ignore[arg-type]
            np.testing.assert_array_equal(got.labels, [0, 1, 2, 1, 0, 2, 1])
            in_order = got.labels[got.order]
            assert sorted(got.order) == list(range(7))
            assert (np.diff(in_order) != 0).sum() == 2, "each cluster's heads are side by side"
            assert got.linkage.shape == (6, 4)
    assert len(set(cluster_heads(apart, threshold=0.0).labels)) == 7
    for few in (0, 1):
        assert cluster_heads(np.zeros((few, few)), count=2).labels.shape == (few,)
    copies = weights_of(rng, 3, 6, 6)[[0, 1, 0, 2, 1]]
    np.testing.assert_array_equal(cluster_heads(js_distance(copies), threshold=0.01).labels, [0, 1, 0, 2, 1])
    np.testing.assert_array_equal(cluster_heads(1 - cosine_similarity(copies), threshold=0.01).labels, [0, 1, 0, 2, 1])


def test_a_map_of_heads(rng: np.random.Generator) -> None:
    """Places of a plane are found again, up to how it lies."""
    apart = squareform(pdist(rng.standard_normal((8, 2))))
    places = embed_heads(apart)
    assert places.shape == (8, 2)
    np.testing.assert_allclose(squareform(pdist(places)), apart, atol=0.05)
    np.testing.assert_allclose(places.mean(0), 0, atol=1e-12)
    np.testing.assert_array_equal(embed_heads(apart), places)
    assert embed_heads(np.zeros((1, 1)), dims=3).shape == (1, 3)


def test_no_heads_and_no_tokens() -> None:
    for call in (js_distance, cosine_similarity, cka):
        assert call(np.zeros((0, 3, 3))).shape == (0, 0)
    assert (cosine_similarity(np.zeros((2, 0, 3))) == 0).all()
    assert (cka(np.zeros((2, 0, 3))) == 0).all()
    assert np.isnan(js_distance(np.zeros((2, 0, 3)))).all()
    assert embed_heads(np.zeros((4, 4))).tolist() == [[0, 0]] * 4


def test_misuse(rng: np.random.Generator) -> None:
    x: Any = np.ones((2, 3, 3)) / 3
    for call in (js_distance, cosine_similarity, cka):
        assert_refused(lambda call=call: call(x[0]), ValueError, call.__name__, "shape", "(3, 3)")
        assert_refused(lambda call=call: call(x * NAN), ValueError, call.__name__, "finite")
        assert_refused(lambda call=call: call(x * 1j), TypeError, call.__name__, "real", "complex")
    assert_refused(lambda: js_distance(2 * x), ValueError, "weights", "sums to 2")
    assert_refused(lambda: js_distance(-x), ValueError, "weights", "0 or more")
    near: Any = np.array([[0.0, 1], [1, 0]])
    assert_refused(lambda: cluster_heads(near), ValueError, "cluster_heads", "count", "neither")
    assert_refused(lambda: cluster_heads(near, count=1, threshold=1.0), ValueError, "count", "both")
    assert_refused(lambda: cluster_heads(near, count=0), ValueError, "count", "1 or more")
    assert_refused(lambda: cluster_heads(near, count=1, method="ward"), ValueError, "method", "'ward'")  # type: ignore[arg-type]
    assert_refused(lambda: cluster_heads(near, threshold=NAN), ValueError, "threshold", "finite")
    for call in (lambda d: cluster_heads(d, count=1), embed_heads):
        assert_refused(lambda call=call: call(near[0]), ValueError, "distances", "(2,)")
        assert_refused(lambda call=call: call(near[:1]), ValueError, "distances", "(1, 2)")
        assert_refused(lambda call=call: call(np.triu(near)), ValueError, "distances", "symmetric")
        assert_refused(lambda call=call: call(1 - near), ValueError, "distances", "0 on the diagonal")
        assert_refused(lambda call=call: call(-near), ValueError, "distances", "0 and more")
    assert_refused(lambda: embed_heads(near, dims=0), ValueError, "embed_heads", "dims")
    assert_refused(lambda: embed_heads(near, seed=1 << 32), ValueError, "embed_heads", "seed", "2^32")
