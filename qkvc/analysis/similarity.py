"""How alike heads are: in what they look at, with SciPy (`pip install qkvc[analysis]`), and in what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qkvc.analysis._mass import as_numbers, as_weights

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


AT_ONCE = 1 << 18  # weights: each of SciPy's temporaries is then 2 MB, where 144 heads of 512 tokens at once would make it 300


def js_distance(weights: ArrayLike) -> NDArray[np.float64]:
    """The Jensen-Shannon distance between the weights of any two heads, the mean over the queries.

    sqrt((KL(p | m) + KL(q | m)) / 2) with m = (p + q) / 2 and logarithms to base 2, p and q the rows of the two heads for a query.

    Parameters
    ----------
    weights : array_like, shape (..., H, L_q, L_k)
        Of the same tokens; for the heads of several layers, one layer's behind the other's.  Rows are scaled to sum to 1, as those of
        heads with sinks do not.

    Returns
    -------
    ndarray of float64, shape (..., H, H)
        From 0 (the same weights) to 1 (no key in common), symmetric.  Queries for which either row is all 0 are left out; NaN where none is
        left.

    Raises
    ------
    ValueError
        Weights that are negative, not finite or sum to more than 1; fewer than three axes.
    TypeError
        Weights that are no real numbers.
    ImportError
        Without SciPy, whose `scipy.spatial.distance.jensenshannon` this is.

    Notes
    -----
    Time O(H^2 L_q L_k), some 40 ns for each of H^2 / 2 pairs, query and key: 7 s for 144 heads of 128 tokens.  Clark et al. (2019, section
    6) compare heads by the divergence, this distance squared.

    References
    ----------
    Endres & Schindelin, "A new metric for probability distributions" (2003).  Clark et al., "What does BERT look at?" (2019).
    """
    from scipy.spatial.distance import jensenshannon

    p = as_weights(weights, "js_distance", "shape (..., H, L_q, L_k)", axes=3)
    some = np.asarray((p > 0).any(-1))
    count = p.shape[-3]
    result = np.zeros((*p.shape[:-3], count, count))
    step = max(1, AT_ONCE // max(p[..., 0, :, :].size, 1)) if count else 1
    for head in range(count):
        for start in range(head, count, step):
            mine, others = slice(head, head + 1), slice(start, min(start + step, count))
            both = some[..., mine, :] & some[..., others, :]
            with np.errstate(invalid="ignore"):  # rows of 0, which are left out
                each = jensenshannon(p[..., mine, :, :], p[..., others, :, :], base=2, axis=-1)
                mean = np.where(both, each, 0).sum(-1) / both.sum(-1)
            result[..., head, others] = result[..., others, head] = np.clip(mean, 0, 1)  # rounding: up to 2e-8 from nothing, 1 + 2e-16
    return result


def cosine_similarity(x: ArrayLike) -> NDArray[np.float64]:
    """The cosine between any two heads, each taken as one long vector: <x_g, x_h> / sqrt(<x_g, x_g> <x_h, x_h>).

    Parameters
    ----------
    x : array_like, shape (..., H, M, N)
        Weights (H, L_q, L_k), outputs (H, L, Dv) or whatever else heads have.

    Returns
    -------
    ndarray of float64, shape (..., H, H)
        From -1 to 1, from 0 for weights; 0 for a head that is all 0.

    Raises
    ------
    ValueError
        Numbers that are not finite, fewer than three axes.
    TypeError
        Numbers that are not real.
    """
    array = as_numbers("x", x, "cosine_similarity", "shape (..., H, M, N)", axes=3)
    rows = _of_one_size(array).reshape(*array.shape[:-2], array.shape[-2] * array.shape[-1])
    return _normalised(rows @ rows.swapaxes(-1, -2))


def cka(outputs: ArrayLike) -> NDArray[np.float64]:
    """Linear centred kernel alignment of any two heads' outputs: do they carry the same, up to a rotation and a scale?

    F(X, Y) / sqrt(F(X, X) F(Y, Y)), where F(X, Y) is the sum of the squares of Y^T X, and X and Y are the outputs of two heads less their
    means over the tokens (Kornblith et al. 2019, section 3).

    Parameters
    ----------
    outputs : array_like, shape (..., H, L, Dv)
        Of the same tokens.

    Returns
    -------
    ndarray of float64, shape (..., H, H)
        From 0 to 1; 0 for a head whose output is the same for every token.  With fewer tokens than columns even random outputs come near 1.

    Raises
    ------
    ValueError
        Numbers that are not finite, fewer than three axes.
    TypeError
        Numbers that are not real.

    References
    ----------
    Kornblith et al., "Similarity of neural network representations revisited" (2019).
    """
    array = as_numbers("outputs", outputs, "cka", "shape (..., H, L, Dv)", axes=3)
    heads, tokens, width = array.shape[-3:]
    array = _of_one_size(array)
    if tokens:
        array = array - array.mean(-2, keepdims=True)
        # What rounding leaves of tokens that are all alike, whose mean is not exactly they.
        array[np.abs(array).max((-2, -1), initial=0) < 32 * np.finfo(np.float64).eps] = 0
    if width < tokens:
        # |Y^T X|^2 from one product of all heads' columns: (H Dv)^2 numbers, fewer than H grams of L^2.
        columns = array.swapaxes(-3, -2).reshape(*array.shape[:-3], tokens, heads * width)
        inner = (columns.swapaxes(-1, -2) @ columns).reshape(*array.shape[:-3], heads, width, heads, width)
        return _normalised(np.square(inner).sum((-3, -1)))
    grams = (array @ array.swapaxes(-1, -2)).reshape(*array.shape[:-2], tokens * tokens)  # <X X^T, Y Y^T> is the same number
    return _normalised(grams @ grams.swapaxes(-1, -2))


def _of_one_size(array: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each head times a power of two, which changes no digit, so that its largest number is near 1: CKA takes fourth powers."""
    largest = np.abs(array).max((-2, -1), initial=0, keepdims=True)
    return np.asarray(np.ldexp(array, -np.frexp(largest)[1]))


def _normalised(inner: NDArray[np.float64]) -> NDArray[np.float64]:
    """inner_gh / sqrt(inner_gg inner_hh), 0 for a head whose own is 0."""
    own = np.sqrt(np.diagonal(inner, axis1=-2, axis2=-1))
    lengths = own[..., :, np.newaxis] * own[..., np.newaxis, :]
    return np.asarray(np.clip(np.divide(inner, lengths, out=np.zeros_like(inner), where=lengths > 0), -1, 1))
