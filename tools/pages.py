"""Run the pages of docs/en: `make pages`.  With --write, what they print and draw replaces what stands there.

A page's ```python blocks run one after the other; the ```text block behind one is what it prints, and may differ by one unit in a number's
last place.  Pictures go to ../pictures.  The page of the same name in docs/zh has the same blocks, to the letter.
"""

import argparse
import contextlib
import io
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"!\[[^\]]*\]\(\.\./(pictures/[^)]+)\)")
NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?%?")


def agree(got: str, wanted: str) -> bool:
    """The same words, and numbers that differ by one unit in the last place at most: machines round sums in their own order."""
    if NUMBER.split(got) != NUMBER.split(wanted):  # alignment too: a number that grew a digit is another text
        return False
    return all(near(a, b) for a, b in zip(NUMBER.findall(got), NUMBER.findall(wanted), strict=True))


def near(got: str, wanted: str) -> bool:
    """Whole numbers are counted, and so exact; percents are not."""
    (value, unit), (other, its) = (value_and_unit(text) for text in (got, wanted))
    return unit == its and abs(value - other) <= 1.001 * unit


def value_and_unit(text: str) -> tuple[float, float]:
    number = text.replace(",", "").rstrip("%")
    mantissa, _, exponent = number.partition("e")
    whole = number.lstrip("-").isdigit() and not text.endswith("%")
    return float(number), 0.0 if whole else 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))


def run(text: str, page: str, wrong: Callable[[int, str, str], None]) -> str:
    """Execute a page; it comes back with what it has printed.  Where that is not what it says, `wrong` hears the line, both texts."""
    names: dict[str, Any] = {"__name__": "__main__"}
    blocks = list(BLOCK.finditer(text))
    pieces, end = [], 0
    for block, follower in zip_longest(blocks, blocks[1:]):
        if block[1] == "text":
            continue
        line, printed = text.count("\n", 0, block.start()) + 2, io.StringIO()
        # Empty lines, so that a traceback shows the page's own line.
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * (line - 1) + block[2], page, "exec"), names)
        shown = follower if follower and follower[1] == "text" and not text[block.end() : follower.start()].strip() else None
        said = shown[2] if shown else ""
        got = "".join(f"{row.rstrip()}\n" for row in printed.getvalue().splitlines())
        if not agree(got, said):
            wrong(line, got, said)
            pieces += [text[end : block.end()], f"\n\n```text\n{got}```" if got else ""]
            end = shown.end() if shown else block.end()
    return "".join([*pieces, text[end:]])


def check(path: Path, write: bool) -> list[str]:
    """What is wrong with a page."""
    text, faults, where = path.read_text(encoding="utf-8"), [], os.getcwd()

    def wrong(line: int, got: str, said: str) -> None:
        faults.append(f"{path}:{line}: expected\n{said}got\n{got}")

    with tempfile.TemporaryDirectory() as scratch:
        # A page writes to pictures/ beside where it runs: the true one, or one to throw away.
        os.chdir(path.parent.parent if write else scratch)
        Path("pictures").mkdir(exist_ok=True)
        try:
            after = run(text, str(path), wrong)
        except Exception:
            return [*faults, f"{path}: {traceback.format_exc(limit=-3)}"]
        finally:
            drawn = {str(file) for file in Path().glob("pictures/*")}
            os.chdir(where)
    shown = set(PICTURE.findall(text))
    faults += [f"{path}: shows {picture}, which it does not draw" for picture in sorted(shown - drawn)]
    if not write:
        faults += [f"{path}: draws {picture}, which it does not show" for picture in sorted(drawn - shown)]
        faults += [f"{picture}: not there: run `make pages`" for picture in sorted(shown) if not (DOCS / picture).exists()]
        return faults + unlike(path, text)
    path.write_text(after, encoding="utf-8")
    for fault in faults:
        print(f"written: {fault}", file=sys.stderr)
    return []


def unlike(path: Path, text: str) -> list[str]:
    """Where the Chinese page is not its twin."""
    twin = path.parent.parent / "zh" / path.name
    if not twin.exists():
        return [f"{twin}: not there"]
    other = twin.read_text(encoding="utf-8")
    same = BLOCK.findall(text) == BLOCK.findall(other) and PICTURE.findall(text) == PICTURE.findall(other)
    return [] if same else [f"{twin}: its blocks or pictures are not those of {path}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", type=Path, default=sorted((DOCS / "en").glob("*.md")))
    parser.add_argument("--write", action="store_true", help="what is printed and drawn becomes the page's")
    options = parser.parse_args()
    bad = 0
    for path in options.pages:
        begin = time.perf_counter()
        faults = check(path.resolve(), options.write)
        print(f"{path.name}: {'wrong' if faults else 'as it says'}, {time.perf_counter() - begin:.1f} s", flush=True)
        print("\n".join(faults), end="\n" if faults else "", file=sys.stderr)
        bad += bool(faults)
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
