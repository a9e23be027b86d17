"""A vector for each token number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qkvc._coerce import as_above_zero, as_count, as_real_dtype, integers_within
from qkvc._rows import scatter_add
from qkvc.nn.layer import Array, Layer, Parameter, as_grad, as_rows

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike


class Embedding(Layer):
    """The rows of a table.

    Parameters
    ----------
    count : int
        How many token numbers there are.
    width : int
        Of a vector.
    std : float, default 0.02
        Of the initial numbers, N(0, std^2): GPT-2's.
    dtype : {"float32", "float64"}
    rng : numpy.random.Generator or int, optional

    Attributes
    ----------
    weight : Parameter, shape (count, width)
    """

    def __init__(
        self,
        count: int,
        width: int,
        *,
        std: float = 0.02,
        dtype: DTypeLike = "float32",
        rng: np.random.Generator | int | None = None,
    ) -> None:
        shape = as_count("count", count, "Embedding"), as_count("width", width, "Embedding")
        self.dtype = as_real_dtype(dtype, "Embedding")
        drawn = np.random.default_rng(rng).normal(0, as_above_zero("std", std, "Embedding"), shape)
        self.weight = Parameter(drawn.astype(self.dtype))

    def forward(self, ids: ArrayLike, /) -> Array:
        """The vectors of token numbers (...), as (..., width); ValueError where one is not from 0 to count - 1."""
        table = self.weight.value
        numbers = np.asarray(integers_within("ids", ids, 0, len(table) - 1, "Embedding"), order="C")
        self._kept = numbers, table
        return table[numbers]

    def backward(self, grad: ArrayLike) -> None:
        """Add each token's gradient, (..., width), to its row's, in the order of the tokens.  Token numbers themselves have none."""
        ids, table = self._recall()
        dy = as_grad(grad, (*ids.shape, table.shape[1]), self.dtype, "Embedding")
        self._kept = None
        if not self.weight.frozen:
            total = np.zeros_like(table)
            scatter_add(ids.reshape(-1), as_rows(dy), total)
            self.weight.add(total)
