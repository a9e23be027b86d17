"""The network that every token goes through alone, after attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from qkvc._coerce import bad
from qkvc._passes import gelu, gelu_grad, swiglu, swiglu_grad
from qkvc.nn.layer import Array, Layer
from qkvc.nn.linear import Linear

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

    Activation = Literal["gelu", "swiglu"]


class FeedForward(Layer):
    """Wide and back: ``down(gelu(up(x)))``, or ``down(silu(gate(x)) * up(x))``.

    Parameters
    ----------
    width : int
        Of a token.
    hidden : int, optional
        Between the two; default 4 `width`, or with a gate the multiple of 8 nearest to 8/3 of it, which is as many parameters.
    activation : {"gelu", "swiglu"}
        GELU is x Phi(x), exactly (Hendrycks & Gimpel, 2016); SwiGLU has a gate (Shazeer, 2020), as in LLaMA.
    bias : bool, default True
    dtype : {"float32", "float64"}
    rng : numpy.random.Generator or int, optional

    Attributes
    ----------
    up, down : Linear
    gate : Linear or None

    Raises
    ------
    ValueError, TypeError
        Another activation; sizes or a dtype as of `Linear`.
    """

    def __init__(
        self,
        width: int,
        hidden: int | None = None,
        *,
        activation: Activation = "gelu",
        bias: bool = True,
        dtype: DTypeLike = "float32",
        rng: np.random.Generator | int | None = None,
    ) -> None:
        if activation not in ("gelu", "swiglu"):
            raise ValueError(bad("activation", '"gelu" or "swiglu"', repr(activation), "FeedForward"))
        gated, generator = activation == "swiglu", np.random.default_rng(rng)
        if hidden is None:
            hidden = max(8, round(width / 3) * 8) if gated else 4 * width
        self.gate = Linear(width, hidden, bias=bias, dtype=dtype, rng=generator) if gated else None
        self.up = Linear(width, hidden, bias=bias, dtype=dtype, rng=generator)
        self.down = Linear(hidden, width, bias=bias, dtype=dtype, rng=generator)

    def forward(self, x: ArrayLike, /, plus: Array | None = None) -> Array:
        """(..., width) to (..., width), added to `plus` if given."""
        up = self.up.forward(x)
        gate = None if self.gate is None else self.gate.forward(x)
        self._kept = (gate, up)
        return self.down.forward(gelu(up) if gate is None else swiglu(gate, up), plus)

    def backward(self, grad: ArrayLike) -> Array:
        """The gradient with respect to x, given that of the result."""
        gate, up = self._recall()
        inner = self.down.backward(grad)
        self._kept = None
        if self.gate is None:
            return self.up.backward(gelu_grad(up, inner))
        dgate, dup = swiglu_grad(gate, up, inner)
        return self.gate.backward(dgate, self.up.backward(dup))
