"""A diagnosis of outputs, on cases that were built to have one; and what probes read off values, where it was put there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from qkvc.analysis import diagnose, label_directions, probe_values

from .reference import reference
from .support import assert_refused

KEYS = 9 * np.eye(6)  # a query that equals one of them finds it


def values(rng: np.random.Generator) -> NDArray[Any]:
    return rng.standard_normal((6, 4)) + np.array([5, 0, 0, 0])


# --- diagnosis -------------------------------------------------------------------------------------------------------------------------


def test_the_right_key_and_the_right_value(rng: np.random.Generator) -> None:
    v = values(rng)
    found = diagnose(KEYS[:3], KEYS, v, v[2], query_index=2)
    assert found.verdict == "right"
    assert found.error < 1e-6
    assert (found.key, found.key_rank) == (2, 0)
    np.testing.assert_allclose(found.out, v[2], rtol=1e-5)


def test_a_query_that_asks_for_another_key(rng: np.random.Generator) -> None:
    """The wanted value is there, at key 4, and gets nothing."""
    v = values(rng) + 3 * np.eye(6, 4)
    v[4] = [0, 0, 0, 9]  # a corner of the hull
    found = diagnose(KEYS[[1]], KEYS, v, v[4])
    assert found.verdict == "query-key"
    assert found.value_error < 1e-9
    np.testing.assert_allclose(found.error, np.linalg.norm(v[1] - v[4]) / 9, rtol=1e-6)
    np.testing.assert_allclose(found.weight_error, found.error, rtol=1e-6)
    assert found.key == 4
    assert found.weights[4] < 1e-6 < found.best_weights[4]
    assert "key 4" in str(found)
    masked = diagnose(KEYS[[1]], KEYS, v, v[4], mask=np.arange(6) != 4)  # what it may not see, it cannot bring
    assert masked.value_error > 0.3
    assert masked.best_weights[4] == 0


def test_a_value_that_carries_the_wrong_thing(rng: np.random.Generator) -> None:
    """The query finds key 2, whose value was to be `wanted` and is another."""
    v, wanted = values(rng), np.array([-5.0, 0, 0, 0])
    v[2, 0] = v[:, 0].min() - 1  # the nearest to it by far
    v[2, 1:] = 0
    found = diagnose(KEYS[[2]], KEYS, v, wanted)
    assert found.verdict == "value"
    assert (found.key, found.key_rank) == (2, 0)
    assert found.weight_error < 1e-6
    np.testing.assert_allclose(found.value_error, np.linalg.norm(v[2] - wanted) / 5, rtol=1e-6)
    mended = v.copy()
    mended[2] = wanted
    assert diagnose(KEYS[[2]], KEYS, mended, wanted).verdict == "right"


def test_the_key_that_was_meant(rng: np.random.Generator) -> None:
    """It is found and carries noise; a mixture of other values would come nearer by chance, which is not what was meant."""
    v, wanted = rng.standard_normal((6, 4)), np.array([1.0, 1, 1, 1])
    by_chance = diagnose(KEYS[[2]], KEYS, v, wanted)
    assert by_chance.verdict == "both"
    found = diagnose(KEYS[[2]], KEYS, v, wanted, wanted_key=2)
    assert found.verdict == "value"
    np.testing.assert_allclose(found.value_error, np.linalg.norm(v[2] - wanted) / 2)
    v[4] = wanted
    missed = diagnose(KEYS[[2]], KEYS, v, wanted, wanted_key=4)
    assert (missed.verdict, missed.key, missed.value_error) == ("query-key", 4, 0)
    assert missed.key_rank == 1  # one key is before it, and four are beside it
    assert_refused(lambda: diagnose(KEYS[[2]], KEYS, v, wanted, wanted_key=4, mask=np.arange(6) < 4), ValueError, "wanted_key", "4")


def test_both_at_fault(rng: np.random.Generator) -> None:
    v = values(rng)
    v[3] = [1, 0, 0, 0]
    found = diagnose(KEYS[[2]], KEYS, v, [-1, 0, 0, 0])
    assert found.verdict == "both"
    assert found.error**2 >= found.value_error**2 + found.weight_error**2 - 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_the_best_is_the_nearest_point_of_the_hull(seed: int) -> None:
    """SciPy's own constrained minimum over the weights; and its optimality: no value is farther along from the best to the target."""
    rng = np.random.default_rng(seed)
    query, key, value, target = (
        rng.standard_normal((3, 5)),
        rng.standard_normal((8, 5)),
        rng.standard_normal((8, 3)),
        rng.standard_normal(3),
    )
    found = diagnose(query, key, value, target, query_index=1)
    np.testing.assert_allclose(found.out, reference(query, key, value).out[1], rtol=1e-12)
    np.testing.assert_allclose(found.best_weights @ value, found.best, rtol=1e-12)
    assert found.best_weights.min() >= 0
    np.testing.assert_allclose(found.best_weights.sum(), 1, rtol=1e-12)
    assert ((value - found.best) @ (target - found.best)).max() < 1e-9
    free = minimize(
        lambda w: np.square(w @ value - target).sum(),
        np.full(8, 1 / 8),
        bounds=[(0, 1)] * 8,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-14},
    )
    np.testing.assert_allclose(found.value_error * np.linalg.norm(target), np.sqrt(free.fun), atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_the_best_direction(seed: int) -> None:
    rng = np.random.default_rng(seed)
    query, key, value = rng.standard_normal((3, 5)), rng.standard_normal((8, 5)), rng.standard_normal((8, 4))
    aim = rng.standard_normal(4)
    value += 0.5 * aim if seed % 2 else -4 * aim  # towards the target, and away from it
    found = diagnose(query, key, value, 100 * aim, direction=True)

    def cosine(x: NDArray[Any]) -> Any:
        return x @ aim / np.linalg.norm(x, axis=-1) / np.linalg.norm(aim)

    np.testing.assert_allclose(found.error, 1 - cosine(found.out), rtol=1e-9)
    np.testing.assert_allclose(found.value_error, 1 - cosine(found.best), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.error, found.value_error + found.weight_error)
    tried = np.concatenate([rng.dirichlet(np.full(8, alpha), 20000) for alpha in (0.05, 0.2, 1)])
    assert (1 - cosine(tried @ value)).min() >= found.value_error - 1e-12
    assert (1 - cosine(tried @ value)).min() < found.value_error + 0.05


def test_diagnosis_refuses(rng: np.random.Generator) -> None:
    v = values(rng)
    assert_refused(lambda: diagnose(KEYS, KEYS, v, np.zeros(4)), ValueError, "target", "not all of them 0")
    assert_refused(lambda: diagnose(KEYS, KEYS, v, v[0, :3]), ValueError, "target", "(4,)", "(3,)")
    assert_refused(lambda: diagnose(KEYS[None], KEYS, v, v[0]), ValueError, "query", "one head")
    assert_refused(lambda: diagnose(KEYS, KEYS, v, v[0], query_index=6), ValueError, "query_index", "below 6")
    assert_refused(lambda: diagnose(KEYS, KEYS, v, v[0], mask=np.zeros(6, bool)), ValueError, "query_index", "may attend")
    assert_refused(lambda: diagnose(KEYS, KEYS, v, v[0], heads=[0]), TypeError, "options", "heads")
    assert_refused(lambda: diagnose(KEYS, KEYS, v, v[0], dropout_p=0.5), TypeError, "diagnose", "no dropout", "dropout_p")
    assert_refused(lambda: diagnose(KEYS, KEYS, v, v[0], tolerance=0), ValueError, "tolerance", "above 0")
    assert_refused(lambda: diagnose(KEYS, KEYS, v[:5], v[0]), ValueError, "value")


# --- subspaces -------------------------------------------------------------------------------------------------------------------------

ANIMALS = np.array(["cat", "dog", "eel"])


def planted(rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
    """Two heads of width 8; the first has the label along axes 2, 5 and 6, the second nothing."""
    kind = rng.integers(3, size=240)
    value = rng.standard_normal((2, 240, 8))
    value[0] += 4 * np.eye(8)[[2, 5, 6]][kind]
    value[0, kind == 1, 7] *= 5  # how "dog" spreads
    return value, ANIMALS[kind]


@pytest.mark.parametrize("method", ["ridge", "logistic"])
def test_a_probe_finds_what_was_planted(method: Any, rng: np.random.Generator) -> None:
    if method == "logistic":
        pytest.importorskip("sklearn", reason="scikit-learn fits the logistic probe")
    value, labels = planted(rng)
    found = probe_values(value, labels, method=method, controls=3, rng=0)
    assert found.labels.tolist() == ANIMALS.tolist()
    assert found.score[0] > 0.9
    assert abs(found.score[1] - 1 / 3) < 0.12
    assert (abs(found.control - 1 / 3) < 0.12).all()
    assert found.selectivity[0] > 0.5 > 0.15 > abs(found.selectivity[1])
    assert found.chance == np.unique(labels, return_counts=True)[1].max() / 240
    for axis, direction in zip((2, 5, 6), found.directions[0], strict=True):
        np.testing.assert_allclose(np.linalg.norm(direction), 1)
        assert direction.argmax() == axis


@pytest.mark.parametrize("tokens", [240, 7])
def test_ridge_is_the_normal_equations(rng: np.random.Generator, tokens: int) -> None:
    """Of more tokens than columns and of fewer."""
    values, kinds = planted(rng)
    value, labels = values[0, :tokens], kinds[:tokens]
    x = value / np.sqrt(np.square(value).mean())
    targets = (labels[:, None] == np.unique(labels)).astype(float)
    design = np.column_stack([x, np.ones(tokens)])
    weight = np.linalg.solve(design.T @ design + np.diag([3.0] * 8 + [0]), design.T @ targets)[:8].T
    got = probe_values(value, labels, strength=3.0, controls=1, rng=0).directions
    np.testing.assert_allclose(got, weight / np.linalg.norm(weight, axis=1, keepdims=True), atol=1e-10)


def test_what_is_told_was_held_out(rng: np.random.Generator) -> None:
    """With more directions than tokens a probe knows its own tokens by heart: held out, it knows nothing."""
    value, labels = rng.standard_normal((60, 100)), rng.integers(2, size=60)
    found = probe_values(value, labels, strength=1e-6, controls=3, rng=1)
    assert abs(found.score - 0.5) < 0.25
    assert abs(found.selectivity) < 0.25


def test_a_word_that_is_known_by_heart_is_no_class_of_words(rng: np.random.Generator) -> None:
    """40 words, each with a vector of its own and a class that has nothing to do with it: only with groups is that seen."""
    word = np.repeat(np.arange(40), 5)
    value, kind = rng.standard_normal((40, 48))[word] + 0.1 * rng.standard_normal((200, 48)), (word % 2).astype(bool)
    assert probe_values(value, kind, controls=1, rng=0).score > 0.95
    assert probe_values(value, kind, groups=word, controls=1, rng=0).score < 0.75
    value[:, 3] += 9 * kind  # and now it has
    assert probe_values(value, kind, groups=word, controls=1, rng=0).score > 0.85
    assert_refused(lambda: probe_values(value, kind, groups=word[:9]), ValueError, "groups", "(200,)", "(9,)")
    assert_refused(lambda: probe_values(value, kind, groups=word, folds=41), ValueError, "groups", "41", "40")


@pytest.mark.parametrize("method", ["ridge", "logistic"])
def test_a_label_that_a_fold_has_alone(method: Any, rng: np.random.Generator) -> None:
    """The probe that is to tell it has never seen it, and cannot; nor is it told where it is not."""
    if method == "logistic":
        pytest.importorskip("sklearn", reason="scikit-learn fits the logistic probe")
    value = np.ones((10, 2)) * np.arange(10)[:, None]
    found = probe_values(value, np.arange(10) == 4, method=method, controls=1, rng=0)
    assert found.score == 0.9


def test_directions_of_labels(rng: np.random.Generator) -> None:
    value, labels = planted(rng)
    found = label_directions(value, labels, count=2)
    for c, name in enumerate(ANIMALS):
        own = value[0][labels == name]
        np.testing.assert_allclose(found.means[0, c], own.mean(0) - value[0].mean(0), atol=1e-12)
        spread = np.linalg.svd(own - own.mean(0), compute_uv=False) ** 2 / len(own)
        np.testing.assert_allclose(found.variances[0, c], spread[:2], rtol=1e-9)
        around = (own - own.mean(0)) @ found.directions[0, c].T
        np.testing.assert_allclose(np.square(around).mean(0), found.variances[0, c], rtol=1e-9)
    assert abs(found.directions[0, 1, 0]).argmax() == 7
    np.testing.assert_allclose(found.between[0] @ found.between[0].T, np.eye(3), atol=1e-12)
    assert np.square(found.between[0, :2, [2, 5, 6]]).sum() > 1.8  # two directions tell three labels apart, and lie where they were put
    assert found.separation[0, 1] > 0.6
    assert found.separation[1].max() < 0.2
    assert found.separation[0, 2] < 1e-9


def test_subspaces_refuse(rng: np.random.Generator) -> None:
    value, labels = planted(rng)
    assert_refused(lambda: probe_values(value, labels[:9]), ValueError, "labels", "(240,)", "(9,)")
    assert_refused(lambda: probe_values(value, np.zeros(240, int)), ValueError, "labels", "two kinds")
    assert_refused(lambda: probe_values(value, np.zeros(240)), TypeError, "labels", "float64")
    assert_refused(lambda: probe_values(value, labels, folds=241), ValueError, "folds", "240")
    assert probe_values(np.empty((0, 240, 8)), labels).score.shape == (0,)
    assert_refused(lambda: probe_values(value, labels, strength=0), ValueError, "strength", "above 0")
    assert_refused(lambda: probe_values(value, labels, method="forest"), ValueError, "method", "forest")  # type: ignore[arg-type]
    assert_refused(lambda: label_directions(value, labels, count=9), ValueError, "count", "8")
    value[0, 0, 0] = np.nan
    assert_refused(lambda: label_directions(value, labels), ValueError, "value", "finite")
