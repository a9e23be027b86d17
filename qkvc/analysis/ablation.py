"""What becomes of a model's output without a head, or under any other intervention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from qkvc._coerce import as_above_zero, as_listed, bad
from qkvc.analysis._given import check_model
from qkvc.analysis.interventions import remove_heads
from qkvc.models.watch import Edit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qkvc.models.watch import Model, Watch

    Array = NDArray[Any]
    Reals = NDArray[np.float64]
    How = Literal["zero", "mean", "resample"]
    Texts = str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]]

HOW: tuple[How, ...] = ("zero", "mean", "resample")


class Effect(NamedTuple):
    """How far outputs are from what they were, means over texts."""

    change: float  # |out' - out| / |out| over all tokens of a text: 0 where nothing changed
    cosine: float  # of out'_i and out_i, mean over tokens: 1 where nothing changed
    sentence_cosine: float  # of the means over tokens, which for MiniLM are the sentence's vectors


class Ablation(NamedTuple):
    """What `ablate` returns: of each head the effect of its loss, (layers, H), NaN where it was not asked for."""

    how: How
    change: Reals
    cosine: Reals
    sentence_cosine: Reals


class IdleHead(NamedTuple):
    """A head that is not missed."""

    layer: int
    head: int
    change: float
    sentence_cosine: float


def as_texts(texts: Any, who: str) -> list[Any]:
    """A text alone, or its token numbers, is a list of one."""
    found = [texts] if isinstance(texts, str) else as_listed("texts", texts, "a text, token numbers or a sequence of such", who)
    if not found:
        raise ValueError(bad("texts", "a text or more", "none", who))
    return [found] if hasattr(found[0], "__index__") and np.ndim(found[0]) == 0 else found


def as_pairs(heads: Iterable[tuple[int, int]] | None, model: Model, who: str) -> list[tuple[int, int]]:
    """Pairs of a layer and a head; all that there are by default."""
    sizes = [layer.attention.num_heads for layer in model.layers]
    if heads is None:
        return [(layer, head) for layer, size in enumerate(sizes) for head in range(size)]
    found = []
    for pair in as_listed("heads", heads, "pairs of a layer and a head", who):
        try:
            layer, head = (int(n.__index__()) for n in pair)
        except (TypeError, ValueError, AttributeError):
            raise TypeError(bad("heads", "pairs of a layer and a head", repr(pair)[:40], who)) from None
        if not (0 <= layer < len(sizes) and 0 <= head < sizes[layer]):
            raise ValueError(bad("heads", f"layers below {len(sizes)} and heads that they have", str((layer, head)), who))
        found.append((layer, head))
    return found


def _cosines(a: Reals, b: Reals) -> Reals:
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosines: Reals = np.divide((a * b).sum(-1), lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return cosines


def compare(before: Array, after: Array) -> tuple[float, float, float]:
    """The numbers of an Effect, of one text's output (L, E)."""
    a, b = before.astype(np.float64), after.astype(np.float64)
    size = float(np.linalg.norm(a))
    change = float(np.linalg.norm(b - a)) / size if size else float(np.linalg.norm(b) > 0)
    return change, float(_cosines(a, b).mean()), float(_cosines(a.mean(0), b.mean(0)))


def effect(model: Model, texts: Texts, edits: Sequence[Edit]) -> Effect:
    """What interventions do to a model's output.

    Parameters
    ----------
    model : Bert, GPT2, Llama or MiniLM
    texts : str or token numbers, or a sequence of such
        Edits with a mask fit texts of one length only.
    edits : sequence of Edit
        All at once.

    Returns
    -------
    Effect(change, cosine, sentence_cosine)
        Means over texts of ``|out' - out| / |out|`` (0 or more) and of cosines (-1 to 1) of `Watch.output`.

    Raises
    ------
    ValueError, TypeError
        No text, and as from `watch`.
    """
    check_model(model, "effect")
    found = [compare(model.watch(text).output, model.watch(text, edits).output) for text in as_texts(texts, "effect")]
    return Effect(*np.mean(found, axis=0).tolist())


def _replacing(head: int, rows: Array) -> Callable[[Array], Array]:
    def replace(heads: Array) -> Array:
        heads[head] = rows
        return heads

    return replace


def ablate(
    model: Model,
    texts: Texts,
    *,
    heads: Iterable[tuple[int, int]] | None = None,
    how: How = "zero",
    rng: np.random.Generator | int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Ablation:
    """What becomes of a model's output when it loses one head: all heads of all layers, one at a time.

    Parameters
    ----------
    model : Bert, GPT2, Llama or MiniLM
        Computed once, and once for each head, of each text.
    texts : str or token numbers, or a sequence of such
    heads : iterable of (layer, head), optional
        Default: all.
    how : {"zero", "mean", "resample"}, default "zero"
        What W_O gets instead of what the head brought back: nothing (Michel et al.), which may be far from anything it has seen; the mean
        over all tokens of `texts`, which keeps what the head always says; or, for each token, what the head brought back for another one
        of `texts`, drawn at random, which keeps what it ever says.
    rng : numpy.random.Generator or int, optional
        Draws the tokens of "resample", the same for all heads.
    progress : callable, optional
        Called as ``progress(done, total)`` behind each head.

    Returns
    -------
    Ablation(how, change, cosine, sentence_cosine)
        Each (layers, H) in float64: means over texts of ``|out' - out| / |out|``, 0 or more, which ranks heads by importance in any model;
        of the cosine of each token's outputs; and of that of their means over tokens, -1 to 1.

    Raises
    ------
    ValueError, TypeError
        No text, heads that there are not, another `how`, and as from `watch`.

    References
    ----------
    Michel, Levy & Neubig, "Are Sixteen Heads Really Better than One?" (2019), section 3; Wang et al., "Interpretability in the Wild"
    (2022), section 2, for the mean; Chan et al., "Causal Scrubbing" (2022), for resampling.
    """
    check_model(model, "ablate")
    if how not in HOW:
        raise ValueError(bad("how", '"zero", "mean" or "resample"', repr(how), "ablate"))
    given, pairs, generator = as_texts(texts, "ablate"), as_pairs(heads, model, "ablate"), np.random.default_rng(rng)
    before = [model.watch(text) for text in given]
    drawn = _drawn(before, how, generator)
    shape = (model.num_layers, max((layer.attention.num_heads for layer in model.layers), default=0))
    found = np.full((3, *shape), np.nan)
    for done, (layer, head) in enumerate(pairs, 1):
        results = []
        for text, watch, rows in zip(given, before, drawn, strict=True):
            if rows is None:
                edit = remove_heads(layer, [head], len(watch.heads[layer]))
            else:
                edit = Edit(layer, replace=_replacing(head, rows(layer, head)))
            results.append(compare(watch.output, model.watch(text, [edit]).output))
        found[:, layer, head] = np.mean(results, axis=0)
        if progress is not None:
            progress(done, len(pairs))
    return Ablation(how, *found)


def _drawn(before: list[Watch], how: How, generator: np.random.Generator) -> list[Callable[[int, int], Array] | None]:
    """For each text what stands for a head's rows, given layer and head."""
    if how == "zero":
        return [None] * len(before)
    total = sum(len(watch.ids) for watch in before)

    def all_rows(layer: int, head: int) -> Array:
        return np.concatenate([watch.heads[layer][head] for watch in before])

    if how == "mean":
        return [lambda layer, head: all_rows(layer, head).mean(0)] * len(before)
    chosen = [generator.integers(total, size=len(watch.ids)) for watch in before]
    return [lambda layer, head, at=at: all_rows(layer, head)[at] for at in chosen]  # type: ignore[misc]


def idle_heads(ablation: Ablation, *, below: float = 0.02) -> list[IdleHead]:
    """The heads whose loss changes the output least: by less than `below` of its length, the least missed first.

    Parameters
    ----------
    ablation : Ablation
        Of `ablate`.
    below : float, default 0.02
        Above 0.

    Returns
    -------
    list of IdleHead(layer, head, change, sentence_cosine)

    Raises
    ------
    ValueError, TypeError
        A `below` that is not above 0.

    References
    ----------
    Voita et al., "Analyzing Multi-Head Self-Attention: Specialized Heads Do the Heavy Lifting, the Rest Can Be Pruned" (2019).
    """
    limit = as_above_zero("below", below, "idle_heads")
    at = np.argwhere(ablation.change < limit).tolist()
    found = [IdleHead(layer, head, float(ablation.change[layer, head]), float(ablation.sentence_cosine[layer, head])) for layer, head in at]
    return sorted(found, key=lambda idle: idle.change)


__all__ = ["Ablation", "Effect", "IdleHead", "ablate", "effect", "idle_heads"]
