"""Pictures of attention, with matplotlib (`pip install matplotlib`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["heatmap"]


def heatmap(
    weights: ArrayLike,
    tokens: Sequence[str],
    key_tokens: Sequence[str] | None = None,
    *,
    title: str | None = None,
    mark: tuple[int, int] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw who attends to whom: a row per query, a column per key.

    Parameters
    ----------
    weights : array_like
        The attention weights of one head, (L_q, L_k).
    tokens : sequence of str
        The labels of the queries.
    key_tokens : sequence of str, optional
        The labels of the keys, where they differ from `tokens`.
    title : str, optional
        The heading.
    mark : (int, int), optional
        The row and column of a cell to frame.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure of fitting size by default.

    Returns
    -------
    matplotlib.axes.Axes
        `heatmap(...).figure.savefig(path)` writes the picture.
    """
    weights = np.asarray(weights)
    key_tokens = tokens if key_tokens is None else key_tokens
    if weights.shape != (len(tokens), len(key_tokens)):
        raise ValueError(f"heatmap: weights: expected shape {(len(tokens), len(key_tokens))} for the given tokens, got {weights.shape}")
    if ax is None:
        # A Figure of its own and not pyplot's: no global state, no window, no display needed.
        from matplotlib.figure import Figure

        width, height = (max(4.0, 1.5 + 0.38 * len(labels)) for labels in (key_tokens, tokens))
        ax = Figure(figsize=(width + 1.0, height), layout="constrained").add_subplot()
    # From 0, so that dark means unseen; up to the largest, because many heads spread so widely that a scale up to 1 would leave them black.
    image = ax.imshow(weights, cmap="viridis", vmin=0.0, interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label="attention weight", fraction=0.046)
    ax.set_xticks(range(len(key_tokens)), [_literal(token) for token in key_tokens], rotation=60, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(tokens)), [_literal(token) for token in tokens])
    ax.set(xlabel="key (what is looked at)", ylabel="query (who looks)")
    if title is not None:
        ax.set_title(_literal(title))
    if mark is not None:
        from matplotlib.patches import Rectangle

        row, column = mark
        ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=2))
    return ax


def _literal(text: str) -> str:
    return text.replace("$", r"\$")  # a pair of them would be set as mathematics
