"""What training moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from qkvc._coerce import bad
from qkvc.plot._canvas import COLOURS, add_bar, axes_of, numbers
from qkvc.plot._text import add_legend, as_tokens, heading, lay_out, name_axes, place_labels, shown, size_inches
from qkvc.plot._words import Words

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def trajectories(
    positions: ArrayLike,
    labels: Sequence[str],
    *,
    steps: ArrayLike | None = None,
    groups: Sequence[str] | None = None,
    title: str | None = None,
    language: str = "en",
    ax: Axes | None = None,
) -> Axes:
    """Draw the ways of embeddings through training, seen from where they differ most.

    All positions of all vectors are projected to the two principal components that they have together (PCA: the right singular vectors of
    the centred positions), so that distances on the page are distances in the space, but for what the axes say is lost.

    Parameters
    ----------
    positions : array_like
        (times, n, dims): n vectors at two or more times, of two or more dimensions.
    labels : sequence of str
        Their names, n, written where they end.
    steps : array_like, optional
        The times, (times,), for the colours; 0, 1, .. by default.
    groups : sequence of str, optional
        What each vector belongs to, n: the colour of its end.
    title : str, optional
        The heading.
    language : {"en", "zh"}, default "en"
        Of the captions: English or Chinese.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        Where it was drawn; its collections are the ways, in the order of the labels, each coloured by time.

    Raises
    ------
    ValueError
        Lengths do not fit, there are fewer than two times or dimensions, or a number is not finite.
    TypeError
        A label is no string, or the positions are no real numbers.
    """
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Normalize

    who = "trajectories"
    say = Words(language, who)
    points = numbers("positions", positions, who, "times, n, dims")
    times, count, dims = points.shape
    names = as_tokens("labels", labels, who)
    kinds = None if groups is None else as_tokens("groups", groups, who)
    when = np.arange(times) if steps is None else numbers("steps", steps, who, "times")
    if times < 2 or dims < 2:
        raise ValueError(bad("positions", "at least two times and two dimensions", f"shape {points.shape}", who))
    for name, given, wanted in (
        ("labels", len(names), count),
        ("groups", count if kinds is None else len(kinds), count),
        ("steps", len(when), times),
    ):
        if given != wanted:
            raise ValueError(bad(name, f"{wanted} for positions of shape {points.shape}", str(given), who))
    if not (np.isfinite(points).all() and np.isfinite(when).all()):
        raise ValueError(bad("positions" if np.isfinite(when).all() else "steps", "finite numbers", "NaN or infinity", who))

    centred = points.reshape(-1, dims).astype(np.float64)
    centred -= centred.mean(0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    # A direction's sign is free: the largest of its numbers is positive, so that a picture comes out the same again.
    directions *= np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(1)])[:, None]
    flat = (centred @ directions[:2].T).reshape(times, count, -1)
    flat = np.concatenate([flat, np.zeros((times, count, 2 - flat.shape[-1]))], -1)  # a single vector twice has one direction
    shares = np.append(sizes**2, 0.0)[:2] * 100 / max(float((sizes**2).sum()), np.finfo(float).tiny)

    ax = axes_of(ax, 6.8, 5.2, who)
    scale = Normalize(float(when.min()), float(when.max()))
    shade = colormaps["viridis"].resampled(256)
    for n in range(count):
        way = np.stack([flat[:-1, n], flat[1:, n]], 1)
        ax.add_collection(LineCollection(list(way), cmap=shade, norm=scale, array=when[1:], linewidths=1.4, zorder=2))
    ax.plot(*flat[0].T, "o", markersize=4, color=shade(0.0), zorder=3)
    order = list(dict.fromkeys(kinds)) if kinds is not None else [None]
    for place, kind in enumerate(order):
        of = [n for n in range(count) if kinds is None or kinds[n] == kind]
        colour = "0.2" if kind is None else COLOURS[place % len(COLOURS)]
        marker = "os^Dv"[place // len(COLOURS) % 5]
        ax.plot(*flat[-1, of].T, marker, linestyle="", markersize=6, color=colour, zorder=4, label=kind and shown(kind))
    for n in range(count):  # which way it went: an arrowhead half-way
        gone = np.append(0.0, np.linalg.norm(np.diff(flat[:, n], axis=0), axis=1).cumsum())
        if gone[-1] > 0:
            # Its direction is that of a tenth of the way: single steps are noise.
            tail, tip = (tuple(np.interp(share * gone[-1], gone, flat[:, n, axis]) for axis in range(2)) for share in (0.45, 0.55))
            colour = shade(scale(np.interp(0.5 * gone[-1], gone, when)))
            arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 0, "mutation_scale": 14, "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", tip, tail, arrowprops=arrow, zorder=3)
    add_bar(ax.collections[0], ax, say("step"))
    name_axes(ax, *(say("component {0} ({1:.0f} % of the variance)", axis + 1, shares[axis]) for axis in range(2)))
    ax.grid(color="0.94")
    ax.set_axisbelow(True)
    heading(ax, title)
    low, high = flat.min((0, 1)), flat.max((0, 1))
    for _ in range(2):
        # One unit on the page is one unit in the space, across as down.  matplotlib's own equal aspect moves the limits with every drawing,
        # and so the ways from under their labels; here the second pass knows how wide the first one's ticks are.
        lay_out(ax)
        width, height = size_inches(ax)
        half = 0.62 * max((high[0] - low[0]) / width, (high[1] - low[1]) / height, 1e-12) * np.array([width, height])
        middle = (low + high) / 2
        ax.set(xlim=(middle[0] - half[0], middle[0] + half[0]), ylim=(middle[1] - half[1], middle[1] + half[1]))
    if kinds is not None:
        add_legend(ax, loc="best", fontsize=9, framealpha=0.8)
    place_labels(ax, flat[-1], names, flat.reshape(-1, 2))
    return ax
