"""What can be read off the values by linear probes, judged on tokens that they have not seen and against shuffled labels."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from qkvc._coerce import as_above_zero, as_count, bad
from qkvc.analysis.subspaces import labelled_tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    Reals = NDArray[np.float64]
    Fit = Callable[[Reals, NDArray[np.int64], int], tuple[Reals, Reals]]


class Probe(NamedTuple):
    """What `probe_values` returns."""

    score: Reals  # (...): share of the tokens held out whose label was told, 0 to 1
    control: Reals  # (...): the same with shuffled labels, mean over the shuffles
    control_spread: Reals  # (...): and their standard deviation
    chance: float  # the share of the commonest label: what is right without looking
    labels: NDArray[Any]  # (C,): the labels in order
    directions: Reals  # (..., C, Dv): the direction that speaks for each label, of length 1, from a probe of all tokens

    @property
    def selectivity(self) -> Reals:
        """`score - control`: what the values tell beyond what the probe can learn by heart."""
        return self.score - self.control


def _ridge(strength: float) -> Fit:
    """Least squares of the labels as unit vectors, with a penalty on the squares of the weights but not of the intercept."""

    def fit(x: Reals, y: NDArray[np.int64], kinds: int) -> tuple[Reals, Reals]:
        middle, targets = x.mean(0), np.eye(kinds)[y]
        share = targets.mean(0)
        tokens, width = x.shape
        if tokens < width:  # the shortest (W, V) with x W + sqrt(strength) V = targets has the same W, in a third of the time at 154 x 384
            wide = np.hstack([x - middle, np.sqrt(strength) * np.eye(tokens)])
            weight = np.linalg.lstsq(wide, targets - share, rcond=None)[0][:width].T
        else:
            tall = np.vstack([x - middle, np.sqrt(strength) * np.eye(width)])
            weight = np.linalg.lstsq(tall, np.vstack([targets - share, np.zeros((width, kinds))]), rcond=None)[0].T
        return weight, share - weight @ middle

    return fit


def _logistic(strength: float) -> Fit:
    from sklearn.linear_model import LogisticRegression

    def fit(x: Reals, y: NDArray[np.int64], kinds: int) -> tuple[Reals, Reals]:
        if (y == y[0]).all():  # which it refuses to learn from
            return np.zeros((kinds, x.shape[1])), np.where(np.arange(kinds) == y[0], 0, -np.inf)
        model = LogisticRegression(C=1 / strength, max_iter=1000).fit(x, y)
        rows, offsets = model.coef_, model.intercept_
        if len(rows) == 1:  # of two kinds it gives the second's row
            rows, offsets = np.vstack([-rows, rows]), np.concatenate([-offsets, offsets])
        weight, bias = np.zeros((kinds, x.shape[1])), np.full(kinds, -np.inf)  # a kind that was never seen is never told
        weight[model.classes_], bias[model.classes_] = rows, offsets
        return weight, bias

    return fit


def _folds(y: NDArray[np.int64], folds: int, groups: NDArray[np.int64] | None, generator: np.random.Generator) -> NDArray[np.int64]:
    """The fold of each token: every label is spread over the folds as evenly as it goes; or whole groups are, large ones first."""
    if groups is None:
        order = np.lexsort((generator.random(len(y)), y))
        result = np.empty(len(y), np.int64)
        result[order] = np.arange(len(y)) % folds
        return result
    sizes, filled = np.bincount(groups), np.zeros(folds, np.int64)
    of_group = np.empty(len(sizes), np.int64)
    for group in np.lexsort((generator.random(len(sizes)), -sizes)):
        of_group[group] = filled.argmin()
        filled[of_group[group]] += sizes[group]
    return np.asarray(of_group[groups])


def _held_out(fit: Fit, x: Reals, y: NDArray[np.int64], kinds: int, fold: NDArray[np.int64]) -> float:
    right = 0
    for k in range(fold.max() + 1):
        away = fold == k
        weight, bias = fit(x[~away], y[~away], kinds)
        right += int(((x[away] @ weight.T + bias).argmax(-1) == y[away]).sum())
    return right / len(y)


def probe_values(
    value: ArrayLike,
    labels: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    method: Literal["ridge", "logistic"] = "ridge",
    strength: float = 1.0,
    folds: int = 5,
    controls: int = 10,
    rng: np.random.Generator | int | None = None,
) -> Probe:
    """What can be read off the values by a linear probe: whether V carries the labels, and along which directions.

    Parameters
    ----------
    value : array_like, shape (..., N, Dv)
        Values of N tokens, as `MultiHeadAttention.project` gives them, or any vectors; leading axes, the heads, are probed apart.
    labels : array_like of int, bool or str, shape (N,)
        What is to be read: a word class, a position, a name.
    groups : array_like of int, bool or str, shape (N,), optional
        Tokens of one group are told together, by a probe that has seen none of them: give the words, or a probe of word classes may know
        each word by heart, as "the" stands in every sentence.
    method : {"ridge", "logistic"}, default "ridge"
        Least squares of the labels as unit vectors, by NumPy; or logistic regression, by scikit-learn.
    strength : float, default 1
        Of the penalty on squared weights, whose values are taken in units of the root of their mean square.
    folds : int, default 5
        Parts of the tokens, labels spread over them evenly where there are no groups; each is told by a probe of the others.
    controls : int, default 10
        Shuffles of the labels, for which the probe is fitted and judged in the same way.
    rng : numpy.random.Generator or int, optional
        Chooses the folds and shuffles.

    Returns
    -------
    Probe
        Shares of 0 to 1 in float64; ``selectivity`` near 0 says that the probe's power is its own.

    Raises
    ------
    ValueError, TypeError
        Shapes that do not fit, one label only, fewer tokens or groups than folds, numbers that are not finite, another method.
    ModuleNotFoundError
        "logistic" without scikit-learn.

    References
    ----------
    Alain & Bengio, "Understanding intermediate layers using linear classifier probes" (2016); Hewitt & Liang, "Designing and Interpreting
    Probes with Control Tasks" (2019), for the control.

    Examples
    --------
    >>> import numpy as np
    >>> from qkvc.analysis import probe_values
    >>> rng, label = np.random.default_rng(0), np.arange(200) % 2
    >>> value = rng.standard_normal((200, 8)) + 4 * label[:, None] * np.eye(8)[3]  # the label lies along axis 3
    >>> found = probe_values(value, label, rng=0)
    >>> bool(found.score > 0.95), bool(found.control < 0.6), int(np.abs(found.directions[1]).argmax())
    (True, True, 3)
    """
    who = "probe_values"
    values, names, y = labelled_tokens(value, labels, who)
    strength, folds, controls = (
        as_above_zero("strength", strength, who),
        as_count("folds", folds, who, 2),
        as_count("controls", controls, who),
    )
    if len(y) < folds:
        raise ValueError(bad("folds", f"no more than the {len(y)} tokens", str(folds), who))
    if method not in ("ridge", "logistic"):
        raise ValueError(bad("method", '"ridge" or "logistic"', repr(method), who))
    together = None if groups is None else labelled_tokens(values, groups, who, "groups")[2]
    if together is not None and together.max() + 1 < folds:
        raise ValueError(bad("groups", f"{folds} or more, as there are folds", str(together.max() + 1), who))
    fit, generator = (_ridge if method == "ridge" else _logistic)(strength), np.random.default_rng(rng)
    shuffled = [generator.permutation(y) for _ in range(controls)]
    parts = [_folds(labelled, folds, together, generator) for labelled in (y, *shuffled)]
    heads = values.reshape(prod(values.shape[:-2]), *values.shape[-2:])
    scores, directions = np.empty((len(heads), 1 + controls)), np.empty((len(heads), len(names), values.shape[-1]))
    for h, x in enumerate(heads):
        x = x / (np.sqrt(np.square(x).mean()) or 1.0)
        for n, labelled in enumerate((y, *shuffled)):
            scores[h, n] = _held_out(fit, x, labelled, len(names), parts[n])
        weight, _ = fit(x, y, len(names))
        length = np.linalg.norm(weight, axis=-1, keepdims=True)
        directions[h] = np.divide(weight, length, out=np.zeros_like(weight), where=length > 0)
    scores = scores.reshape(*values.shape[:-2], 1 + controls)
    told, control = np.asarray(scores[..., 0]), scores[..., 1:]
    directions = directions.reshape(*values.shape[:-2], *directions.shape[1:])
    chance = float(np.bincount(y).max() / len(y))
    return Probe(told, np.asarray(control.mean(-1)), np.asarray(control.std(-1)), chance, names, directions)


__all__ = ["Probe", "probe_values"]
