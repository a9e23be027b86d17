"""Do clusters emerge?  The same word's output in two contexts, before training and after."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qkvc._coerce import as_count
from qkvc.experiments.model import AttentionModel
from qkvc.experiments.training import CHECK, Table, learn, loss_of
from qkvc.experiments.words import VOCABULARY, beginnings, entropy, sentences
from qkvc.inside import attention_weights

Array = NDArray[Any]

QUARTETS = {  # a word of two meanings, and for each of them a word that has no other
    "apple": (("apple", "fruit"), ("banana", "fruit"), ("apple", "company"), ("microsoft", "company")),
    "bank": (("bank", "river"), ("shore", "river"), ("bank", "money"), ("lender", "money")),
}


def names(word: str) -> list[str]:
    """The four tokens of a quartet, each with its topic."""
    return [f"{noun} ({topic})" for noun, topic in QUARTETS[word]]


class Similarity(NamedTuple):
    """Cosines between the outputs of attention at four tokens, which are those of `QUARTETS`."""

    word: str
    before: Array  # (4, 4)
    after: Array
    ways: Array  # (times, 4, E): mean directions of the outputs while training, from before to after

    @property
    def names(self) -> list[str]:
        """Of the four tokens: "apple (fruit)" and so on."""
        return names(self.word)

    @property
    def topics(self) -> list[str]:
        """Of the four tokens: "fruit" and so on."""
        return [topic for _, topic in QUARTETS[self.word]]

    @property
    def separation(self) -> tuple[float, float]:
        """How much nearer the word is to its companion in the same context than to the other, before and after: means of both."""
        before, after = (float((x[0, 1] - x[0, 3] + x[2, 3] - x[2, 1]) / 2) for x in (self.before, self.after))
        return before, after


class Meaning(NamedTuple):
    """What `meaning` gives."""

    loss: float
    entropy: float
    similarities: dict[str, Similarity]
    value_change: float  # largest difference between the values of one word in two contexts
    steps: Array  # (times,): of `ways`

    def tables(self) -> list[Table]:
        """To be shown."""
        shown = []
        for word, similarity in self.similarities.items():
            rows = [
                [name, *(f"{a:.2f} → {b:.2f}" for a, b in zip(*pair, strict=True))]
                for name, *pair in zip(similarity.names, similarity.before, similarity.after, strict=True)
            ]
            shown.append(Table(f"Cosines of outputs, before → after training: {word}", ["", *(noun for noun, _ in QUARTETS[word])], rows))
        return shown


class FourTokens(NamedTuple):
    """What `four_tokens` gives."""

    example: Array  # (4, 4): weights
    separated: float  # share of the trials

    def tables(self) -> list[Table]:
        """To be shown."""
        rows = [[name, *(f"{weight:.3f}" for weight in row)] for name, row in zip(names("apple"), self.example, strict=True)]
        title = f"Weights of four random tokens, untrained; {100 * self.separated:.1f} % of other draws separate"
        return [Table(title, ["", *(noun for noun, _ in QUARTETS["apple"])], rows)]


def four_tokens(*, trials: int = 10_000, seed: int = 0) -> FourTokens:
    """Do random embeddings under random projections attend to their own kind?  No training, as in a tutorial that says so.

    Parameters
    ----------
    trials : int, default 10000
        How many draws of four tokens of width 8, W_Q and W_K from N(0, 1).
    seed : int, default 0

    Returns
    -------
    FourTokens(example, separated)
        The weights that the tutorial's own code gives, with its seed, for "apple" as a fruit, "banana", "apple" as a company and
        "microsoft"; and the share of other draws in which each "apple" has more weight on its companion than on either other token.

    Raises
    ------
    ValueError, TypeError
        `trials` that is no count.

    Notes
    -----
    The tutorial prints 0.452 for "banana" and 0.483 for "microsoft" in the rows of the two apples.  Its code gives 0.968 and 0.000; of
    10,000 other draws 12.2 % separate.  Who chooses one of three at random, twice, is right in 11.1 %.
    """
    count = as_count("trials", trials, "four_tokens")
    draws = np.random.RandomState(42)  # the tutorial's: np.random.seed(42)
    x, w_q, w_k = draws.randn(4, 8), draws.randn(8, 8), draws.randn(8, 8)
    example = attention_weights(x @ w_q, x @ w_k)
    rng = np.random.default_rng(seed)
    x, (w_q, w_k) = rng.normal(size=(count, 1, 4, 8)), rng.normal(size=(2, count, 1, 8, 8))
    fruit, company = attention_weights(x @ w_q, x @ w_k)[:, 0, ::2].swapaxes(0, 1)  # the rows of both apples
    right = (fruit[:, 1] > fruit[:, 2:].max(-1)) & (company[:, 3] > company[:, :2].max(-1))
    return FourTokens(example, float(right.mean()))


def outputs(model: AttentionModel, layer: int, half: int, quartet: tuple[tuple[str, str], ...]) -> Array:
    """What attention brings to each token of the quartet, (4, sentences, E), in sentences of one half."""
    inputs = (model.inputs(beginnings(topic, noun, half))[layer] for noun, topic in quartet)
    return np.stack([model.attentions[layer](x)[:, -1] for x in inputs])


def directions(model: AttentionModel, layer: int, word: str) -> Array:
    """The mean direction of the outputs at each token, (2, 4, E), in sentences of either half."""
    parts = np.stack([outputs(model, layer, half, QUARTETS[word]).astype(np.float64) for half in (0, 1)])
    means: Array = (parts / np.linalg.norm(parts, axis=-1, keepdims=True)).mean(2)
    return means


def cosines(found: Array) -> Array:
    """Mean cosine of the outputs at each pair of tokens, (4, 4), over pairs of sentences that share no word of their topics."""
    means: Array = found[0] @ found[1].T  # of directions: the mean of all cosines
    return (means + means.T) / 2


def meaning(
    *,
    layers: int = 1,
    width: int = 32,
    heads: int = 2,
    steps: int = 200,
    batch: int = 64,
    lr: float = 1e-2,
    every: int = 10,
    seed: int = 0,
) -> Meaning:
    """Train a small model to say the next word, and compare what attention brings to "apple" among fruit and among companies.

    The sentences of `qkvc.experiments.words` are of the form "she ate the ripe apple pie".  A context makes the noun's meaning plain and
    the ending depends on it; "apple" is half of all fruit and half of all companies, "bank" half of all shores and half of all lenders.

    Parameters
    ----------
    layers, width, heads : int
        Of the model, an `AttentionModel`.  The outputs are those of the attention of the last layer.
    steps, batch : int
        How many steps, of how many sentences.
    lr : float, default 1e-2
        The highest learning rate.
    every : int, default 10
        Steps from one point of `ways` to the next.
    seed : int, default 0
        Of the initial weights and of the batches.

    Returns
    -------
    Meaning(loss, entropy, similarities, value_change, steps)
        The loss in nats a word, on 1024 new sentences, and that of who knows the grammar; for "apple" and for "bank" the cosines of
        outputs before and after training, and the ways that these went meanwhile, to be drawn by `qkvc.plot.trajectories`; how much the
        last layer's values of "apple" differ between two contexts; the steps of the ways.

    Raises
    ------
    ValueError, TypeError
        Sizes that do not fit together.

    Notes
    -----
    Cosines are means over pairs of sentences that have no word of their topics in common: whatever is alike was learned, not read off the
    same neighbour.

    A tutorial shows four tokens that separate into fruit and companies under random projections, "in one forward pass".  Measured, with
    seeds 0 to 4, the separation, which is how much nearer a word is to its companion in the same context than to the other's:

    ===============  =====  =====  =====  =====  =====
    seed             0      1      2      3      4
    ===============  =====  =====  =====  =====  =====
    apple, before    0.05   0.09   -0.01  0.01   -0.05
    apple, after     0.77   0.98   0.85   0.87   0.91
    bank, before     0.13   -0.11  0.05   -0.03  0.04
    bank, after      0.80   0.94   0.83   0.91   0.82
    loss over 1.248  0.011  0.010  0.009  0.010  0.008
    ===============  =====  =====  =====  =====  =====

    So it is training that makes the clusters.  With seed 0 "apple" among fruit comes from 0.38 to 0.96 with "banana", and from 0.70 to 0.27
    with "apple" among companies.  The tutorial also has the *value* of "apple" change with the context.  In the first layer it cannot, and
    `value_change` is exactly 0: values are made of each token alone, and what changes is whose values are added up.
    """
    model = AttentionModel(len(VOCABULARY), width, layers=layers, heads=heads, rng=seed)
    last = layers - 1
    moments: list[int] = []
    ways: dict[str, list[Array]] = {word: [] for word in QUARTETS}

    def watch(step: int) -> None:
        moments.append(step)
        for word, way in ways.items():
            way.append(directions(model, last, word))

    learn(model, lambda rng: sentences(rng, batch), steps=steps, lr=lr, seed=seed, every=as_count("every", every, "meaning"), watch=watch)
    return Meaning(
        loss_of(model, sentences(np.random.default_rng((seed, CHECK)), 1024)),
        entropy(),
        {word: Similarity(word, cosines(way[0]), cosines(way[-1]), np.stack(way).mean(1)) for word, way in ways.items()},
        value_change(model, last),
        np.array(moments),
    )


def value_change(model: AttentionModel, layer: int) -> float:
    """The largest difference between the values of "apple" after ripe things and after rival ones."""
    fruit, company = (model.inputs(beginnings(topic, "apple", 0))[layer][:, -1] for topic in ("fruit", "company"))
    values = model.attentions[layer].heads.v_weight
    return float(np.abs((fruit - company) @ values.T).max())
