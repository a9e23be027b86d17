"""What pictures share: axes to draw on, numbers that were checked, colours with a zero, and images no finer than the page."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qkvc._coerce import as_operand, bad, shape_text
from qkvc.plot._text import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.image import AxesImage

# Okabe and Ito (2008), Color Universal Design: told apart with any kind of colour vision.  Without their black, which is for text.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442")
NOBODY = "0.88"  # where there is nothing to show

CELLS = 512  # of an image, along one side: a pixel each on a page of 150 dots per inch would be 3.4 inches


def numbers(name: str, x: Any, who: str, shape: str) -> NDArray[Any]:
    """Float32 or float64 numbers with as many axes as `shape` names, "layers, heads", none of them empty."""
    array = as_operand(name, x, who)
    if array.dtype.itemsize == 2:
        array = array.astype(np.float32)
    if array.ndim != shape.count(",") + 1 or not array.size:
        raise ValueError(bad(name, f"({shape}), none of them 0", shape_text(array), who))
    return array


def axes_of(ax: Axes | None, width: float, height: float, who: str) -> Axes:
    """The axes given, or those of a new figure of that size in inches, which is not pyplot's: no global state, window or display."""
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    if ax is None:
        return Figure(figsize=(width, height), layout="constrained").add_subplot()
    if not isinstance(ax, Axes):
        raise TypeError(bad("ax", "matplotlib Axes or None", type(ax).__name__, who))
    return ax


def figure_of(figure: Figure | SubFigure | None, width: float, height: float, who: str) -> Figure | SubFigure:
    from matplotlib.figure import Figure, FigureBase

    if figure is None:
        return Figure(figsize=(width, height), layout="constrained")
    if not isinstance(figure, FigureBase):
        raise TypeError(bad("figure", "a matplotlib Figure or SubFigure or None", type(figure).__name__, who))
    return figure


def colours(values: NDArray[Any], log: bool = False) -> dict[str, Any]:
    """A colour map and its scale, which contains 0: from there up, or where numbers have signs, as far down as up.

    The scale ends at the largest number and not at 1, because many heads spread so widely that they would be black.  The logarithmic one is
    linear below a thousandth to a ten-thousandth of that, so that 0 has a place.  What is not finite is grey.
    """
    from matplotlib import colormaps
    from matplotlib.colors import Normalize, SymLogNorm

    finite = values[np.isfinite(values)]
    low, high = float(finite.min(initial=0)), float(finite.max(initial=0))
    if low < 0:
        high = max(-low, high)
        return {"cmap": colormaps["RdBu_r"].with_extremes(bad=NOBODY), "norm": Normalize(-high, high)}
    high = high or 1.0
    norm = SymLogNorm(10.0 ** (np.floor(np.log10(high)) - 3), linscale=0.3, vmin=0.0, vmax=high) if log else Normalize(0.0, high)
    return {"cmap": colormaps["viridis"].with_extremes(bad=NOBODY), "norm": norm}


def draw_cells(ax: Axes, values: NDArray[Any], scale: dict[str, Any], most: int = CELLS) -> tuple[AxesImage, str]:
    """An image with a cell per number, and "" or, where there are too many of them, how many share a cell, " · 20 × 20".

    A cell then shows that of its numbers that is farthest from 0.  matplotlib would take one of them at random, and lose the others.
    """
    rows, columns = (ceil(n / most) for n in values.shape)
    cells = _farthest(_farthest(values, rows, 0), columns, 1)
    height, width = values.shape
    image = ax.imshow(
        cells,
        interpolation="nearest",
        aspect="auto",  # square cells in axes of another shape make matplotlib's layout lose the labels
        extent=(-0.5, cells.shape[1] * columns - 0.5, cells.shape[0] * rows - 0.5, -0.5),
        **scale,
    )
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    return image, "" if rows == columns == 1 else f"{rows} × {columns}"


def _farthest(values: NDArray[Any], every: int, axis: int) -> NDArray[Any]:
    if every == 1:
        return values
    starts = np.arange(0, values.shape[axis], every)
    high, low = (f.reduceat(values, starts, axis) for f in (np.maximum, np.minimum))
    return np.where(-low > high, low, high)


def add_bar(image: ScalarMappable, of: Axes | list[Axes], label: str, **options: Any) -> Colorbar:
    """What the colours mean, beside the axes."""
    first = of[0] if isinstance(of, list) else of
    bar = first.figure.colorbar(image, ax=of, **{"fraction": 0.046, "aspect": 25, **options})
    bar.set_label(label, **style(label))
    return bar


def plain_decades(axis: Axis) -> None:
    """Numbers of a logarithmic axis as they are, 0.5 or 200, of each decade the first, second and fifth."""
    from matplotlib.ticker import FuncFormatter

    def write(x: float, _: object) -> str:
        return f"{x:g}" if f"{x:e}"[0] in "125" else ""

    axis.set_major_formatter(FuncFormatter(write))
    axis.set_minor_formatter(FuncFormatter(write))


def write_cells(ax: Axes, image: AxesImage, texts: Sequence[Sequence[str]], inches: tuple[float, float]) -> None:
    """A number in every cell, white on dark and black on light; nothing where no legible one has room."""
    values = image.get_array()
    assert values is not None
    longest = max(len(text) for row in texts for text in row)
    cell = 72 * inches[0] / len(texts[0]), 72 * inches[1] / len(texts)
    size = min(9.0, cell[0] / (0.68 * longest), 0.7 * cell[1])
    if size < 4.5:
        return
    colour = np.asarray(image.cmap(image.norm(values)))
    light = (colour[..., :3] ** 2.2) @ (0.2126, 0.7152, 0.0722) > 0.25  # relative luminance; half as bright to the eye is 0.2
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            at = "black" if light[row, column] else "white"
            note = ax.text(column, row, text, ha="center", va="center", fontsize=size, color=at, clip_on=True)
            note.set_in_layout(False)  # it lies inside the axes anyway, and 1200 of them would take the layout seconds
