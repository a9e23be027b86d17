"""The terminal: text and tables, by rich where it is installed, in plain columns where not; and how the sizes of a problem are typed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _ActionsContainer

    from rich.console import Console


def _rich() -> Console | None:
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        return None
    # Tokens such as [CLS] would be read as markup.  NO_COLOR and a pipe instead of a terminal are rich's own business.
    return Console(markup=False, highlight=False)


def heading(text: str) -> None:
    """A line that starts a part of the report."""
    if console := _rich():
        console.print()
        console.rule(text, align="left")
    else:
        print(f"\n== {text} ==")


def say(text: str = "") -> None:
    """A line of the report."""
    print(text)


def complain(text: str) -> None:
    """A line for the standard error."""
    print(f"qkvc: {text}", file=sys.stderr)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> None:
    """A table: so many columns of text to the left, the others, being numbers, to the right."""
    print()
    if console := _rich():
        from rich import box
        from rich.table import Table

        # Few lines: thirteen columns have to fit into 80 characters.
        drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for index, column in enumerate(columns):
            drawn.add_column(column, justify="left" if index < text_columns else "right", no_wrap=index >= text_columns)
        for row in rows:
            drawn.add_row(*row)
        console.print(drawn)
        return
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    print(title)
    for row in (columns, ["-" * width for width in widths], *rows):
        cells = [cell.ljust if index < text_columns else cell.rjust for index, cell in enumerate(row)]
        print("  ".join(justify(width) for justify, width in zip(cells, widths, strict=True)).rstrip())


@contextmanager
def progress(total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """A bar that is told how much is done and what to say beside it.  Without rich, or where nobody watches, there is none."""
    console = _rich()
    if console is None or not console.is_terminal:
        yield lambda done, text: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}", markup=False), TimeRemainingColumn()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total, completed=done, text="")
        yield lambda done, text: bar.update(task, completed=done, text=text)


def scaled(number: float, unit: str) -> str:
    """Three digits and a prefix."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ")):
        if number >= size:
            return f"{number / size:.3g} {prefix}{unit}"
    return f"{number * 1e9:.3g} n{unit}" if number else f"0 {unit}"


ALIGNMENTS = ("top-left", "bottom-right")


def add_sizes(to: _ActionsContainer, dtypes: Sequence[str] = ("float32", "float64")) -> None:
    """The options that say where a problem of BxHxLxD differs from self-attention of equal heads."""
    to.add_argument("--kv", type=int, default=0, dest="keys", metavar="L", help="number of keys, if another than of queries")
    to.add_argument("--kv-heads", type=int, default=0, metavar="H", help="number of key heads, if fewer than query heads")
    to.add_argument("--v-dim", type=int, default=0, metavar="D", help="width of values, if another than of keys")
    to.add_argument("--causal", nargs="?", const="top-left", default="", choices=ALIGNMENTS)
    to.add_argument("--dtype", default="float32", choices=dtypes)
    to.add_argument("--layout", default="bhld", choices=("bhld", "blhd"))


def parse_sizes(text: str, option: str) -> tuple[int, int, int, int]:
    """Batch, heads, queries and width of BxHxLxD."""
    try:
        batch, heads, queries, dim = parse_integers(text, option, "x")
    except ValueError:
        raise ValueError(f"{option}: expected four numbers as in 2x8x300x64, got {text!r}") from None
    return batch, heads, queries, dim


def parse_integers(text: str, option: str, between: str) -> tuple[int, ...]:
    """Integers with a sign between them."""
    try:
        return tuple(int(n) for n in text.split(between))
    except ValueError:
        raise ValueError(f"{option}: expected integers with {between!r} between them, got {text!r}") from None
