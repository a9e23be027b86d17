"""Does it learn as torch does: the same model from the same weights on the same batches, step by step in turns."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

import qkvc
from qkvc._coerce import as_count
from qkvc._console import progress, say
from qkvc._console import table as print_table
from qkvc.models import LanguageModel
from qkvc.nn import keep_memory, warmed_cosine
from qkvc.train import BYTES, WARMUP, Settings, Text, own_text

from .measure import rotated, settle
from .report import interval
from .results import estimate
from .rivals import torch_setting
from .training import Autograd, Ours

SIZES = ("steps", "batch", "length", "layers", "width", "heads", "every")
STEPS, EVERY = 200, 10


@dataclass
class Curve:
    """Of each step the loss, before it, and the seconds; and the loss on what was held back, at the end."""

    name: str
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    held_back: float = 0.0


def learn(settings: Settings, text: Text, threads: int) -> tuple[Curve, Curve]:
    """Train both, with the same number of threads.

    Raises
    ------
    ImportError
        torch is not installed.
    """
    s = settings
    keep_memory()  # for both
    model = LanguageModel(BYTES, s.width, layers=s.layers, heads=s.heads, rng=s.seed)
    theirs = Autograd(model, s.length)  # first: it copies the weights
    learners: tuple[tuple[Ours | Autograd, Curve], ...] = (Ours(model), Curve("qkvc")), (theirs, Curve("torch"))
    with progress(s.steps) as show, torch_setting(threads, learning=True):
        for step in range(s.steps):
            batch = text.batch(s.batch, s.seed, step)
            rate = warmed_cosine(step, s.steps, lr=s.lr, warmup=s.steps // WARMUP)
            for learner, curve in rotated(learners, step):
                settle()
                start = perf_counter()
                curve.losses.append(learner.step(*batch, rate))
                curve.seconds.append(perf_counter() - start)
            show(step + 1, ", ".join(f"{curve.name} {curve.losses[-1]:.3f}" for _, curve in learners))
        batches = text.validation(s.batch)
        for learner, curve in learners:
            curve.held_back = float(np.mean([learner.loss(*batch) for batch in batches]))
    return learners[0][1], learners[1][1]


def rows(ours: Curve, theirs: Curve, every: int) -> list[list[str]]:
    """A line for the first step, every so manyth and the last: both losses and how far they are apart; and what was held back."""
    count = len(ours.losses)
    shown = sorted({0, count - 1, *range(every - 1, count, every)})
    losses = [(str(step + 1), ours.losses[step], theirs.losses[step]) for step in shown]
    losses.append(("held back", ours.held_back, theirs.held_back))
    return [[name, f"{our:.6f}", f"{their:.6f}", f"{our - their:+.1e}"] for name, our, their in losses]


def speeds(ours: Curve, theirs: Curve, tokens: int) -> str:
    """Tokens a second of both, and the ratio, pair by pair of steps."""
    told = ", ".join(f"{curve.name} {tokens / median(curve.seconds):,.0f} tokens/s" for curve in (ours, theirs))
    ratio = estimate([their / our for our, their in zip(ours.seconds, theirs.seconds, strict=True)])
    return f"{told}; {interval(ratio)} times faster"


def draw(ours: Curve, theirs: Curve, unigram: float, path: Path) -> None:
    """Write a PNG: both curves, and below them how far they are apart."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    steps = np.arange(1, len(ours.losses) + 1)
    above.plot(steps, ours.losses, color="tab:blue", linewidth=2.5, alpha=0.6, label=ours.name)
    above.plot(steps, theirs.losses, color="black", linewidth=0.8, linestyle="--", label=theirs.name)
    above.axhline(unigram, color="0.5", linestyle=":", label="how often each byte comes")
    above.set(ylabel="loss, nats a byte", ylim=(0, None), title="the same model, weights and batches")
    above.legend(frameon=False)
    below.semilogy(steps, np.maximum(np.abs(np.subtract(ours.losses, theirs.losses)), 1e-9), color="tab:red", linewidth=0.8)
    below.set(xlabel="step", ylabel="difference of the losses")
    for axes in (above, below):
        axes.grid(color="0.92")
    figure.savefig(path, dpi=130)


def main(argv: Sequence[str], prog: str) -> int:
    """`learn`: print the losses of both, draw them."""
    parser = argparse.ArgumentParser(prog=f"{prog} learn", description="A language model learns, in qkvc and in torch; do they agree?")
    defaults = {x.name: x.default for x in fields(Settings)} | {"steps": STEPS, "every": EVERY}
    for name in SIZES:
        parser.add_argument(f"--{name}", type=int, default=defaults[name], metavar="N", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=qkvc.get_num_threads(), metavar="N")
    parser.add_argument("--picture", type=Path, metavar="PATH", help="draw both curves, a PNG")
    given = vars(parser.parse_args(argv))
    threads, picture = given.pop("threads"), given.pop("picture")
    before = qkvc.get_num_threads()
    try:
        qkvc.set_num_threads(as_count("threads", threads, prog))
        settings = Settings(**given)
        text = Text(own_text(), settings.length)
        ours, theirs = learn(settings, text, threads)
        tokens = settings.batch * settings.length
        say(f"{settings.layers} layers, {settings.width} wide, {settings.heads} heads, {settings.batch} x {settings.length} bytes a step")
        print_table("Losses", ["step", "qkvc", "torch", "difference"], rows(ours, theirs, settings.every))
        say(f"{speeds(ours, theirs, tokens)} on {threads} thread{'s' * (threads > 1)}")
        say(f"who knows how often each byte comes, and nothing else: {text.unigram():.3f}")
        if picture:
            draw(ours, theirs, text.unigram(), picture)
    except (ImportError, OSError, TypeError, ValueError) as error:
        parser.error(str(error))
    finally:
        qkvc.set_num_threads(before)
    return 0
