"""What becomes of heads: apart in a batch, laid side by side, then mixed by W_O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from qkvc._coerce import as_count, bad
from qkvc.plot._canvas import NOBODY, add_bar, axes_of, colours, draw_cells, numbers
from qkvc.plot._text import heading, label_ticks, name_axes, size_inches, style
from qkvc.plot._words import Words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLOCKS = 8  # heads that are drawn one by one; of more, the first ones and the last
_WIDE, _TALL, _STEP = 1.0, 1.6, 0.28  # of a block, and from one to the one behind it, in units of the diagram


def _some(count: int) -> list[int]:
    """The numbers of those that are drawn; -1 stands for those left out."""
    return list(range(count)) if count <= _BLOCKS else [*range(_BLOCKS - 2), -1, count - 1]


def _faces(drawn: Sequence[int]) -> list[Any]:
    """A colour for each head: not to the light end, on which white names could not be read."""
    from matplotlib import colormaps

    return [NOBODY if head < 0 else colormaps["viridis"](0.62 * place / max(1, len(drawn) - 1)) for place, head in enumerate(drawn)]


def split(
    batch: int,
    num_heads: int,
    length: int,
    head_dim: int,
    *,
    title: str | None = None,
    language: str = "en",
    ax: Axes | None = None,
) -> Axes:
    """Draw what the heads of a batch bring back, (B, H, L, D), as B · H matrices (L, D) of which no one knows of another.

    Parameters
    ----------
    batch, num_heads, length, head_dim : int
        B, H, L and D, at least 1.
    title : str, optional
        The heading.
    language : {"en", "zh"}, default "en"
        Of the captions: English or Chinese.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        Where it was drawn, without scales; its patches are the matrices, item by item: of more than 8 the first ones and the last.

    Raises
    ------
    ValueError
        A size is below 1.
    TypeError
        A size is no integer.
    """
    from matplotlib.patches import Rectangle

    who = "split"
    say = Words(language, who)
    given = (("batch", batch), ("num_heads", num_heads), ("length", length), ("head_dim", head_dim))
    items, heads, rows, width = (as_count(name, size, who) for name, size in given)
    down, across = _some(items), _some(heads)
    wide, tall = 1.25, 0.75
    ax = axes_of(ax, 0.8 * (wide * len(across) + 1.6), 0.8 * (tall * len(down) + 0.9), who)
    for place, head in enumerate(across):
        name = "…" if head < 0 else say("head {0}", head)
        ax.text((place + 0.5) * wide, -0.18, name, fontsize=9, ha="center", va="center", **style(name))
    for line, item in enumerate(down):
        name = "…" if item < 0 else say("item {0}", item)
        ax.text(-0.12, (line + 0.5) * tall, name, fontsize=9, ha="right", va="center", **style(name))
        for place, (head, face) in enumerate(zip(across, _faces(across), strict=True)):
            left_out = item < 0 or head < 0
            corner = (place * wide + 0.04, line * tall + 0.06)
            colour = NOBODY if left_out else face
            ax.add_patch(Rectangle(corner, wide - 0.08, tall - 0.12, facecolor=colour, edgecolor="white"))
            middle, text = ((place + 0.5) * wide, (line + 0.5) * tall), "…" if left_out else f"{rows} × {width}"
            ax.text(*middle, text, fontsize=8, ha="center", va="center", color="black" if left_out else "white")
    ax.set(xlim=(-1.1, wide * len(across) + 0.05), ylim=(tall * len(down) + 0.05, -0.4), aspect="equal")
    ax.set_axis_off()
    heading(ax, title)
    return ax


def concat(
    num_heads: int,
    length: int,
    head_dim: int,
    *,
    title: str | None = None,
    language: str = "en",
    ax: Axes | None = None,
) -> Axes:
    """Draw how the outputs of heads, (H, L, D), are laid side by side to (L, H · D): every head keeps its columns, nothing is mixed.

    Parameters
    ----------
    num_heads, length, head_dim : int
        H, L and D, at least 1.
    title : str, optional
        The heading.
    language : {"en", "zh"}, default "en"
        Of the captions: English or Chinese.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        Where it was drawn, without scales; its patches are the blocks: first those of the heads, then the same side by side.

    Raises
    ------
    ValueError
        A size is below 1.
    TypeError
        A size is no integer.
    """
    from matplotlib.patches import Rectangle

    who = "concat"
    say = Words(language, who)
    heads, rows, width = (
        as_count(name, size, who) for name, size in (("num_heads", num_heads), ("length", length), ("head_dim", head_dim))
    )
    drawn = _some(heads)
    faces = _faces(drawn)
    depth = _STEP * (len(drawn) - 1)
    start = _WIDE + depth + 2.2  # where the blocks side by side begin
    end = start + _WIDE * len(drawn)
    ax = axes_of(ax, 0.62 * (end + 1.5), 0.62 * (_TALL + depth + 2.6), who)

    width_inches, height_inches = size_inches(ax)
    unit = min(width_inches / (end + 1.6), height_inches / (_TALL + depth + 1.3))

    def write(x: float, y: float, text: str, size: float = 10, **options: str) -> None:
        ax.text(x, y, text, fontsize=size * min(1.0, unit / 0.45), **{"ha": "center", "va": "center", **options}, **style(text))  # type: ignore[arg-type]

    middle = depth / 2
    for place, face in enumerate(faces):
        corner = (place * _STEP, place * _STEP)
        behind = 1 - place / 100  # nearer ones cover those farther away
        ax.add_patch(Rectangle(corner, _WIDE, _TALL, facecolor=face, edgecolor="white", linewidth=1.2, zorder=behind))
    for place, head in enumerate(drawn):
        left = start + place * _WIDE
        ax.add_patch(Rectangle((left, middle), _WIDE, _TALL, facecolor=faces[place], edgecolor="white", linewidth=1.2))
        write(left + _WIDE / 2, middle + _TALL / 2, "…" if head < 0 else say("head {0}", head), 8, color="black" if head < 0 else "white")

    # Sizes along the edges: L down, D across a block, H into the depth, H · D across all.
    write(-0.12, _TALL / 2, f"L = {rows}", ha="right")
    write(_WIDE / 2, -0.25, f"D = {width}")
    if heads > 1:
        write(_WIDE + depth / 2 + 0.2, depth / 2 - 0.05, f"H = {heads}", ha="left", va="top")
    write(start - 0.12, middle + _TALL / 2, f"L = {rows}", ha="right")
    write((start + end) / 2, middle - 0.25, f"H · D = {heads * width}")
    write((_WIDE + depth) / 2, _TALL + depth + 0.35, say("{0} heads of (L, D)", heads))
    write((start + end) / 2, _TALL + middle + 0.35, say("side by side: (L, H · D)"))
    arrow = _WIDE + depth + 0.25, middle + _TALL / 2 + 0.35
    ax.annotate("", (arrow[0] + 0.95, arrow[1]), arrow, arrowprops={"arrowstyle": "-|>", "color": "0.3", "linewidth": 1.5})
    write(arrow[0] + 0.45, arrow[1] + 0.28, say("concat"), 9)
    ax.set(xlim=(-1.4, end + 0.2), ylim=(-0.6, _TALL + depth + 0.7), aspect="equal")
    ax.set_axis_off()
    heading(ax, title)
    return ax


def output_projection(
    weight: ArrayLike,
    num_heads: int,
    *,
    title: str | None = None,
    language: str = "en",
    ax: Axes | None = None,
) -> Axes:
    """Draw W_O in stripes: which output numbers each head writes to, in colours that diverge from 0.

    Parameters
    ----------
    weight : array_like
        W_O as torch keeps it, (E, H · D): output = concat(heads) W_Oᵀ, so head h has the columns h · D to (h + 1) · D.  From 512 rows or
        columns on, a cell shows the number farthest from 0 of several.  Colours end at the 99.5 % that are nearest to 0, so that a few
        large numbers do not make all others white.
    num_heads : int
        H.
    title : str, optional
        The heading.
    language : {"en", "zh"}, default "en"
        Of the captions: English or Chinese.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        Where it was drawn; its lines are the borders between heads.

    Raises
    ------
    ValueError
        The heads do not divide the columns, or a number is not finite.
    TypeError
        The weight has no real numbers, or `num_heads` is no integer.
    """
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    who = "output_projection"
    say = Words(language, who)
    cells = numbers("weight", weight, who, "E, H · D")
    heads = as_count("num_heads", num_heads, who)
    if cells.shape[1] % heads:
        raise ValueError(bad("num_heads", f"a divisor of the {cells.shape[1]} columns of the weight", str(heads), who))
    if not np.isfinite(cells).all():
        raise ValueError(bad("weight", "finite numbers", "NaN or infinity", who))
    ax = axes_of(ax, 6.8, 5.4, who)
    image, notice = draw_cells(ax, cells, colours(cells))
    shades = np.abs(np.asarray(image.get_array()))
    limit = float(np.quantile(shades, 0.995)) or float(shades.max()) or 1.0
    image.set(cmap=colormaps["RdBu_r"], norm=Normalize(-limit, limit))
    add_bar(image, ax, say("weight"), extend="both" if shades.max() > limit else "neither")
    wide = cells.shape[1] // heads
    for head in range(1, heads):
        ax.axvline(head * wide - 0.5, color="0.25", linewidth=0.8)
    label_ticks(ax.xaxis, [str(head) for head in range(heads)], size_inches(ax)[0], apart=wide)
    ax.tick_params(axis="x", length=0)
    said = notice and f" ({say('a cell: the farthest from 0 of {0}', notice)})"
    name_axes(ax, say("column of W_O, by head") + said, say("row of W_O (output)"))
    heading(ax, title)
    return ax
