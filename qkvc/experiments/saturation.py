"""The gradient through a softmax, with and without 1 / sqrt(d_k)."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qkvc._coerce import as_count
from qkvc.experiments.training import Table
from qkvc.gradients import attention_vjp
from qkvc.inside import attention_scores, attention_weights

WHO = "saturation"


class Softmax(NamedTuple):
    """What random queries and keys of a width make of a softmax, and of the gradient through it."""

    dim: int
    scaled: bool
    variance: float  # of the scores
    largest: float  # weight of a row, the median over rows
    median: float  # length of a row's gradient with respect to its scores, the median over rows
    mean: float  # the same, root mean square
    query_median: float  # length of the gradient with respect to a query
    query_mean: float


class Saturation(NamedTuple):
    """What `saturation` gives."""

    softmaxes: list[Softmax]

    def tables(self) -> list[Table]:
        """To be shown."""
        columns = ["d_k", "variance", "largest", "scores: median", "rms", "query: median", "rms"]
        return [
            Table(
                f"Gradient through a softmax, {title}",
                columns,
                [
                    [f"{s.dim}", f"{s.variance:.1f}", f"{s.largest:.3f}"]
                    + [f"{x:.2g}" for x in (s.median, s.mean, s.query_median, s.query_mean)]
                    for s in self.softmaxes
                    if s.scaled == scaled
                ],
            )
            for scaled, title in ((False, "scores as they are"), (True, "scores / √d_k"))
        ]


def saturation(*, dims: Sequence[int] = (4, 16, 64, 256, 1024), keys: int = 16, rows: int = 1024, seed: int = 0) -> Saturation:
    """Measure how a softmax saturates as heads grow wider, and what is left of the gradient through it.

    Queries, keys and values have entries from N(0, 1); the loss is a random direction of unit length in the output.

    Parameters
    ----------
    dims : sequence of int
        Widths d_k of a head.
    keys : int, default 16
        Keys of each row.
    rows : int, default 1024
        Queries, each before keys of its own.
    seed : int, default 0

    Returns
    -------
    Saturation(softmaxes)
        Two for each width, without the scale and with it: the variance of the scores, the largest weight, and the length of the gradient
        with respect to a row's scores and to its query, median and root mean square over the rows.

    Raises
    ------
    ValueError, TypeError
        Sizes that are no counts.

    Notes
    -----
    Vaswani et al. (2017, section 3.2.1) suspect that large products push the softmax "into regions where it has extremely small
    gradients", and textbooks have said so since.  Measured, with the defaults; root mean squares are "rms":

    ====  ======  ========  ==============  ==============  ====  =============  ====
    d_k   scale   variance  largest weight  scores: median  rms   query: median  rms
    ====  ======  ========  ==============  ==============  ====  =============  ====
    4     none    4.0       0.376           0.27            0.33  0.43           0.63
    64    none    64.6      0.937           0.051           0.26  0.40           2.0
    256   none    262       0.997           0.0032          0.18  0.050          2.9
    1024  none    1026      1.000           1.3e-05         0.14  0.00041        4.6
    4     1/√d_k  1.0       0.200           0.26            0.30  0.23           0.29
    1024  1/√d_k  1.0       0.226           0.27            0.31  0.27           0.31
    ====  ======  ========  ==============  ==============  ====  =============  ====

    So the gradient of a typical row does vanish without the scale, by four orders of magnitude.  Not so that of all rows together: the
    few whose two largest scores happen to be near each other keep theirs, which is why the root mean square of the scores' gradient falls
    as d_k^(-1/4) only, and that of the query's even grows as d_k^(1/4), the keys being longer.  What the scale buys is that every row
    learns, and that steps do not depend on chance; "the gradient vanishes" is half of it.
    """
    measured = []
    count, many = as_count("keys", keys, WHO), as_count("rows", rows, WHO)
    for dim in (as_count("dims", dim, WHO) for dim in dims):
        rng = np.random.default_rng((seed, dim))
        query, direction = rng.standard_normal((2, many, 1, dim), np.float32)
        key, value = rng.standard_normal((2, many, count, dim), np.float32)
        direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        of_weights = (value @ direction.swapaxes(-1, -2))[..., 0]
        for scale in (1.0, 1 / sqrt(dim)):
            weights = attention_weights(query, key, scale=scale)[..., 0, :]
            of_scores = weights * (of_weights - (weights * of_weights).sum(-1, keepdims=True))
            _, back = attention_vjp(query, key, value, scale=scale)
            grads: Any = of_scores, back(direction).query
            lengths = (np.linalg.norm(grad, axis=-1) for grad in grads)
            means = [mean(x) for x in lengths for mean in (_median, _root_mean_square)]
            variance = float(attention_scores(query, key, scale=scale).var())
            measured.append(Softmax(dim, scale != 1, variance, _median(weights.max(-1)), *means))
    return Saturation(measured)


def _median(x: NDArray[Any]) -> float:
    return float(np.median(x))


def _root_mean_square(x: NDArray[Any]) -> float:
    return sqrt(np.square(x, dtype=np.float64).mean())
