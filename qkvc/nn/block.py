"""A block of a transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qkvc._coerce import bad
from qkvc.nn.attention import SelfAttention
from qkvc.nn.feed_forward import FeedForward
from qkvc.nn.layer import Array, Layer
from qkvc.nn.norm import LayerNorm, RMSNorm

if TYPE_CHECKING:
    import numpy as np


class TransformerBlock(Layer):
    """Attention and then the feed-forward network, each of normalised tokens and added to them.

    Parameters
    ----------
    attention : SelfAttention
    feed_forward : FeedForward
    norms : pair of LayerNorm or RMSNorm
        Before the one and before the other.

    Raises
    ------
    TypeError
        Layers of another kind.

    Notes
    -----
    x + attention(norm_1(x)), then the same with the feed-forward network: pre-norm, where the gradient finds a way past every block (Xiong
    et al., 2020).  Both residuals are added inside the products that lead to them, and so are both gradients in the norms' backward.
    """

    def __init__(self, attention: SelfAttention, feed_forward: FeedForward, norms: tuple[LayerNorm | RMSNorm, LayerNorm | RMSNorm]) -> None:
        for name, part, kind in (("attention", attention, SelfAttention), ("feed_forward", feed_forward, FeedForward)):
            if not isinstance(part, kind):
                raise TypeError(bad(name, f"a {kind.__name__}", type(part).__name__, "TransformerBlock"))
        if not isinstance(norms, (tuple, list)) or [isinstance(norm, (LayerNorm, RMSNorm)) for norm in norms] != [True, True]:
            raise TypeError(bad("norms", "a pair of LayerNorm or RMSNorm", repr(norms)[:40], "TransformerBlock"))
        self.norm_1, self.norm_2 = norms
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x: Array, /, rng: np.random.Generator | int | None = None) -> Array:
        """(..., L, E) to (..., L, E); `rng` as of `SelfAttention.forward`."""
        between = self.attention.forward(self.norm_1.forward(x), x, rng)
        return self.feed_forward.forward(self.norm_2.forward(between), plus=between)

    def backward(self, grad: Array) -> Array:
        """The gradient with respect to x, given that of the result."""
        between = self.norm_2.backward(self.feed_forward.backward(grad), also=grad)
        return self.norm_1.backward(self.attention.backward(between), also=between)
