"""What functions of layers and models are given: one that is neither is told what would have been."""

from __future__ import annotations

from typing import Any

from qkvc._coerce import bad
from qkvc.models.watch import Model
from qkvc.multihead import MultiHeadAttention

BY_CHANCE = ("dropout_p", "rng")  # weights and outputs are two calls, and each would draw its own


def refuse(options: dict[str, Any], names: tuple[str, ...], who: str) -> None:
    for name in names:
        if name in options:
            raise TypeError(bad("options", "those of attention_weights that choose no part and no layout, and no dropout", name, who))


def check_layer(attention: Any, who: str) -> None:
    if not isinstance(attention, MultiHeadAttention):
        raise TypeError(bad("attention", "a qkvc.MultiHeadAttention", type(attention).__name__, who))


def check_model(model: Any, who: str) -> None:
    if not isinstance(model, Model):
        hint = " (its llama() is one)" if hasattr(model, "llama") else ""
        raise TypeError(bad("model", "a Bert, GPT2, Llama or MiniLM of qkvc.models", f"{type(model).__name__}{hint}", who))
