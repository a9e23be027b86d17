"""The picture of a run: speeds below the machine's roofline, and every case beside its best rival."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qkvc.plot import roofline

from .results import CaseResult, Contestant, Result

OURS, RIVAL, LOSS = "#0072B2", "0.35", "tab:red"  # ours as in qkvc.plot.roofline
Pair = tuple[CaseResult, Contestant, Contestant | None]


def draw(result: Result, path: Path) -> None:
    """Write a PNG: to the left the roofline, to the right a line for each case.

    Parameters
    ----------
    result : Result
        A run, of which attention in float32 is drawn.  Calls too small for anything but latency, those without rivals, and cases on which
        the first subject was not timed, are left out.
    path : Path
        Where the picture goes.

    Raises
    ------
    ValueError
        No case is left.
    """
    pairs: list[Pair] = []
    for case in result.cases:
        ours = case.named(result.subjects[0])
        c = case.case
        if c.work != "attention" or c.dtype != "float32" or c.pairs or c.alone or c.unit == "µs":
            continue
        if ours is not None and ours.timed:
            pairs.append((case, ours, case.best_rival(result.subjects)))
    if not pairs:
        raise ValueError("no case to draw: all are too small, or nothing was timed")
    peak = median(x for case, _, _ in pairs for x in case.peak)
    read = median(x for case, _, _ in pairs for x in case.read)
    figure = Figure(figsize=(13, max(5.0, 1.5 + 0.21 * len(pairs))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _roofline(left, pairs, peak, read)
    _beside(right, pairs, result.subjects[0])
    threads = f"{result.threads} thread{'s' * (result.threads > 1)}"
    figure.suptitle(f"float32 attention, {threads}, {result.machine['cpu']}", fontsize=11)
    figure.savefig(path, dpi=130)


def _roofline(axes: Axes, pairs: list[Pair], peak: float, read: float) -> None:
    """Speed over arithmetic intensity, below what arithmetic and memory allow."""
    roofline(
        [case.flops / case.case.bytes for case, _, _ in pairs],
        [case.flops / 1e9 / ours.time for case, ours, _ in pairs],
        peak=peak,
        bandwidth=read,
        rivals=[float("nan") if rival is None else case.flops / 1e9 / rival.time for case, _, rival in pairs],
        legend=False,  # the other picture has one
        ax=axes,
    )
    axes.set_xlabel("useful operations per byte of query, key, value and output")


def _beside(axes: Axes, pairs: list[Pair], subject: str) -> None:
    """Share of the roof that applies, ours and the best rival's, case by case."""
    for row, (case, ours, rival) in enumerate(pairs):
        share = 100 * case.share(ours)
        if rival is not None:
            other = 100 * case.share(rival)
            axes.plot([share, other], [row, row], color=OURS if ours.time <= rival.time else LOSS, linewidth=2, alpha=0.5, zorder=1)
            axes.plot(other, row, "o", mfc="white", mec=RIVAL, markersize=5, zorder=2)
        axes.plot(share, row, "o", color=OURS, markersize=5, zorder=3)
    axes.set_yticks(range(len(pairs)), [case.case.name for case, _, _ in pairs], fontsize=8)
    axes.set(ylim=(len(pairs) - 0.5, -0.5), xlim=(0, None), xlabel="% of the FMA peak (a single query: of the read bandwidth)")
    axes.plot([], [], "o", color=OURS, label=subject)
    axes.plot([], [], "o", mfc="white", mec=RIVAL, label="best rival")
    axes.plot([], [], color=LOSS, alpha=0.5, linewidth=2, label="rival faster")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    axes.grid(axis="x", color="0.92")
