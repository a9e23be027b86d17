"""The roofline: how fast each case ran, below what the machine can do at its arithmetic intensity."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import numpy as np
from matplotlib.figure import Figure

from .results import CaseResult, Result


def _intensity(case: CaseResult) -> float:
    """Useful operations per byte that has to move."""
    return case.flops / case.case.bytes


def roofline(result: Result, path: Path) -> None:
    """Write a PNG with one point per case for the first subject and for its best rival.

    Parameters
    ----------
    result : Result
        At least one case with a timed subject.
    path : Path
        Where the picture goes.
    """
    subject = result.subjects[0]
    peak = median(x for case in result.cases for x in case.peak)
    read = median(x for case in result.cases for x in case.read)
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xscale="log", yscale="log", xlabel="useful operations per byte of query, key, value and output", ylabel="GFLOP/s")

    points: list[tuple[float, float, str]] = []
    for case in result.cases:
        ours, rival = case.named(subject), case.best_rival(result.subjects)
        if ours is None or not ours.timed:
            continue
        x, y = _intensity(case), case.flops / 1e9 / ours.time
        points.append((x, y, case.case.name))
        if rival:
            other = case.flops / 1e9 / rival.time
            won = rival.time >= ours.time
            axes.plot([x, x], [other, y], color="tab:green" if won else "tab:red", linewidth=1, alpha=0.6, zorder=2)
            axes.plot(x, other, "o", mfc="white", mec="0.35", markersize=5, zorder=3)
        axes.plot(x, y, "o", color="tab:blue", markersize=5, zorder=4)

    low = min(x for x, _, _ in points) / 2
    high = max(x for x, _, _ in points) * 2
    roof = np.geomspace(low, high, 200)
    axes.plot(roof, np.minimum(peak, read * roof), color="0.2", linewidth=1.5, zorder=1)
    axes.text(high, peak * 1.04, f"FMA peak {peak:.0f} GFLOP/s", ha="right", va="bottom", color="0.2")
    axes.text(low * 1.05, read * low * 1.3, f"read {read:.0f} GB/s", ha="left", va="bottom", color="0.2")
    axes.set_xlim(low, high)
    for x, y, name in points:
        axes.annotate(name, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=6)
    axes.plot([], [], "o", color="tab:blue", label=subject)
    axes.plot([], [], "o", mfc="white", mec="0.35", label="best rival (green line: slower than ours, red: faster)")
    axes.legend(loc="lower right", frameon=False)
    axes.grid(which="major", color="0.9")
    figure.savefig(path, dpi=160)
