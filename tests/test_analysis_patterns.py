"""qkvc.analysis on arrays: pattern scores against loops over weights written out, and the rules that make roles of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import qkvc
from qkvc.analysis import PATTERNS, RULES, HeadStatistics, PatternScore, Role, Rule, head_roles, head_statistics, pattern_scores
from qkvc.analysis.patterns import is_punctuation

from .options import OPTIONS, option
from .reference import problem, reference_scores
from .support import assert_refused, operands

NAN = np.nan


def belongs(name: str, p: int, j: int, words: Any) -> bool:
    """The table of the docstring, of one query and one key."""
    if name in ("duplicate", "induction"):
        behind = int(name == "induction")
        return 0 <= p < len(words) and behind <= j < p + behind and words[j - behind] == words[p]
    return {
        "previous": j == p - 1,
        "next": j == p + 1,
        "diagonal": j == p,
        "first": j == 0,
        "separator": words[j] == "[SEP]",
        "punctuation": words[j] in (",", "##."),
        "two back": j == p - 2,
    }[name]


def written_out(
    weights: NDArray[Any], allowed: NDArray[np.bool_], position: NDArray[Any], name: str, words: Any
) -> tuple[float, float, int]:
    """Score, uniform score and number of queries of one head."""
    mass, alike = [], []
    for w, may, p in zip(weights, allowed, position, strict=True):
        on = np.array([bool(may[j]) and belongs(name, int(p), j, words) for j in range(len(w))])
        if on.any():
            mass.append(w[on].sum())
            alike.append(on.sum() / may.sum())
    return (float(np.mean(mass)), float(np.mean(alike)), len(mass)) if mass else (NAN, NAN, 0)


CASES: dict[str, dict[str, Any]] = {
    "causal, square": {"causal": True},
    "window, square": {"window": (1, 3)},
    "no next": {"window": (-1, 0)},
    "no previous": {"window": (0, -1)},
    "bottom-right with ALiBi": {"causal": "bottom-right", "alibi_slopes": [0.5, 0.1, -0.3, 2.0]},
    "lengths, bottom-right": {"causal": "bottom-right", "key_lengths": [5, 13], "sinks": [0.3, 1.0, -1.0, 0.0]},
    "offset": {"q_offset": [-2, 6], "causal": True},
    "offset that only says where": {"q_offset": 3, "alibi_slopes": 0.0},
}


@pytest.mark.parametrize("case", [*CASES, *(name for name in OPTIONS if name != "head_scale")])
def test_by_definition(rng: np.random.Generator, case: str) -> None:
    batch, heads, lengths = (2,), (4, 2), (13, 13) if case in list(CASES)[:4] else (9, 13)
    query, key = (np.float64(x) for x in operands(rng, batch, heads, lengths, (8, 1))[:2])
    options = CASES[case] if case in CASES else option(rng, case, batch, heads[0], lengths)
    options.pop("head_scale", None)
    words = rng.choice(["a", "b", "c", ",", "##.", "[SEP]"], (2, 13))
    custom = {"two back": lambda p, j: j == p - 2}
    got = pattern_scores(query, key, tokens=words, custom=custom, **options)
    turned = pattern_scores(query.swapaxes(1, 2), key.swapaxes(1, 2), tokens=words, custom=custom, layout="blhd", **options)
    of = problem(query, key, **options)
    weights = reference_scores(query, key, **options)
    allowed = np.broadcast_to(of.allowed, weights.shape)
    positions = np.zeros((2, lengths[0]), int) + np.arange(lengths[0])
    if "q_offset" in options:
        positions = np.arange(lengths[0]) + np.broadcast_to(options["q_offset"], (2,))[:, None]
    elif options.get("causal") == "bottom-right":
        positions = positions + np.broadcast_to(options.get("key_lengths", 13), (2,))[:, None] - lengths[0]
    assert list(got) == [*PATTERNS, "two back"]
    for name, score in got.items():
        assert {x.shape for x in score} == {(2, 4)}, name
        np.testing.assert_array_equal(score, turned[name])
        for b, h in np.ndindex(2, 4):
            expected = written_out(weights[b, h], allowed[b, h], positions[b], name, words[b])
            np.testing.assert_allclose([x[b, h] for x in score], expected, rtol=1e-11, atol=1e-13, err_msg=f"{case}: {name} {b} {h}")


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.booleans(), st.integers(0, 2**32 - 1))
def test_one_head_without_axes(words: list[int], causal: bool, seed: int) -> None:
    """Two axes, integers for tokens, float32."""
    query, key = np.random.default_rng(seed).standard_normal((2, len(words), 4), np.float32)
    got = pattern_scores(query, key, tokens=words, causal=causal, custom={"all": np.ones(len(words), bool)})
    assert list(got) == ["previous", "next", "diagonal", "first", "duplicate", "induction", "all"]
    weights = reference_scores(np.float64(query), np.float64(key), causal=causal)
    allowed = np.tri(len(words), dtype=bool) if causal else np.ones((len(words),) * 2, bool)
    for name, score in got.items():
        expected = (1, 1, len(words)) if name == "all" else written_out(weights, allowed, np.arange(len(words)), name, words)
        np.testing.assert_allclose(score, expected, rtol=1e-12, err_msg=name)


def test_a_mask_of_ones_own_and_nothing_else(isa: str, rng: np.random.Generator) -> None:
    query, key, _ = operands(rng, (), (3, 3), (6, 8), (4, 4))
    pattern = rng.random((3, 6, 8)) < 0.3
    got = pattern_scores(query, key, patterns=(), custom={"mine": pattern})
    assert list(got) == ["mine"]
    mass = np.where(pattern, qkvc.attention_weights(query, key), 0).sum(-1)
    np.testing.assert_allclose(got["mine"].score, [m[on.any(-1)].mean() for m, on in zip(mass, pattern, strict=True)], rtol=1e-6)


def test_scores_stay_within_0_and_1(rng: np.random.Generator) -> None:
    """Sharp scores, where a mass is all there is, to the last bit."""
    query, key, _ = operands(rng, (), (8, 8), (64, 64), (32, 32))
    got = pattern_scores(40 * query, key, tokens=np.zeros(64, int), custom={"all": np.ones((1, 1), bool)})
    for name, score in got.items():
        assert ((score.score >= 0) & (score.score <= 1)).all(), name
    np.testing.assert_allclose(got["all"].score, 1, rtol=1e-5)


def test_punctuation() -> None:
    for token in (".", ",", "##.", "Ġ(", "▁!", "...", "。", "、", "“", "##", "$", "▁", " (", " –"):
        assert is_punctuation(token), token
    for token in ("", "a", "##ing", "Ġthe", "[SEP]", "3.5", "猫", "▁a", " ", "\n", " a"):
        assert not is_punctuation(token), token


@pytest.mark.parametrize(("heads", "l_q", "l_k"), [(2, 0, 3), (2, 3, 0), (0, 3, 3)])
def test_nothing_to_see(heads: int, l_q: int, l_k: int) -> None:
    """No query has a pattern: NaN, and no warning."""
    query, key = np.zeros((heads, l_q, 4)), np.zeros((heads, l_k, 4))
    for found in pattern_scores(query, key, tokens=np.full(l_k, "a")).values():
        assert found.score.shape == (heads,)
        assert heads == 0 or l_q == l_k or (np.isnan(found.score).all() and not found.queries.any())
    assert np.isnan(head_statistics(query, key).entropy).all()


# --- roles -----------------------------------------------------------------------------------------------------------------------------


def score(*values: float, uniform: float = 0.1) -> PatternScore:
    return PatternScore(np.array(values), np.full(len(values), uniform), np.full(len(values), 3))


def test_roles_by_rule() -> None:
    scores = {"previous": score(0.9, 0.39, 0.5, NAN), "induction": score(0.1, 0.39, 0.6, NAN), "first": score(0.0, 0.41, 0.6, 0.4)}
    roles = head_roles(scores)
    assert list(roles) == [Role("previous", 0.9), Role("first", 0.41), Role("induction", 0.6), Role("first", 0.4)]
    assert list(head_roles({"first": score(0.5, 0.7, uniform=0.3)})) == [None, Role("first", 0.7)]
    few = score(0.9)._replace(queries=np.array([2]))
    assert list(head_roles({"duplicate": few})) == [None]
    assert list(head_roles({"duplicate": few._replace(queries=few.queries + 1)})) == [Role("duplicate", 0.9)]
    mine = (Rule("mine", "first", 0.0, 0.0), *RULES)
    assert [role.name for role in head_roles(scores, rules=mine)] == ["mine"] * 4


def test_heads_made_for_a_role(isa: str, rng: np.random.Generator) -> None:
    """Keys that are one-hot, so that each head looks where it was told to."""
    words = [5, 7, 9, 5, 7, 9, 5, 7, 9, 5]
    length, eye = len(words), np.eye(len(words))
    wanted = {"previous": np.eye(length, k=-1), "next": np.eye(length, k=1), "self": eye, "first": np.tile(eye[0], (length, 1))}
    query = np.stack([30 * x for x in (*wanted.values(), np.zeros_like(eye))])
    key = np.broadcast_to(eye, query.shape)
    roles = head_roles(pattern_scores(query, key, tokens=words), head_statistics(query, key))
    assert [role.name for role in roles] == [*wanted, "broad"]
    behind = np.array([[words[j - 1] == word if 0 < j <= i else False for j in range(length)] for i, word in enumerate(words)])
    roles = head_roles(pattern_scores(30.0 * behind[None], eye[None], tokens=words, causal=True))
    assert [role.name for role in roles] == ["induction"]
    assert head_roles({"first": PatternScore(np.full((2, 3), 0.5), np.zeros((2, 3)), np.ones((2, 3), int))}).shape == (2, 3)


def test_random_heads_have_none(rng: np.random.Generator) -> None:
    query, key, _ = operands(rng, (), (32, 32), (24, 24), (16, 16))
    scores = pattern_scores(2 * query, key, tokens=rng.integers(0, 8, 24), causal=True)
    assert not any(head_roles(scores))


SENTENCES = (
    "The animal didn't cross the street because it was too tired.",
    "The cat sat on the mat, and the dog slept by the door; the cat woke up.",
    "When Mary went to the store, she bought milk, bread, and eggs. Then Mary went home.",
)


@pytest.fixture(scope="module")
def watched() -> list[Any]:
    from qkvc.models import MiniLM

    try:
        model = MiniLM.from_package()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    return [model.watch(sentence) for sentence in SENTENCES]


def test_roles_of_a_real_model(watched: list[Any], figures: list[str]) -> None:
    """What heads of MiniLM do on every sentence, with their scores; statistics as of the weights in float64."""
    found: dict[tuple[int, int], list[Role | None]] = {}
    for watch in watched:
        for layer, (query, key) in enumerate(zip(watch.query, watch.key, strict=True)):
            statistics = head_statistics(query, key)
            written = HeadStatistics.from_weights(reference_scores(query, key))
            for got, expected in zip(statistics[:5], written[:5], strict=True):
                np.testing.assert_allclose(got, expected, rtol=1e-6)
            for head, role in enumerate(head_roles(pattern_scores(query, key, tokens=watch.tokens), statistics)):
                found.setdefault((layer, head), []).append(role)

    def scores(layer: int, head: int, name: str) -> list[float]:
        return [role.score for role in found[layer, head] if role is not None and role.name == name]

    assert scores(0, 2, "previous") == pytest.approx([1.0] * 3, abs=0.01)
    assert scores(1, 8, "next") == pytest.approx([0.57, 0.69, 0.64], abs=0.02)
    assert scores(2, 9, "duplicate") == pytest.approx([0.59, 0.44], abs=0.02)  # the first sentence has but one word twice
    assert scores(3, 11, "punctuation") == pytest.approx([0.45], abs=0.02)
    assert min(len(scores(4, 5, "first")), len(scores(1, 11, "first"))) == 3
    names = [role.name for roles in found.values() for role in roles if role is not None]
    counted = ", ".join(f"{names.count(name)} {name}" for name in sorted(set(names), key=names.count, reverse=True))
    figures.append(f"roles of MiniLM's 72 heads on three sentences: {counted}, {216 - len(names)} none")


def test_misuse(rng: np.random.Generator) -> None:
    x: Any = np.ones((2, 4, 8))
    assert_refused(lambda: pattern_scores(x, x, patterns=["last"]), ValueError, "pattern_scores", "patterns", "'last'")
    assert_refused(lambda: pattern_scores(x, x, patterns=["induction"]), ValueError, "tokens", "integers or strings", "induction")
    assert_refused(lambda: pattern_scores(x, x, tokens=[1, 2, 3, 4], patterns=["separator"]), ValueError, "tokens", "strings")
    assert_refused(lambda: pattern_scores(x, x, tokens=[1, 2, 3]), ValueError, "tokens", "(4,)", "(3,)")
    assert_refused(lambda: pattern_scores(x, x, tokens=[1.0, 2, 3, 4]), TypeError, "tokens", "float64")
    assert_refused(lambda: pattern_scores(x, x, custom={"first": np.ones((4, 4), bool)}), ValueError, "custom", "'first'")
    assert_refused(lambda: pattern_scores(x, x, custom={"mine": np.ones((4, 4))}), TypeError, "custom['mine']", "float64")
    assert_refused(lambda: pattern_scores(x, x, custom={"mine": np.ones((5, 4), bool)}), ValueError, "custom['mine']", "(5, 4)")
    assert_refused(lambda: pattern_scores(x, x, custom={"mine": lambda p, j: p}), TypeError, "custom['mine']", "int64")  # type: ignore[dict-item,arg-type,return-value]
    assert_refused(lambda: pattern_scores(x, x, tokens=np.ones((3, 4), int)), ValueError, "tokens", "(3, 4)")
    assert_refused(lambda: pattern_scores(x, x, patterns="first"), TypeError, "patterns", "one string")
    assert_refused(lambda: pattern_scores(x, x, tokens=list("abcd"), separators="[SEP]"), TypeError, "separators", "one string")
    assert_refused(lambda: pattern_scores(x, x, patterns=5), TypeError, "patterns", "collection", "int")  # type: ignore[arg-type]
    assert_refused(lambda: pattern_scores(x, x, separators=5), TypeError, "separators", "collection", "int")  # type: ignore[arg-type]
    assert_refused(lambda: pattern_scores(x, x, custom=[x]), TypeError, "custom", "mapping", "list")  # type: ignore[arg-type]
    assert_refused(lambda: pattern_scores(1e6 * x, 1e6 * x), ValueError, "pattern_scores", "scores within 1e+09")
    assert_refused(lambda: head_roles([x]), TypeError, "head_roles", "scores", "list")  # type: ignore[arg-type]
    assert_refused(lambda: head_roles({"first": score(1.0)}, rules=5), TypeError, "head_roles", "rules", "int")  # type: ignore[arg-type]
    assert_refused(lambda: head_roles({}), ValueError, "head_roles", "scores", "none")
    assert_refused(lambda: head_roles({"first": score(1.0), "next": score(1.0, 2.0)}), ValueError, "scores", "one shape")
