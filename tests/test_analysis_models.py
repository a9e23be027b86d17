"""Interventions in whole models, against the same done by hand to what passes through them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qkvc.analysis import (
    ablate,
    duplicate_heads,
    effect,
    idle_heads,
    knock_out,
    override_values,
    prune_model,
    relation_scores,
    remove_heads,
)
from qkvc.models import GPT2, Bert, Edit, LanguageModel, Llama

from .checkpoints import BERT, bert_tensors, gpt2_tensors, llama_tensors
from .checkpoints import GPT2 as GPT2_CONFIG
from .checkpoints import LLAMA as LLAMA_CONFIG
from .support import assert_refused

TEXTS = [[3, 41, 7, 7, 19, 2, 30], [8, 2, 2, 11]]
LAYERS, HEADS = BERT["num_hidden_layers"], BERT["num_attention_heads"]


@pytest.fixture(scope="module")
def model() -> Bert:
    return Bert(BERT, bert_tensors(np.random.default_rng(5)))


def onwards(model: Bert, text: list[int], layer: int, heads: NDArray[Any]) -> NDArray[Any]:
    """The output, if the heads of a layer had brought back these."""
    seen = model.watch(text)
    states = model.layers[layer].after(seen.states[layer], model.layers[layer].attention.output(heads))
    for block in model.layers[layer + 1 :]:
        states = block.after(states, block.attention(block.reads(states)))
    return states.astype(float)


def numbers(before: NDArray[Any], after: NDArray[Any]) -> list[float]:
    def cosine(a: NDArray[Any], b: NDArray[Any]) -> Any:
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    change = np.linalg.norm(after - before) / np.linalg.norm(before)
    return [change, np.mean([cosine(a, b) for a, b in zip(before, after, strict=True)]), cosine(before.mean(0), after.mean(0))]


@pytest.mark.parametrize("how", ["zero", "mean"])
def test_every_head_of_every_layer(model: Bert, how: Any) -> None:
    steps: list[tuple[int, int]] = []
    found = ablate(model, TEXTS, how=how, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(n + 1, LAYERS * HEADS) for n in range(LAYERS * HEADS)]
    for layer in range(LAYERS):
        for head in range(HEADS):
            rows = np.concatenate([model.watch(text).heads[layer][head] for text in TEXTS])
            expected = []
            for text in TEXTS:
                seen = model.watch(text)
                heads = seen.heads[layer].copy()
                heads[head] = rows.mean(0) if how == "mean" else 0
                expected.append(numbers(seen.output.astype(float), onwards(model, text, layer, heads)))
            got = [part[layer, head] for part in (found.change, found.cosine, found.sentence_cosine)]
            np.testing.assert_allclose(got, np.mean(expected, axis=0), rtol=1e-4, atol=1e-6)


def test_resampling_takes_rows_of_the_same_head(model: Bert) -> None:
    """Of a text whose tokens all stand for each other nothing changes, but by their positions; the seed repeats it."""
    pairs = [(0, 1), (2, 3)]
    one, same, other = (ablate(model, TEXTS, heads=pairs, how="resample", rng=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.change, same.change)
    assert (one.change[0, 1], one.change[2, 3]) != (other.change[0, 1], other.change[2, 3])
    assert np.isnan(one.change).sum() == LAYERS * HEADS - len(pairs)
    drawn = np.random.default_rng(3)
    rows = np.concatenate([model.watch(text).heads[2][3] for text in TEXTS])
    expected = []
    for text in TEXTS:
        seen = model.watch(text)
        heads = seen.heads[2].copy()
        heads[3] = rows[drawn.integers(len(rows), size=len(text))]
        expected.append(numbers(seen.output.astype(float), onwards(model, text, 2, heads)))
    np.testing.assert_allclose(one.change[2, 3], np.mean(expected, axis=0)[0], rtol=1e-4)
    alone = ablate(model, [TEXTS[0][:1]], heads=pairs, how="resample", rng=0)
    assert alone.change[0, 1] < 1e-6  # one token has itself only


def test_a_head_that_does_nothing_is_idle(model: Bert) -> None:
    quiet = prune_model(model, [])
    quiet.layers[1].attention = model.layers[1].attention.astype("float32")
    quiet.layers[1].attention.W_O[2] *= 1e-4
    found = idle_heads(ablate(quiet, TEXTS))
    assert [(idle.layer, idle.head) for idle in found] == [(1, 2)]
    assert 0 < found[0].change < 1e-3
    assert found[0].sentence_cosine > 0.9999
    assert idle_heads(ablate(model, TEXTS[1])) == []
    ordered = idle_heads(ablate(model, TEXTS), below=10)
    assert len(ordered) == LAYERS * HEADS
    assert [idle.change for idle in ordered] == sorted(idle.change for idle in ordered)


def test_an_effect_is_of_all_edits_at_once(model: Bert) -> None:
    edits = [remove_heads(0, [1], HEADS), remove_heads(2, [0, 3], HEADS)]
    got = effect(model, TEXTS, edits)
    expected = [numbers(model.watch(text).output.astype(float), model.watch(text, edits).output.astype(float)) for text in TEXTS]
    np.testing.assert_allclose(got, np.mean(expected, axis=0), rtol=1e-12)
    assert effect(model, TEXTS, []) == pytest.approx((0, 1, 1))


def test_pruned_models_are_ablated_by_zero(model: Bert) -> None:
    gone = [(0, 1), (2, 0), (2, 3)]
    pruned = prune_model(model, gone)
    scale = [remove_heads(0, [1], HEADS), remove_heads(2, [0, 3], HEADS)]
    np.testing.assert_allclose(pruned.watch(TEXTS[0]).output, model.watch(TEXTS[0], scale).output, rtol=0, atol=2e-5)
    assert [layer.attention.num_heads for layer in pruned.layers] == [3, 4, 2]
    assert [layer.attention.num_heads for layer in model.layers] == [4, 4, 4]
    assert type(pruned) is Bert
    again = ablate(pruned, TEXTS)  # layers with heads of their own number
    assert np.isnan(again.change).sum() == len(gone)
    assert_refused(lambda: prune_model(model, [(3, 0)]), ValueError, "heads", "layers below 3")


def test_knocked_out_edges(model: Bert) -> None:
    text = TEXTS[0]
    edges = [(5, 1), (5, 2), (0, 0)]
    everywhere = model.watch(text, [knock_out(1, edges, len(text))]).weights(1)
    one = model.watch(text, [knock_out(1, edges, len(text), heads=[2], num_heads=HEADS)]).weights(1)
    plain = model.watch(text).weights(1)
    for query in range(len(text)):
        left = [key for key in range(len(text)) if (query, key) not in edges]
        for h in range(HEADS):
            expected = np.zeros(len(text))
            expected[left] = plain[h, query, left] / plain[h, query, left].sum()
            np.testing.assert_allclose(everywhere[h, query], expected, atol=1e-6)
            np.testing.assert_allclose(one[h, query], expected if h == 2 else plain[h, query], atol=1e-6)


def test_overridden_values(model: Bert, rng: np.random.Generator) -> None:
    text, given = TEXTS[0], rng.standard_normal((2, 1, 6)).astype(np.float32)
    plain = model.watch(text)
    seen = model.watch(text, [override_values(1, given, [4], heads=[0, 3]), override_values(2, 0, [1, 2])])
    expected = plain.value[1].copy()
    expected[[0, 3], 4] = given[:, 0]
    np.testing.assert_array_equal(seen.value[1], expected)
    np.testing.assert_array_equal(seen.weights(1), plain.weights(1))
    np.testing.assert_allclose(seen.heads[1], plain.weights(1) @ expected, atol=1e-5)
    assert not seen.value[2][:, [1, 2]].any()
    assert seen.value[2][:, 3:].all()
    edit, kept = override_values(1, given, [4], heads=[0, 3]), given.copy()
    given[...] = 0  # the edit has its own copy
    np.testing.assert_array_equal(model.watch(text, [edit]).value[1][[0, 3], 4], kept[:, 0])


def test_interventions_refuse(model: Bert) -> None:
    assert_refused(lambda: knock_out(0, [(0, 3)], 3), ValueError, "knock_out", "edges", "0 to 2", "3")
    assert_refused(lambda: knock_out(0, [(0, 1, 2)], 3), ValueError, "edges", "pairs")  # type: ignore[list-item]
    assert_refused(lambda: knock_out(0, [(0, 1)], 3, heads=[1]), ValueError, "heads", "0 to 0")
    assert_refused(lambda: knock_out(0, [(0, 1), (1,)], 3), TypeError, "knock_out", "edges", "inhomogeneous")  # type: ignore[list-item]
    single: Any = 1
    assert_refused(lambda: knock_out(0, single, 3), TypeError, "knock_out", "edges", "int")
    assert_refused(lambda: remove_heads(0, single, 3), TypeError, "remove_heads", "heads", "int")
    assert_refused(lambda: override_values(0, 0, single), TypeError, "override_values", "tokens", "int")
    assert_refused(lambda: prune_model(model, single), TypeError, "prune_model", "heads", "int")
    assert_refused(lambda: ablate(model, TEXTS, heads=single), TypeError, "ablate", "heads", "int")
    assert_refused(lambda: ablate(model, single), TypeError, "ablate", "texts", "int")
    assert_refused(lambda: effect(model, TEXTS[0], single), TypeError, "watch", "edits", "int")
    assert_refused(lambda: knock_out(-1, [], 3), ValueError, "layer", "-1")
    assert_refused(lambda: remove_heads(0, [4], 4), ValueError, "heads", "0 to 3")
    assert_refused(lambda: model.watch(TEXTS[1], [override_values(0, 0, [4])]), ValueError, "override_values", "tokens", "below 4")
    assert_refused(lambda: model.watch(TEXTS[1], [override_values(0, 0, [0], [4])]), ValueError, "override_values", "heads", "below 4")
    assert_refused(lambda: model.watch(TEXTS[1], [override_values(0, np.ones(5), [0])]), ValueError, "values", "(4, 1, 6)", "(5,)")
    assert_refused(lambda: override_values(0, "a", [0]), TypeError, "values")
    for call in (ablate, effect, duplicate_heads):
        more: tuple[Any, ...] = ([],) if call is effect else ()
        assert_refused(lambda call=call, more=more: call("model", TEXTS, *more), TypeError, call.__name__, "model", "Bert", "str")
    learns = LanguageModel(11, 12, layers=1, heads=2)
    assert_refused(lambda: prune_model(learns, []), TypeError, "prune_model", "LanguageModel (its llama() is one)")
    assert_refused(lambda: ablate(model, []), ValueError, "texts", "none")
    assert_refused(lambda: ablate(model, TEXTS, how="noise"), ValueError, "how", "noise")  # type: ignore[arg-type]
    assert_refused(lambda: ablate(model, TEXTS, heads=[(0, 4)]), ValueError, "heads", "(0, 4)")
    assert_refused(lambda: ablate(model, TEXTS, heads=[3]), TypeError, "heads", "pairs")  # type: ignore[list-item]
    assert_refused(lambda: effect(model, "text", [Edit(0)]), ValueError, "text", "tokenizer")
    assert_refused(lambda: idle_heads(ablate(model, TEXTS, heads=[(0, 0)]), below=0), ValueError, "below", "above 0")


def test_a_copied_head_is_a_duplicate(model: Bert, rng: np.random.Generator) -> None:
    """Head 3 of layer 2 becomes a copy of head 1: without both twice as much is lost as without one, before the norms behind it."""
    copied = prune_model(model, [])
    attention = copied.layers[2].attention = model.layers[2].attention.astype("float32")
    for part in (attention.W_Q, attention.W_K, attention.W_V, attention.W_O):
        part[3] = part[1]
    for bias in (attention.q_bias, attention.k_bias, attention.v_bias):
        bias.reshape(HEADS, -1)[3] = bias.reshape(HEADS, -1)[1]
    texts = rng.integers(50, size=(3, 30)).tolist()
    found = [pair for pair in duplicate_heads(copied, texts, weights=0.05, outputs=0.99) if pair.layer == 2]
    assert [(pair.first, pair.second) for pair in found] == [(1, 3)]
    (pair,) = found
    assert (pair.js, pair.cka, pair.cosine) == pytest.approx((0, 1, 1), abs=1e-3)
    assert pair.change_first == pytest.approx(pair.change_second, rel=1e-3)
    assert pair.change_both > np.hypot(pair.change_first, pair.change_second) * 1.2
    for name, heads in (("change_first", [1]), ("change_both", [1, 3])):
        assert getattr(pair, name) == pytest.approx(effect(copied, texts, [remove_heads(2, heads, HEADS)]).change)
    everything = duplicate_heads(model, texts[0], weights=1, outputs=0)
    assert len(everything) == LAYERS * HEADS * (HEADS - 1) / 2
    assert [pair.js for pair in everything] == sorted(pair.js for pair in everything)
    assert_refused(lambda: duplicate_heads(model, texts, weights=1.5), ValueError, "duplicate_heads", "weights", "0 to 1")


@pytest.mark.parametrize(("query", "key"), [(2, 5), (5, 2), (3, 3), (0, 6), (6, 0)])
def test_relations_against_loops(model: Bert, query: int, key: int) -> None:
    found = relation_scores(model, [(TEXTS[0], query, key), (TEXTS[0], "41", "19")])
    length = len(TEXTS[0])
    others = [i for i in range(length) if i != query]
    near = [i for i in others if 0 <= i + key - query < length]
    for layer in range(LAYERS):
        for head, w in enumerate(model.watch(TEXTS[0]).weights(layer).astype(float)):
            at = (0, layer, head)
            assert found.weight[at] == pytest.approx(w[query, key])
            assert found.same_key[at] == pytest.approx(np.mean([w[i, key] for i in others]))
            assert found.same_distance[at] == pytest.approx(np.mean([w[i, i + key - query] for i in near]) if near else np.nan, nan_ok=True)
            assert found.found[at] == (max(range(1, length), key=lambda j, w=w: w[query, j]) == key)  # type: ignore[misc]
            assert found.weight[1, layer, head] == pytest.approx(w[1, 4])
    assert found.found.dtype == bool


def test_a_weight_that_must_be_0_finds_nothing() -> None:
    found = relation_scores(GPT2(GPT2_CONFIG, gpt2_tensors(np.random.default_rng(6))), [(TEXTS[0], 0, 1), (TEXTS[0], 1, 1)])
    assert not found.weight[0].any()
    assert not found.found[0].any()  # the first token sees itself alone
    assert found.found[1].all()  # and the second, but for the first, as well


def test_relations_that_there_are_not(model: Bert) -> None:
    lone = relation_scores(model, [([3], 0, 0)])
    assert np.isnan(lone.same_key).all()
    assert not lone.found.any()
    assert_refused(lambda: relation_scores(model, 5), TypeError, "relation_scores", "pairs", "int")  # type: ignore[arg-type]
    text = TEXTS[0]
    for pair, words in (
        ((text, "7", 0), ("query", "'7', 2 times")),
        ((text, 0, "8"), ("key", "0 times")),
        ((text, 0, 7), ("key", "0 to 6")),
    ):
        assert_refused(lambda pair=pair: relation_scores(model, [pair]), ValueError, "relation_scores", *words)  # type: ignore[misc]
    assert_refused(lambda: relation_scores(model, []), ValueError, "relation_scores", "pairs", "none")
    for wrong in ((text, 0), (text, 0.5, 1), (text, [1], 1)):
        assert_refused(lambda wrong=wrong: relation_scores(model, [wrong]), TypeError, "relation_scores", "pairs")  # type: ignore[misc]


DECODERS = {
    "GPT-2": lambda rng: GPT2(GPT2_CONFIG, gpt2_tensors(rng)),
    "LLaMA": lambda rng: Llama(LLAMA_CONFIG, llama_tensors(rng)),
}


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_too(name: str, rng: np.random.Generator) -> None:
    """Pruned is ablated, with whole groups where heads share keys; what an ablated head says of a token reaches none before it."""
    model: Any = DECODERS[name](rng)
    text, group = [3, 4, 9, 1, 4, 2], model.num_heads // model.layers[0].attention.num_kv_heads
    gone = list(range(group))
    pruned = prune_model(model, [(1, head) for head in gone]).watch(text)
    cut = model.watch(text, [remove_heads(1, gone, model.num_heads)])
    np.testing.assert_allclose(pruned.output, cut.output, rtol=0, atol=1e-4)
    found = ablate(model, text)
    assert found.change.shape == (model.num_layers, model.num_heads)
    assert (found.change > 1e-4).all()
    seen, edited = (model.watch(text, edits) for edits in ([], [override_values(0, 0, [3])]))
    np.testing.assert_array_equal(edited.output[:3], seen.output[:3])
    assert (np.abs(edited.output[3:] - seen.output[3:]).max(-1) > 1e-4).all()
    lone = model.watch(text, [knock_out(1, [(4, key) for key in range(5)], len(text))])
    assert not lone.heads[1][:, 4].any()  # a query that has lost all its keys
