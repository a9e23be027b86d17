"""qkvc: attention for NumPy.

``qkvc.attention(query, key, value)`` is softmax(Q K^T / sqrt(d)) V on plain arrays, compiled, on all cores, without the L x L matrix.
`MultiHeadAttention`, `KVCache` and `rope` make a model's layer of it; `attention_weights` and `attention_stats` look inside.

Imported by name: `qkvc.analysis` (what heads do, in numbers), `qkvc.plot` (in pictures), `qkvc.report` (as a page), `qkvc.models` (MiniLM,
BERT, GPT-2, LLaMA from their files), `qkvc.nn` (what learns), `qkvc.experiments` (what training does), `qkvc.integrations`.

The hot loop is `product_range` in src/kernels_body.h; the algorithm around it is `walk` in qkvc/_attention.pyx.
"""

import sys as _sys
from importlib import import_module as _import_module
from importlib.metadata import version as _version

from qkvc.cache import KVCache
from qkvc.config import get_num_threads, kernels, set_num_threads, show_config, use_kernels
from qkvc.doors import dot_product_attention, scaled_dot_product_attention
from qkvc.explanation import Explanation, explain
from qkvc.functional import (
    AttentionOutput,
    attention,
    attention_with_lse,
    concat_heads,
    logsumexp,
    softmax,
    split_heads,
)
from qkvc.gradients import AttentionGrads, attention_backward, attention_varlen_backward, attention_vjp
from qkvc.inside import AttentionStats, attention_scores, attention_stats, attention_weights
from qkvc.multihead import MultiHeadAttention
from qkvc.parts import AttentionParts, attention_parts, merge_attention
from qkvc.rotary import Llama3Scaling, RopeConfig, rope, rotate
from qkvc.varlen import attention_varlen, attention_varlen_with_lse

__version__ = _version("qkvc")

if "threadpoolctl" in _sys.modules:
    _import_module("qkvc.integrations.threadpools")

__all__ = [
    "AttentionGrads",
    "AttentionOutput",
    "AttentionParts",
    "AttentionStats",
    "Explanation",
    "KVCache",
    "Llama3Scaling",
    "MultiHeadAttention",
    "RopeConfig",
    "attention",
    "attention_backward",
    "attention_parts",
    "attention_scores",
    "attention_stats",
    "attention_varlen",
    "attention_varlen_backward",
    "attention_varlen_with_lse",
    "attention_vjp",
    "attention_weights",
    "attention_with_lse",
    "concat_heads",
    "dot_product_attention",
    "explain",
    "get_num_threads",
    "kernels",
    "logsumexp",
    "merge_attention",
    "rope",
    "rotate",
    "scaled_dot_product_attention",
    "set_num_threads",
    "show_config",
    "softmax",
    "split_heads",
    "use_kernels",
]
