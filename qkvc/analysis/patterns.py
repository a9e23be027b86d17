"""Which of the known patterns a head's weights fall on: the token before, the first, an equal one, the one behind an equal one ..."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qkvc._coerce import as_array, as_listed, bad
from qkvc.analysis._mass import Heads, fits, mean_over

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from typing_extensions import Unpack

    from qkvc.analysis._mass import Options

    Custom = ArrayLike | Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]

WHO = "pattern_scores"
OFFSETS = {"previous": -1, "next": 1, "diagonal": 0}
BY_TOKENS = ("duplicate", "induction")
BY_STRINGS = ("separator", "punctuation")
PATTERNS = (*OFFSETS, "first", *BY_TOKENS, *BY_STRINGS)
SEPARATORS = ("[SEP]", "</s>", "<|endoftext|>", "<|im_end|>", "<|eot_id|>")
JOINTS = ("##", "Ġ", "▁", "Ċ")  # how WordPiece, byte-level BPE and SentencePiece mark where a word goes on or begins


class PatternScore(NamedTuple):
    """What `pattern_scores` says of a pattern."""

    score: NDArray[np.float64]
    uniform: NDArray[np.float64]
    queries: NDArray[np.int64]


def pattern_scores(
    query: ArrayLike,
    key: ArrayLike,
    *,
    tokens: ArrayLike | Sequence[str] | None = None,
    patterns: Sequence[str] | None = None,
    custom: Mapping[str, Custom] | None = None,
    separators: Collection[str] = SEPARATORS,
    **options: Unpack[Options],
) -> dict[str, PatternScore]:
    """The weight that each head puts on a pattern, the mean over its queries.

    =============  ===========================================================================  ==============
    pattern        the keys j of a query at position p                                          wants `tokens`
    =============  ===========================================================================  ==============
    "previous"     j = p - 1
    "next"         j = p + 1
    "diagonal"     j = p, the token itself
    "first"        j = 0
    "duplicate"    j < p where the same token stands                                            any
    "induction"    0 < j <= p behind an earlier occurrence of the token: token j - 1 equals it  any
    "separator"    where one of `separators` stands                                             strings
    "punctuation"  where all but blanks are punctuation or symbols (Unicode P and S)             strings
    =============  ===========================================================================  ==============

    Parameters
    ----------
    query, key : array_like
        As of `attention`.
    tokens : array_like of int or str, shape (..., L_k), optional
        What stands where the keys stand; a query at position p has token p.
    patterns : sequence of str, optional
        Which of the above; by default all that `tokens` is enough for.
    custom : mapping, optional
        More patterns by name: a bool array that broadcasts to (..., H, L_q, L_k), or a function of positions (..., L_q, 1) and keys (L_k,)
        that returns one, such as ``lambda p, j: p - j == 2``.
    separators : collection of str
    **options
        As of `head_statistics`.

    Returns
    -------
    dict of PatternScore(score, uniform, queries), each of shape (..., H)
        score: the mean weight, 0 to 1.  uniform: what it would be if all scores were alike.  queries: over how many queries, those for
        which the pattern has a key that they may attend to; NaN for the other two where there is none.

    Raises
    ------
    ValueError
        A pattern without the tokens that it wants or of an unknown name, tokens of another length, scores beyond 1e9, and as from
        `attention`.
    TypeError
        Tokens that are neither integers nor strings, a pattern that is not bool, and as from `attention`.

    Notes
    -----
    No weights are written down.  "first", "separator" and "punctuation" are attention with 0 and 1 for values, one sweep for all of
    them.  For any other pattern exp(lse of attention under it as a mask - lse) is the mass on it, to about abs(lse) units of the last
    place of float64; the first three take O(L) time, the others a sweep and L_q L_k bytes, which all heads share.  So the four patterns
    without tokens take 1.6 to 4.3 times the time of `attention` in float32, and the six that any tokens allow 6 to 9 times (as measured
    for `head_statistics`).

    References
    ----------
    Clark et al., "What does BERT look at?" (2019), section 3.  Olsson et al., "In-context learning and induction heads" (2022).

    Examples
    --------
    >>> import numpy as np
    >>> from qkvc.analysis import pattern_scores
    >>> q = np.zeros((2, 4, 8))
    >>> pattern_scores(q, q, causal=True)["previous"].score      # (1/2 + 1/3 + 1/4) / 3
    array([0.36111111, 0.36111111])
    """
    heads = Heads(query, key, options, WHO)
    marks = as_listed("separators", separators, "a collection of strings", WHO)
    words = None if tokens is None else _as_tokens(tokens, heads)
    spoken = words is not None and words.dtype.kind == "U"
    possible = (*OFFSETS, "first", *(BY_TOKENS if words is not None else ()), *(BY_STRINGS if spoken else ()))
    for name, given in (("patterns", patterns), ("separators", separators)):
        if isinstance(given, str):
            raise TypeError(bad(name, "a collection of strings", "one string", WHO))
    if not isinstance(own := {} if custom is None else custom, Mapping):
        raise TypeError(bad("custom", "a mapping of names to patterns", type(custom).__name__, WHO))
    for name in (chosen := possible if patterns is None else tuple(as_listed("patterns", patterns, "a collection of strings", WHO))):
        if name not in PATTERNS:
            raise ValueError(bad("patterns", "some of " + ", ".join(PATTERNS), repr(name), WHO))
        if name not in possible:
            raise ValueError(bad("tokens", "strings" if name in BY_STRINGS else "integers or strings", f'None for "{name}"', WHO))
    if taken := sorted(set(own) & set(PATTERNS)):
        raise ValueError(bad("custom", "names of its own", repr(taken[0]), WHO))

    shared = {name: _set(name, words, heads.lengths[1], marks) for name in chosen if name in ("first", *BY_STRINGS)}
    columns = np.stack(np.broadcast_arrays(*shared.values()), -2) if shared else np.zeros((0, heads.lengths[1]), np.bool_)
    both = [(h, *h.on_sets(columns)) for h in (heads, heads.uniform())]  # the first to be called: it judges all options
    masks = {name: _equal(words, heads.positions(), int(name == "induction")) for name in chosen if name in BY_TOKENS}
    masks |= {name: _own(name, pattern, heads, both[0][2].shape) for name, pattern in own.items()}
    found, alike = (
        dict(zip(shared, of_sets, strict=True))
        | {name: h.at_offset(OFFSETS[name], lse) for name in chosen if name in OFFSETS}
        | {name: h.on_mask(mask, lse) for name, mask in masks.items()}
        for h, of_sets, lse in both
    )
    scores = {}
    for name in (*chosen, *own):
        counted = alike[name] > 0
        scores[name] = PatternScore(mean_over(found[name], counted), mean_over(alike[name], counted), np.asarray(counted.sum(-1)))
    return scores


def _as_tokens(tokens: Any, heads: Heads) -> NDArray[Any]:
    words = as_array("tokens", tokens, WHO)
    if words.dtype.kind not in "iuU" and words.size:
        raise TypeError(bad("tokens", "integers or strings", str(words.dtype), WHO))
    wanted = (*heads.batch, heads.lengths[1])
    if not words.ndim or words.shape[-1] != wanted[-1] or not fits(words.shape, wanted):
        raise ValueError(bad("tokens", f"one for each key, a shape that broadcasts to {wanted}", f"shape {words.shape}", WHO))
    return words


def _set(name: str, words: NDArray[Any] | None, length: int, separators: list[str]) -> NDArray[np.bool_]:
    """Keys that are a pattern for every query, (..., L_k)."""
    if words is None or name == "first":
        return np.asarray(np.arange(length) == 0, np.bool_)
    if name == "separator":
        return np.isin(words, separators)
    return np.array([is_punctuation(word) for word in words.flat], np.bool_).reshape(words.shape)


def is_punctuation(token: str) -> bool:
    """Is there anything in it, without the joints of tokenizers and the blanks that become of them, and is that punctuation or symbols?"""
    token = token.strip()
    for joint in JOINTS:
        token = token.removeprefix(joint) or token
    return bool(token) and all(unicodedata.category(character)[0] in "PS" for character in token)


def _equal(words: Any, positions: NDArray[np.int64], behind: int) -> NDArray[np.bool_]:
    """Is key j `behind` an earlier token that equals the query's?  (..., 1, L_q, L_k), or (L_q, L_k) without a batch."""
    length = words.shape[-1]
    batch = np.broadcast_shapes(words.shape[:-1], positions.shape[:-1])
    words = np.broadcast_to(words, (*batch, length))
    at = np.broadcast_to(positions, (*batch, positions.shape[-1]))
    inside = (at >= 0) & (at < length)
    asked = np.take_along_axis(words, np.where(inside, at, 0), -1) if length else np.zeros(at.shape, words.dtype)
    equal = np.zeros((*at.shape, length), np.bool_)
    equal[..., behind:] = asked[..., np.newaxis] == words[..., np.newaxis, : length - behind]
    equal &= inside[..., np.newaxis] & (np.arange(length) - behind < at[..., np.newaxis])
    return equal[..., np.newaxis, :, :] if batch else equal


def _own(name: str, pattern: Any, heads: Heads, queries: tuple[int, ...]) -> NDArray[np.bool_]:
    """A pattern of the caller's."""
    if callable(pattern):
        positions = heads.positions()
        at = positions[..., np.newaxis, :, np.newaxis] if positions.ndim > 1 else positions[:, np.newaxis]
        pattern = pattern(at, np.arange(heads.lengths[1]))
    array = as_array(f"custom[{name!r}]", pattern, WHO)
    if array.dtype != np.bool_:
        raise TypeError(bad(f"custom[{name!r}]", "bool, True where a key belongs to the pattern", str(array.dtype), WHO))
    if not fits(array.shape, wanted := (*queries, heads.lengths[1])):
        raise ValueError(bad(f"custom[{name!r}]", f"a shape that broadcasts to {wanted}", f"shape {array.shape}", WHO))
    return array
