"""A whole block of a transformer, and what of it is learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qkvc._coerce import bad
from qkvc.plot._canvas import COLOURS, NOBODY, axes_of
from qkvc.plot._text import add_legend, heading, style
from qkvc.plot._words import Words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from qkvc.nn import TransformerBlock

_FROZEN = "0.65"
_WIDE, _TALL, _APART = 5.4, 0.56, 0.28  # all boxes of a row, one of them, and from row to row; in units of the diagram


def transformer_block(block: TransformerBlock, *, title: str | None = None, language: str = "en", ax: Axes | None = None) -> Axes:
    """Draw a block from below to above: what is learned, of which shape and how many numbers, and what only computes.

    Parameters
    ----------
    block : qkvc.nn.TransformerBlock
        Its arrays are counted as they are, biases with their weights; those that are frozen are drawn as such.
    title : str, optional
        The heading.
    language : {"en", "zh"}, default "en"
        Of the captions: English or Chinese.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        Where it was drawn, without scales; its patches are boxes, in the order in which tokens go through them.

    Raises
    ------
    TypeError
        Another thing than a TransformerBlock.
    """
    from matplotlib.patches import Circle, FancyBboxPatch, Patch

    from qkvc.nn import TransformerBlock

    who = "transformer_block"
    say = Words(language, who)
    if not isinstance(block, TransformerBlock):
        raise TypeError(bad("block", "a qkvc.nn.TransformerBlock", type(block).__name__, who))
    heads, network = block.attention.heads, block.feed_forward
    kept = {f"attention.{name}" for name in heads.frozen}
    learned = {name: (part.value, part.frozen or name in kept) for name, part in block.parameters().items()}
    counts = {False: 0, True: 0}
    for value, frozen in learned.values():
        counts[frozen] += value.size

    def box(name: str, *start: str) -> tuple[str, str]:
        """Name and shape of the first array whose name begins so, how many numbers all of these are, and the first one's colour."""
        its = [part for key, part in learned.items() if key.startswith(start)]
        shape = " × ".join(map(str, its[0][0].shape))
        return f"{name}  {shape}\n{sum(value.size for value, _ in its):,}", _FROZEN if its[0][1] else COLOURS[0]

    inner = ["up"] if network.gate is None else ["gate", "up"]
    looks = say("{0} heads: softmax(Q Kᵀ / √{1}) V, concat", heads.num_heads, heads.head_dim)
    rows = [
        [box(say("norm"), "norm_1.")],
        [box(f"W_{part.upper()}", f"attention.{part}_", f"attention.extra_{part}") for part in "qkv"],
        [(looks, NOBODY)],
        [box("W_O", "attention.out_")],
        [],
        [box(say("norm"), "norm_2.")],
        [box(f"W_{part}", f"feed_forward.{part}.") for part in inner],
        [("GELU" if network.gate is None else "SwiGLU", NOBODY)],
        [box("W_down", "feed_forward.down.")],
        [],
    ]
    step = _TALL + _APART
    ax = axes_of(ax, 4.6, 0.65 * (step * (len(rows) + 1) + 1.2), who)
    line: dict[str, Any] = {"color": "0.3", "linewidth": 1.2}

    def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
        ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, **line}, zorder=1)

    def write(x: float, y: float, text: str, colour: str = "black") -> None:
        ax.text(x, y, text, fontsize=8, ha="center", va="center", color=colour, **style(text))

    ends = say("tokens, (L, {0})", heads.embed_dim)
    write(0, -step, ends)
    left, branch = -_WIDE / 2 - 0.35, 0.2 - step
    arrow((0, branch), (0, -_TALL / 2))
    for place, row in enumerate(rows):
        y = place * step
        if not row:  # a sum, with what came past the boxes below it
            branch += 0.1
            ax.plot([0, left, left], [branch, branch, y], solid_capstyle="round", **line, zorder=1)
            arrow((left, y), (-0.2, y))
            ax.add_patch(Circle((0, y), 0.2, facecolor="white", edgecolor="0.3"))
            write(0, y, "+")
            top = branch = y + 0.2
        else:
            wide = (_WIDE + 0.1) / len(row)
            for column, (text, face) in enumerate(row):
                corner = (-_WIDE / 2 + column * wide, y - _TALL / 2)
                shape = FancyBboxPatch(
                    corner, wide - 0.1, _TALL, boxstyle="round,pad=0,rounding_size=0.08", facecolor=face, edgecolor="none"
                )
                ax.add_patch(shape)
                write(corner[0] + (wide - 0.1) / 2, y, text, "white" if face == COLOURS[0] else "black")
            top = y + _TALL / 2
        is_sum = rows[place + 1 : place + 2] == [[]]
        arrow((0, top), (0, (place + 1) * step - (0.2 if is_sum else _TALL / 2)))
    write(0, len(rows) * step - 0.1, ends)
    marks = [Patch(color=COLOURS[0], label=say("learned: {0:,}", counts[False]))]
    marks += [Patch(color=_FROZEN, label=say("frozen: {0:,}", counts[True]))] if counts[True] else []
    add_legend(
        ax, [*marks, Patch(color=NOBODY, label=say("nothing to learn"))], loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, fontsize=8
    )
    ax.set(xlim=(left - 0.15, _WIDE / 2 + 0.1), ylim=(-1.3 * step, (len(rows) + 0.2) * step), aspect="equal")
    ax.set_axis_off()
    heading(ax, title)
    return ax
