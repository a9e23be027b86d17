"""Small random models in the forms of published checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .support import normal

Tensors = dict[str, NDArray[np.float32]]

# Sizes that no published model has, so that none of those can be built in.
BERT: dict[str, Any] = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-2,  # so large that another one would be seen
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


GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-2,
    "n_embd": 24,
    "n_head": 3,
    "n_layer": 3,
    "n_positions": 32,
    "vocab_size": 53,
}


def gpt2_tensors(rng: np.random.Generator) -> Tensors:
    """Weights as (in, out), and the causal masks that the published files have among them."""
    width = GPT2["n_embd"]
    tensors = {"wte.weight": normal(rng, GPT2["vocab_size"], width), "wpe.weight": normal(rng, GPT2["n_positions"], width)}
    shapes = {"attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width)}
    shapes |= {"mlp.c_fc": (width, 4 * width), "mlp.c_proj": (4 * width, width)}
    norms = ["ln_f"]
    for index in range(GPT2["n_layer"]):
        for name, shape in shapes.items():
            tensors[f"h.{index}.{name}.weight"] = normal(rng, *shape) * np.float32(1.5 / shape[0] ** 0.5)
            tensors[f"h.{index}.{name}.bias"] = normal(rng, shape[1])
        tensors[f"h.{index}.attn.bias"] = np.tri(GPT2["n_positions"], dtype=np.float32)[np.newaxis, np.newaxis]
        norms += [f"h.{index}.ln_{part}" for part in (1, 2)]
    for name in norms:
        tensors |= {f"{name}.weight": 1 + normal(rng, width) / 4, f"{name}.bias": normal(rng, width) / 4}
    return tensors


LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "vocab_size": 97,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500.0,
    "max_position_embeddings": 512,
}


def llama_tensors(rng: np.random.Generator, form: str = "llama") -> Tensors:
    """Large enough that attention decides what comes next, and small enough that layers do not drown each other."""
    width, inner, kv = LLAMA["hidden_size"], LLAMA["intermediate_size"], 8 * LLAMA["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (97, width), "lm_head.weight": (97, width)}
    norms, biases = {"model.norm.weight": width}, {}
    for index in range(LLAMA["num_hidden_layers"]):
        prefix = f"model.layers.{index}."
        for name, rows, cols in (("q", width, width), ("k", kv, width), ("v", kv, width), ("o", width, width)):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (rows, cols)
            if form == "qwen2" and name != "o":
                biases[f"{prefix}self_attn.{name}_proj.bias"] = rows
        shapes |= {f"{prefix}mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes |= {f"{prefix}mlp.down_proj.weight": (width, inner)}
        norms |= {f"{prefix}{name}_layernorm.weight": width for name in ("input", "post_attention")}
        norms |= {f"{prefix}self_attn.{name}_norm.weight": 8 for name in ("q", "k") if form == "qwen3"}
    tensors = {name: normal(rng, *shape) * np.float32(2 / shape[-1] ** 0.5) for name, shape in shapes.items()}
    tensors |= {name: 1 + normal(rng, n) / 4 for name, n in norms.items()}
    return tensors | {name: normal(rng, n) for name, n in biases.items()}
