"""qkvc.experiments: what is measured is measured rightly, and comes out as the docstrings say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest

import qkvc
from qkvc.experiments import four_tokens, freezing, induction, meaning, saturation, seats, splitting
from qkvc.experiments.copying import look, repeated
from qkvc.experiments.freezing import cut_off, means
from qkvc.experiments.meaning import QUARTETS, cosines, directions
from qkvc.experiments.model import AttentionModel
from qkvc.experiments.offsets import looking_back
from qkvc.experiments.training import IGNORED, learn, loss_of
from qkvc.experiments.words import SUBJECTS, TOPICS, VOCABULARY, beginnings, entropy, sentences
from qkvc.nn import cross_entropy

from .support import assert_same_bits

# ------------------------------------------------------------------------------------------------------------------------------- tasks


def test_repeated_sequences_repeat() -> None:
    ids, targets = repeated(np.random.default_rng(0), 50, 24, 16)
    periods = set()
    for row, wanted in zip(ids, targets, strict=True):
        first = int(np.argmax(wanted != IGNORED))
        periods.add(first)
        assert (wanted[:first] == IGNORED).all()
        assert (row[first:] == row[:-first]).all()
        assert (wanted[first:-1] == row[first + 1 :]).all()
        assert wanted[-1] == row[24 - first]  # what comes next is known, if not part of the sequence
    assert periods == {8, 9, 10, 11, 12}


def test_looking_back() -> None:
    ids, targets = looking_back(np.random.default_rng(0), 3, 4)
    for b, place, back in product(range(3), range(16), range(1, 5)):
        assert targets[b, place, back - 1] == (ids[b, place - back] if place >= back else IGNORED)


def every_sentence() -> Iterator[tuple[str, ...]]:
    for topic in TOPICS.values():
        yield from product(SUBJECTS, topic.verbs, ["the"], topic.qualities, topic.nouns, topic.endings)


def test_the_entropy_of_the_grammar() -> None:
    """By counting: the mean of -log p(word | beginning) over all sentences, each as likely as any other."""
    every = list(every_sentence())
    begun = [Counter(sentence[:length] for sentence in every) for length in range(7)]
    nats = [-np.log(begun[length + 1][s[: length + 1]] / begun[length][s[:length]]) for s in every for length in range(1, 6)]
    assert entropy() == pytest.approx(np.mean(nats))
    ids, targets = sentences(np.random.default_rng(0), 200)
    spoken = {tuple(VOCABULARY[n] for n in (*row, last)) for row, last in zip(ids, targets[:, -1], strict=True)}
    assert spoken <= set(every)
    assert len(spoken) > 150
    assert (ids[:, 1:] == targets[:, :-1]).all()


def test_halves_share_no_word_of_their_topic() -> None:
    for quartet in QUARTETS.values():
        for noun, topic in quartet:
            one, other = (beginnings(topic, noun, half) for half in (0, 1))
            assert {VOCABULARY[n] for n in set(one.ravel()) & set(other.ravel())} == {"she", "the", noun}


# ------------------------------------------------------------------------------------------------------------------------------ pieces


def small_model(**options: int) -> AttentionModel:
    return AttentionModel(**{"vocabulary": 16, "width": 16, "layers": 2, "heads": 2, "rng": 0} | options)


def test_the_gradient_of_the_model() -> None:
    """Along itself, by central differences."""
    model = small_model()
    batch = repeated(np.random.default_rng(0), 8, 24, 16)
    model.backward(cross_entropy(model.forward(batch[0]), batch[1]).grad)
    for name, parameter in model.parameters().items():
        length = float(np.linalg.norm(parameter.grad))
        start, losses = parameter.value.copy(), []
        for step in (4e-3, -4e-3):
            parameter.value[...] = start + step * parameter.grad / length
            losses.append(loss_of(model, batch))
        parameter.value[...] = start
        assert (losses[0] - losses[1]) / 8e-3 == pytest.approx(length, rel=0.02, abs=1e-4), name


def test_learning_is_seeded_and_leaves_alone_what_is_frozen() -> None:
    threads, states = qkvc.get_num_threads(), []
    try:
        for count in (1, 2):
            qkvc.set_num_threads(count)
            model = small_model()
            before = model.state()
            model.attentions[1].heads.freeze("v")
            learn(model, lambda rng: repeated(rng, 8, 24, 16), steps=3, lr=1e-2, seed=0)
            states.append(model.state())
    finally:
        qkvc.set_num_threads(threads)
    for name, array in states[0].items():
        assert_same_bits(states[1][name], array, name)
        assert (array == before[name]).all() == (name in ("attentions.1.v_weight", "attentions.1.v_bias")), name


def test_a_look_at_the_heads() -> None:
    """Against loops."""
    model = small_model()
    ids, targets = batch = repeated(np.random.default_rng(0), 4, 24, 16)
    seen = look(model, batch, 7)
    counted = [(b, i) for b in range(4) for i in range(24) if targets[b, i] != IGNORED]
    for layer, (attention, x) in enumerate(zip(model.attentions, model.inputs(ids), strict=True)):
        weights = attention.heads.weights(x, causal=True)
        for h in range(2):
            previous = np.mean([weights[b, h, i, i - 1] for b, i in counted])
            after = np.mean([sum(weights[b, h, i, j] for j in range(1, i + 1) if ids[b, j - 1] == ids[b, i]) for b, i in counted])
            assert seen.previous[layer, h] == pytest.approx(previous, rel=1e-5)
            assert seen.induction[layer, h] == pytest.approx(after, rel=1e-5)
    assert (seen.step, seen.loss) == (7, loss_of(model, batch))


def test_cosines() -> None:
    model = small_model(vocabulary=len(VOCABULARY))
    found = cosines(directions(model, 1, "bank"))
    outputs = [
        [model.attentions[1](model.inputs(beginnings(topic, noun, half))[1])[:, -1] for noun, topic in QUARTETS["bank"]] for half in (0, 1)
    ]
    for a, b in product(range(4), repeat=2):
        pairs = [(x, y) for one, other in ((a, b), (b, a)) for x in outputs[0][one] for y in outputs[1][other]]
        assert found[a, b] == pytest.approx(np.mean([x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in pairs]), abs=1e-6)


def test_tokens_without_context() -> None:
    model = small_model()
    ids, _ = repeated(np.random.default_rng(0), 16, 24, 16)
    tables = means(model, ids)
    for table, given in zip(tables, model.inputs(ids), strict=True):
        for token in range(16):
            np.testing.assert_allclose(table[token], given[ids == token].astype(np.float64).mean(0), atol=1e-6)
    np.testing.assert_allclose(cut_off(model, tables, "", ids), model(ids), atol=1e-6)
    for part in "qkv":
        assert np.abs(cut_off(model, tables, part, ids) - model(ids)).max() > 1e-3
        # Where there is one layer only, tokens have no context yet.
        shallow = small_model(layers=1)
        np.testing.assert_allclose(cut_off(shallow, means(shallow, ids), part, ids), shallow(ids), atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------------- outcomes


def test_four_random_tokens_do_not_separate() -> None:
    """The tutorial's lines, and draws one by one."""
    np.random.seed(42)  # noqa: NPY002  # as it does
    embeddings, w_q, w_k = np.random.randn(4, 8), np.random.randn(8, 8), np.random.randn(8, 8)  # noqa: NPY002
    scores = (embeddings @ w_q) @ (embeddings @ w_k).T / np.sqrt(8)
    outcome = four_tokens(trials=300)
    np.testing.assert_allclose(outcome.example, np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True), rtol=1e-12)
    rng, right = np.random.default_rng(0), 0
    x, (w_q, w_k) = rng.normal(size=(300, 4, 8)), rng.normal(size=(2, 300, 8, 8))
    for tokens, q, k in zip(x, w_q, w_k, strict=True):
        scores = (tokens @ q) @ (tokens @ k).T
        right += np.argmax(scores[0, 1:]) == 0 and np.argmax(scores[2, [0, 1, 3]]) == 2
    assert outcome.separated == pytest.approx(right / 300)
    assert outcome.separated < 0.2
    assert [row[2] for row in outcome.tables()[0].rows][::2] == ["0.968", "0.000"]


def test_words_of_two_meanings_separate() -> None:
    outcome = meaning(steps=150, every=30)
    assert outcome.entropy - 0.02 < outcome.loss < outcome.entropy + 0.06
    assert outcome.value_change == 0
    for word, similarity in outcome.similarities.items():
        before, after = similarity.separation
        assert abs(before) < 0.2, word
        assert after > 0.5, word
        assert similarity.after[0, 1] > 0.9 > 0.6 > similarity.after[0, 2], word  # the companion is nearer than the word itself elsewhere
        assert similarity.ways.shape == (len(outcome.steps), 4, 32)
        last = similarity.ways[-1] / np.linalg.norm(similarity.ways[-1], axis=-1, keepdims=True)
        assert (last @ last.T)[0, 1] > (last @ last.T)[0, 2:].max() + 0.2, word
    assert outcome.steps.tolist() == [*range(0, 150, 30), 150]
    assert [table.rows[0][0] for table in outcome.tables()] == ["apple (fruit)", "bank (river)"]


def test_a_second_layer_gives_values_a_context() -> None:
    assert meaning(layers=2, steps=20).value_change > 0.01


def test_induction_heads_appear() -> None:
    outcome = induction(steps=400, every=50)
    first, last = outcome.moments[0], outcome.moments[-1]
    assert first.induction.max() < 0.2
    assert first.previous.max() < 0.1
    assert last.induction.max() > 0.5
    assert last.previous.max() > 0.3
    assert 100 <= outcome.appeared <= 350
    assert outcome.head("previous")[0] == 0
    assert outcome.head("induction")[0] == 1
    assert last.loss < 0.4 < 2.5 < first.loss
    assert [row[0] for row in outcome.tables()[0].rows] == [str(step) for step in range(0, 401, 50)]


def test_one_layer_cannot_do_it() -> None:
    outcome = induction(layers=1, steps=400, every=200)
    assert outcome.appeared is None
    assert outcome.moments[-1].loss > 1


def test_the_number_of_a_head_means_nothing() -> None:
    outcome = seats(runs=2, steps=150)
    np.testing.assert_allclose(outcome.moved, np.roll(outcome.weights[0], 1, axis=0), atol=0.02)
    assert (outcome.roles[0] != outcome.roles[1]).any()
    assert all(set(roles) == {1, 2, 3, 4} for roles in outcome.roles)
    assert len(outcome.tables()[0].rows) == 3


def test_one_wide_head_cannot_do_what_narrow_ones_can() -> None:
    outcome = splitting(heads=(1, 8), steps=200)
    simple, simple_too, wide, narrow = outcome.splits
    assert len({split.parameters for split in outcome.splits}) == 1
    assert min(simple.right, simple_too.right) > 0.99
    assert wide.right < 0.5
    assert narrow.right > 0.95
    assert [row[:2] for row in outcome.tables()[0].rows] == [["1", "1"], ["1", "8"], ["4", "1"], ["4", "8"]]


def test_what_is_missed_most_before_induction() -> None:
    outcome = freezing(frozen=(), steps=150)
    assert outcome.cut["v"] > outcome.cut["k"] + 1 > outcome.trained + 1


def test_what_is_missed_most_after_induction() -> None:
    outcome = freezing(frozen=("k", "v"), steps=400)
    assert outcome.before > 2.5
    assert outcome.trained < 0.3
    assert outcome.frozen["v"] < 0.2 < outcome.frozen["k"]
    assert outcome.cut["k"] > outcome.cut["v"] + 0.5 > outcome.trained + 0.5
    assert [row[0] for row in outcome.tables()[0].rows] == ["nothing", "K", "V"]


def test_saturation() -> None:
    """The lengths against the Jacobian diag(p) - p p^T, written out in float64; then what is said of them."""
    outcome = saturation(dims=(4, 256), rows=256)
    for dim, softmaxes in ((4, outcome.softmaxes[:2]), (256, outcome.softmaxes[2:])):
        rng = np.random.default_rng((0, dim))
        query, direction = rng.standard_normal((2, 256, 1, dim), np.float32).astype(np.float64)
        key, value = rng.standard_normal((2, 256, 16, dim), np.float32).astype(np.float64)
        direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        for found, scale in zip(softmaxes, (1, dim**-0.5), strict=True):
            scores = (key @ query.swapaxes(1, 2))[..., 0] * scale
            p = np.exp(scores - scores.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            jacobian = p[:, :, np.newaxis] * np.eye(16) - p[:, :, np.newaxis] * p[:, np.newaxis]
            of_scores = (jacobian @ value @ direction.swapaxes(1, 2))[..., 0]
            lengths = [np.linalg.norm(x, axis=-1) for x in (of_scores, np.einsum("rk,rkd->rd", of_scores, key) * scale)]
            expected = [scores.var(), np.median(p.max(-1)), *(f(x) for x in lengths for f in (np.median, lambda x: (x**2).mean() ** 0.5))]
            assert found[:2] == (dim, scale != 1)
            np.testing.assert_allclose(found[2:], expected, rtol=1e-3)
    *_, raw, scaled = outcome.softmaxes
    assert raw.median < 0.05 * scaled.median
    assert raw.mean > 0.4 * scaled.mean
    assert raw.query_mean > 4 * scaled.query_mean
    assert [len(table.rows) for table in outcome.tables()] == [2, 2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: freezing(task="chess"), 'freezing: task: expected "copying" or "words", got \'chess\''),
        (lambda: freezing(frozen=("x",)), 'freeze: parts: expected some of "q", "k", "v" and "o", got \'x\''),
        (lambda: four_tokens(trials=0), "four_tokens: trials: expected"),
        (lambda: seats(runs=0), "seats: runs: expected"),
        (lambda: splitting(relations=(0,)), "splitting: relations: expected"),
        (lambda: saturation(keys=0), "saturation: keys: expected"),
        (lambda: meaning(every=0), "meaning: every: expected"),
        (lambda: meaning(batch=0, steps=1), "sentences: batch: expected"),
        (lambda: induction(every=0), "learn: every: expected"),
        (lambda: induction(steps=-1), "learn: steps: expected"),
        (lambda: induction(batch=0), "induction: batch: expected"),
        (lambda: induction(length=12), "induction: length: expected an integer of 13 or more, got 12"),
        (lambda: splitting(batch=0), "looking_back: batch: expected"),
        (lambda: meaning(heads=3), "MultiHeadAttention: embed_dim: expected a multiple of num_heads, 3"),
    ],
)
def test_misuse(call: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the message follows
        call()
    assert str(caught.value).startswith(message)
