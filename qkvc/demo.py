"""`qkvc demo`: the three steps of attention by hand, a real model, and how fast it is here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

import qkvc
from qkvc._console import complain, heading, say, table
from qkvc.models import MiniLM

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORDS = ("The", "cat", "sat")
EMBEDDINGS = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 0, 0]], dtype=np.float32)
QUERY = np.array([0, 1, 0, 0], dtype=np.float32)
PRINTED = (0.21194156, 0.39402922, 0.39402922)  # what the tutorial says its weights are

SENTENCES = (
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "A man is riding a horse.",
    "Someone gallops across a field.",
    "The stock market fell today.",
    "Share prices dropped sharply.",
)
SHOWN_PAIRS = 15  # all of the above
PRONOUN_SENTENCE, PRONOUN, NOUN = "The animal didn't cross the street because it was too tired.", "it", "animal"


class Steps(NamedTuple):
    """The three steps of attention for one query, and their largest distance from the same in float64."""

    scores: NDArray[np.float32]
    weights: NDArray[np.float32]
    context: NDArray[np.float32]
    error: float


def three_steps(query: NDArray[np.float32], key: NDArray[np.float32], value: NDArray[np.float32]) -> Steps:
    """Scores, weights and weighted sum of one query, unscaled as in the tutorial, computed by qkvc and checked in float64."""
    out, lse = qkvc.attention_with_lse(query[None], key, value, scale=1.0)
    # Values that are the identity make the weights themselves the output, and a score is the logarithm of its weight plus lse.
    weights = qkvc.attention(query[None], key, np.eye(len(key), dtype=np.float32), scale=1.0)[0]
    steps = np.log(weights) + lse[..., 0], weights, out[0]

    exact_scores = key.astype(np.float64) @ query
    exact_weights = np.exp(exact_scores) / np.exp(exact_scores).sum()
    exact = exact_scores, exact_weights, exact_weights @ value
    return Steps(*steps, error=max(float(np.abs(got - want).max()) for got, want in zip(steps, exact, strict=True)))


def show_steps() -> bool:
    """Part one: the tutorial's example and its exercise; whether both agree with float64."""
    heading("1. Attention in three steps")
    results = {
        "a query of its own, [0 1 0 0]": three_steps(QUERY, EMBEDDINGS, EMBEDDINGS),
        'the exercise: the word "The" is the query': three_steps(EMBEDDINGS[0], EMBEDDINGS, EMBEDDINGS),
    }
    for title, steps in results.items():
        rows = [
            [word, np.array2string(embedding, formatter={"all": lambda x: f"{x:.0f}"}), f"{score:.4f}", f"{weight:.7f}"]
            for word, embedding, score, weight in zip(WORDS, EMBEDDINGS, steps.scores, steps.weights, strict=True)
        ]
        table(f"{title[0].upper()}{title[1:]}", ["word", "key = value", "score = query · key", "weight = softmax(score)"], rows)
        say(f"context = sum of weight · value = [{' '.join(f'{x:.7f}' for x in steps.context)}]")
        say(f"largest difference from NumPy in float64: {steps.error:.1e}")
    say()
    # Weights of a softmax are in the ratio exp(difference of their scores), here e: that alone tells the misprint.
    ratio = PRINTED[1] / PRINTED[0]
    say(f"The tutorial prints the weights {' '.join(f'{x:.4f}' for x in PRINTED)} for the scores 0 1 1. They are not their softmax:")
    say(f"the ratio of two weights must be exp(1 - 0) = {np.e:.4f}, and theirs is {ratio:.4f}. The table above has the true ones.")
    # Scores here are at most 2, weights and sums at most 1: four roundings of float32.
    return all(steps.error <= 4 * np.finfo(np.float32).eps for steps in results.values())


def show_similarities(model: MiniLM, texts: Sequence[str]) -> None:
    """Which sentences mean the same: the cosines of their vectors, and how fast these come."""
    sentences = list(texts) if len(texts) > 1 else [*texts, *SENTENCES]
    # A single sentence is compared with the built-in ones, these are not compared with each other then.
    pairs = [(0, other) for other in range(1, len(sentences))] if len(texts) == 1 else list(combinations(range(len(sentences)), 2))
    vectors = model.encode(sentences)
    cosine = {pair: float(vectors[pair[0]] @ vectors[pair[1]]) for pair in pairs}
    nearest = sorted(pairs, key=lambda pair: -cosine[pair])[:SHOWN_PAIRS]
    # + 0.0 because a rounded -0.0004 is -0.0
    rows = [[sentences[a], sentences[b], f"{round(cosine[a, b], 3) + 0.0:.3f}"] for a, b in nearest]
    table(
        f"Similarity of sentences, the nearest {len(rows)} of {len(pairs)} pairs", ["sentence", "sentence", "cosine"], rows, text_columns=2
    )
    batch = [sentences[index % len(sentences)] for index in range(32)]
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        model.encode(batch)
        seconds.append(time.perf_counter() - started)
    tokens = int(model.tokenize(batch)[1].sum())
    say(f"{len(batch)} sentences, {tokens} tokens in all, in {min(seconds) * 1e3:.0f} ms: {tokens / min(seconds):,.0f} tokens/s")


def show_attention(model: MiniLM, picture: Path) -> None:
    """Who looks at whom: in which layer and head the pronoun finds its noun, as tables and a picture."""
    tokens, maps = model.attention_maps(PRONOUN_SENTENCE)
    row, column = tokens.index(PRONOUN), tokens.index(NOUN)
    looks = maps[:, :, row, column]
    layer, head = (int(index) for index in np.unravel_index(looks.argmax(), looks.shape))
    rows = [
        [str(i), *(f"{'*' if (i, j) == (layer, head) else ''}{100 * weight:.0f}" for j, weight in enumerate(weights))]
        for i, weights in enumerate(looks)
    ]
    say(f"\n{PRONOUN_SENTENCE}")
    say("Layers, heads and tokens are counted from 0, as everywhere in qkvc.")
    table(f'How much "{PRONOUN}" looks at "{NOUN}", in % of its attention', ["layer", *(f"h{j}" for j in range(looks.shape[1]))], rows)
    where = f"layer {layer}, head {head}"
    share, even = 100 * looks[layer, head], 100 / len(tokens)
    say(f'"{PRONOUN}" looks most at "{NOUN}" in {where}: {share:.1f} %, where an even spread would be {even:.1f} %')

    chosen = maps[layer, head]
    rows = [[f"{tokens[key]} ({key})", f"{chosen[row, key]:.4f}"] for key in np.argsort(-chosen[row], kind="stable")[:6]]
    table(f'What "{PRONOUN}" looks at in {where}', ["token (position)", "weight"], rows)
    try:
        from qkvc.plot import heatmap

        ax = heatmap(chosen, tokens, title=f"all-MiniLM-L6-v2, {where}", mark=(row, column))
    except ModuleNotFoundError as error:
        say(f"no picture: {error} (pip install matplotlib)")
        return
    cast("Figure", ax.figure).savefig(picture, dpi=150)
    say(f"picture of the whole head: {picture}")


def run(texts: Sequence[str], picture: Path, bench: Callable[[Sequence[str]], int] | None) -> int:
    """Show everything that can be shown with what is installed.

    Parameters
    ----------
    texts : sequence of str
        The sentences to compare; a single one is compared with the built-in ones, none means these.
    picture : Path
        Where the heat map goes.
    bench : callable or None
        The benchmark's `main`, called with its arguments for the short form; None leaves it out.

    Returns
    -------
    int
        0, or 1 where a number is not what float64 says, a model file is not the published one, or the benchmark failed.
    """
    failed = False
    if not show_steps():
        complain("the three steps differ from float64 by more than rounding")
        failed = True

    heading("2. A real model: all-MiniLM-L6-v2, 6 layers of 12 heads, in NumPy and qkvc")
    try:
        model = MiniLM.from_package()
    except ModuleNotFoundError as error:
        say(f"Not shown. {error}")
    except ValueError as error:
        complain(str(error))
        failed = True
    else:
        show_similarities(model, texts)
        show_attention(model, picture)

    if bench is not None:
        heading("3. How fast: the short benchmark")
        failed = bench(["--quick"]) != 0 or failed
    return int(failed)
