"""Layer norm and RMS norm of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qkvc._coerce import as_above_zero, as_count, as_real_dtype, bad, shape_text
from qkvc._layers import layer_norm
from qkvc._rotary import turn
from qkvc._rows import norm_grad
from qkvc.nn.layer import Array, Layer, Parameter, as_grad, as_input, as_rows

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike


class _Norm(Layer):
    """What both norms share: a weight, and a gradient in one pass over rows."""

    bias: Parameter | None

    def __init__(self, width: int, eps: float, dtype: DTypeLike) -> None:
        who = type(self).__name__
        self.dtype, self.eps = as_real_dtype(dtype, who), as_above_zero("eps", eps, who)
        self.weight = Parameter(np.ones(as_count("width", width, who), self.dtype))

    def _given(self, x: ArrayLike) -> Array:
        weight, who = self.weight.value, type(self).__name__
        if weight.dtype != self.dtype or weight.ndim != 1:  # whoever shares a parameter among layers may have taken another's
            raise TypeError(bad("weight", f"{self.dtype} of shape (width,)", f"{weight.dtype} of {shape_text(weight)}", who))
        array = np.ascontiguousarray(as_input(x, len(weight), self.dtype, who))
        self._kept = array, weight
        return array

    def backward(self, grad: ArrayLike, also: Array | None = None) -> Array:
        """Gradients, given that of the result.

        Parameters
        ----------
        grad : array_like, shape (..., width)
        also : ndarray, shape (..., width), optional
            What is added to the gradient of x: that which goes past the norm, along a residual.

        Returns
        -------
        ndarray, shape (..., width)

        Raises
        ------
        RuntimeError
            No forward before it.
        ValueError, TypeError
            Another shape or dtype.
        """
        x, weight = self._recall()
        dy = as_grad(grad, x.shape, self.dtype, type(self).__name__)
        past = None if also is None else as_rows(as_grad(also, x.shape, self.dtype, type(self).__name__))
        self._kept = None
        dx, dweight, dbias = norm_grad(as_rows(x), as_rows(dy), weight, self.eps, self.bias is not None, past)
        self.weight.add(dweight)
        if self.bias is not None and dbias is not None:
            self.bias.add(dbias)
        return dx.reshape(x.shape)


class LayerNorm(_Norm):
    """Mean 0 and variance 1 for every token, then ``* weight + bias`` (Ba, Kiros & Hinton, 2016).

    Parameters
    ----------
    width : int
    eps : float, default 1e-5
        Added to the variance.
    dtype : {"float32", "float64"}

    Attributes
    ----------
    weight, bias : Parameter, shape (width,)
        Ones and zeros to begin with.

    Notes
    -----
    With y the normalised token and g = weight * grad: dx = (g - mean(g) - y mean(g y)) / sqrt(variance + eps).
    """

    def __init__(self, width: int, *, eps: float = 1e-5, dtype: DTypeLike = "float32") -> None:
        super().__init__(width, eps, dtype)
        self.bias: Parameter = Parameter(np.zeros_like(self.weight.value))

    def forward(self, x: ArrayLike, /) -> Array:
        """Normalise the last axis of (..., width)."""
        return layer_norm(self._given(x), self.weight.value, self.bias.value, self.eps)


class RMSNorm(_Norm):
    """Every token divided by the root of its mean square, then ``* weight`` (Zhang & Sennrich, 2019).

    Parameters
    ----------
    width : int
    eps : float, default 1e-6
        Added to the mean square.
    dtype : {"float32", "float64"}

    Attributes
    ----------
    weight : Parameter, shape (width,)
        Ones to begin with.

    Notes
    -----
    With y the normalised token and g = weight * grad: dx = (g - y mean(g y)) / sqrt(mean(x^2) + eps).
    """

    bias = None

    def __init__(self, width: int, *, eps: float = 1e-6, dtype: DTypeLike = "float32") -> None:
        super().__init__(width, eps, dtype)

    def forward(self, x: ArrayLike, /) -> Array:
        """Normalise the last axis of (..., width)."""
        array = self._given(x)
        y = np.empty_like(array)
        turn(as_rows(y), np.empty((2, 0), self.dtype), False, self.weight.value, self.eps, as_rows(array))
        return y
