"""Timing: which form of each contestant is its best, and rounds in which all take turns."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from statistics import harmonic_mean
from time import perf_counter, process_time, sleep
from typing import TypeVar

import numpy as np

from qkvc import _kernels

from .cases import Case
from .forms import Form, Rival
from .problems import CannotExpress, Floats, Task
from .results import PLAIN, CaseResult, Contestant
from .works import WORKS

T = TypeVar("T")

PASSES = 6  # over 256 MB, about as long as a sample, where they are the measure: single ones went from 19 to 56 GB/s in one run

# float32 differs from exact results by about 1e-6 on these inputs, half precision in disguise by 1e-3; float64 by 1e-15, with a float32
# inside by 1e-7.
# 16 bits round the result by 2**-12 and 2**-9, and bfloat16 the weights, too; int8 every number by half of a 127th of its row's largest.
TOLERANCE = {"float32": 1e-4, "float64": 1e-12, "float16": 2e-3, "bfloat16": 2e-2, "int8": 5e-2}


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    threads: int
    rounds: int
    seconds: float = 0.05  # per contestant and round, or one call where that takes longer


def settle(longest: float = 0.5) -> None:
    """Wait until the thread pools of the contestant before have stopped spinning.

    They keep their cores busy for 10 ms (libgomp), 50 ms (onnxruntime) to 110 ms (OpenBLAS) after a call, which the next in turn would
    pay for.  A look must last longer than the kernel's tick, up to 10 ms: the time of a thread on another core is counted only then.
    """
    end = perf_counter() + longest
    while perf_counter() < end:
        wall, cpu = perf_counter(), process_time()
        sleep(0.012)
        if process_time() - cpu < 0.1 * (perf_counter() - wall):
            return


def time_calls(form: Form, calls: int) -> float:
    """Mean seconds of one of `calls` calls in a row; before them an uncounted one wakes the threads, unless calls are long."""
    settle()
    with form.setting():
        if calls > 1:
            form.call()
        collecting = gc.isenabled()
        gc.disable()
        try:
            start = perf_counter()
            for _ in repeat(None, calls):
                form.call()
            return (perf_counter() - start) / calls
        finally:
            if collecting:
                gc.enable()


def error_of(form: Form, problem: Task) -> float:
    """Largest deviation from the reference, NaN if there is one anywhere."""
    with form.setting():
        result = form.result(form.call())
    if result.shape != problem.shape:
        raise ValueError(f"a result of shape {result.shape} instead of {problem.shape}")
    return float(np.max(np.abs(np.asarray(result[..., problem.rows, :], problem.reference.dtype) - problem.reference)))


def prepare(name: str, rival: Rival, problem: Task, effort: Effort) -> tuple[Contestant, Form | None]:
    """Try all forms of a contestant and keep the fastest of those that are right.

    Raises
    ------
    ImportError
        It is not installed.
    """
    allowed = TOLERANCE["bfloat16" if problem.case.pairs else problem.case.dtype] * float(np.max(np.abs(problem.reference)))
    contestant = Contestant(name, "cannot", "it offers no form of this", flops=problem.flops)
    best: tuple[float, Form] | None = None

    def reject(status: str, why: str) -> None:
        contestant.rejected.append(why)
        order = ("cannot", "failed", "wrong")  # the worst is reported, and of equals the first
        if len(contestant.rejected) == 1 or order.index(status) > order.index(contestant.status):
            contestant.status, contestant.why = status, why

    forms = rival(problem, effort.threads)
    while True:
        label = "preparing"
        try:
            form = next(forms)
            label = form.name
            error = error_of(form, problem)
            if not error <= allowed:
                reject("wrong", f"{label}: " + (f"off by {error:.1e}, allowed {allowed:.1e}" if np.isfinite(error) else "not finite"))
                continue
            seconds = trial(form)
        except StopIteration:
            break
        except ImportError:
            raise
        except CannotExpress as reason:
            reject("cannot", str(reason))
        except Exception as failure:  # a rival may raise anything; it is reported, and the others go on
            reject("failed", f"{label}: {type(failure).__name__}: {' '.join(str(failure).split())[:200]}")
        else:
            if best is None or seconds < best[0]:
                best = (seconds, form)
                contestant.form, contestant.error = label, error
    if best is None:
        return contestant, None
    seconds, form = best
    contestant.status, contestant.why, contestant.calls = "timed", "", max(1, round(effort.seconds / seconds))
    return contestant, form


def trial(form: Form) -> float:
    """Seconds per call, well enough to choose a form: the best of up to three short series, or one call where that takes long.

    The call that was checked before does not count: a framework's first can take ten times as long.
    """
    first = time_calls(form, 1)
    if first > 0.5:
        return first
    calls = max(1, min(1000, int(0.02 / first)))  # in a row, since a small call after a pause mostly waits for sleeping threads
    return min(time_calls(form, calls) for _ in range(max(1, min(3, int(0.2 / (first * calls))))))


def measure(case: Case, entrants: Mapping[str, Rival], effort: Effort, absent: dict[str, str], buffer: Floats) -> CaseResult:
    """Time every entrant on one case, in rounds whose order rotates; who is not installed is put into `absent`.

    Where a case is promised beside plain attention, the first entrant takes part once more, with that.
    """
    problem = WORKS[case.work].problem(case)
    result = CaseResult(case, problem.flops, [])
    turns: list[Callable[[], None]] = []
    tasks = [(name, rival, problem) for name, rival in entrants.items() if name not in absent]
    if case.goal.plain:
        plain = case.plain(problem.flops)
        tasks.append((PLAIN, tasks[0][1], WORKS[plain.work].problem(plain)))
    for name, rival, posed in tasks:
        try:
            contestant, form = prepare(name, rival, posed, effort)
        except ImportError as error:
            absent[name] = str(error)
            continue
        result.contestants.append(contestant)
        if form is not None:
            turns.append(partial(take_turn, form, contestant))

    def roofs() -> None:
        settle()
        result.peak.append(_kernels.fma_peak(effort.threads, 0.02))
        if effort.threads > 1:
            result.single.append(_kernels.fma_peak(1, 0.02))
        if case.pairs:
            result.pairs.append(_kernels.fma_peak(effort.threads, 0.02, "bfloat16"))
        passes = PASSES if case.roof == "read bandwidth" else 1
        result.read.append(harmonic_mean([_kernels.read_rate(buffer, effort.threads)[0] for _ in range(passes)]))

    turns.append(roofs)
    for round_ in range(effort.rounds):
        for turn in rotated(turns, round_):
            turn()
    return result


def take_turn(form: Form, contestant: Contestant) -> None:
    """Add a sample."""
    contestant.seconds.append(time_calls(form, contestant.calls))


def rotated(turns: Sequence[T], by: int) -> Iterable[T]:
    """The same turns, another one first."""
    start = by % len(turns)
    return (*turns[start:], *turns[:start])
