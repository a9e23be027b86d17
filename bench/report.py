"""A result as a table, on the terminal or between two markers of a README, losses included."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from .cases import PARTS
from .results import PLAIN, CaseResult, Contestant, Estimate, Result

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def figure(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.{1 if value >= 10 else 2}f}"


def interval(ratio: Estimate) -> str:
    return f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number > 1)}"


def _range(values: Sequence[float]) -> str:
    return f"{figure(min(values))} to {figure(max(values))}"


def _speed(result: CaseResult, contestant: Contestant | None) -> str:
    if contestant is None:
        return "-"
    if not contestant.timed:
        return contestant.status
    unit = result.case.unit
    return figure(result.rate(contestant)) + (f" {unit.removeprefix('sentences').removeprefix('tokens')}" if unit != "GFLOP/s" else "")


def _error(contestant: Contestant | None) -> str:
    return "-" if contestant is None or contestant.error is None else f"{contestant.error:.1e}"


def parts(result: Result) -> Iterator[tuple[str, Result]]:
    """The run as one for each table that has a case; those without rivals stand in `grid`."""
    for part in PARTS:
        cases = [x for x in result.cases if x.case.part == part and not (x.case.alone and x.best_rival(result.subjects) is None)]
        if cases:
            yield part, replace(result, cases=cases)


def grid(result: Result) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: the first subject's share of the read bandwidth, by storage and width, and heads that share their keys."""
    subject, shares, groups = result.subjects[0], dict[str, dict[int, str]](), set[int]()
    for case in result.cases:
        our, c = case.named(subject), case.case
        if c.alone and case.best_rival(result.subjects) is None and our is not None:
            row = f"{c.dtype}, {c.dim} wide, {c.bytes / 1e6:.0f} MB"
            shares.setdefault(row, {})[c.group] = f"{_speed(case, our)} ({case.share(our):.0%})" if our.timed else our.status
            groups.add(c.group)
    heads = [f"group of {group}" for group in sorted(groups)]
    return [f"{subject} from memory", *heads], [[name, *(row.get(group, "-") for group in sorted(groups))] for name, row in shares.items()]


def comparison(result: Result) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: the first subject beside the best rival."""
    subject = result.subjects[0]
    rows = []
    for case in result.cases:
        our, rival = case.named(subject), case.best_rival(result.subjects)
        speed, ratio = _speed(case, our), "-"
        if our is not None and our.timed:
            speed += f" ({case.share(our):.0%})" if case.case.unit != "µs" else ""
            ratio = interval(case.ratio(our, rival)) if rival else "-"
        rows.append([case.case.name, speed, rival.name if rival else "-", ratio, _error(our), _error(rival)])
    return ["case", f"{subject} (of roof)", "best rival", "times faster [95 %]", "error", "rival's"], rows


def speeds(result: Result) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: everyone but the first subject."""
    names = [*result.subjects[1:], *result.rivals]
    return ["case", *names], [[case.case.name, *(_speed(case, case.named(name)) for name in names)] for case in result.cases]


def notes(result: Result) -> list[str]:
    """What the table needs to be read: units, machine, and why a cell has a word instead of a number."""
    machine = "; ".join(result.machine.values())
    peak = [x for case in result.cases for x in case.peak]
    read = [x for case in result.cases for x in case.read]
    pairs = [x for case in result.cases for x in case.pairs]
    roofs = f"; FMA peak {_range(peak)} GFLOP/s, read {_range(read)} GB/s" if peak and read else ""
    roofs += f", in pairs of bfloat16 {_range(pairs)} GFLOP/s" if pairs else ""
    threads = _count(result.threads, "thread")
    lines = [
        "Cases are batch x heads x length x width, float32 unless they say otherwise; a module's are batch x length x width / heads.  "
        "Speeds are GFLOP/s of useful work (masked pairs do not count) with the share of the FMA peak, of bfloat16 that of pairs; GB/s "
        "with the share of the read bandwidth where a single query reads a cache; tokens /s of a step with a KVCache, and its share, and "
        "of training; µs for calls too small for either; sentences /s of a model.",
        "Times faster: the best rival's time over ours, median over the rounds; above 1 is a win, below 1 a loss.",
        f"{machine}; {threads}, {result.kernels} kernels, {_count(result.rounds, 'interleaved round')}, {result.date}{roofs}.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in result.versions.items()) + ".",
    ]
    if PLAIN in result.rivals:
        lines.insert(
            2, f"{PLAIN}: {result.subjects[0]} without the option, on as many keys as queries, as many as make the same useful work."
        )
    if result.rounds < 6:
        lines.append(f"{_count(result.rounds, 'round')} cannot give a 95 % interval: the whole range is shown instead.")
    if peak and max(peak) > 1.3 * min(peak):
        lines.append("The machine was busy with something else: its FMA peak varied by more than 30 % during the run.")
    gains = [all_ / one for case in result.cases for all_, one in zip(case.peak, case.single, strict=False)]
    if gains and median(gains) < 0.8 * result.threads:
        gain = f"{result.threads} threads did only {median(gains):.2f} times the FMAs of one"
        lines.append(f"{gain}: other programs were running, or the CPUs share cores.")
    lines += [f"{name}: not installed ({why})." for name, why in result.absent.items()]
    reasons: dict[str, list[str]] = {}
    for case in result.cases:
        for x in case.contestants:
            if not x.timed:
                reasons.setdefault(f"{x.name}: {x.status}: {x.why}", []).append(case.case.name)
    return lines + [f"{why} ({', '.join(names)})." for why, names in reasons.items()]


def goals(result: Result) -> list[tuple[str, bool]]:
    """Every promise about the cases measured, with what came out, and whether it was kept.

    "Never slower" is broken only where the interval says so; a promised factor is compared with the median.
    """
    lines: list[tuple[str, bool]] = []
    for case in result.cases:
        goal, name = case.case.goal, case.case.name
        our, rival = case.named(result.subjects[0]), case.best_rival(result.subjects)
        if our is None or not our.timed:
            lines.append((f"{name}: {our.status if our else 'no'} result: {our.why if our else ''}", False))
            continue
        if rival:
            ratio = case.ratio(our, rival)
            lines.append((f"{name}: {interval(ratio)} times faster than {rival.name}; never slower", ratio.high >= 1))
            if goal.ratio:
                lines.append(
                    (f"{name}: {ratio.median:.2f} times faster than {rival.name}; promised {goal.ratio:.2f}", ratio.median >= goal.ratio)
                )
        if goal.peak:
            share, roof = case.share(our), case.case.roof
            lines.append((f"{name}: {share:.1%} of the {roof}; promised {goal.peak:.0%}", share >= goal.peak))
        torch = case.named("torch")
        if goal.torch_time and torch and torch.timed:
            part = 1 / case.ratio(our, torch).median
            lines.append((f"{name}: {part:.2f} of torch's time; promised {goal.torch_time:.2f}", part <= goal.torch_time))
        plain = case.named(PLAIN)
        if goal.plain and plain and plain.timed:
            part = case.over_plain(our, plain)
            lines.append((f"{name}: {part:.2f} of plain attention's time for as much work; promised {goal.plain:.2f}", part <= goal.plain))
    return lines


def markdown(result: Result) -> str:
    """A table for each part, and the notes; padded, so that it also reads well as plain text."""
    text = []
    for name, part in parts(result):
        (columns, rows), (names, others) = comparison(part), speeds(part)
        lines = [columns[:4] + names[1:] + columns[4:], *(row[:4] + other[1:] + row[4:] for row, other in zip(rows, others, strict=True))]
        text += [f"**{name}**", "", *_padded(lines), ""]
    columns, rows = grid(result)
    text += [*_padded([columns, *rows]), ""] if rows else []
    return "\n".join([*text, *(f"- {line}" for line in notes(result))]) + "\n"


def _padded(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [f"| {line[0]:<{widths[0]}} | " + " | ".join(map(str.rjust, line[1:], widths[1:])) + " |" for line in lines]
    return [text[0], f"|{'-' * (widths[0] + 2)}|" + "".join(f"{'-' * (width + 1)}:|" for width in widths[1:]), *text[1:]]


def insert(readme: Path, text: str) -> None:
    """Replace what stands between the markers.

    Raises
    ------
    ValueError
        The file does not have each marker once, in order.
    """
    old = readme.read_text(encoding="utf-8")
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        raise ValueError(f"{readme} must contain {BEGIN} and, after it, {END}, once each")
    head, tail = old[: old.index(BEGIN)], old[old.index(END) :]
    readme.write_text(f"{head}{BEGIN}\n{text}{tail}", encoding="utf-8")


def main(argv: Sequence[str], prog: str) -> int:
    """`report RESULT.json ...`: print the tables, each run's with its own notes, put them into a README, draw the first run's picture."""
    parser = argparse.ArgumentParser(prog=f"{prog} report", description="Turn saved results into tables.")
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT", help="what --json wrote")
    parser.add_argument("--readme", type=Path, help="the file with the two markers, instead of the standard output")
    parser.add_argument("--picture", type=Path, help="also draw the roofline")
    options = parser.parse_args(argv)
    try:
        results = [Result.load(path) for path in options.results]
        text = "\n".join(map(markdown, results))
        if options.readme:
            insert(options.readme, text)
        else:
            print(text, end="")
        if options.picture:
            from .picture import draw

            draw(results[0], options.picture)
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    return 0
