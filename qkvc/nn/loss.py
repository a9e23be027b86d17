"""How wrong a model is about the next token."""

from __future__ import annotations

from math import fsum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qkvc._coerce import as_real, bad, integers_within, shape_text
from qkvc._rows import cross_entropy as rows
from qkvc.nn.layer import Array, as_rows

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


LARGEST = (1 << 63) - 1  # a target is an int64


class Loss(NamedTuple):
    """What `cross_entropy` gives."""

    value: float  # the mean over the targets that count; NaN where there is none
    grad: Array  # of the mean, with respect to the logits
    counted: int  # how many targets these are


def cross_entropy(logits: ArrayLike, targets: ArrayLike, *, ignore_index: int = -100) -> Loss:
    """The mean of -log softmax(logits)[target], in nats, and its gradient, in one pass.

    Parameters
    ----------
    logits : array_like of float32 or float64, shape (..., V)
        A score for each class.
    targets : array_like of int, shape (...)
        From 0 to V - 1, or `ignore_index`.
    ignore_index : int, default -100
        A target that does not count: its row adds nothing, and has a gradient of 0 whatever its scores are.

    Returns
    -------
    Loss(value, grad, counted)
        The losses of rows are computed from the row's maximum and its sum of exponentials, added exactly (Shewchuk, 1997), and rounded.

    Raises
    ------
    ValueError, TypeError
        Shapes that do not fit, no class at all, targets that are no class.

    Notes
    -----
    grad = (softmax(logits) - one_hot(targets)) / counted.

    Examples
    --------
    >>> import numpy as np
    >>> from qkvc.nn import cross_entropy
    >>> round(cross_entropy(np.zeros((2, 10)), [3, 7]).value, 4)  # log 10
    2.3026
    """
    scores = as_real("logits", logits, "cross_entropy")
    if scores.ndim == 0 or np.shape(targets) != scores.shape[:-1]:
        raise ValueError(
            bad("targets", f"shape {scores.shape[:-1]} for logits of {shape_text(scores)}", shape_text(targets), "cross_entropy")
        )
    if not scores.shape[-1]:
        raise ValueError(bad("logits", "a class or more", shape_text(scores), "cross_entropy"))
    ignored = int(integers_within("ignore_index", ignore_index, -LARGEST, LARGEST, "cross_entropy"))
    which: Any = integers_within("targets", targets, min(0, ignored), max(scores.shape[-1] - 1, ignored), "cross_entropy")
    counted = which != ignored
    integers_within("targets", which[counted], 0, scores.shape[-1] - 1, "cross_entropy")
    count = int(counted.sum())
    flat = np.ascontiguousarray(which.reshape(-1))
    losses, grad = rows(np.ascontiguousarray(as_rows(scores)), flat, ignored, 1 / count if count else 0.0)
    return Loss(fsum(losses) / count if np.isfinite(losses).all() and count else float("nan"), grad.reshape(scores.shape), count)
