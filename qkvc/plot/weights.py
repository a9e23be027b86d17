"""Who attends to whom: one head, all heads of a layer, and what comes through all layers."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qkvc._coerce import as_count, as_flag, as_operand, bad, private_integers
from qkvc.plot._canvas import add_bar, axes_of, colours, draw_cells, figure_of, numbers
from qkvc.plot._text import as_tokens, columns, heading, label_ticks, name_axes, shown, size_inches, style, wrapped
from qkvc.plot._words import Words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_CELL = 0.38  # inches of a token, in a figure of its own: a label of 10 points with room
_PANEL = 256  # cells of a small picture along one side, at most: there are fewer pixels than in a large one


def heatmap(
    weights: ArrayLike,
    tokens: Sequence[str],
    key_tokens: Sequence[str] | None = None,
    *,
    title: str | None = None,
    mark: tuple[int, int] | None = None,
    log: bool = False,
    label: str | None = None,
    language: str = "en",
    ax: Axes | None = None,
) -> Axes:
    """Draw who attends to whom: a row per query, a column per key.

    Colours begin at 0, so that dark means unseen, and end at the largest weight.  Labels become smaller where there are many tokens, and
    then fewer; from 512 tokens on, a cell shows the largest weight of several, and the axes say of how many.

    Parameters
    ----------
    weights : array_like
        The attention weights of one head, (L_q, L_k).  Numbers below 0, such as scores, get colours that diverge from 0; NaN is grey.
    tokens : sequence of str
        The labels of the queries: any strings, drawn as they are.  What has no shape, such as a line break, is drawn as its escape.
    key_tokens : sequence of str, optional
        The labels of the keys, where they differ from `tokens`.
    title : str, optional
        The heading.
    mark : (int, int), optional
        The row and column of a cell to frame.
    log : bool, default False
        Logarithmic colours, linear at the low end where 0 lies: a sink, the one key that everybody looks at, hides the others otherwise.
    label : str, optional
        What the colours mean, "attention weight" by default.
    language : {"en", "zh"}, default "en"
        Of the captions: English or Chinese.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure of fitting size by default.

    Returns
    -------
    matplotlib.axes.Axes
        `heatmap(...).figure.savefig(path)` writes the picture.

    Raises
    ------
    ValueError
        Tokens and weights do not fit, `mark` is no cell, or `log` with numbers below 0.
    TypeError
        A label is no string, or the weights are no real numbers.
    """
    who = "heatmap"
    say = Words(language, who)
    queries = as_tokens("tokens", tokens, who)
    keys = queries if key_tokens is None else as_tokens("key_tokens", key_tokens, who)
    cells = numbers("weights", weights, who, "L_q, L_k")
    if cells.shape != (len(queries), len(keys)):
        raise ValueError(bad("weights", f"shape {(len(queries), len(keys))} for the given tokens", str(cells.shape), who))
    _check_log(log, cells, who)
    marked = None if mark is None else private_integers("mark", mark, "a row and a column", who)
    if marked is not None and (marked.shape != (2,) or (marked < 0).any() or (marked >= cells.shape).any()):
        raise ValueError(bad("mark", f"a row and a column of {cells.shape}", repr(mark), who))
    ax = axes_of(ax, *_size(keys, queries), who)
    image, notice = draw_cells(ax, cells, colours(cells, log))
    caption = say("attention weight (log scale)" if log else "attention weight") if label is None else label
    add_bar(image, ax, caption)
    _label(ax, say, keys, queries, notice)
    heading(ax, title)
    if marked is not None:
        from matplotlib.patches import Rectangle

        row, column = marked.tolist()
        ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=2))
    return ax


def head_grid(
    weights: ArrayLike,
    tokens: Sequence[str],
    key_tokens: Sequence[str] | None = None,
    *,
    names: Sequence[str] | None = None,
    title: str | None = None,
    log: bool = False,
    grid_columns: int | None = None,
    language: str = "en",
    figure: Figure | SubFigure | None = None,
) -> NDArray[np.object_]:
    """Draw all heads of a layer, each as `heatmap` would, in colours that mean the same in all of them.

    Parameters
    ----------
    weights : array_like
        The attention weights of the heads, (H, L_q, L_k).
    tokens, key_tokens : sequence of str
        The labels of the queries, and of the keys where they differ; they stand along the left and the lower edge of the grid.
    names : sequence of str, optional
        The headings of the heads, "head 0" and so on by default.
    title : str, optional
        The heading of all.
    log : bool, default False
        Logarithmic colours, linear at the low end where 0 lies.
    grid_columns : int, optional
        Heads side by side; by default about as many as below one another.
    language : {"en", "zh"}, default "en"
        Of the captions: English or Chinese.
    figure : matplotlib.figure.Figure or SubFigure, optional
        Where to draw; a new figure by default.  Give it `layout="constrained"`, or labels may overlap.

    Returns
    -------
    ndarray of matplotlib.axes.Axes
        Shape (H,), head by head.

    Raises
    ------
    ValueError
        Tokens, names and weights do not fit, `grid_columns` is below 1, or `log` with numbers below 0.
    TypeError
        A label is no string, or the weights are no real numbers.
    """
    who = "head_grid"
    say = Words(language, who)
    queries = as_tokens("tokens", tokens, who)
    keys = queries if key_tokens is None else as_tokens("key_tokens", key_tokens, who)
    cells = numbers("weights", weights, who, "H, L_q, L_k")
    if cells.shape[1:] != (len(queries), len(keys)):
        raise ValueError(bad("weights", f"shape (H, {len(queries)}, {len(keys)}) for the given tokens", str(cells.shape), who))
    heads = len(cells)
    headings = [say("head {0}", head) for head in range(heads)] if names is None else as_tokens("names", names, who)
    if len(headings) != heads:
        raise ValueError(bad("names", f"{heads}, one a head", str(len(headings)), who))
    _check_log(log, cells, who)
    across = min(heads, ceil(sqrt(heads)) if grid_columns is None else as_count("grid_columns", grid_columns, who))
    down = ceil(heads / across)

    width, height = (float(np.clip(0.17 * len(labels), 1.8, 2.6)) for labels in (keys, queries))
    page = figure_of(figure, across * width + 0.08 * _longest(queries) + 1.4, down * (height + 0.3) + 0.08 * _longest(keys) + 0.6, who)
    every = page.subplots(down, across, squeeze=False).ravel()
    axes, rest = every[:heads], every[heads:]
    for ax in rest:
        ax.remove()
    scale = colours(cells, log)
    for head, ax in enumerate(axes):
        image, notice = draw_cells(ax, cells[head], scale, _PANEL)
        label_ticks(ax.xaxis, keys, size_inches(ax)[0], slanted=True)
        label_ticks(ax.yaxis, queries, size_inches(ax)[1])
        # The lowest of a column and the first of a row have labels, the others the same ticks without.
        ax.tick_params(labelbottom=head + across >= heads, labelleft=head % across == 0)
        name = shown(headings[head])
        ax.set_title(name, fontsize=10, **style(name))
    caption = say("attention weight (log scale)" if log else "attention weight")
    add_bar(image, list(axes), caption, fraction=0.03, aspect=40)
    query, key = say("query (who looks)"), say("key (what is looked at)")
    page.supxlabel(key + _said(say, notice), fontsize=10, **style(key, notice))
    page.supylabel(query, fontsize=10, **style(query))
    if title is not None:
        text = wrapped(title, int(page.bbox.width / page.dpi * 10))
        page.suptitle(text, **style(text))
    return np.array(axes, dtype=object)


def rollout(
    rollouts: ArrayLike,
    tokens: Sequence[str],
    *,
    query: int | None = None,
    title: str | None = None,
    log: bool = False,
    language: str = "en",
    ax: Axes | None = None,
) -> Axes:
    """Draw how much of each input token has reached a token, layer after layer (attention rollout, Abnar and Zuidema 2020).

    Parameters
    ----------
    rollouts : array_like
        Products of the layers' mixing matrices: (layers, L, L), with one after each layer, or (L, L), one after all.  Rows are the tokens
        that have received, columns those of the input.
    tokens : sequence of str
        Their labels, L.
    query : int, optional
        Of (layers, L, L), the token whose row is followed through the layers; the mean of all rows by default.  Of (L, L), all rows are
        drawn and none may be named.
    title : str, optional
        The heading.
    log : bool, default False
        Logarithmic colours, linear at the low end where 0 lies.
    language : {"en", "zh"}, default "en"
        Of the captions: English or Chinese.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure of fitting size by default.

    Returns
    -------
    matplotlib.axes.Axes
        Where it was drawn: layers, counted from 0 at the top, and tokens; or tokens and tokens.

    Raises
    ------
    ValueError
        Tokens and rollouts do not fit, `query` is no token or was given with (L, L), or `log` with numbers below 0.
    TypeError
        A label is no string, or the rollouts are no real numbers.
    """
    who = "rollout"
    say = Words(language, who)
    labels = as_tokens("tokens", tokens, who)
    given = as_operand("rollouts", rollouts, who)
    given = numbers("rollouts", given, who, "L, L" if given.ndim == 2 else "layers, L, L")
    if given.shape[-2:] != (len(labels), len(labels)):
        wanted = f"(layers, {len(labels)}, {len(labels)}) or ({len(labels)}, {len(labels)}) for the given tokens"
        raise ValueError(bad("rollouts", wanted, str(given.shape), who))
    if query is not None and (given.ndim == 2 or as_count("query", query, who, 0) >= len(labels)):
        wanted = "None with rollouts of shape (L, L)" if given.ndim == 2 else f"a token, 0 to {len(labels) - 1}"
        raise ValueError(bad("query", wanted, str(query), who))
    _check_log(log, given, who, "rollouts")
    followed = given if given.ndim == 2 else given.mean(1) if query is None else given[:, query]
    rows = labels if given.ndim == 2 else [str(layer) for layer in range(len(given))]
    ax = axes_of(ax, *_size(labels, rows), who)
    image, notice = draw_cells(ax, followed, colours(followed, log))
    add_bar(image, ax, say("rollout"))
    _label(ax, say, labels, rows, notice, say("token of the input"), say("token" if given.ndim == 2 else "after layer"))
    heading(ax, title)
    return ax


def _check_log(log: bool, values: NDArray[Any], who: str, name: str = "weights") -> None:
    if as_flag("log", log, who) and np.nanmin(values, initial=0) < 0:
        raise ValueError(bad(name, "no number below 0 with log=True", f"{np.nanmin(values):g}", who))


def _longest(labels: Sequence[str]) -> int:
    return max(columns(shown(label)) for label in labels)


def _size(across: Sequence[str], down: Sequence[str]) -> tuple[float, float]:
    """Width and height in inches of a figure with so many cells, and the labels and colours beside them."""
    width, height = (float(np.clip(_CELL * len(labels), 1.5, 9.0)) for labels in (across, down))
    return max(4.0, width + 0.08 * _longest(down) + 1.6), max(2.5, height + 0.07 * _longest(across) + 1.0)


def _said(say: Words, notice: str) -> str:
    return notice and f" ({say('a cell: the largest of {0}', notice)})"


def _label(
    ax: Axes, say: Words, across: Sequence[str], down: Sequence[str], notice: str, x: str | None = None, y: str | None = None
) -> None:
    width, height = size_inches(ax)
    label_ticks(ax.xaxis, across, width, slanted=True)
    label_ticks(ax.yaxis, down, height)
    name_axes(ax, (x or say("key (what is looked at)")) + _said(say, notice), y or say("query (who looks)"))
