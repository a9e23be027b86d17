"""What is seen of a model, and what interventions do: against softmax(Q K^T / sqrt(D)) V, written out in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qkvc.models import Bert, Edit, MiniLM, Watch

from .checkpoints import BERT, bert_tensors

IDS = [3, 41, 7, 7, 19, 2, 30]


@pytest.fixture(scope="module")
def model() -> Bert:
    return Bert(BERT, bert_tensors(np.random.default_rng(5)))


def explicit(seen: Watch, layer: int, mask: NDArray[np.bool_] | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
    """The weights (H, L, L) and what the heads bring back."""
    q, k, v = (x[layer].astype(float) for x in (seen.query, seen.key, seen.value))
    group = len(q) // len(k)
    scores = q @ np.repeat(k, group, 0).swapaxes(1, 2) / np.sqrt(q.shape[-1])
    allowed = np.tri(q.shape[1], dtype=bool) if seen.causal else np.ones(scores.shape[1:], bool)
    allowed = allowed if mask is None else allowed & mask
    weights = np.where(allowed, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    return weights, weights @ np.repeat(v, group, 0)


def check_consistent(model: Any, seen: Watch) -> None:
    """Everything in a Watch follows from what stands before it."""
    length, layers = len(seen.ids), model.num_layers
    assert seen.states.shape == (layers + 1, length, seen.output.shape[-1])
    assert {len(x) for x in (seen.inputs, seen.query, seen.key, seen.value, seen.heads, seen.attention, seen.masks)} == {layers}
    for index, attention in enumerate(seen.attention):
        assert attention is model.layers[index].attention
        assert seen.query[index].shape == seen.heads[index].shape == (model.num_heads, length, attention.head_dim)
        weights, heads = explicit(seen, index)
        np.testing.assert_allclose(seen.weights(index), weights, rtol=0, atol=2e-6)
        np.testing.assert_allclose(seen.weights(index, [1]), weights[[1]], rtol=0, atol=2e-6)
        np.testing.assert_allclose(seen.heads[index], heads, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(seen.heads[index], attention.heads(seen.inputs[index], causal=seen.causal))


def test_bert_is_seen_as_it_computes(model: Bert) -> None:
    seen = model.watch(IDS)
    assert seen.tokens == [str(token) for token in IDS]
    assert not seen.causal
    assert (model.num_layers, model.num_heads) == (BERT["num_hidden_layers"], BERT["num_attention_heads"])
    check_consistent(model, seen)
    np.testing.assert_array_equal(seen.states, model.hidden_states([IDS], [len(IDS)])[:, 0])
    np.testing.assert_array_equal(seen.output, seen.states[-1])


def test_a_removed_head_adds_nothing(model: Bert) -> None:
    plain, scale = model.watch(IDS), [1, 0, 1, 0.5]
    seen = model.watch(IDS, [Edit(1, head_scale=scale)])
    np.testing.assert_array_equal(seen.states[:2], plain.states[:2])
    np.testing.assert_allclose(seen.heads[1], plain.heads[1] * np.reshape(scale, (4, 1, 1)), rtol=1e-6, atol=1e-6)
    assert not seen.heads[1][1].any()
    assert (np.abs(seen.states[2:] - plain.states[2:]).max(axis=(1, 2)) > 1e-2).all()
    by_hand = model.watch(IDS, [Edit(1, replace=lambda heads: heads * np.reshape(scale, (4, 1, 1)))])
    np.testing.assert_allclose(by_hand.states, seen.states, rtol=0, atol=1e-5)
    twice = model.watch(IDS, [Edit(1, head_scale=[1, 0, 1, 1]), Edit(1, head_scale=[1, 1, 1, 0.5])])
    np.testing.assert_array_equal(twice.states, seen.states)


def test_a_knocked_out_edge_carries_nothing(model: Bert) -> None:
    length = len(IDS)
    one, two = np.ones((4, length, length), bool), np.ones((1, length, length), bool)
    one[2, 5, 1] = two[0, 3] = False
    seen = model.watch(IDS, [Edit(0, mask=one), Edit(0, mask=two[0])])
    weights, heads = explicit(seen, 0, one & two)
    assert weights[2, 5, 1] == weights[:, 3].max() == 0
    np.testing.assert_allclose(seen.weights(0), weights, rtol=0, atol=2e-6)
    np.testing.assert_allclose(seen.heads[0], heads, rtol=0, atol=1e-5)
    assert not seen.heads[0][:, 3].any(), "a query that may attend to nothing"


def test_values_and_heads_can_be_replaced(model: Bert) -> None:
    plain = model.watch(IDS)
    other = model.watch(IDS[::-1])

    def first_token_of_head_2(value: NDArray[np.float32]) -> NDArray[np.float32]:
        value[2, 0] = 0  # which queries and keys, in the same product's memory, do not see
        return value

    seen = model.watch(IDS, [Edit(0, value=first_token_of_head_2), Edit(2, replace=lambda heads: other.heads[2])])
    assert not seen.value[0][2, 0].any()
    np.testing.assert_array_equal(seen.value[0][3], plain.value[0][3])
    np.testing.assert_array_equal([seen.query[0], seen.key[0]], [plain.query[0], plain.key[0]])
    np.testing.assert_allclose(seen.heads[0], explicit(seen, 0)[1], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(seen.heads[2], other.heads[2])
    np.testing.assert_array_equal(model.watch(IDS).states, plain.states)


def test_queries_and_keys_can_be_replaced(model: Bert) -> None:
    plain, other = model.watch(IDS), model.watch(IDS[::-1])
    for name in ("query", "key"):
        seen = model.watch(IDS, [Edit(1, **{name: lambda x, name=name: getattr(other, name)[1]})])
        np.testing.assert_array_equal(getattr(seen, name)[1], getattr(other, name)[1])
        for kept in {"query", "key", "value"} - {name}:
            np.testing.assert_array_equal(getattr(seen, kept)[1], getattr(plain, kept)[1])
        weights, heads = explicit(seen, 1)
        np.testing.assert_allclose(seen.weights(1), weights, rtol=0, atol=2e-6)
        np.testing.assert_allclose(seen.heads[1], heads, rtol=0, atol=1e-5)
        assert np.abs(heads - plain.heads[1]).max() > 1e-2, name


L, H = len(IDS), BERT["num_attention_heads"]


@pytest.mark.parametrize(
    ("edits", "error", "parts"),
    [
        ([Edit(3)], ValueError, ("layer", "0 to 2", "3")),
        ([Edit(-1)], ValueError, ("layer", "-1")),
        ([Edit("0")], TypeError, ("layer", "str")),  # type: ignore[arg-type]
        ([1], TypeError, ("edits", "Edit", "int")),
        ([Edit(0, head_scale=[1, 0])], ValueError, ("head_scale", "(4,)", "(2,)")),
        ([Edit(0, head_scale=[1, 0, 1, np.nan])], ValueError, ("head_scale", "finite", "nan")),
        ([Edit(0, mask=np.ones((H, L, L)))], TypeError, ("mask", "float64")),
        ([Edit(0, mask=np.ones((2, L, L), bool))], ValueError, ("mask", "(4 or 1, 7, 7)", "(2, 7, 7)")),
        ([Edit(0, mask=np.ones((L, 1), bool))], ValueError, ("mask", "(7, 1)")),
        ([Edit(0, value=3)], TypeError, ("value", "function", "int")),  # type: ignore[arg-type]
        ([Edit(0, key=3)], TypeError, ("key", "function", "int")),  # type: ignore[arg-type]
        ([Edit(0, query=lambda query: query[:, :1])], ValueError, ("query", "(4, 7, 6)", "(4, 1, 6)")),
        ([Edit(0, value=lambda value: value[:1])], ValueError, ("value", "(4, 7, 6)", "(1, 7, 6)")),
        ([Edit(0, replace=lambda heads: None)], TypeError, ("replace", "None")),  # type: ignore[arg-type, return-value]
        ([Edit(0, replace=lambda heads: heads * 1j)], TypeError, ("replace", "complex")),
    ],
)
def test_edits_that_do_not_fit(model: Bert, edits: Any, error: type[Exception], parts: tuple[str, ...]) -> None:
    with pytest.raises(error) as caught:
        model.watch(IDS, edits)
    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize(
    ("text", "error", "parts"),
    [
        ("words", ValueError, ("text", "without a tokenizer")),
        ([], ValueError, ("1 to 32 tokens", "0 of them")),
        ([1] * 33, ValueError, ("1 to 32 tokens", "33 of them")),
        ([[1, 2]], ValueError, ("1 to 32 tokens", "shape (1, 2)")),
        ([50], ValueError, ("text", "0 to 49", "50")),
        ([-1], ValueError, ("text", "-1")),
        ([1.0], TypeError, ("text", "integers", "float64")),
        (None, TypeError, ("text", "None")),
    ],
)
def test_texts_that_are_none(model: Bert, text: Any, error: type[Exception], parts: tuple[str, ...]) -> None:
    with pytest.raises(error) as caught:
        model.watch(text)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_the_real_model_is_seen() -> None:
    try:
        model = MiniLM.from_package()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    seen = model.watch("The animal was too tired.")
    assert seen.tokens == ["[CLS]", "the", "animal", "was", "too", "tired", ".", "[SEP]"]
    check_consistent(model, seen)
    with pytest.raises(ValueError, match="layer: expected an integer from 0 to 5, got 6"):
        seen.weights(6)
    with pytest.raises(ValueError, match=r"tokens: text: expected letters, got '\\udcff', half of one"):
        model.watch("an \udcff")
