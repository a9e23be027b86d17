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
