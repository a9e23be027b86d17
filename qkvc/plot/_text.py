"""Text in pictures: tokens as they are, whatever they are, in a font that has them, and no more of them than can be read."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qkvc._coerce import as_listed, bad

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

# Families with Chinese, Japanese and Korean characters, in the order in which they are taken: the simplified forms first, sans-serif before
# serif.  Of a collection such as Noto's, matplotlib before 3.11 knows the first face only, the Japanese one.
CJK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
    "Microsoft YaHei", "PingFang SC", "Hiragino Sans GB", "SimHei", "Heiti SC", "Noto Sans CJK JP", "Droid Sans Fallback",
    "Noto Serif CJK SC", "Noto Serif CJK JP", "SimSun", "Arial Unicode MS",
)  # fmt: skip
_FILES = re.compile(r"cjk|notosanssc|sourcehan|wqy|msyh|pingfang|hiragino|simhei|simsun|heiti|droidsansfallback|arialuni", re.IGNORECASE)
_CJK = re.compile("[\u2e80-\u303f\u3041-\u318f\u31a0-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff01-\uffee\U00020000-\U0003134f]")
_BOXES = "Last Resort High-Efficiency"  # comes with matplotlib 3.11: a box for every character, and no warning for each of them

SMALLEST, LARGEST = 6.0, 10.0  # of labels, in points
_LONGEST = 24  # of a label, in characters: longer ones would leave no room for the picture


def as_tokens(name: str, tokens: Any, who: str) -> list[str]:
    """A list of strings, or an error that says what else came."""
    listed = as_listed(name, tokens, "a sequence of str", who)
    for token in listed:
        if not isinstance(token, str):
            raise TypeError(bad(name, "a sequence of str", f"one with {token!r}", who))
    return listed


def shown(token: str) -> str:
    """How a token is written: a line of its own characters; what has no shape by its escape, blanks as open boxes, and cut if long."""
    # U+200D joins emoji into one.
    text = "".join(c if c.isprintable() or c == "\u200d" else c.encode("unicode_escape").decode() for c in token[: _LONGEST + 1])
    if text.isspace():
        text = "␣" * len(text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def columns(text: str) -> int:
    """The width of a text, in Latin letters."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def wrapped(text: str, most: int) -> str:
    """Lines of at most so many columns, broken at blanks, between Chinese characters, and within words that are longer than a line."""
    lines = []
    for line in text.split("\n"):
        row = ""
        for piece in re.findall(rf"{_CJK.pattern}|\s|(?:(?!{_CJK.pattern})\S){{1,{most}}}", line):
            if columns(row + piece) > most and row:
                lines.append(row.rstrip())
                row = ""
            row += piece if row or not piece.isspace() else ""
        lines.append(row.rstrip())
    return "\n".join(lines)


@cache
def cjk_family() -> str | None:
    """The first family of `CJK_FONTS` that is installed, also if it was so after matplotlib wrote down which fonts there are."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    def first() -> str | None:
        known = {entry.name for entry in fontManager.ttflist}
        return next((family for family in CJK_FONTS if family in known), None)

    if first() is None:
        for path in filter(_FILES.search, findSystemFonts()):
            try:
                fontManager.addfont(path)
            except (OSError, RuntimeError):  # a file that FreeType cannot read
                continue
    family = first()
    entries = [entry for entry in fontManager.ttflist if entry.name == family]
    if entries and all(entry.weight not in (400, "normal") for entry in entries):
        # WenQuanYi Zen Hei calls itself medium.  Asked for the normal weight, matplotlib would log for every size that there is none.
        fontManager.ttflist.append(replace(entries[0], weight=400))
    return family


@cache
def _warn() -> None:
    """Once in a process."""
    looked = ", ".join(CJK_FONTS)
    message = f"qkvc.plot: no font with Chinese characters is installed, they are drawn as boxes (looked for {looked})"
    warnings.warn(message, UserWarning, stacklevel=2)


@cache
def _lacks(families: tuple[str, ...], characters: frozenset[str]) -> bool:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in families]
    return any(not any(font.get_char_index(ord(c)) for font in fonts) for c in characters)


def style(*texts: str) -> dict[str, Any]:
    """Properties of a text object: its characters are no mathematics and no TeX, and come from a font that has them."""
    plain: dict[str, Any] = {"parse_math": False, "usetex": False}
    wide = frozenset(_CJK.findall("".join(texts)))
    if not wide:
        return plain
    from matplotlib import rcParams
    from matplotlib.font_manager import fontManager

    families = tuple(rcParams["font.family"])
    if not _lacks(families, wide):
        return plain
    fallback = cjk_family()
    if fallback is None:
        _warn()
        fallback = next((entry.name for entry in fontManager.ttflist if entry.name == _BOXES), None)
    # The reader's own families first: Latin letters look as in their other pictures.
    return plain if fallback is None else plain | {"fontfamily": [*families, fallback]}


def size_inches(ax: Axes) -> tuple[float, float]:
    box = ax.get_window_extent()
    dpi = ax.figure.dpi
    return box.width / dpi, box.height / dpi


def heading(ax: Axes, title: str | None, pad: float | None = None) -> None:
    """The title, in as many lines as it needs above these axes, so many points away."""
    if title is not None:
        width, _ = size_inches(ax)
        text = wrapped("".join(c if c.isprintable() or c in "\n\u200d" else shown(c) for c in title), max(16, int(width * 10.5)))
        ax.set_title(text, pad=pad, **style(text))


def name_axes(ax: Axes, x: str, y: str) -> None:
    ax.set_xlabel(x, **style(x))
    ax.set_ylabel(y, **style(y))


def add_legend(ax: Axes, handles: Sequence[Any] | None = None, **options: Any) -> None:
    """A legend whose texts are literal and in fonts that have them."""
    made = ax.legend(handles=handles, **options) if handles is not None else ax.legend(**options)
    for text in made.get_texts():
        text.update(style(text.get_text()))


def label_ticks(axis: Axis, labels: Sequence[str], inches: float, slanted: bool = False, apart: int = 1) -> None:
    """Write labels at the middles of as many ranges, each `apart` cells long: smaller where they would touch, and from the smallest legible
    size on only every n-th of them."""
    cell = 72 * inches / len(labels)
    size = float(np.clip(0.8 * cell, SMALLEST, LARGEST))
    step = 1 if cell >= 1.2 * size else ceil(1.6 * size / cell)
    texts = [shown(label) for label in labels[::step]]
    turn: dict[str, Any] = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axis.set_ticks(np.arange(0, len(labels), step) * apart + (apart - 1) / 2, texts, fontsize=size, **turn, **style(*texts))


def lay_out(ax: Axes) -> None:
    """Let the layout decide where these axes lie on the page."""
    figure: Any = ax.figure
    figure.figure.draw_without_rendering()


def place_labels(ax: Axes, points: NDArray[Any], labels: Sequence[str], obstacles: NDArray[Any], fontsize: float = 9) -> None:
    """Write labels beside points (n, 2), each where it covers the fewest of the others and of the obstacles (m, 2), in data units."""
    lay_out(ax)
    dots = ax.transData.transform(obstacles)
    near = 4 * ax.figure.dpi / 72  # a label that stands so close to a point seems to be that point's
    taken: list[Any] = []
    turns = [(radius, np.radians(angle)) for radius in (6, 14, 24) for angle in (0, 180, 90, 270, 45, 135, 225, 315)]
    for point, label in zip(points, labels, strict=True):
        text = shown(label)
        note = ax.annotate(text, point, (0, 0), textcoords="offset points", fontsize=fontsize, zorder=6, **style(text))
        note.set_in_layout(False)  # or else it would move the axes in which its place was found

        def put(turn: tuple[float, float], note: Any = note) -> Any:
            radius, angle = turn
            across, down = np.cos(angle), np.sin(angle)
            note.set(ha=("left", "center", "right")[1 - round(across)], va=("bottom", "center", "top")[1 - round(down)])
            note.xyann = (radius * across, radius * down)
            return note.get_window_extent()

        def cost(turn: tuple[float, float], put: Any = put) -> Any:
            box = put(turn)
            inside = (dots > (box.x0 - near, box.y0 - near)).all(-1) & (dots < (box.x1 + near, box.y1 + near)).all(-1)
            out = not (ax.bbox.contains(box.x0, box.y0) and ax.bbox.contains(box.x1, box.y1))
            return 20 * sum(box.overlaps(other) for other in taken) + int(inside.sum()) + 10 * out + turn[0] / 20

        taken.append(put(min(turns, key=cost)))
