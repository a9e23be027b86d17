"""Which head finds what a word stands for, or its object, or its verb: named pairs of tokens, against what distance and fame would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qkvc._coerce import as_count, as_listed, bad
from qkvc.analysis._given import check_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from qkvc.models.watch import Model

    Reals = NDArray[np.float64]
    Pair = tuple[str | Sequence[int], str | int, str | int]

WHO = "relation_scores"


class RelationScores(NamedTuple):
    """What `relation_scores` returns, each of shape (pairs, layers, H)."""

    weight: Reals
    same_distance: Reals
    same_key: Reals
    found: NDArray[np.bool_]


def _place(name: str, asked: Any, tokens: list[str]) -> int:
    """Where a token stands, which is named by its text or its number."""
    if not isinstance(asked, str):
        if (place := as_count(f"pairs: {name}", asked, WHO, 0)) >= len(tokens):
            raise ValueError(bad(f"pairs: {name}", f"a number from 0 to {len(tokens) - 1}", str(place), WHO))
        return place
    if (times := tokens.count(asked)) != 1:
        raise ValueError(bad(f"pairs: {name}", "one of the text's tokens, that it has once", f"{asked[:40]!r}, {times} times", WHO))
    return tokens.index(asked)


def relation_scores(model: Model, pairs: Iterable[Pair]) -> RelationScores:
    """How much each head of a model puts from one word on another, in texts where these are known to belong together.

    A large weight alone shows no relation: a head for the next token finds each verb that happens to be next, and a head of which all
    tokens look at the subject finds it for the pronoun as well.  So what else the head does is measured beside it.

    Parameters
    ----------
    model : Bert, GPT2, Llama or MiniLM
    pairs : iterable of (text, query, key)
        The text as of `watch`, and two of its tokens, who looks and what is to be found: each by its text, if there is one such token, or
        by its number in the text, from 0, those counted that the model adds around it.

    Returns
    -------
    RelationScores(weight, same_distance, same_key, found)
        Each (pairs, layers, H), 0 to 1: the weight of the query on the key; the mean weight of all other queries on the key that is as
        far from them, NaN where there is none; that on this very key, 0 from queries that may not see it, NaN of a text of one token; and
        whether the query takes more of the key than of any other token but the first, which is where heads park what they do not need,
        so that it is never found itself.

    Raises
    ------
    ValueError, TypeError
        No pair, a token that the text does not have or has more than once, and as from `watch`; layers with unlike numbers of heads.

    Notes
    -----
    Holds the weights of a layer, H L^2 numbers.

    References
    ----------
    Clark, Khandelwal, Levy & Manning, "What Does BERT Look At?" (2019), section 4.2, which compares heads with the best fixed distance.

    Examples
    --------
    >>> from qkvc.analysis import relation_scores
    >>> from qkvc.models import MiniLM
    >>> found = relation_scores(MiniLM.from_package(), [("The dog barked because it heard a noise.", "it", "dog")])  # doctest: +SKIP
    """
    check_model(model, WHO)
    rows = []
    for pair in as_listed("pairs", pairs, "texts and two tokens of each", WHO):
        if not isinstance(pair, tuple | list) or len(pair) != 3:
            raise TypeError(bad("pairs", "a text and two of its tokens", repr(pair)[:40], WHO))
        seen = model.watch(pair[0])
        query, key = (_place(name, asked, seen.tokens) for name, asked in zip(("query", "key"), pair[1:], strict=True))
        rows.append([_scores(seen.weights(layer).astype(np.float64), query, key) for layer in range(model.num_layers)])
    if not rows:
        raise ValueError(bad("pairs", "one or more", "none", WHO))
    weight, distance, same, found = np.moveaxis(np.array(rows), 2, 0)
    return RelationScores(weight, distance, same, found == 1)


def _scores(weights: Reals, query: int, key: int) -> list[Reals]:
    """Of a layer's heads, (4, H)."""
    diagonal = np.delete(np.diagonal(weights, key - query, -2, -1), min(query, key), -1)
    found = (key > 0) & (weights[:, query, key] > np.delete(weights[:, query], sorted({0, key}), -1).max(-1, initial=0))
    return [weights[:, query, key], _mean(diagonal), _mean(np.delete(weights[..., key], query, -1)), found]


def _mean(x: Reals) -> Reals:
    mean: Reals = x.mean(-1) if x.shape[-1] else np.full(x.shape[:-1], np.nan)
    return mean


__all__ = ["RelationScores", "relation_scores"]
