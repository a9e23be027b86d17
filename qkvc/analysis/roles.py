"""What a head is for, by a table of rules that anyone can read, dispute and replace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qkvc._coerce import as_listed, bad

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from qkvc.analysis.heads import HeadStatistics
    from qkvc.analysis.patterns import PatternScore


class Rule(NamedTuple):
    """A head has this role if its score of that name is at least `least`, and `factor` times what uniform attention would give.

    And if the score is the mean over so many `queries`, or more: one word that comes twice shows nothing of a head.
    """

    role: str
    score: str
    least: float
    factor: float
    queries: int = 1


class Role(NamedTuple):
    """A role, and the score for which a head has it."""

    name: str
    score: float


RULES = (
    Rule("induction", "induction", 0.4, 3.0, 3),
    Rule("duplicate", "duplicate", 0.4, 3.0, 3),
    Rule("previous", "previous", 0.4, 2.0),
    Rule("next", "next", 0.4, 2.0),
    Rule("self", "diagonal", 0.4, 2.0),
    Rule("separator", "separator", 0.4, 2.0),
    Rule("punctuation", "punctuation", 0.4, 2.0),
    Rule("first", "first", 0.4, 2.0),
    Rule("broad", "broad", 0.9, 0.0),
)


def head_roles(
    scores: Mapping[str, PatternScore], statistics: HeadStatistics | None = None, *, rules: Sequence[Rule] = RULES
) -> NDArray[np.object_]:
    """The role of each head: the first rule that holds, in the order of the table.

    Parameters
    ----------
    scores : mapping of str to PatternScore
        From `pattern_scores`.
    statistics : HeadStatistics, optional
        From `head_statistics`: its normalised entropy is the score "broad".
    rules : sequence of Rule(role, score, least, factor, queries), default `RULES`
        The table.  A rule of a score that is not given holds for no head, and so does one whose score is NaN, because no query had the
        pattern.

    Returns
    -------
    ndarray of object, shape (..., H)
        Role(name, score), or None for a head without a role.

    Raises
    ------
    ValueError
        No scores, or of shapes that differ.
    TypeError
        Scores that are no mapping.

    Notes
    -----
    `RULES`, from the most particular pattern to the least: a head that looks behind an earlier equal token is an induction head, even if
    that token happens to be the one before.  A role asks for two fifths of a head's weight: Clark et al. (2019, section 3.1) name heads
    that put more than half of it on the token before or behind; spread over the several keys of other patterns it is less.  The factor
    keeps short texts from giving every head a role: uniform causal attention over 4 tokens puts 0.52 of its weight on the first.

    ===========  ==================  ========  =============  ============
    role         score               at least  times uniform  over queries
    ===========  ==================  ========  =============  ============
    induction    induction           0.4       3              3
    duplicate    duplicate           0.4       3              3
    previous     previous            0.4       2
    next         next                0.4       2
    self         diagonal            0.4       2
    separator    separator           0.4       2
    punctuation  punctuation         0.4       2
    first        first               0.4       2
    broad        normalised entropy  0.9
    ===========  ==================  ========  =============  ============

    On MiniLM (6 layers of 12 heads, both counted from 0) and four sentences of 16 to 30 tokens, head 2 of layer 0 is always "previous", at
    1.00, and head 8 of layer 1 "next", at 0.57 to 0.69; the other heads of layer 0 are "broad" or have no role.  Most of the rest look at
    [CLS], the first token, with 0.4 to 0.9 of their weight: that says where weight is parked, not what a head is for.
    """
    if not isinstance(scores, Mapping):
        raise TypeError(bad("scores", "a mapping of names to PatternScore", type(scores).__name__, "head_roles"))
    values: dict[str, tuple[NDArray[Any], ...]] = dict(scores)
    if statistics is not None:
        broad = statistics.normalised_entropy
        values["broad"] = (broad, np.zeros_like(broad), (statistics.per_query.choices > 1).sum(-1))
    shapes = {np.shape(x) for given in values.values() for x in given}
    if len(shapes) != 1:
        raise ValueError(bad("scores", "some, of one shape", f"shapes {sorted(shapes)}" if shapes else "none", "head_roles"))
    roles = np.full(shapes.pop(), None, np.object_)
    for rule in reversed(as_listed("rules", rules, "a sequence of Rule", "head_roles")):  # so that an earlier rule has the last word
        if rule.score in values:
            score, uniform, queries = map(np.asarray, values[rule.score])
            for head in np.argwhere((score >= rule.least) & (score >= rule.factor * uniform) & (queries >= rule.queries)):
                roles[tuple(head)] = Role(rule.role, float(score[tuple(head)]))
    return roles
