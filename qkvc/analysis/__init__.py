"""What attention does, in numbers: from queries and keys, from weights, from layers and models.

Nothing here needs more than NumPy, unless its docstring says so (`pip install qkvc[analysis]`).
"""

from qkvc.analysis.ablation import Ablation, Effect, IdleHead, ablate, effect, idle_heads
from qkvc.analysis.circuits import Circuits, circuits
from qkvc.analysis.clusters import Clusters, cluster_heads, embed_heads
from qkvc.analysis.diagnosis import Diagnosis, diagnose
from qkvc.analysis.duplicates import DuplicatePair, duplicate_heads
from qkvc.analysis.flow import attention_flow, attention_rollout
from qkvc.analysis.heads import HeadStatistics, QueryStatistics, head_statistics
from qkvc.analysis.importance import head_importance, model_importance
from qkvc.analysis.interventions import knock_out, override_values, remove_heads
from qkvc.analysis.patterns import PATTERNS, PatternScore, pattern_scores
from qkvc.analysis.probes import Probe, probe_values
from qkvc.analysis.pruning import prune_heads, prune_model
from qkvc.analysis.rank import effective_rank
from qkvc.analysis.relations import RelationScores, relation_scores
from qkvc.analysis.roles import RULES, Role, Rule, head_roles
from qkvc.analysis.scaling import LengthDirection, ScoreVariance, Sharpness, length_and_direction, score_variance, sharpness
from qkvc.analysis.similarity import cka, cosine_similarity, js_distance
from qkvc.analysis.subspaces import LabelDirections, label_directions
from qkvc.analysis.values import NormWeighted, layer_value_zeroing, norm_weighted_attention, value_zeroing

__all__ = [
    "PATTERNS",
    "RULES",
    "Ablation",
    "Circuits",
    "Clusters",
    "Diagnosis",
    "DuplicatePair",
    "Effect",
    "HeadStatistics",
    "IdleHead",
    "LabelDirections",
    "LengthDirection",
    "NormWeighted",
    "PatternScore",
    "Probe",
    "QueryStatistics",
    "RelationScores",
    "Role",
    "Rule",
    "ScoreVariance",
    "Sharpness",
    "ablate",
    "attention_flow",
    "attention_rollout",
    "circuits",
    "cka",
    "cluster_heads",
    "cosine_similarity",
    "diagnose",
    "duplicate_heads",
    "effect",
    "effective_rank",
    "embed_heads",
    "head_importance",
    "head_roles",
    "head_statistics",
    "idle_heads",
    "js_distance",
    "knock_out",
    "label_directions",
    "layer_value_zeroing",
    "length_and_direction",
    "model_importance",
    "norm_weighted_attention",
    "override_values",
    "pattern_scores",
    "probe_values",
    "prune_heads",
    "prune_model",
    "relation_scores",
    "remove_heads",
    "score_variance",
    "sharpness",
    "value_zeroing",
]
