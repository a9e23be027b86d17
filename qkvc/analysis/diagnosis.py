"""Why an output is not what was wanted: queries and keys that chose badly, or values that cannot bring it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from qkvc._coerce import as_above_zero, as_count, as_flag, as_real, bad, shape_text
from qkvc.analysis._given import BY_CHANCE, refuse
from qkvc.functional import attention
from qkvc.inside import attention_scores, attention_weights

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Reals = NDArray[np.float64]
    Verdict = Literal["right", "query-key", "value", "both"]

WHO = "diagnose"


class Diagnosis(NamedTuple):
    """What `diagnose` returns.  Errors are shares of the target's length; for a direction, 1 - cosine."""

    verdict: Verdict
    error: float  # between what came out and what was wanted
    value_error: float  # between the best that any weights could make of these values and what was wanted: V cannot
    weight_error: float  # between what came out and that best: Q and K did not
    out: Reals  # (Dv,)
    best: Reals  # (Dv,)
    weights: Reals  # (S,), those of now
    best_weights: Reals  # (S,), those of `best`; they sum to 1
    key: int  # the key with the largest of them
    key_rank: int  # how many allowed keys have a larger score than it now: 0 if it is the first

    def __str__(self) -> str:
        place = f"key {self.key}, which has {self.weights[self.key]:.3f} of the weight and wants {self.best_weights[self.key]:.3f}"
        values = f"the values miss it by {self.value_error:.3f}"
        told = {
            "right": "right: the output is what was wanted",
            "query-key": f"Q and K do not match: the values can bring it, through {place}",
            "value": f"V is at fault: {values} through {place}",
            "both": f"both: {values}, and the weights miss their best by {self.weight_error:.3f}, {place}",
        }
        return f"{told[self.verdict]} (error {self.error:.3f})"


def _cosine(a: Reals, b: Reals) -> float:
    """0 beside a zero vector."""
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else 0.0


def _nearest(values: Reals, target: Reals, direction: bool) -> Reals:
    """The weights that bring nearest to the target: of the values' convex hull, or of their cone where only the direction counts.

    The point of the hull that is nearest to t is the shortest of the hull of u_j = v_j - t; with x = s w, sum w = 1, the least of
    |U x|^2 + (sum x - 1)^2 over x >= 0 is d^2 / (1 + d^2), d = |U w|, at s = 1 / (1 + d^2): so it grows with d, and w = x / s is exact.
    Where no value points the target's way the cone's nearest point is 0; the best cosine is then a value's own, as the directions that are
    farther off are a convex cone.
    """
    from scipy.optimize import nnls

    size = max(float(np.abs(values).max(initial=0)), float(np.abs(target).max())) or 1.0  # so that both terms are of one size
    if direction:
        found, _ = nnls(values.T / size, target / np.linalg.norm(target))
        if not found.any():
            found[np.argmax([_cosine(v, target) for v in values])] = 1
    else:
        rows = np.vstack([(values - target).T / size, np.ones(len(values))])
        found, _ = nnls(rows, np.append(np.zeros(len(target)), 1.0))
    return np.asarray(found / found.sum())


def diagnose(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    target: ArrayLike,
    *,
    query_index: int = 0,
    wanted_key: int | None = None,
    direction: bool = False,
    tolerance: float = 0.1,
    **options: Any,
) -> Diagnosis:
    """Tell a mismatch of query and key from a bad value, for one query of one head and the output that was wanted of it.

    Attention can bring any weighted mean of the values that a query may attend to, and nothing else: their convex hull.  The nearest point
    of it to the target, `best`, splits the error: from it to the target is what no query and key could mend, so V is at fault; from the
    output to it is what other weights alone would mend.

    Parameters
    ----------
    query, key, value : array_like, shapes (L, D), (S, D), (S, Dv)
        Of one head.
    target : array_like, shape (Dv,)
        The output that was wanted, not all zeros.
    query_index : int, default 0
        Whose output it is.
    wanted_key : int, optional
        The key whose value was to bring it, where that is known: then `best` is that value alone, whatever a mixture of others could do.
    direction : bool, default False
        Does only the target's direction count?  Then errors are 1 - cosine, `best` has the best cosine that weights can reach, and
        ``error = value_error + weight_error``.  Otherwise errors are distances over the target's length, and ``error**2 >= value_error**2 +
        weight_error**2`` without a `wanted_key`, the angle at the nearest point of a hull being 90 degrees or more.
    tolerance : float, default 0.1
        What counts as an error.
    **options
        As of `qkvc.attention_weights`, but `layout`, `heads`, `queries`, `dropout_p` and `rng`.

    Returns
    -------
    Diagnosis
        `verdict` is "right" where `error` is within the tolerance; "query-key" where only `weight_error` is beyond it, "value" where only
        `value_error` is; "both"; where neither is alone, the larger.  ``str()`` of it says so in a sentence.

    Raises
    ------
    ValueError
        Shapes that do not fit, more than one head, a target of zeros, numbers that are not finite, a query that may attend to nothing, and
        as from `qkvc.attention_weights`.
    TypeError
        As from `qkvc.attention_weights`.
    ModuleNotFoundError
        No SciPy.

    Notes
    -----
    Some mixture of many values is near to much: of more keys than columns, in random directions, the cone is nearly everything.  What such
    a mixture could do, no query and key would have been meant to do: then say which key was, by `wanted_key`.

    References
    ----------
    Lawson & Hanson, "Solving Least Squares Problems" (1974), chapter 23, for the non-negative least squares; Wolfe, "Finding the nearest
    point in a polytope" (1976).

    Examples
    --------
    >>> import numpy as np
    >>> from qkvc.analysis import diagnose
    >>> key, value = 9 * np.eye(3), np.eye(3)
    >>> print(diagnose(key[:1], key, value, [0, 1, 0]))           # asked like key 0, wanted what key 1 has
    Q and K do not match: the values can bring it, through key 1, which has 0.000 of the weight and wants 1.000 (error 1.414)
    >>> print(diagnose(key[:1], key, value, [2, 0, 0]))           # beyond what any value is
    V is at fault: the values miss it by 0.500 through key 0, which has 1.000 of the weight and wants 1.000 (error 0.500)
    """
    refuse(options, ("layout", "heads", "queries", *BY_CHANCE), WHO)
    arrays = {name: as_real(name, x, WHO) for name, x in (("query", query), ("key", key), ("value", value))}
    for name, array in arrays.items():
        if array.ndim != 2:
            raise ValueError(bad(name, "two axes, those of one head", shape_text(array), WHO))
    wanted = as_real("target", target, WHO).astype(np.float64)
    if wanted.shape != (width := arrays["value"].shape[1:]):
        raise ValueError(bad("target", f"shape {width}, as a value has", shape_text(wanted), WHO))
    if not np.isfinite(wanted).all() or not wanted.any():
        raise ValueError(bad("target", "finite numbers, not all of them 0", "others", WHO))
    i = as_count("query_index", query_index, WHO, 0)
    if i >= len(arrays["query"]):
        raise ValueError(bad("query_index", f"a number below {len(arrays['query'])}, the queries there are", str(i), WHO))
    as_flag("direction", direction, WHO)
    tolerance = as_above_zero("tolerance", tolerance, WHO)
    out = attention(*arrays.values(), **options)[i].astype(np.float64)
    scores = attention_scores(arrays["query"], arrays["key"], stage="bias", **options)[i]
    allowed = np.flatnonzero(scores != -np.inf)
    values = arrays["value"].astype(np.float64)
    if not allowed.size or not np.isfinite(values[allowed]).all() or not np.isfinite(scores[allowed]).all():
        raise ValueError(bad("query_index", "a query that may attend to some key, with finite scores and values", str(i), WHO))
    weights = attention_weights(arrays["query"], arrays["key"], **options)[i].astype(np.float64)
    best_weights = np.zeros(len(values))
    if wanted_key is None:
        best_weights[allowed] = _nearest(values[allowed], wanted, direction)
    elif as_count("wanted_key", wanted_key, WHO, 0) in allowed:
        best_weights[wanted_key] = 1
    else:
        raise ValueError(bad("wanted_key", "a key that the query may attend to", str(wanted_key), WHO))
    best = best_weights[allowed] @ values[allowed]
    if direction:
        error, value_error = 1 - _cosine(out, wanted), max(0.0, 1 - _cosine(best, wanted))
        weight_error = error - value_error
    else:
        size = float(np.linalg.norm(wanted))
        error, value_error, weight_error = (float(np.linalg.norm(a - b)) / size for a, b in ((out, wanted), (best, wanted), (out, best)))
    first = int(best_weights.argmax())
    verdict: Verdict = "value" if value_error >= weight_error else "query-key"
    if error <= tolerance:
        verdict = "right"
    elif min(value_error, weight_error) > tolerance:
        verdict = "both"
    rank = int((scores[allowed] > scores[first]).sum())
    return Diagnosis(verdict, error, value_error, weight_error, out, best, weights, best_weights, first, rank)


__all__ = ["Diagnosis", "diagnose"]
