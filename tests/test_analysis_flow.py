"""qkvc.analysis on arrays: rollout and flow through layers, effective rank, what scores are made of; each by its definition."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.special import softmax
from scipy.stats import entropy

import qkvc
from qkvc.analysis import attention_flow, attention_rollout, effective_rank, length_and_direction, score_variance, sharpness

from .support import assert_refused, normal

NAN = np.nan


def layers_of(rng: np.random.Generator, layers: int, heads: int, length: int, causal: bool = False) -> NDArray[np.float64]:
    scores = 2 * rng.standard_normal((layers, heads, length, length))
    return softmax(np.where(np.tri(length, dtype=bool), scores, -np.inf) if causal else scores, axis=-1)


# --- rollout and flow ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", [0.0, 0.5, 0.8, 1.0])
def test_rollout(rng: np.random.Generator, residual: float) -> None:
    """The sum over all paths of the product of their weights."""
    weights = layers_of(rng, 3, 2, 4)
    mixed = residual * np.eye(4) + (1 - residual) * weights.mean(1)
    got = attention_rollout(weights, residual=residual)
    assert got.shape == (3, 4, 4)
    for i, j in np.ndindex(4, 4):
        paths = sum(mixed[2, i, a] * mixed[1, a, b] * mixed[0, b, j] for a, b in itertools.product(range(4), repeat=2))
        np.testing.assert_allclose(got[2, i, j], paths, rtol=1e-12)
    np.testing.assert_allclose(got[0], mixed[0], rtol=1e-12)
    np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-12)


def test_rollout_scales_rows(rng: np.random.Generator) -> None:
    """Weights that leave something to a sink, or a token that attends to nothing, count as so much more residual."""
    weights = layers_of(rng, 1, 1, 3)
    weights[0, 0] *= np.array([0.5, 1, 0])[:, np.newaxis]
    expected = [(0.5 * np.eye(3)[i] + 0.5 * row) / total for i, (row, total) in enumerate(zip(weights[0, 0], (0.75, 1, 0.5), strict=True))]
    np.testing.assert_allclose(attention_rollout(weights)[0], expected, rtol=1e-12)


def most_that_passes(mixed: NDArray[np.float64], output: int, source: int) -> float:
    """The same maximum as a linear programme: what each edge carries, nothing lost at the nodes between."""
    depth, length = mixed.shape[:2]
    edges = [(layer, i, j) for layer in range(depth) for i in range(length) for j in range(length)]
    kept = np.zeros(((depth - 1) * length, len(edges)))
    for e, (layer, i, j) in enumerate(edges):
        if layer < depth - 1:
            kept[layer * length + i, e] += 1  # into layer from token i above it
        if layer > 0:
            kept[(layer - 1) * length + j, e] -= 1
    bounds = [(0, mixed[layer, i, j] if (layer < depth - 1 or i == output) and (layer > 0 or j == source) else 0) for layer, i, j in edges]
    gain = [-float(layer == depth - 1) for layer, _, _ in edges]
    done = linprog(gain, A_eq=kept if depth > 1 else None, b_eq=np.zeros(len(kept)) if depth > 1 else None, bounds=bounds)
    return float(-done.fun)


@pytest.mark.parametrize(("depth", "length", "causal"), [(1, 4, False), (2, 4, False), (3, 3, True), (4, 3, False)])
def test_flow(rng: np.random.Generator, depth: int, length: int, causal: bool) -> None:
    weights = layers_of(rng, depth, 2, length, causal)
    mixed = 0.5 * np.eye(length) + 0.5 * weights.mean(1)
    got = attention_flow(weights)
    for i, j in np.ndindex(length, length):
        np.testing.assert_allclose(got[i, j], most_that_passes(mixed, i, j), rtol=1e-6, atol=1e-8, err_msg=f"{i} {j}")
    rolled = attention_rollout(weights)[-1]
    assert (got >= rolled - 1e-8).all(), "every path that rollout counts is a flow"
    np.testing.assert_array_equal(attention_flow(weights, queries=[-1, 0], keys=np.array([1])), got[[-1, 0]][:, [1]])


def test_no_layers() -> None:
    np.testing.assert_array_equal(attention_flow(np.zeros((0, 2, 3, 3)), queries=[1]), [[0, 1, 0]])
    assert attention_rollout(np.zeros((0, 2, 3, 3))).shape == (0, 3, 3)


def test_refused_layers(rng: np.random.Generator) -> None:
    weights: Any = layers_of(rng, 2, 2, 3)
    for call in (attention_rollout, attention_flow):
        who = call.__name__
        assert_refused(lambda call=call: call(weights[0]), ValueError, who, "weights", "(2, 3, 3)")
        assert_refused(lambda call=call: call(weights[..., :2]), ValueError, who, "weights", "(2, 2, 3, 2)")
        assert_refused(lambda call=call: call(weights, residual=1.5), ValueError, who, "residual", "1.5")
        assert_refused(lambda call=call: call(weights * 2), ValueError, who, "sums to 2")
        assert_refused(lambda call=call: call(weights * 0, residual=0), ValueError, who, "rows of 0")
        assert_refused(lambda call=call: call(weights * 1j), TypeError, who, "real")
    assert attention_flow(weights, queries=[]).shape == (0, 3)
    assert_refused(lambda: attention_flow(weights, queries=[[0]]), ValueError, "queries", "(1, 1)")  # type: ignore[list-item]
    assert_refused(lambda: attention_flow(weights, queries=[3]), ValueError, "queries", "3")
    assert_refused(lambda: attention_flow(weights, keys=[0.5]), TypeError, "keys", "float64")  # type: ignore[list-item]
    large = np.zeros((12, 1, 128, 128))
    assert_refused(lambda: attention_flow(large), ValueError, "weights", "2e+09", "3.22e+09", "choose")
    assert attention_flow(large, queries=[5], keys=[5, 6]).tolist() == [[1.0, 0.0]]


# --- rank ------------------------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_effective_rank(rows: int, columns: int, seed: int) -> None:
    """exp of SciPy's entropy of the square roots of eigenvalues."""
    x = np.random.default_rng(seed).standard_normal((2, rows, columns))
    got = effective_rank(x)
    for matrix, rank in zip(x, got, strict=True):
        spectrum = np.sqrt(np.maximum(np.linalg.eigvalsh(matrix @ matrix.T if rows < columns else matrix.T @ matrix), 0))
        np.testing.assert_allclose(rank, np.exp(entropy(spectrum)), rtol=1e-6)
    assert ((got >= 1 - 1e-12) & (got <= min(rows, columns) + 1e-9)).all()
    np.testing.assert_allclose(effective_rank(-1000 * x), got, rtol=1e-9)


def test_known_ranks(rng: np.random.Generator) -> None:
    np.testing.assert_allclose(effective_rank(np.eye(5)), 5)
    np.testing.assert_allclose(effective_rank(np.outer([1, 2, 3], [4, 5])), 1)
    assert effective_rank(np.zeros((2, 3, 4))).tolist() == [0, 0]
    assert effective_rank(np.zeros((3, 0))) == 0
    far = np.eye(4) + 1e6
    assert effective_rank(far) < 1.001
    np.testing.assert_allclose(effective_rank(far, centred=True), 3, rtol=1e-6)
    assert_refused(lambda: effective_rank([1.0, 2.0]), ValueError, "effective_rank", "x", "(2,)")
    assert_refused(lambda: effective_rank([[NAN]]), ValueError, "effective_rank", "finite")
    assert_refused(lambda: effective_rank([["a"]]), TypeError, "effective_rank", "real")


# --- scores ----------------------------------------------------------------------------------------------------------------------------


def test_score_variance() -> None:
    got = score_variance((1, 16, 300), seed=3)
    np.testing.assert_array_equal(got.dims, [1, 16, 300])
    np.testing.assert_allclose(got.scaled * got.dims, got.raw, rtol=1e-12)
    np.testing.assert_allclose(got.scaled, 1, atol=0.25)
    rng = np.random.default_rng((3, 16))
    query, key = rng.standard_normal((512, 16)), rng.standard_normal((512, 16))
    np.testing.assert_allclose(got.raw[1], (query @ key.T).var(), rtol=1e-12)
    assert score_variance(()).raw.shape == (0,)
    assert_refused(lambda: score_variance(5), TypeError, "dims", "int")  # type: ignore[arg-type]
    assert_refused(lambda: score_variance((0,)), ValueError, "score_variance", "dims")
    assert_refused(lambda: score_variance(queries=0), ValueError, "score_variance", "queries")


def test_sharpness(rng: np.random.Generator) -> None:
    scores, scales = rng.standard_normal((3, 7)), np.array([-2.0, 0, 0.5, 1, 30])
    scores[1, 4:] = -np.inf
    got = sharpness(scores, scales)
    for n, scale in enumerate(scales):
        for row in range(3):
            allowed = np.isfinite(scores[row])
            p = softmax(scale * scores[row, allowed])
            np.testing.assert_allclose(got.weights[n, row, allowed], p, rtol=1e-12)
            assert not got.weights[n, row, ~allowed].any()
            np.testing.assert_allclose(got.entropy[n, row], entropy(p), rtol=1e-9, atol=1e-14)
            np.testing.assert_allclose(got.largest[n, row], p.max(), rtol=1e-12)
    assert (np.diff(got.entropy[1:], axis=0) < 0).all()
    assert_refused(lambda: sharpness([1.0], 2.0), ValueError, "sharpness", "scales", "shape ()")
    assert_refused(lambda: sharpness([1.0], [NAN]), ValueError, "scales", "finite")
    assert_refused(lambda: sharpness([], [1.0]), ValueError, "scores", "(0,)")
    for wrong in ([1, NAN], [1, np.inf], [-np.inf, -np.inf]):
        assert_refused(lambda wrong=wrong: sharpness(wrong, [1.0]), ValueError, "scores", "finite")
    assert_refused(lambda: sharpness([1e300], [1e300]), ValueError, "scales", "float64")


@pytest.mark.parametrize("scale", [None, 1.0, -0.3])
def test_length_and_direction(rng: np.random.Generator, scale: float | None) -> None:
    query, key = normal(rng, 2, 4, 5, 8), normal(rng, 2, 2, 6, 8)
    got = length_and_direction(query, key, scale=scale)
    lengths = got.query_length[..., :, np.newaxis] * np.repeat(got.key_length, 2, axis=1)[..., np.newaxis, :]
    scores = qkvc.attention_scores(np.float64(query), np.float64(key), scale=scale)
    np.testing.assert_allclose(lengths * got.cosine, scores, rtol=1e-12)
    np.testing.assert_allclose(got.key_length, np.sqrt(np.square(np.float64(key)).sum(-1)), rtol=1e-12)
    for row in np.ndindex(2, 4, 5):
        np.testing.assert_allclose(got.by_direction[row], np.corrcoef(scores[row], got.cosine[row])[0, 1] ** 2, rtol=1e-9)


def test_keys_of_one_length_differ_by_direction_alone(rng: np.random.Generator) -> None:
    query, key = normal(rng, 3, 8), normal(rng, 9, 8)
    even = key / np.linalg.norm(key, axis=-1, keepdims=True)
    np.testing.assert_allclose(length_and_direction(query, even).by_direction, 1, rtol=1e-9)
    got = length_and_direction(query, np.outer(np.arange(9), key[0]))
    np.testing.assert_allclose(got.cosine[:, 1:], got.cosine[:, 1:2] * np.ones(8), rtol=1e-9)
    assert (got.cosine[:, 0] == 0).all()
    assert np.isnan(length_and_direction(query, np.ones((4, 8))).by_direction).all()
    assert length_and_direction(np.zeros((0, 3, 4)), np.zeros((0, 2, 4))).by_direction.shape == (0, 3)
    assert np.isnan(length_and_direction(query, key[:0]).by_direction).all()
    assert_refused(lambda: length_and_direction(query, key[:, :7]), ValueError, "key", "7")
    assert_refused(lambda: length_and_direction(query, key, scale=NAN), ValueError, "length_and_direction", "scale")
