"""Which directions of the values carry what: where the values of each label lie, how they spread, and in what they differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qkvc._coerce import as_array, as_count, as_real, bad, shape_text

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Reals = NDArray[np.float64]


class LabelDirections(NamedTuple):
    """What `label_directions` returns."""

    labels: NDArray[Any]  # (C,)
    means: Reals  # (..., C, Dv): where the values of a label lie, seen from the mean of all
    directions: Reals  # (..., C, count, Dv): along which they spread around that, the widest first
    variances: Reals  # (..., C, count): how far, falling
    between: Reals  # (..., min(C, Dv), Dv): orthonormal directions in which the labels' means differ, the widest first
    separation: Reals  # (..., min(C, Dv)): variance of the means along each over variance of all tokens, 0 to 1


def labelled_tokens(value: Any, labels: Any, who: str, name: str = "labels") -> tuple[Reals, NDArray[Any], NDArray[np.int64]]:
    """Values in float64, the labels that there are, and the number of each token's."""
    values, given = as_real("value", value, who).astype(np.float64), as_array(name, labels, who)
    if values.ndim < 2 or not values.shape[-1]:
        raise ValueError(bad("value", "shape (..., tokens, Dv)", shape_text(values), who))
    if given.shape != values.shape[-2:-1]:
        raise ValueError(bad(name, f"shape {values.shape[-2:-1]}, one for each token", shape_text(given), who))
    if not np.isfinite(values).all():
        raise ValueError(bad("value", "finite numbers", "others", who))
    if given.dtype.kind not in "biuUS":
        raise TypeError(bad(name, "integers, bools or strings", str(given.dtype), who))
    names, numbers = np.unique(given, return_inverse=True)
    if len(names) < 2:
        raise ValueError(bad(name, "two kinds or more", str(len(names)), who))
    return values, names, numbers.astype(np.int64)


def label_directions(value: ArrayLike, labels: ArrayLike, *, count: int = 1) -> LabelDirections:
    """Where the values of each label lie, along which directions they spread there, and in which the labels differ.

    Parameters
    ----------
    value, labels
        As of `probe_values`.
    count : int, default 1
        Directions of each label, up to Dv; of a label with fewer tokens the last have variance 0.

    Returns
    -------
    LabelDirections
        In float64; directions have length 1, with either sign.

    Raises
    ------
    ValueError, TypeError
        As from `probe_values`; a count above Dv.

    References
    ----------
    Principal components: Pearson, "On lines and planes of closest fit" (1901).  `between` are those of the labels' means, weighted by
    their tokens.
    """
    who = "label_directions"
    values, names, y = labelled_tokens(value, labels, who)
    width = values.shape[-1]
    if as_count("count", count, who) > width:
        raise ValueError(bad("count", f"no more than Dv, {width}", str(count), who))
    centred = values - values.mean(-2, keepdims=True)
    means = np.stack([centred[..., y == c, :].mean(-2) for c in range(len(names))], -2)
    directions, variances = np.empty((*means.shape[:-1], count, width)), np.empty((*means.shape[:-1], count))
    for c in range(len(names)):
        around = centred[..., y == c, :] - means[..., c : c + 1, :]
        sizes, axes = np.linalg.eigh(around.swapaxes(-1, -2) @ around / max(1, (y == c).sum()))
        variances[..., c, :] = np.maximum(sizes[..., ::-1][..., :count], 0)
        directions[..., c, :, :] = axes[..., ::-1][..., :count].swapaxes(-1, -2)
    weighted = means * np.sqrt(np.bincount(y) / len(y))[:, np.newaxis]
    _, size, between = np.linalg.svd(weighted, full_matrices=False)
    along = np.square(centred @ between.swapaxes(-1, -2)).mean(-2)
    separation = np.divide(size**2, along, out=np.zeros_like(size), where=along > 0)
    return LabelDirections(names, means, directions, variances, between, np.minimum(separation, 1))


__all__ = ["LabelDirections", "label_directions"]
