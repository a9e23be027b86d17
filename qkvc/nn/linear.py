"""y = x W^T + b."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

import numpy as np

from qkvc._coerce import as_count, as_real_dtype
from qkvc._learning import bias_grad, weight_grad
from qkvc._linear import project
from qkvc.nn.layer import Array, Layer, Parameter, as_grad, as_input, as_rows

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike


class Linear(Layer):
    """A projection of the last axis, ``x @ weight.T + bias``.

    Parameters
    ----------
    in_features, out_features : int
        E and N.
    bias : bool, default True
    dtype : {"float32", "float64"}
        Of the parameters, the inputs and the results.
    rng : numpy.random.Generator or int, optional
        Where the initial parameters come from: U(-1 / sqrt(E), 1 / sqrt(E)), as of torch.nn.Linear.

    Attributes
    ----------
    weight : Parameter, shape (N, E)
    bias : Parameter, shape (N,), or None

    Raises
    ------
    ValueError, TypeError
        Sizes that are no counts, another dtype.

    Notes
    -----
    Gradients are products by the same kernels: dX = dY W, dW = dY^T X, and db = dY^T 1.  The last two sum over tokens, in blocks of 128,
    so that no number of threads changes a bit.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        dtype: DTypeLike = "float32",
        rng: np.random.Generator | int | None = None,
    ) -> None:
        sizes = as_count("out_features", out_features, "Linear"), as_count("in_features", in_features, "Linear")
        self.dtype, generator, limit = as_real_dtype(dtype, "Linear"), np.random.default_rng(rng), 1 / sqrt(sizes[1])
        self.weight = Parameter(generator.uniform(-limit, limit, sizes).astype(self.dtype))
        self.bias = Parameter(generator.uniform(-limit, limit, sizes[0]).astype(self.dtype)) if bias else None

    def forward(self, x: ArrayLike, /, plus: Array | None = None) -> Array:
        """Project.

        Parameters
        ----------
        x : array_like, shape (..., E)
        plus : ndarray, shape (..., N), optional
            What the result is added to: a residual, for no more than reading it.

        Returns
        -------
        ndarray, shape (..., N)

        Raises
        ------
        ValueError, TypeError
            Another width or dtype.
        """
        array = as_input(x, self.weight.value.shape[1], self.dtype, "Linear")
        y = project(array, self.weight.value, None if self.bias is None else self.bias.value, plus=plus)
        self._kept = (array,)
        return y

    def backward(self, grad: ArrayLike, plus: Array | None = None) -> Array:
        """Gradients, given that of the result.

        Parameters
        ----------
        grad : array_like, shape (..., N)
        plus : ndarray, shape (..., E), optional
            What the gradient of x is added to.

        Returns
        -------
        ndarray, shape (..., E)

        Raises
        ------
        RuntimeError
            No forward before it.
        ValueError, TypeError
            Another shape or dtype.
        """
        (x,) = self._recall()
        dy = as_grad(grad, (*x.shape[:-1], len(self.weight.value)), self.dtype, "Linear")
        rows, dx = as_rows(dy), project(dy, self.weight.value.T, plus=plus)  # which may refuse `plus`, before anything has changed
        self._kept = None
        if not self.weight.frozen:
            self.weight.grad = weight_grad(rows, as_rows(x), self.weight.grad)
        if self.bias is not None and not self.bias.frozen:
            self.bias.grad = bias_grad(rows, self.bias.grad)
        return dx
