"""What the weights of each head look like in numbers: entropy, confidence, distance, mass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qkvc.analysis._mass import Heads, Reach, as_weights, entropy_of, mean_over
from qkvc.inside import attention_stats

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from typing_extensions import Unpack

    from qkvc.analysis._mass import Options


class QueryStatistics(NamedTuple):
    """Numbers of every query, each (..., H, L_q); 0 for a query that may attend to nothing."""

    entropy: NDArray[Any]
    confidence: NDArray[Any]
    distance: NDArray[Any]
    first_mass: NDArray[Any]
    choices: NDArray[np.int64]


class HeadStatistics(NamedTuple):
    """What `head_statistics` returns."""

    entropy: NDArray[np.float64]
    normalised_entropy: NDArray[np.float64]
    confidence: NDArray[np.float64]
    distance: NDArray[np.float64]
    first_mass: NDArray[np.float64]
    key_mass: NDArray[Any]
    per_query: QueryStatistics

    @classmethod
    def from_weights(cls, weights: ArrayLike, **reach: Unpack[Reach]) -> HeadStatistics:
        """The same numbers as `head_statistics`, of weights that are written out.

        Parameters
        ----------
        weights : array_like, shape (..., H, L_q, L_k) or (L_q, L_k)
            Not negative, rows that sum to 1 at most (less with sinks).
        mask, causal, q_offset, window, key_lengths
            What the weights were computed with: which keys a query might have chosen is not seen from a weight that is 0 to all its digits.

        Returns
        -------
        HeadStatistics
            In float64.

        Raises
        ------
        ValueError
            Weights that are negative, not finite or sum to more than 1 (by more than 1 %, the rounding of bfloat16); options that do not
            fit them.
        TypeError
            Weights that are no real numbers; other options.
        """
        p = as_weights(weights, "from_weights")
        heads = Heads(np.empty((*p.shape[:-1], 0)), np.empty((*p.shape[:-2], p.shape[-1], 0)), reach, "from_weights", Reach)
        at = heads.positions()[..., np.newaxis]
        away = np.abs(at - np.arange(p.shape[-1]))
        away = away[..., np.newaxis, :, :] if away.ndim > 2 else away
        first = p[..., 0] if p.shape[-1] else np.zeros(p.shape[:-1])
        return _collect(entropy_of(p), p.max(-1, initial=0), (p * away).sum(-1), first, p.sum(-2), heads.choices())


def head_statistics(query: ArrayLike, key: ArrayLike, **options: Unpack[Options]) -> HeadStatistics:
    """Entropy, confidence, distance and mass of every head's weights p, from queries and keys: no L_q x L_k matrix is written down.

    Parameters
    ----------
    query : array_like, shape (..., H, L_q, D) or (L_q, D)
        As of `attention`.
    key : array_like, shape (..., H_kv, L_k, D) or (L_k, D)
        As of `attention`.
    **options
        mask, bias, causal, q_offset, window, key_lengths, alibi_slopes, sinks, softcap, scale, layout and num_threads of `attention_stats`.

    Returns
    -------
    entropy : ndarray, shape (..., H)
        -sum p ln p in nats, from 0 to ln L_k (Clark et al. 2019, section 3.3).
    normalised_entropy : ndarray, shape (..., H)
        Of the entropy that masks leave possible, the share that there is: the sum of -sum p ln p over the queries in that of ln n, where a
        query may choose among n keys.  From 0 to 1 (sinks, whose share is no key's, can push it above); NaN where no query has a choice.
    confidence : ndarray, shape (..., H)
        The largest p, from 0 to 1 (Voita et al. 2019, section 4).
    distance : ndarray, shape (..., H)
        sum p abs(position - j), in tokens.  Position i for row i, unless `causal` or `q_offset` says another.
    first_mass : ndarray, shape (..., H)
        p of the first key, from 0 to 1: what an attention sink takes (Xiao et al. 2023).
    key_mass : ndarray, shape (..., H, L_k)
        What each key is given in all: the sum of p over the queries.
    per_query : QueryStatistics
        entropy, confidence, distance and first_mass of each query, and choices, the number n of keys that it may attend to: (..., H, L_q).
    The first five are means over the queries that may attend to anything, NaN where none may.  All numbers are computed and returned in
    float64.  Axes of batch and heads are missing where both inputs have two axes.

    Raises
    ------
    ValueError
        Scores beyond 1e9, and as from `attention`.
    TypeError
        As from `attention`; an option that is not among these.

    Notes
    -----
    Two sweeps over the scores, in float64 because a head that looks at one key has an entropy near 0.001, of which float32 leaves three
    digits: 2.8 to 4.1 times the time of `attention` in float32, where float32 weights that are written out and summed up take 6 to 12 times
    (one core, 12 heads of 64, 128 to 2048 tokens).  Memory: O(L_q + L_k) per head, 16 D + 100 bytes a token.

    References
    ----------
    Clark et al., "What does BERT look at?" (2019).  Voita et al., "Analyzing multi-head self-attention" (2019).  Xiao et al., "Efficient
    streaming language models with attention sinks" (2023).

    Examples
    --------
    >>> import numpy as np
    >>> from qkvc.analysis import head_statistics
    >>> q = np.zeros((4, 6, 8))             # 4 heads, 6 tokens; all scores alike
    >>> head_statistics(q, q).normalised_entropy
    array([1., 1., 1., 1.])
    """
    heads = Heads(query, key, options, "head_statistics")
    (mass,), lse = heads.on_sets(np.arange(heads.lengths[1])[np.newaxis] == 0)
    stats = attention_stats(heads.query, heads.key, lse=lse, **heads.options)
    return _collect(stats.entropy, heads.share(stats.max_score, lse), stats.distance, mass, stats.key_mass, heads.choices())


def _collect(
    entropy: NDArray[Any],
    largest: NDArray[Any],
    distance: NDArray[Any],
    first: NDArray[Any],
    key_mass: NDArray[Any],
    choices: NDArray[np.float64],
) -> HeadStatistics:
    """Of every query: `choices` is ln n, -inf where a query may attend to nothing."""
    choices = np.broadcast_to(choices, entropy.shape)
    some = ~np.isneginf(choices)
    possible = np.where(some, choices, 0).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(possible > 0, entropy.sum(-1, dtype=np.float64) / possible, np.nan)
    mean = [mean_over(x, some) for x in (entropy, largest, distance, first)]
    counts = np.rint(np.exp(choices)).astype(np.int64)
    each = QueryStatistics(entropy, largest, distance, first, counts)
    return HeadStatistics(mean[0], np.asarray(share), mean[1], mean[2], mean[3], key_mass, each)
