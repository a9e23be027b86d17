"""Why scores are divided by √d_k: their variance, and what their size does to softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from qkvc._coerce import bad
from qkvc.plot._canvas import COLOURS, axes_of, numbers, plain_decades
from qkvc.plot._text import add_legend, as_tokens, heading, name_axes, shown
from qkvc.plot._words import Words

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def score_variance(
    dims: ArrayLike,
    before: ArrayLike,
    after: ArrayLike,
    *,
    title: str | None = None,
    language: str = "en",
    ax: Axes | None = None,
) -> Axes:
    """Draw the variance of q · k against the width of a head, before and after scaling, with the line y = d_k.

    The dot product of two vectors of d_k independent numbers of mean 0 and variance 1 has the variance d_k (Vaswani et al. 2017, 3.2.1).

    Parameters
    ----------
    dims : array_like
        Widths d_k, (n,).
    before, after : array_like
        The variances measured there, (n,), of q · k and of q · k / √d_k.
    title : str, optional
        The heading.
    language : {"en", "zh"}, default "en"
        Of the captions: English or Chinese.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        Where it was drawn; both axes are logarithmic.

    Raises
    ------
    ValueError
        Lengths differ, or a number is not above 0 and finite: it has no logarithm.
    TypeError
        Something has no real numbers.
    """
    who = "score_variance"
    say = Words(language, who)
    x, y, z = (numbers(name, value, who, "n") for name, value in (("dims", dims), ("before", before), ("after", after)))
    for name, value in (("dims", x), ("before", y), ("after", z)):
        if value.shape != x.shape:
            raise ValueError(bad(name, f"{len(x)} numbers, as many as dims", f"{len(value)}", who))
        if not (np.isfinite(value) & (value > 0)).all():
            raise ValueError(bad(name, "finite numbers above 0", f"{value[~(np.isfinite(value) & (value > 0))][0]}", who))
    ax = axes_of(ax, 5.5, 4.0, who)
    line = np.array([x.min(), x.max()])
    ax.plot(line, line, color="0.4", linestyle="--", linewidth=1, label=say("y = d_k"))
    ax.axhline(1, color="0.75", linewidth=1)
    ax.plot(x, y, "o", color=COLOURS[3], markersize=6, label=say("before scaling"))
    ax.plot(x, z, "s", color=COLOURS[0], markersize=5, label=say("after scaling by 1/√d_k"))
    ax.set(xscale="log", yscale="log")
    name_axes(ax, say("width of a head, d_k"), say("variance of q · k"))
    # Widths that were measured, as they are and ten at most: decades would hardly name one of them.
    ticks: list[float] = []
    for width in np.unique(x).tolist():
        if not ticks or np.log(width / ticks[-1]) > np.log(line[1] / line[0]) / 9.5:
            ticks.append(width)
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_xticks([], minor=True)
    plain_decades(ax.yaxis)
    ax.grid(color="0.92")
    ax.set_axisbelow(True)
    add_legend(ax, loc="upper left", frameon=False)
    heading(ax, title)
    return ax


def sharpness(
    scales: ArrayLike,
    weights: ArrayLike,
    *,
    labels: Sequence[str] | None = None,
    title: str | None = None,
    language: str = "en",
    ax: Axes | None = None,
) -> Axes:
    """Draw the softmax weights of the same scores times ever larger scales: from all alike to one that takes all.

    Parameters
    ----------
    scales : array_like
        What the scores were multiplied by, (n,), above 0.
    weights : array_like
        The weights of the keys there, (n, keys).
    labels : sequence of str, optional
        Names of the keys, "key 0" and so on by default.  After seven keys, lines come in other dashes.
    title : str, optional
        The heading.
    language : {"en", "zh"}, default "en"
        Of the captions: English or Chinese.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        Where it was drawn; scales are logarithmic, weights begin at 0.

    Raises
    ------
    ValueError
        Lengths differ, a scale is not above 0 and finite, or a weight not finite.
    TypeError
        Something has no real numbers, or a label is no string.
    """
    who = "sharpness"
    say = Words(language, who)
    x, y = numbers("scales", scales, who, "n"), numbers("weights", weights, who, "n, keys")
    if len(x) != len(y):
        raise ValueError(bad("weights", f"{len(x)} rows, one a scale", f"shape {y.shape}", who))
    if not (np.isfinite(x) & (x > 0)).all():
        raise ValueError(bad("scales", "finite numbers above 0", f"{x[~(np.isfinite(x) & (x > 0))][0]}", who))
    if not np.isfinite(y).all():
        raise ValueError(bad("weights", "finite numbers", "NaN or infinity", who))
    keys = y.shape[1]
    names = [say("key {0}", key) for key in range(keys)] if labels is None else as_tokens("labels", labels, who)
    if len(names) != keys:
        raise ValueError(bad("labels", f"{keys}, one a key", str(len(names)), who))
    order = x.argsort(kind="stable")
    ax = axes_of(ax, 6.5, 4.0, who)
    for key, name in enumerate(names):
        dash = ("-", "--", ":", "-.")[key // len(COLOURS) % 4]
        ax.plot(x[order], y[order, key], dash, color=COLOURS[key % len(COLOURS)], linewidth=2, label=shown(name))
    ax.axhline(1 / keys, color="0.4", linestyle="--", linewidth=1, label=say("uniform: 1/{0}", keys), zorder=1)
    ax.set(xscale="log", ylim=(0, max(1.0, float(y.max())) * 1.03))
    plain_decades(ax.xaxis)
    name_axes(ax, say("scale of the scores"), say("softmax weight"))
    ax.grid(color="0.92")
    ax.set_axisbelow(True)
    add_legend(ax, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, borderaxespad=0.0, ncols=-(-(keys + 1) // 18), fontsize=9)
    heading(ax, title)
    return ax
