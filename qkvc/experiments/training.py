"""What the experiments share: how a small model learns a task, and how an outcome is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qkvc._coerce import as_count
from qkvc._console import table
from qkvc.experiments.model import AttentionModel
from qkvc.nn import AdamW, cross_entropy, warmed_cosine

Ids = NDArray[np.int64]
Batch = tuple[Ids, Ids]  # token numbers (B, L), and what to say at each: (B, L), or (B, L, R) for R answers; IGNORED where nothing counts
Draw = Callable[[np.random.Generator], Batch]

IGNORED = -100  # of `cross_entropy`
CHECK = 1 << 20  # where the seeds of batches to measure with begin: no training goes on for so long


class Table(NamedTuple):
    """An outcome, or a part of it, as it is shown."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def show(self) -> None:
        """On the terminal."""
        table(self.title, self.columns, self.rows)


def loss_of(model: Callable[[Any], NDArray[Any]], batch: Batch) -> float:
    """The mean of -log p(answer), in nats."""
    ids, targets = batch
    return cross_entropy(model(ids).reshape(*targets.shape, -1), targets).value


def learn(
    model: AttentionModel,
    draw: Draw,
    *,
    steps: int,
    lr: float,
    seed: int,
    every: int = 1,
    watch: Callable[[int], None] = lambda step: None,
) -> None:
    """Train in place: AdamW with a cosine, gradients no longer than 1, a new batch for each step.

    Parameters
    ----------
    model : AttentionModel
    draw : function of a numpy.random.Generator
        Gives a batch; the generator is seeded with (seed, step).
    steps : int
    lr : float
        The highest learning rate, reached after a tenth of the steps.
    seed : int
        Of the batches.
    every : int, default 1
        Steps from one `watch` to the next.
    watch : function of int, optional
        Called with the number of steps that are made: before the first, after each `every`, and after the last.
    """
    as_count("steps", steps, "learn", 0)
    as_count("every", every, "learn")
    optimiser = AdamW(model.parameters(), lr=lr, weight_decay=0.01, clip=1.0)
    for step in range(steps):
        if step % every == 0:
            watch(step)
        ids, targets = draw(np.random.default_rng((seed, step)))
        scores = model.forward(ids)
        loss = cross_entropy(scores.reshape(*targets.shape, -1), targets)
        model.zero_grad()
        model.backward(loss.grad.reshape(scores.shape))
        optimiser.step(warmed_cosine(step, steps, lr=lr, warmup=steps // 10))
    watch(steps)
