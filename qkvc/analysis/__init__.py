"""What attention does, in numbers: from queries and keys, from weights, from layers and models.

Nothing here needs more than NumPy, unless its docstring says so (`pip install qkvc[analysis]`).
"""

from qkvc.analysis.heads import HeadStatistics, QueryStatistics, head_statistics
from qkvc.analysis.patterns import PATTERNS, PatternScore, pattern_scores
from qkvc.analysis.roles import RULES, Role, Rule, head_roles

__all__ = [
    "PATTERNS",
    "RULES",
    "HeadStatistics",
    "PatternScore",
    "QueryStatistics",
    "Role",
    "Rule",
    "head_roles",
    "head_statistics",
    "pattern_scores",
]
