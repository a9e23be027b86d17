"""Multi-head attention of tokens to themselves, as a layer that learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qkvc._coerce import bad
from qkvc.multihead import MultiHeadAttention
from qkvc.nn.layer import Array, Layer, Parameter, evaluating

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike


class SelfAttention(Layer):
    """`qkvc.MultiHeadAttention` of a sequence to itself.

    Parameters
    ----------
    heads : MultiHeadAttention
        What it computes with and what it learns, in place.
    **options
        As of a call of it: ``causal=True``, `window`, `alibi_slopes` and so on, the same for every call.  `dropout_p` and `rng` are for
        `forward` alone: a call of the layer drops nothing.

    Attributes
    ----------
    heads : MultiHeadAttention
        ``heads.freeze("v")`` keeps W_V as it is, for instance.

    Raises
    ------
    TypeError
        Another thing than a MultiHeadAttention.
    """

    def __init__(self, heads: MultiHeadAttention, **options: Any) -> None:
        if not isinstance(heads, MultiHeadAttention):
            raise TypeError(bad("heads", "a qkvc.MultiHeadAttention", type(heads).__name__, "SelfAttention"))
        self.heads, self.options, self.dtype = heads, options, heads.dtype
        self._learned = {name: Parameter(part) for name, part in heads._parts().items()}

    def __getstate__(self) -> dict[str, Any]:
        return {name: x for name, x in vars(self).items() if name != "_learned"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)  # a copy's parameters are its own module's
        self._learned = {name: Parameter(part) for name, part in self.heads._parts().items()}

    def parameters(self) -> dict[str, Parameter]:
        """By the names of the module's attributes."""
        return dict(self._learned)

    def forward(self, x: ArrayLike, /, plus: Array | None = None, rng: np.random.Generator | int | None = None) -> Array:
        """(..., L, E) to (..., L, E), added to `plus` if given; `rng` says which weights are dropped, by default that of the options."""
        options = self.options
        if evaluating.get():
            options = {name: x for name, x in options.items() if name not in ("dropout_p", "rng")}
        elif rng is not None and options.get("dropout_p"):
            options = {**options, "rng": rng}
        y, trace = self.heads.forward(x, plus=plus, **options)
        self._kept = (trace,)
        return y

    def backward(self, grad: ArrayLike) -> Array:
        """The gradient with respect to x, given that of the result."""
        (trace,) = self._recall()
        grads = self.heads.backward(grad, trace)
        self._kept = None
        for name, of_weight in grads.weights.items():
            self._learned[name].add(of_weight)
        return grads.query
