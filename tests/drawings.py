"""One small picture of every function of qkvc.plot, and what holds for all of them: everything can be read, and nothing is cut off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qkvc import MultiHeadAttention, plot
from qkvc.nn import FeedForward, RMSNorm, SelfAttention, TransformerBlock

rng = np.random.default_rng(0)
TOKENS = ["the", "animal", "was", "tired"]
WEIGHTS = rng.dirichlet(np.ones(4), (3, 4)).astype(np.float32)  # (heads or layers, L, L)
HEADS = rng.uniform(0.1, 1.3, (2, 3))
DIMS = np.array([4.0, 16.0, 64.0])
SCALES = np.array([0.1, 1.0, 10.0])
WAYS = np.cumsum(rng.standard_normal((5, 3, 6)), 0)
BLOCK = TransformerBlock(SelfAttention(MultiHeadAttention(64, 4)), FeedForward(64, activation="swiglu"), (RMSNorm(64), RMSNorm(64)))

FIGURES: dict[str, Callable[..., Any]] = {
    "heatmap": lambda **how: plot.heatmap(WEIGHTS[0], TOKENS, **how),
    "head_grid": lambda **how: plot.head_grid(WEIGHTS, TOKENS, **how),
    "overview": lambda **how: plot.overview(HEADS, label="mass", **how),
    "similarity": lambda **how: plot.similarity(WEIGHTS[0], heads=2, **how),
    "roles": lambda **how: plot.roles([["previous", None], ["first", "previous"]], **how),
    "entropy": lambda **how: plot.entropy(HEADS, keys=4, **how),
    "rollout": lambda **how: plot.rollout(WEIGHTS, TOKENS, query=1, **how),
    "score_variance": lambda **how: plot.score_variance(DIMS, DIMS * 1.1, [1.1, 1.0, 0.9], **how),
    "sharpness": lambda **how: plot.sharpness(SCALES, WEIGHTS[0, :3], **how),
    "split": lambda **how: plot.split(4, 12, 16, 64, **how),
    "concat": lambda **how: plot.concat(12, 16, 64, **how),
    "output_projection": lambda **how: plot.output_projection(rng.standard_normal((8, 12)), 3, **how),
    "trajectories": lambda **how: plot.trajectories(WAYS, ["apple", "pear", "sony"], groups=["fruit", "fruit", "firm"], **how),
    "transformer_block": lambda **how: plot.transformer_block(BLOCK, **how),
    "roofline": lambda **how: plot.roofline([1, 10, 100], [30, 90, 80], peak=100, bandwidth=40, rivals=[20, np.nan, 70], **how),
}


def axes_of(drawn: Any) -> Any:
    """Of a grid the first."""
    return drawn[0] if isinstance(drawn, np.ndarray) else drawn


def texts(figure: Any) -> list[Any]:
    """All text objects that are drawn and say something."""
    from matplotlib.text import Text

    figure.draw_without_rendering()
    hidden = set()
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        inside = axis._update_ticks() if axis.axes.axison else []  # matplotlib keeps labels beyond the limits, and does not draw them
        hidden |= {id(label) for tick in {*axis.majorTicks, *axis.minorTicks} - {*inside} for label in (tick.label1, tick.label2)}
        hidden |= set() if axis.axes.axison else {id(axis.offsetText), id(axis.label)}
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip() and id(text) not in hidden]


def check_legible(figure: Any) -> list[str]:
    """Every text lies inside the figure, is 4.5 points or larger, and covers no other one; gives back what they say."""
    page, found = figure.bbox, texts(figure)
    names, boxes = [], []
    for text in found:
        said, box = text.get_text(), text.get_window_extent()
        assert text.get_fontsize() >= 4.5, said
        for outside in (page.x0 - box.x0, page.y0 - box.y0, box.x1 - page.x1, box.y1 - page.y1):
            assert outside < 1, f"{said!r} is cut off by {outside:.0f} pixels"
        if text.get_rotation() in (0, 90):  # the frame of a slanted text says nothing
            names.append(said)
            boxes.append(box.get_points())
    low, high = np.moveaxis(np.array(boxes), 1, 0)
    shared = (np.minimum(high[:, None], high) - np.maximum(low[:, None], low)).min(-1)  # of each with each, the shorter side
    covers = [(names[a], names[b]) for a, b in np.argwhere(np.triu(shared, 1) >= 2)]
    assert not covers
    return [text.get_text() for text in found]


def bars(figure: Any) -> list[Any]:
    """The limits of every colour bar."""
    return [ax._colorbar.mappable.get_clim() for ax in figure.axes if hasattr(ax, "_colorbar")]
