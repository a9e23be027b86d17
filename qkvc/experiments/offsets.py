"""Where several relations are asked for at once: one wide head or many narrow ones, and which head takes which relation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qkvc._coerce import as_count
from qkvc.experiments.model import AttentionModel
from qkvc.experiments.training import CHECK, IGNORED, Batch, Table, learn, loss_of

Array = NDArray[Any]

VOCABULARY, LENGTH = 16, 16


def looking_back(rng: np.random.Generator, count: int, relations: int) -> Batch:
    """Random tokens (count, 16), and for each the tokens 1, 2, ... before it, (count, 16, relations)."""
    ids = rng.integers(VOCABULARY, size=(as_count("batch", count, "looking_back"), LENGTH))
    targets = np.full((count, LENGTH, relations), IGNORED)
    for back in range(1, relations + 1):
        targets[:, back:, back - 1] = ids[:, :-back]
    return ids, targets


def _learned(model: AttentionModel, relations: int, steps: int, batch: int, lr: float, seed: int) -> Batch:
    """Train the model; a batch to measure it with."""
    learn(model, lambda rng: looking_back(rng, batch, relations), steps=steps, lr=lr, seed=seed)
    return looking_back(np.random.default_rng((seed, CHECK)), 256, relations)


class Split(NamedTuple):
    """How well a width, split into so many heads, answers so many questions."""

    relations: int
    heads: int
    loss: float  # nats an answer; log 16 = 2.77 for who knows nothing
    right: float  # share of the answers
    parameters: int  # of attention


class Splitting(NamedTuple):
    """What `splitting` gives."""

    splits: list[Split]

    def tables(self) -> list[Table]:
        """To be shown."""
        rows = [[f"{s.relations}", f"{s.heads}", f"{s.parameters}", f"{s.loss:.3f}", f"{s.right:.3f}"] for s in self.splits]
        return [Table("One wide head or many narrow ones", ["relations", "heads", "parameters", "loss", "right"], rows)]


def splitting(
    *,
    relations: Sequence[int] = (1, 4),
    heads: Sequence[int] = (1, 2, 4, 8),
    width: int = 32,
    steps: int = 300,
    batch: int = 32,
    lr: float = 2e-2,
    seed: int = 0,
) -> Splitting:
    """Train one layer of attention to name the tokens 1, 2, ... before each, with one head of the whole width, two of half, and so on.

    Parameters
    ----------
    relations : sequence of int, default (1, 4)
        How many tokens are asked for at once.
    heads : sequence of int, default (1, 2, 4, 8)
        Divisors of `width`; the number of parameters is the same for all.
    width : int, default 32
    steps, batch : int
        How many steps, of how many sequences of 16 tokens out of 16.
    lr : float, default 2e-2
        The highest learning rate.
    seed : int, default 0
        Of the initial weights and of the batches.

    Returns
    -------
    Splitting(splits)
        For each number of relations and of heads the loss in nats an answer, the share of right answers, on 256 new sequences, and the
        number of parameters of the attention.

    Raises
    ------
    ValueError, TypeError
        Sizes that do not fit together.

    Notes
    -----
    Measured, seeds 0 to 4 agree.  One relation is learned without error by any number of heads, all of which then do the same.  Of four,
    with 4192 parameters each:

    =====  ==============  ==============
    heads  loss            right
    =====  ==============  ==============
    1      1.441 to 1.449  0.350 to 0.362
    2      0.414 to 0.557  0.789 to 0.871
    4      0.003 to 0.081  0.977 to 1.000
    8      0.000           1.000
    =====  ==============  ==============

    Here the tutorials are right.  One softmax spreads over all four tokens, and what it brings back is a bag that does not tell their
    order: four times the width (0.359 right) or five times the steps (0.357) do not help.
    """
    splits = []
    for asked in (as_count("relations", count, "splitting") for count in relations):
        for count in heads:
            model = AttentionModel(VOCABULARY, width, layers=1, heads=count, answers=asked, rng=seed)
            ids, targets = check = _learned(model, asked, steps, batch, lr, seed)
            counted = targets != IGNORED
            right = model(ids).reshape(*targets.shape, -1).argmax(-1) == targets
            splits.append(
                Split(asked, count, loss_of(model, check), float(right[counted].mean()), model.attentions[0].heads.num_parameters())
            )
    return Splitting(splits)


class Seats(NamedTuple):
    """What `seats` gives."""

    weights: Array  # (runs, heads, relations)
    moved: Array  # (heads, relations)

    @property
    def roles(self) -> NDArray[np.intp]:
        """How far back each head looks most, (runs, heads)."""
        back: NDArray[np.intp] = self.weights.argmax(-1) + 1
        return back

    def tables(self) -> list[Table]:
        """To be shown."""
        runs = [*((f"{run}", weights) for run, weights in enumerate(self.weights)), ("0 moved", self.moved)]
        rows = [[run, *(f"{row.argmax() + 1}: {100 * row.max():.0f}" for row in weights)] for run, weights in runs]
        return [Table("How far back each head looks: % of its weight", ["run", *(f"head {h}" for h in range(len(self.moved)))], rows)]


def seats(
    *,
    runs: int = 6,
    relations: int = 4,
    width: int = 32,
    heads: int = 8,
    steps: int = 300,
    batch: int = 32,
    lr: float = 2e-2,
    seed: int = 0,
) -> Seats:
    """Train the layer of `splitting` from several seeds, and see which head looks how far back; then seat the first run's heads otherwise.

    Parameters
    ----------
    runs : int, default 6
        How many seeds.
    relations, width, heads, steps, batch, lr
        As of `splitting`, one number each.
    seed : int, default 0
        Of the first run; the others have those after it.

    Returns
    -------
    Seats(weights, moved)
        The mean weight of each head on the tokens 1, 2, ... before, for each run; and the same for the first when its initial heads
        stand one place further (head h is where h + 1 was before, the last comes first) and everything else is as before.

    Raises
    ------
    ValueError, TypeError
        Sizes that do not fit together.

    Notes
    -----
    Measured with seeds 0 to 5, how far back heads 0 to 7 look:

    ========  ===============
    run       roles
    ========  ===============
    0         2 4 3 4 3 3 3 1
    1         1 2 2 4 3 1 1 3
    2         2 2 4 3 4 1 2 2
    3         4 2 4 4 1 3 1 3
    4         4 3 4 1 2 1 2 3
    5         4 3 3 2 1 2 1 4
    0, moved  1 2 4 3 4 3 3 3
    ========  ===============

    So a tutorial is right that the number of a head means nothing, and that some heads repeat others.  But "random" is only the draw of the
    initial weights: move the heads before training, and their roles move with them, weights and all, to 3e-6.
    """
    measured = []
    for run, places in [*((run, 0) for run in range(as_count("runs", runs, "seats"))), (0, 1)]:
        model = AttentionModel(VOCABULARY, width, layers=1, heads=heads, answers=relations, rng=seed + run)
        layer = model.attentions[0].heads
        for weight in (layer.W_Q, layer.W_K, layer.W_V, layer.W_O):
            weight[...] = np.roll(weight, places, axis=0)
        ids, _ = _learned(model, relations, steps, batch, lr, seed + run)
        weights = layer.weights(model.inputs(ids)[0], causal=True)
        backs = [np.diagonal(weights, -back, -2, -1)[..., relations - back :].mean((0, -1)) for back in range(1, relations + 1)]
        measured.append(np.stack(backs, -1))
    return Seats(np.stack(measured[:-1]), measured[-1])
