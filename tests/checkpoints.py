"""Small random models in the forms of published checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[np.float32]]

# Sizes that no published model has, so that none of those can be built in.
BERT: dict[str, Any] = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "hidden_size": 24,
    "intermediate_size": 40,
    "vocab_size": 50,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
}


def bert_tensors(rng: np.random.Generator) -> Tensors:
    """Of such size that the heads differ and no softmax saturates: scores of a few units."""
    width, inner = BERT["hidden_size"], BERT["intermediate_size"]
    rows = {"word": BERT["vocab_size"], "position": BERT["max_position_embeddings"], "token_type": BERT["type_vocab_size"]}
    shapes: dict[str, tuple[int, ...]] = {f"embeddings.{name}_embeddings.weight": (count, width) for name, count in rows.items()}
    norms = ["embeddings.LayerNorm"]
    for index in range(BERT["num_hidden_layers"]):
        prefix = f"encoder.layer.{index}."
        dense = {f"attention.self.{name}": (width, width) for name in ("query", "key", "value")}
        dense |= {"attention.output.dense": (width, width), "intermediate.dense": (inner, width), "output.dense": (width, inner)}
        for name, shape in dense.items():
            shapes |= {f"{prefix}{name}.weight": shape, f"{prefix}{name}.bias": shape[:1]}
        norms += [f"{prefix}attention.output.LayerNorm", f"{prefix}output.LayerNorm"]
    tensors = {name: rng.standard_normal(shape, dtype=np.float32) / 3 for name, shape in shapes.items()}
    tensors |= {f"{name}.weight": 1 + rng.random(width, dtype=np.float32) for name in norms}
    return tensors | {f"{name}.bias": rng.standard_normal(width, dtype=np.float32) for name in norms}
