"""How many dimensions a matrix really uses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qkvc.analysis._mass import as_numbers, entropy_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def effective_rank(x: ArrayLike, *, centred: bool = False) -> NDArray[np.float64]:
    """exp(-sum p ln p) of the normalised singular values, p_i = s_i / sum s: how many dimensions a matrix fills.

    Parameters
    ----------
    x : array_like, shape (..., M, N)
        Weights (L_q, L_k), values or outputs (L, D), projections, in any number.
    centred : bool, default False
        Take off the mean of the rows first, which would otherwise be a dimension of its own where all tokens share it.

    Returns
    -------
    ndarray of float64, shape (...)
        From 1 to min(M, N), that if all singular values are alike; 0 for a matrix of zeros.

    Raises
    ------
    ValueError
        Numbers that are not finite, fewer than two axes.
    TypeError
        Numbers that are not real.

    References
    ----------
    Roy & Vetterli, "The effective rank: a measure of effective dimensionality" (2007), definition 1.

    Examples
    --------
    >>> import numpy as np
    >>> from qkvc.analysis import effective_rank
    >>> float(effective_rank(np.diag([3.0, 3.0, 0.0])).round(12))
    2.0
    """
    matrices = as_numbers("x", x, "effective_rank", "shape (..., M, N)", axes=2)
    if centred and matrices.size:
        matrices = matrices - matrices.mean(-2, keepdims=True)
    return rank_of_spectrum(np.linalg.svd(matrices, compute_uv=False) if matrices.size else np.zeros((*matrices.shape[:-2], 0)))


def rank_of_spectrum(singular: NDArray[Any]) -> NDArray[np.float64]:
    """The effective rank of matrices whose singular values (..., K) are known."""
    total = singular.sum(-1, keepdims=True, dtype=np.float64)
    p = np.divide(singular, total, out=np.zeros(singular.shape), where=total > 0)
    return np.where(total[..., 0] > 0, np.exp(entropy_of(p)), 0.0)
