"""Heads that say what another head says already."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from qkvc._coerce import as_finite, bad
from qkvc.analysis._given import check_model
from qkvc.analysis.ablation import as_texts, effect
from qkvc.analysis.interventions import remove_heads
from qkvc.analysis.similarity import cka, cosine_similarity, js_distance

if TYPE_CHECKING:
    from qkvc.analysis.ablation import Texts
    from qkvc.models.watch import Model

WHO = "duplicate_heads"


class DuplicatePair(NamedTuple):
    """Two heads of a layer that look alike, and what the model's output loses with each, and with both."""

    layer: int
    first: int
    second: int
    js: float  # Jensen-Shannon distance of their weights, mean over queries and texts: 0 the same, 1 nothing in common
    cka: float  # of what they bring back, over all tokens: 1 the same up to rotation and scale
    cosine: float  # of what they add to the residual, behind W_O: 1 only if they write the same to the same place
    change_first: float  # |out' - out| / |out| without the first
    change_second: float
    change_both: float


def _bounded(name: str, x: float) -> float:
    if not 0 <= (number := as_finite(name, x, WHO)) <= 1:
        raise ValueError(bad(name, "a number from 0 to 1", str(number), WHO))
    return number


def duplicate_heads(model: Model, texts: Texts, *, weights: float = 0.25, outputs: float = 0.6) -> list[DuplicatePair]:
    """Pairs of heads of a layer whose weights and outputs are near, nearest weights first, and what is lost with one and with both.

    What the changes say: of a head and its copy, `change_both` is the sum of the other two, and more where one covers for the other.  Of
    heads that look alike but write different things to the residual it is about ``hypot(change_first, change_second)``: neither can go
    for the other's sake.  Where it is less than the larger, they work against each other.

    Parameters
    ----------
    model : Bert, GPT2, Llama or MiniLM
    texts : str or token numbers, or a sequence of such
        Of many tokens, four times the width of a head or more: of N tokens, two heads of width D that have nothing to do with each other
        have a CKA of about D / (D + N).
    weights : float, default 0.25
        The largest Jensen-Shannon distance (`js_distance`) of the weights of a pair, 0 to 1.
    outputs : float, default 0.6
        The least CKA (`cka`) of what they bring back, 0 to 1.

    Returns
    -------
    list of DuplicatePair(layer, first, second, js, cka, cosine, change_first, change_second, change_both)
        With ``first < second``; changes are those of `effect`, by zeroing.

    Raises
    ------
    ValueError, TypeError
        No text, limits that are not from 0 to 1, and as from `watch`.
    ModuleNotFoundError
        No SciPy, for the distance.

    Notes
    -----
    Holds the weights of a layer, H L^2 numbers a text.

    References
    ----------
    Clark, Khandelwal, Levy & Manning, "What Does BERT Look At?" (2019), section 6, for the distance of weights; Kornblith et al.,
    "Similarity of Neural Network Representations Revisited" (2019), for CKA; Bian et al., "On Attention Redundancy" (2021).
    """
    check_model(model, WHO)
    given, near, alike = as_texts(texts, WHO), _bounded("weights", weights), _bounded("outputs", outputs)
    seen = [model.watch(text) for text in given]
    found = []
    for layer in range(model.num_layers):
        distance = np.nanmean([js_distance(watch.weights(layer)) for watch in seen], axis=0)
        heads = np.concatenate([watch.heads[layer] for watch in seen], axis=1)
        same = cka(heads)
        added = cosine_similarity(heads @ model.layers[layer].attention.W_O.swapaxes(-1, -2))
        for first, second in np.argwhere(np.triu((distance <= near) & (same >= alike), 1)).tolist():
            gone = ([first], [second], [first, second])
            changes = [effect(model, given, [remove_heads(layer, heads, len(same))]).change for heads in gone]
            numbers = (float(x[first, second]) for x in (distance, same, added))
            found.append(DuplicatePair(layer, first, second, *numbers, *changes))
    return sorted(found, key=lambda pair: pair.js)


__all__ = ["DuplicatePair", "duplicate_heads"]
