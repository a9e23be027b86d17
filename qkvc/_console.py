"""Text and tables on the terminal: by rich where it is installed, in plain columns where not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def _rich() -> Console | None:
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        return None
    # Tokens such as [CLS] would be read as markup.  NO_COLOR and a pipe instead of a terminal are rich's own business.
    return Console(markup=False, highlight=False, soft_wrap=True)


def heading(text: str) -> None:
    """A line that starts a part of the report."""
    if console := _rich():
        console.rule(text, align="left")
    else:
        print(f"\n== {text} ==")


def say(text: str = "") -> None:
    """A line of the report."""
    print(text)


def complain(text: str) -> None:
    """A line for the standard error."""
    print(f"qkvc: {text}", file=sys.stderr)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table: the first column to the left, the others, being numbers, to the right."""
    if console := _rich():
        from rich.table import Table

        drawn = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            drawn.add_column(column, justify="right" if index else "left", no_wrap=index > 0)
        for row in rows:
            drawn.add_row(*row)
        console.print(drawn)
        return
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    print(f"\n{title}")
    for row in (columns, ["-" * width for width in widths], *rows):
        first, *numbers = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([row[0].ljust(len(first)), *numbers]))
