"""All heads of a model at once: a number, a role or an entropy each, and how alike they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from qkvc._coerce import as_count, as_flag, as_listed, bad
from qkvc.plot._canvas import COLOURS, NOBODY, add_bar, axes_of, colours, draw_cells, numbers, write_cells
from qkvc.plot._text import add_legend, as_tokens, columns, heading, label_ticks, name_axes, place_labels, shown, size_inches
from qkvc.plot._words import Words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HATCHES = ("", "///", "...", "xxx")  # of the second seven roles and so on, which have the colours of the first


def overview(
    values: ArrayLike,
    *,
    label: str,
    title: str | None = None,
    annotate: bool = True,
    number_format: str = ".2f",
    language: str = "en",
    ax: Axes | None = None,
) -> Axes:
    """Draw one number for each head of a model: a row per layer, a column per head, both counted from 0.

    Parameters
    ----------
    values : array_like
        The numbers, (layers, heads).  Colours begin at 0; with numbers below 0 they diverge from there.  NaN is grey.
    label : str
        What the numbers are.
    title : str, optional
        The heading.
    annotate : bool, default True
        Write the numbers into the cells, where these are large enough for it.
    number_format : str, default ".2f"
        How, as of `format`.
    language : {"en", "zh"}, default "en"
        Of the captions: English or Chinese.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure of fitting size by default.

    Returns
    -------
    matplotlib.axes.Axes
        Where it was drawn.

    Raises
    ------
    ValueError
        `values` are not (layers, heads), or nothing can be written in that format.
    TypeError
        `values` are no real numbers.
    """
    who = "overview"
    say = Words(language, who)
    cells = numbers("values", values, who, "layers, heads")
    texts = [[_written(x, number_format, who) for x in row] for row in cells.tolist()]
    layers, heads = cells.shape
    ax = axes_of(ax, max(3.5, 0.48 * heads + 1.7), max(2.2, 0.42 * layers + 1.1), who)
    image, _ = draw_cells(ax, cells, colours(cells))
    _number_axes(ax, say, layers, heads)
    if as_flag("annotate", annotate, who):
        write_cells(ax, image, texts, size_inches(ax))
    add_bar(image, ax, label)
    heading(ax, title)
    return ax


def similarity(
    matrix: ArrayLike,
    *,
    heads: int | None = None,
    names: Sequence[str] | None = None,
    cluster: bool = False,
    axis: str | None = None,
    label: str | None = None,
    title: str | None = None,
    language: str = "en",
    ax: Axes | None = None,
) -> Axes:
    """Draw how alike heads are, or anything else, each with each.

    Parameters
    ----------
    matrix : array_like
        Similarities or distances, (n, n).
    heads : int, optional
        How many heads a layer has: they are then named "layer.head", counted from 0; all are of layer 0 by default.
    names : sequence of str, optional
        Names of your own instead.
    cluster : bool, default False
        Put heads that have similar rows beside each other: the leaves of average linkage of the rows' Euclidean distances, in the order in
        which neighbours are nearest (`scipy.cluster.hierarchy.linkage` with `optimal_ordering`; needs `pip install qkvc[analysis]`).
    axis : str, optional
        What rows and columns are, "head" by default.
    label : str, optional
        What the numbers are, "similarity" by default.
    title : str, optional
        The heading.
    language : {"en", "zh"}, default "en"
        Of the captions: English or Chinese.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure of fitting size by default.

    Returns
    -------
    matplotlib.axes.Axes
        Where it was drawn.

    Raises
    ------
    ValueError
        The matrix is not square, names do not fit or came beside `heads`, `heads` does not divide n, or numbers that are not finite are
        to be clustered.
    TypeError
        The matrix has no real numbers, or a name is no string.
    """
    who = "similarity"
    say = Words(language, who)
    cells = numbers("matrix", matrix, who, "n, n")
    count = len(cells)
    if cells.shape != (count, count):
        raise ValueError(bad("matrix", "a square", str(cells.shape), who))
    if heads is not None and (count % as_count("heads", heads, who) or names is not None):
        wanted = "None beside names" if names is not None else f"a divisor of the {count} heads of the matrix"
        raise ValueError(bad("heads", wanted, str(heads), who))
    per_layer = heads or count
    labels = [f"{n // per_layer}.{n % per_layer}" for n in range(count)] if names is None else as_tokens("names", names, who)
    if len(labels) != count:
        raise ValueError(bad("names", f"{count}, one a head", str(len(labels)), who))
    if as_flag("cluster", cluster, who):
        if not np.isfinite(cells).all():
            raise ValueError(bad("matrix", "finite numbers with cluster=True", "NaN or infinity", who))
        if count > 2:
            from scipy.cluster.hierarchy import leaves_list, linkage

            order = leaves_list(linkage(cells.astype(np.float64), "average", optimal_ordering=True))
            cells, labels = cells[np.ix_(order, order)], [labels[n] for n in order]
    side = float(np.clip(0.17 * count, 3.2, 9.0))
    ax = axes_of(ax, side + 1.8, side + 0.9, who)
    image, _ = draw_cells(ax, cells, colours(cells))
    add_bar(image, ax, say("similarity") if label is None else label)
    label_ticks(ax.xaxis, labels, size_inches(ax)[0], slanted=True)
    label_ticks(ax.yaxis, labels, size_inches(ax)[1])
    caption = say("head (layer.head)" if names is None else "head") if axis is None else axis
    name_axes(ax, caption, caption)
    heading(ax, title)
    return ax


def roles(
    names: Sequence[Sequence[str | None]],
    *,
    order: Sequence[str] | None = None,
    title: str | None = None,
    language: str = "en",
    ax: Axes | None = None,
) -> Axes:
    """Draw the role of each head of a model as a colour: a row per layer, a column per head, both counted from 0.

    Parameters
    ----------
    names : sequence of sequence of str or None
        The roles, layers x heads; None for a head that has none, which stays grey.
    order : sequence of str, optional
        All roles there may be, in the order of their colours, so that several pictures can be compared; by default those that occur, the
        most frequent first.  The legend names those that occur, with their number.  After seven roles the colours come again, hatched.
    title : str, optional
        The heading.
    language : {"en", "zh"}, default "en"
        Of the captions: English or Chinese.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure of fitting size by default.

    Returns
    -------
    matplotlib.axes.Axes
        Where it was drawn; its patches are the heads, layer by layer.

    Raises
    ------
    ValueError
        Layers have unlike numbers of heads, there are none, a role is missing in `order`, or there are more than 28 of them.
    TypeError
        A role is neither a string nor None.
    """
    from matplotlib.patches import Rectangle

    who = "roles"
    say = Words(language, who)
    wanted = "a sequence of layers, each of roles or None"
    layers = [as_listed("names", row, wanted, who) for row in as_listed("names", names, wanted, who)]
    if not layers or not layers[0] or len({len(row) for row in layers}) > 1:
        raise ValueError(bad("names", "layers x heads", f"layers of {[len(row) for row in layers]} heads", who))
    flat = as_tokens("names", [name for row in layers for name in row if name is not None], who)
    counts = {name: flat.count(name) for name in dict.fromkeys(flat)}
    every = sorted(counts, key=lambda name: -counts[name]) if order is None else as_tokens("order", order, who)
    if missing := [name for name in counts if name not in every]:
        raise ValueError(bad("order", "all roles that occur", f"none of {missing}", who))
    if len(every) > len(COLOURS) * len(_HATCHES):
        raise ValueError(bad("names", f"at most {len(COLOURS) * len(_HATCHES)} roles", str(len(every)), who))

    def look(name: str | None) -> dict[str, Any]:
        place = None if name is None else every.index(name)
        face = {"facecolor": NOBODY} if place is None else {"facecolor": COLOURS[place % 7], "hatch": _HATCHES[place // 7]}
        return face | {"edgecolor": "white", "linewidth": 1}

    longest = max((columns(shown(name)) for name in counts), default=8)
    ax = axes_of(
        ax, max(2.5, 0.36 * len(layers[0]) + 0.8) + 0.08 * longest + 1.0, max(2.2, 0.36 * len(layers) + 1.0, 0.24 * len(counts) + 1), who
    )
    for layer, row in enumerate(layers):
        for head, name in enumerate(row):
            ax.add_patch(Rectangle((head - 0.5, layer - 0.5), 1, 1, **look(name)))
    ax.set(xlim=(-0.5, len(layers[0]) - 0.5), ylim=(len(layers) - 0.5, -0.5))
    _number_axes(ax, say, len(layers), len(layers[0]))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    handles = [Rectangle((0, 0), 1, 1, label=f"{shown(name)} ({counts[name]})", **look(name)) for name in every if name in counts]
    if nobody := sum(name is None for row in layers for name in row):
        handles.append(Rectangle((0, 0), 1, 1, label=f"{say('no role')} ({nobody})", **look(None)))
    add_legend(
        ax, handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, borderaxespad=0.0, handlelength=1.2, handleheight=1.2
    )
    heading(ax, title)
    return ax


def entropy(
    values: ArrayLike,
    *,
    keys: int | None = None,
    extremes: int = 2,
    title: str | None = None,
    language: str = "en",
    ax: Axes | None = None,
) -> Axes:
    """Draw the entropy of each head's weights, layer by layer: low where a head knows what it looks for, high where it takes all in.

    Parameters
    ----------
    values : array_like
        Entropies in nats, (layers, heads), each the mean over the queries of -Σ p ln p.  Heads stand from left to right within their layer.
    keys : int, optional
        How many keys there were: draws the most that is possible, ln(keys).
    extremes : int, default 2
        Name so many of the lowest and of the highest heads, as "layer.head".
    title : str, optional
        The heading.
    language : {"en", "zh"}, default "en"
        Of the captions: English or Chinese.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure of fitting size by default.

    Returns
    -------
    matplotlib.axes.Axes
        Where it was drawn.

    Raises
    ------
    ValueError
        `values` are not (layers, heads) or not finite, `keys` is below 1 or `extremes` below 0.
    TypeError
        `values` are no real numbers.
    """
    who = "entropy"
    say = Words(language, who)
    heights = numbers("values", values, who, "layers, heads")
    if not np.isfinite(heights).all():
        raise ValueError(bad("values", "finite numbers", "NaN or infinity", who))
    if keys is not None:
        keys = as_count("keys", keys, who)
    extremes = as_count("extremes", extremes, who, 0)
    layers, heads = heights.shape
    places = np.arange(layers)[:, None] + 0.7 * (np.arange(heads) - (heads - 1) / 2) / heads
    ax = axes_of(ax, float(np.clip(1.0 * layers + 1.2, 4.5, 12.0)), 3.8, who)
    ax.plot(places.ravel(), heights.ravel(), "o", color=COLOURS[0], markersize=4, zorder=3)
    means = heights.mean(1)
    ax.hlines(means, np.arange(layers) - 0.42, np.arange(layers) + 0.42, color=COLOURS[3], linewidth=1.5, label=say("mean of the layer"))
    if keys is not None:
        ax.axhline(np.log(keys), color="0.4", linestyle="--", linewidth=1, label=say("uniform over {0} keys: ln {0}", keys))
    ranked = heights.ravel().argsort(kind="stable")
    half = min(extremes, heights.size // 2)
    top = max(float(heights.max()), np.log(keys) if keys is not None else 0.0, 1e-9)
    ax.set(xlim=(-0.6, layers - 0.4), ylim=(min(float(heights.min()), -0.07 * top), 1.12 * top))
    label_ticks(ax.xaxis, [str(layer) for layer in range(layers)], size_inches(ax)[0])
    name_axes(ax, say("layer"), say("entropy of the weights (nats)"))
    ax.grid(axis="y", color="0.92")
    ax.set_axisbelow(True)
    add_legend(ax, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize=9)
    heading(ax, title, pad=26)  # above the legend
    points = np.stack([places.ravel(), heights.ravel()], -1)
    chosen = np.concatenate([ranked[:half], ranked[heights.size - half :]])
    place_labels(ax, points[chosen], [f"{n // heads}.{n % heads}" for n in chosen], points, fontsize=8)
    return ax


def _written(x: float, number_format: str, who: str) -> str:
    if not np.isfinite(x):
        return "–"
    try:
        text = format(x, number_format)
    except (TypeError, ValueError):
        raise ValueError(bad("number_format", "a format of numbers, such as '.2f'", repr(number_format), who)) from None
    # What rounds to 0 has no sign, and a minus is as wide as a plus.
    return text.replace("-", "−") if re.search("[1-9]", text) else re.sub("[-+]", "", text)


def _number_axes(ax: Axes, say: Words, layers: int, heads: int) -> None:
    width, height = size_inches(ax)
    label_ticks(ax.xaxis, [str(head) for head in range(heads)], width)
    label_ticks(ax.yaxis, [str(layer) for layer in range(layers)], height)
    name_axes(ax, say("head"), say("layer"))
