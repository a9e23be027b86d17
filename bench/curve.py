"""Time against the number of queries: is there a cliff between one, which reads a cache, and many, which multiply?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

import qkvc
from qkvc import _kernels
from qkvc._console import add_sizes, parse_sizes
from qkvc._console import table as print_table
from qkvc.explanation import READ_BYTES

from .cases import DTYPES, Case
from .measure import rotated, settle, time_calls
from .problems import Problem
from .report import figure
from .works import ours


class Point(NamedTuple):
    """Medians over the rounds."""

    queries: int
    seconds: float
    roof: float  # seconds that the bytes or the operations of this call take at least


def measure(case: Case, threads: int, rounds: int, seconds: float = 0.02) -> list[Point]:
    """The last 1, 2, ... of the case's queries before all of its keys, in turns."""
    problem, forms, calls, roofs = Problem(case), [], [], []
    for n in range(1, case.queries + 1):
        few = copy(problem)
        few.case, few.query = replace(case, queries=n), problem.query[:, :, case.queries - n :]
        forms.append(next(ours(few, threads)))
        calls.append(max(1, round(seconds / time_calls(forms[-1], 2))))
        roofs.append((few.case.bytes, few.flops))
    buffer = np.ones(READ_BYTES // 4, np.float32)
    dtype = "bfloat16" if case.pairs else "float64" if case.dtype == "float64" else "float32"
    taken: list[list[float]] = [[] for _ in forms]
    least: list[list[float]] = [[] for _ in forms]

    for round_ in range(rounds):
        settle()
        read, peak = _kernels.read_rate(buffer, threads)[0], _kernels.fma_peak(threads, 0.02, dtype)
        for times, (size, flops) in zip(least, roofs, strict=True):
            times.append(max(size / read, flops / peak) / 1e9)
        for i in rotated(range(len(forms)), round_ * len(forms) // rounds):
            taken[i].append(time_calls(forms[i], calls[i]))
    return [Point(i + 1, median(t), median(r)) for i, (t, r) in enumerate(zip(taken, least, strict=True))]


def rows(points: Sequence[Point]) -> list[list[str]]:
    """A line for each number of queries: ms, µs a query, over the time of one query less, share of the roof."""
    before = [points[0], *points]
    return [
        [
            str(x.queries),
            figure(1e3 * x.seconds),
            figure(1e6 * x.seconds / x.queries),
            f"{x.seconds / y.seconds:.2f}",
            f"{x.roof / x.seconds:.0%}",
        ]
        for x, y in zip(points, before, strict=False)
    ]


def draw(points: Sequence[Point], title: str, path: Path) -> None:
    """Write a PNG of the times and the roof."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    x = [point.queries for point in points]
    axes.plot(x, [1e3 * point.seconds for point in points], "o-", color="tab:blue", markersize=3, label="qkvc")
    axes.plot(x, [1e3 * point.roof for point in points], color="0.4", label="reading at full bandwidth, or FMAs at their peak")
    axes.set(xlabel="queries", ylabel="ms", ylim=(0, None), xlim=(0, None), title=title)
    axes.grid(color="0.92")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


def main(argv: Sequence[str], prog: str) -> int:
    """`curve 1x32x64x128 --kv 4096 --kv-heads 8`: print the table, draw the picture."""
    parser = argparse.ArgumentParser(prog=f"{prog} curve", description="Time against the number of queries.")
    parser.add_argument("shape", nargs="?", default="1x32x64x128", metavar="BxHxLxD", help="1 to L queries (default: %(default)s)")
    add_sizes(parser, DTYPES)
    parser.set_defaults(keys=4096, kv_heads=8, causal="bottom-right")
    parser.add_argument("--rounds", type=int, default=7, metavar="N")
    parser.add_argument("--threads", type=int, default=qkvc.get_num_threads(), metavar="N")
    parser.add_argument("--picture", type=Path, metavar="PATH", help="draw it, a PNG")
    given = vars(parser.parse_args(argv))
    rounds, threads, picture = given.pop("rounds"), given.pop("threads"), given.pop("picture")
    try:
        if min(rounds, threads) < 1:
            raise ValueError("--rounds and --threads: at least 1")
        case = Case(*parse_sizes(given.pop("shape"), "shape"), **given)
        points = measure(case, threads, rounds)
        print_table(case.name, ["queries", "ms", "µs a query", "over one less", "of roof"], rows(points))
        if picture:
            draw(points, case.name, picture)
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))
    return 0
