"""Which heads belong together, with SciPy, and a map of them, with scikit-learn (`pip install qkvc[analysis]`)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from qkvc._coerce import as_count, as_finite, bad
from qkvc.analysis._mass import as_numbers

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


class Clusters(NamedTuple):
    """What `cluster_heads` returns."""

    labels: NDArray[np.int64]
    order: NDArray[np.int64]
    linkage: NDArray[np.float64]


def cluster_heads(
    distances: ArrayLike,
    *,
    count: int | None = None,
    threshold: float | None = None,
    method: Literal["average", "complete", "single", "weighted"] = "average",
) -> Clusters:
    """Heads that belong together, by joining the two nearest groups again and again.

    Parameters
    ----------
    distances : array_like, shape (H, H)
        From `js_distance`, or 1 - `cka(...)`: symmetric, 0 on the diagonal.
    count : int, optional
        How many clusters, at most.
    threshold : float, optional
        The largest distance at which groups are still joined; this or `count`.
    method : {"average", "complete", "single", "weighted"}, default "average"
        How far two groups are apart: `scipy.cluster.hierarchy.linkage`.

    Returns
    -------
    labels : ndarray of int64, shape (H,)
        The cluster of each head, from 0, in the order in which clusters first appear.
    order : ndarray of int64, shape (H,)
        The heads as leaves of the tree, so that what is alike is side by side.
    linkage : ndarray, shape (H - 1, 4)
        SciPy's, for `scipy.cluster.hierarchy.dendrogram`.

    Raises
    ------
    ValueError
        Distances that are not finite, symmetric or 0 on the diagonal; neither count nor threshold, or both; another method.
    TypeError
        Distances that are no real numbers.
    ImportError
        Without SciPy.
    """
    from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
    from scipy.spatial.distance import squareform

    who = "cluster_heads"
    if method not in (known := ("average", "complete", "single", "weighted")):
        raise ValueError(bad("method", "one of " + ", ".join(known), repr(method), who))
    if (count is None) == (threshold is None):
        raise ValueError(bad("count", "either it or threshold", "neither" if count is None else "both", who))
    apart = _as_distances(distances, who)
    most = None if count is None else as_count("count", count, who)
    at = None if threshold is None else as_finite("threshold", threshold, who)
    if len(apart) < 2:
        return Clusters(np.zeros(len(apart), np.int64), np.arange(len(apart)), np.zeros((0, 4)))
    tree = linkage(squareform(apart, checks=False), method)
    found = fcluster(tree, most, "maxclust") if at is None else fcluster(tree, at, "distance")
    _, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    return Clusters(np.argsort(np.argsort(first))[inverse], leaves_list(tree).astype(np.int64), tree)


def embed_heads(distances: ArrayLike, *, dims: int = 2, seed: int = 0) -> NDArray[np.float64]:
    """A place for each head, so that the distances between places are near those given: metric multidimensional scaling (SMACOF).

    Parameters
    ----------
    distances : array_like, shape (H, H)
        As of `cluster_heads`.
    dims : int, default 2
    seed : int, default 0
        Below 2^32.  Of the first guesses, four of them, of which the best result is kept.

    Returns
    -------
    ndarray of float64, shape (H, dims)
        Around 0.

    Raises
    ------
    ValueError
        Distances that are not finite, symmetric or 0 on the diagonal, another seed.
    TypeError
        Distances that are no real numbers.
    ImportError
        Without scikit-learn, whose `sklearn.manifold.MDS` this is.

    References
    ----------
    Kruskal (1964).  Clark et al. (2019, figure 6) show BERT's heads so.
    """
    from sklearn.manifold import smacof

    apart = _as_distances(distances, "embed_heads")
    wide, first = as_count("dims", dims, "embed_heads"), as_count("seed", seed, "embed_heads", 0)
    if first >= 1 << 32:
        raise ValueError(bad("seed", "an integer below 2^32", str(first), "embed_heads"))
    if not apart.any():
        return np.zeros((len(apart), wide))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of defaults that change and are all given here
        places, _ = smacof(apart, n_components=wide, n_init=4, max_iter=300, eps=1e-6, random_state=first)
    return np.asarray(places - places.mean(0))


def _as_distances(x: Any, who: str) -> NDArray[np.float64]:
    distances = as_numbers("distances", x, who, "shape (H, H)", axes=2)
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1]:
        raise ValueError(bad("distances", "shape (H, H)", f"shape {distances.shape}", who))
    off = max(np.abs(distances - distances.T).max(initial=0), np.abs(np.diag(distances)).max(initial=0))
    if off > 1e-6 or (distances < -1e-6).any():
        raise ValueError(bad("distances", "a symmetric matrix of 0 and more, with 0 on the diagonal", f"one that is off by {off:.3g}", who))
    distances = np.asarray(np.maximum((distances + distances.T) / 2, 0))
    np.fill_diagonal(distances, 0)
    return distances
