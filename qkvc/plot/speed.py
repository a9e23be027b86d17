"""Speed below what the machine allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from qkvc._coerce import as_above_zero, as_flag, bad
from qkvc.plot._canvas import COLOURS, axes_of, numbers, plain_decades
from qkvc.plot._text import add_legend, as_tokens, heading, name_axes, style
from qkvc.plot._words import Words

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def roofline(
    intensity: ArrayLike,
    speed: ArrayLike,
    *,
    peak: float,
    bandwidth: float,
    rivals: ArrayLike | None = None,
    labels: tuple[str, str] | None = None,
    legend: bool = True,
    title: str | None = None,
    language: str = "en",
    ax: Axes | None = None,
) -> Axes:
    """Draw speeds over arithmetic intensity, below the roof min(peak, bandwidth · intensity) (Williams, Waterman and Patterson 2009).

    Parameters
    ----------
    intensity : array_like
        Useful operations per byte that must be moved, (n,).
    speed : array_like
        GFLOP/s that were reached, (n,).
    peak : float
        GFLOP/s that arithmetic allows.
    bandwidth : float
        GB/s that memory allows.
    rivals : array_like, optional
        GFLOP/s of somebody else on the same work, (n,); NaN where there is none.
    labels : (str, str), optional
        What the points and the rivals' circles are.
    legend : bool, default True
        Say so.
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
        Lengths differ, or a number is not above 0 and finite.
    TypeError
        Something has no real numbers, or a label is no string.
    """
    who = "roofline"
    say = Words(language, who)
    x, y = numbers("intensity", intensity, who, "n"), numbers("speed", speed, who, "n")
    other = np.full(len(x), np.nan) if rivals is None else numbers("rivals", rivals, who, "n")
    peak, bandwidth = as_above_zero("peak", peak, who), as_above_zero("bandwidth", bandwidth, who)
    for name, value in (("intensity", x), ("speed", y), ("rivals", other)):
        if value.shape != x.shape:
            raise ValueError(bad(name, f"{len(x)} numbers, as many as intensity", f"{len(value)}", who))
    for name, value in (("intensity", x), ("speed", y), ("rivals", other[~np.isnan(other)])):
        if not (np.isfinite(value) & (value > 0)).all():
            raise ValueError(bad(name, "finite numbers above 0", f"{value[~(np.isfinite(value) & (value > 0))][0]}", who))
    names = [say("measured"), say("best rival")] if labels is None else as_tokens("labels", labels, who)
    if len(names) != 2:
        raise ValueError(bad("labels", "two: of the points and of the rivals", str(len(names)), who))

    ax = axes_of(ax, 6.5, 4.5, who)
    low, high = min(float(x.min()), peak / bandwidth) / 2, max(float(x.max()), peak / bandwidth) * 2
    roof = np.geomspace(low, high, 200)
    ax.plot(roof, np.minimum(peak, bandwidth * roof), color="0.2", linewidth=1.5, zorder=1)
    if rivals is not None:
        ax.plot(x, other, "o", markerfacecolor="none", markeredgecolor="0.35", markersize=5, zorder=3, label=names[1])
    ax.plot(x, y, "o", color=COLOURS[0], markersize=5, zorder=4, label=names[0])
    ax.set(xscale="log", yscale="log", xlim=(low, high))
    ax.set_ylim(top=2 * max(peak, float(y.max()), float(np.nanmax(other, initial=0.0))))
    plain_decades(ax.xaxis)
    plain_decades(ax.yaxis)
    arithmetic, memory = say("FMA peak {0:.0f} GFLOP/s", peak), say("read {0:.0f} GB/s", bandwidth)
    ax.annotate(arithmetic, (high, peak), (-6, 4), textcoords="offset points", ha="right", color="0.2", **style(arithmetic))
    ax.annotate(memory, (low, bandwidth * low), (26, 6), textcoords="offset points", color="0.2", **style(memory))
    name_axes(ax, say("operations per byte"), say("GFLOP/s"))
    ax.grid(which="major", color="0.92")
    ax.set_axisbelow(True)
    if as_flag("legend", legend, who):
        add_legend(ax, loc="lower right", frameon=False)
    heading(ax, title)
    return ax
