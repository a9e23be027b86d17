"""The program: `python -m bench`, `qkvc bench`."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

import qkvc
from qkvc._console import add_sizes, parse_sizes
from qkvc._console import table as print_table
from qkvc.explanation import READ_BYTES

from . import curve, learn, report
from .cases import CASES, DTYPES, MASKS, OPTIONS, Case, select
from .forms import Rival
from .measure import Effort, measure
from .results import Result
from .works import RIVALS, ours, rivals_of

# What describes a case besides its shape, with the defaults of options and fields alike.
OF_SHAPE = {
    field.name: field.default
    for field in fields(Case)
    if field.name in ("kv_heads", "keys", "v_dim", "causal", "mask", "layout", "dtype", "window", "option")
}


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Speed and error of qkvc beside every installed rival, measured in turns.",
        epilog=f"`{prog} report RESULT.json` turns a saved result into a table, `{prog} curve` takes 1 to 64 queries, "
        f"`{prog} learn` trains beside torch.",
    )
    what = parser.add_argument_group("cases")
    what.add_argument("--quick", action="store_true", help="a few cases, half a minute")
    what.add_argument("--cases", nargs="+", metavar="PATTERN", help="names or kinds, `*` allowed: 8x12*, encoder")
    what.add_argument("--list", action="store_true", help="print names and kinds, measure nothing")
    what.add_argument("--shape", metavar="BxHxLxD", help="one case of your own instead")
    add_sizes(what, DTYPES)
    what.add_argument("--mask", default="", choices=MASKS)
    what.add_argument("--window", type=int, default=0, metavar="W", help="each query sees its own key and W before it")
    what.add_argument("--option", default="", choices=OPTIONS)
    how = parser.add_argument_group("measuring")
    how.add_argument("--rivals", metavar="NAMES", help=f"with commas, from {','.join(RIVALS)}; none for no rival")
    how.add_argument("--isa", metavar="NAMES", help=f"kernel sets to compare, with commas, from {','.join(qkvc.kernels())}")
    how.add_argument("--threads", type=int, default=qkvc.get_num_threads(), metavar="N", help="of everyone (default: %(default)s)")
    how.add_argument("--rounds", type=int, metavar="N", help="default: 11, with --quick 7; 6 is the least for a 95 %% interval")
    out = parser.add_argument_group("results")
    out.add_argument("--json", type=Path, metavar="PATH", help="write all samples, after every case")
    out.add_argument("--picture", type=Path, metavar="PATH", help="draw the roofline, a PNG")
    out.add_argument("--check", action="store_true", help="print the promises, and exit 1 if one is not kept")
    return parser


def _cases(options: argparse.Namespace) -> list[Case]:
    own = {name: getattr(options, name) for name in OF_SHAPE}
    if options.shape:
        return [Case(*parse_sizes(options.shape, "--shape"), **own)]
    if own != OF_SHAPE:
        raise ValueError(
            "--kv, --kv-heads, --v-dim, --causal, --mask, --window, --option, --dtype and --layout describe a --shape, not given"
        )
    chosen = select(options.cases, options.quick)
    if not chosen:
        raise ValueError(f"--cases: nothing is called {' or '.join(options.cases)}; --list shows the names")
    return list(chosen)


def _names(text: str | None, known: Sequence[str], option: str) -> list[str]:
    names = list(known) if text is None else [name for name in text.split(",") if name not in ("", "none")]
    for name in names:
        if name not in known:
            raise ValueError(f"{option}: expected some of {', '.join(known)}, got {name!r}")
    return names


def _entrants(options: argparse.Namespace) -> tuple[dict[str, Rival], list[str]]:
    """Who takes part: qkvc, once for each kernel set that was asked for, and the rivals' names."""
    if options.isa is None:
        subjects: dict[str, Rival] = {"qkvc": ours}
    else:
        subjects = {f"qkvc {isa}": partial(ours, isa=isa) for isa in _names(options.isa, qkvc.kernels(), "--isa")}
        if not subjects:
            raise ValueError("--isa: no kernel set is named")
    return subjects, _names(options.rivals, list(RIVALS), "--rivals")


@contextmanager
def _only(threads: int) -> Iterator[None]:
    """Keep this process to as many CPUs as it may use threads: JAX knows no other limit, and it holds for all alike."""
    pinned = hasattr(os, "sched_getaffinity")  # not on macOS or Windows
    cpus = os.sched_getaffinity(0) if pinned else set(range(os.cpu_count() or 1))
    if threads > len(cpus):
        raise ValueError(f"--threads: {threads} threads on {len(cpus)} CPUs would measure the scheduler")
    if pinned:
        os.sched_setaffinity(0, sorted(cpus)[:threads])
    try:
        yield
    finally:
        if pinned:
            os.sched_setaffinity(0, cpus)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """A function that announces the next case on the standard error, as a bar where there is a terminal and rich."""
    done = -1

    def line(text: str) -> None:
        nonlocal done
        done += 1
        print(f"[{done + 1}/{total}] {text}", file=sys.stderr, flush=True)

    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ModuleNotFoundError:
        yield line
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield line
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    # Drawn once for each case: a thread that redraws ten times a second would take its share of what is measured.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task("", total=total)

        def advance(text: str) -> None:
            nonlocal done
            done += 1
            bar.update(task, completed=done, description=text, refresh=True)

        yield advance


def _machine() -> dict[str, str]:
    """What the numbers belong to; nothing that tells whose machine it is."""
    name = platform.processor() or platform.machine()
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        name = next(line.split(":", 1)[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):  # no Linux, or an architecture that lists no name
        pass
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"cpu": name, "cores": f"{cpus} CPUs", "system": f"{platform.system()} {platform.machine()}"}


def _versions(names: Sequence[str]) -> dict[str, str]:
    versions = {"qkvc": qkvc.__version__, "python": platform.python_version(), "numpy": np.__version__}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # the list of absent rivals says so
            continue
    return versions


def _show(result: Result, check: bool) -> int:
    """Print the tables and what they need; 1 if the subject was wrong, or with `check` if a promise was not kept."""
    if sys.stdout.isatty():
        for name, part in report.parts(result):
            print_table(f"{name}: beside the best rival", *report.comparison(part))
            print_table(f"{name}: everyone else", *report.speeds(part))
        if (memory := report.grid(result))[1]:
            print_table("Read from memory", *memory)
        print("\n".join(report.notes(result)))
    else:
        print(report.markdown(result), end="")
    failed = any(case.contestants[0].name in result.subjects and not case.contestants[0].timed for case in result.cases)
    if check:
        promises = report.goals(result)
        print("\n" + "\n".join(f"{'kept  ' if kept else 'BROKEN'}  {line}" for line, kept in promises))
        failed = failed or not all(kept for _, kept in promises)
    return int(failed)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments, `sys.argv[1:]` by default.

    Returns
    -------
    int
        0; 1 if qkvc was wrong or, with --check, broke a promise; 2 for misuse (from argparse); 130 when interrupted, after the
        cases that were finished have been shown.
    """
    prog = "python -m bench" if __package__ == "bench" else "qkvc bench"
    arguments = list(sys.argv[1:] if argv is None else argv)
    for name, program in (("report", report.main), ("curve", curve.main), ("learn", learn.main)):
        if arguments[:1] == [name]:
            return program(arguments[1:], prog)
    parser = _parser(prog)
    options = parser.parse_args(arguments)
    if options.list:
        print_table("Cases", ["name", "kind"], [[case.name, case.kind] for case in CASES])
        return 0
    rounds = (7 if options.quick else 11) if options.rounds is None else options.rounds
    effort = Effort(options.threads, rounds, 0.03 if options.quick else 0.05)
    interrupted = False
    try:
        if min(options.threads, rounds) < 1:
            raise ValueError("--threads and --rounds: at least 1")
        cases = _cases(options)
        subjects, rivals = _entrants(options)
        date = datetime.now(timezone.utc).strftime("%Y-%m-%d")
        result = Result(date, _machine(), _versions(rivals), qkvc.kernels()[0], options.threads, rounds, list(subjects), {})
        if options.json:
            result.save(options.json)  # so that a path that cannot be written is known before the work, not after it
        with _only(options.threads), _progress(len(cases)) as announce:
            buffer = np.ones(READ_BYTES // 4, np.float32)
            try:
                for case in cases:
                    announce(case.name)
                    near = [] if case.alone and options.rivals is None else rivals
                    here = {name: rival for name, rival in rivals_of(case).items() if name in near}
                    try:
                        result.cases.append(measure(case, {**subjects, **here}, effort, result.absent, buffer))
                    except ImportError as error:  # the case itself needs something, as a model its weights
                        result.absent[case.name] = str(error)
                    if options.json:
                        result.save(options.json)
            except KeyboardInterrupt:
                interrupted = True
    except (OSError, ValueError) as error:
        parser.error(str(error))
    failed = _show(result, options.check) if result.cases else 0
    if options.picture and result.cases:
        try:
            from .picture import draw

            draw(result, options.picture)
        except (ImportError, OSError, ValueError) as error:
            print(f"{prog}: no picture: {error}", file=sys.stderr)
            failed = 1
    return 130 if interrupted else failed
