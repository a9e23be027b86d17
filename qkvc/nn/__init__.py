"""What a model needs around attention in order to learn: a few layers with their gradients, a loss, AdamW, checkpoints.

A layer has `forward`, `backward` and `parameters`; there is no graph (`Layer` says how).  ``qkvc train`` is an example of all of it.
"""

from qkvc.nn.attention import SelfAttention
from qkvc.nn.block import TransformerBlock
from qkvc.nn.checkpoint import DamagedCheckpoint, load_checkpoint, save_checkpoint
from qkvc.nn.embedding import Embedding
from qkvc.nn.feed_forward import FeedForward
from qkvc.nn.layer import Layer, Parameter
from qkvc.nn.linear import Linear
from qkvc.nn.loss import Loss, cross_entropy
from qkvc.nn.memory import keep_memory
from qkvc.nn.norm import LayerNorm, RMSNorm
from qkvc.nn.optimiser import AdamW, warmed_cosine

__all__ = [
    "AdamW",
    "DamagedCheckpoint",
    "Embedding",
    "FeedForward",
    "Layer",
    "LayerNorm",
    "Linear",
    "Loss",
    "Parameter",
    "RMSNorm",
    "SelfAttention",
    "TransformerBlock",
    "cross_entropy",
    "keep_memory",
    "load_checkpoint",
    "save_checkpoint",
    "warmed_cosine",
]
