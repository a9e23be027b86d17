"""How checkpoints name and turn the weights of one attention layer, and the way from one to the weights of a module and back."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qkvc._coerce import as_array, bad, shape_text

Array = NDArray[Any]
Parts = dict[str, Array]  # by the names of `MultiHeadAttention`'s attributes

QKV = ("q", "k", "v")
NORMS = ("q_norm", "k_norm")
BOTH, NEITHER, INPUTS_ONLY = (True, True), (False, False), (True, False)


@dataclass(frozen=True)
class Form:
    """The names of a checkpoint."""

    weights: tuple[tuple[str, ...], ...]  # spellings: three names, or one under which Q, K and V are stacked
    biases: tuple[str, ...]  # likewise
    out_weight: str
    out_bias: str
    have: tuple[tuple[bool, bool], ...]  # which of the input and output biases it can have
    square: bool  # as many key heads as heads, together as wide as the module
    transposed: bool = False  # (in, out), as in GPT-2's Conv1D, where torch.nn.Linear has (out, in)
    extra: tuple[str, ...] = ()  # a learned key and value that every query may attend to
    turned: bool = False  # queries and keys, by their positions
    norms: tuple[str, ...] = ()  # of queries and keys
    beside: tuple[str, ...] = ()  # beginnings of names that may be there too and are not attention's

    def names(self, spelling: tuple[str, ...], biases: tuple[bool, bool]) -> list[str]:
        return [*spelling, self.out_weight, *self.norms, *(self.biases if biases[0] else ()), *([self.out_bias] if biases[1] else ())]


def _apart(pattern: str) -> tuple[str, ...]:
    return tuple(pattern.format(part) for part in QKV)


_BERT = tuple(f"attention.self.{part}." for part in ("query", "key", "value"))


def _like_llama(*have: tuple[bool, bool], norms: tuple[str, ...] = ()) -> Form:
    weights, biases = _apart("{}_proj.weight"), _apart("{}_proj.bias")
    return Form((weights,), biases, "o_proj.weight", "o_proj.bias", have, False, turned=True, norms=norms, beside=("rotary_emb.",))


FORMS = {
    # torch.nn.MultiheadAttention; apart where kdim or vdim differ from embed_dim
    "torch": Form(
        (("in_proj_weight",), _apart("{}_proj_weight")), ("in_proj_bias",), "out_proj.weight", "out_proj.bias", (BOTH, NEITHER), True,
        extra=("bias_k", "bias_v"),
    ),
    # The rest as in Hugging Face's transformers; prefix "encoder.layer.0."
    "bert": Form(
        (tuple(f"{name}weight" for name in _BERT),), tuple(f"{name}bias" for name in _BERT), "attention.output.dense.weight",
        "attention.output.dense.bias", (BOTH,), True, beside=("attention.output.LayerNorm.", "intermediate.", "output."),
    ),
    # prefix "h.0.attn."; "bias" is the causal mask there
    "gpt2": Form(
        (("c_attn.weight",),), ("c_attn.bias",), "c_proj.weight", "c_proj.bias", (BOTH,), True,
        transposed=True, beside=("bias", "masked_bias"),
    ),
    # prefix "model.layers.0.self_attn."
    "llama": _like_llama(NEITHER, BOTH),
    "qwen2": _like_llama(INPUTS_ONLY),
    "qwen3": _like_llama(NEITHER, BOTH, norms=("q_norm.weight", "k_norm.weight")),
}  # fmt: skip


def _some(names: Collection[str]) -> str:
    shown = sorted(names)[:4]
    return (", ".join(shown) or "nothing") + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def _known(form: Any, who: str) -> str:
    if form not in FORMS:
        raise ValueError(bad("form", f"one of {', '.join(FORMS)}", repr(form), who))
    return str(form)


def _opened(tensors: Any, who: str) -> tuple[Collection[str], Callable[[str], Any]]:
    """The names of a dict or a safetensors file, and how to get one of its tensors: of a whole model only what is asked for is read."""
    if isinstance(tensors, Mapping):
        return tensors.keys(), tensors.__getitem__
    if not isinstance(tensors, (str, os.PathLike)):
        raise TypeError(bad("tensors", "a dict of arrays, or the path of a safetensors file", type(tensors).__name__, who))
    from safetensors import safe_open

    file: Any = safe_open(os.fspath(tensors), framework="numpy")
    return file.keys(), file.get_tensor


def _recognised(names: set[str], form: str | None, prefix: str, who: str) -> tuple[str, list[str], tuple[str, ...]]:
    """The form that has exactly these names, all its names that are there, and the spelling of its weights."""
    complete = []
    for name in FORMS if form is None else (form,):
        f = FORMS[name]
        for spelling in f.weights:
            for biases in f.have:
                wanted = f.names(spelling, biases) + [extra for extra in f.extra if extra in names]
                if names.issuperset(wanted):
                    left = {n for n in names.difference(wanted) if not n.startswith(f.beside)}
                    if not left:
                        return name, wanted, spelling
                    complete.append((len(left), name, left))
    where = f" under {prefix!r}" if prefix else ""
    if complete:  # everything is there and more: a bias, a norm of queries; leaving it out would compute something else
        _, name, left = min(complete)
        raise ValueError(bad("tensors", f"nothing but the weights of form {name}{where}", f"{_some(left)} too", who))
    forms = [form] if form else list(FORMS)
    begun = [(spelling, n) for n in forms for spelling in FORMS[n].weights if names & set(spelling)]
    if len(forms) == 1 or begun:
        spelling, name = begun[0] if begun else (FORMS[forms[0]].weights[0], forms[0])
        missing = set(FORMS[name].names(spelling, FORMS[name].have[0])) - names
        raise ValueError(bad("tensors", f"{_some(missing)} for form {name}{where}", _some(names), who))
    marks = "; ".join(f"{n}: {FORMS[n].weights[0][0]}" for n in forms)
    raise ValueError(bad("tensors", f"a known form ({marks}){where}", _some(names), who))


def real(name: str, x: Any, who: str) -> Array:
    array = as_array(name, x, who)
    if array.dtype.name not in ("float16", "bfloat16", "float32", "float64"):
        raise TypeError(bad(name, "float64, float32, float16 or bfloat16", str(array.dtype), who))
    return array.astype(np.float64 if array.dtype.itemsize == 8 else np.float32, copy=False)  # half precision is widened, exactly


def read(tensors: Any, form: str | None, prefix: str, who: str) -> Parts:
    """The parts of an attention layer, in torch.nn.Linear's orientation."""
    available, get = _opened(tensors, who)
    names = {name[len(prefix) :] for name in available if isinstance(name, str) and name.startswith(prefix)}
    form, wanted, spelling = _recognised(names, form if form is None else _known(form, who), prefix, who)
    f = FORMS[form]
    found = {name: real(name, get(prefix + name), who) for name in wanted}
    for name, x in found.items():
        axes = 2 if name in (*spelling, f.out_weight) else 3 if name in f.extra else 1
        if x.ndim != axes:
            raise ValueError(bad(name, f"{axes} ax{'i' if axes == 1 else 'e'}s", shape_text(x), who))
    if f.transposed:
        found |= {name: found[name].T for name in (*spelling, f.out_weight)}

    def split(stack: tuple[str, ...]) -> list[Array]:
        if len(stack) == 3:
            return [found[name] for name in stack]
        rows = len(found[stack[0]])
        if rows % 3:
            raise ValueError(bad(stack[0], "Q, K and V stacked, a number of outputs divisible by 3", str(rows), who))
        return np.split(found[stack[0]], 3)

    parts = {f"{part}_weight": x for part, x in zip(QKV, split(spelling), strict=True)} | {"out_weight": found[f.out_weight]}
    if f.biases[0] in found:
        parts |= {f"{part}_bias": x for part, x in zip(QKV, split(f.biases), strict=True)}
    if f.out_bias in found:
        parts["out_bias"] = found[f.out_bias]
    if len(extras := [found[name] for name in f.extra if name in found]) == 1:
        raise ValueError(bad("tensors", " and ".join(f.extra), "one of them", who))
    parts |= dict(zip(NORMS, [found[name] for name in f.norms], strict=False))
    return parts | dict(zip(("extra_key", "extra_value"), extras, strict=False))


def write(parts: Parts, turned: bool, form: Any, prefix: str, who: str) -> Parts:
    """The tensors of a checkpoint, each a copy; the inverse of `read`.  `turned` says if the module turns queries and keys."""
    f = FORMS[_known(form, who)]
    weights = [parts[f"{part}_weight"] for part in QKV]
    shapes = [x.shape for x in weights]
    if ("q_bias" in parts, "out_bias" in parts) not in f.have:
        have = " or ".join(f"{'input' if i else 'no input'} and {'output' if o else 'no output'} biases" for i, o in f.have)
        raise ValueError(bad("form", "one that can have these biases", f"{form!r}, which has {have}", who))
    if f.square and {rows for rows, _ in shapes} != set(parts["out_weight"].shape):
        raise ValueError(bad("form", "one that can have grouped heads, or heads that are not embed_dim / num_heads wide", repr(form), who))
    if "extra_key" in parts and not f.extra:
        raise ValueError(bad("form", "one that can have an extra key, which is torch", repr(form), who))
    if turned and not f.turned:
        raise ValueError(bad("form", "one whose queries and keys are turned by their positions", repr(form), who))
    if ("q_norm" in parts) != bool(f.norms):
        raise ValueError(bad("form", f"one with{'' if 'q_norm' in parts else 'out'} norms of queries and keys", repr(form), who))
    spelling = next((names for names in f.weights if len(names) == 3 or len({width for _, width in shapes}) == 1), None)
    if spelling is None:
        raise ValueError(bad("form", "one that can have keys or values of another width", repr(form), who))
    tensors = dict(zip(spelling, weights if len(spelling) == 3 else [np.concatenate(weights)], strict=True))
    tensors[f.out_weight] = parts["out_weight"]
    if f.transposed:
        tensors = {name: x.T for name, x in tensors.items()}
    tensors |= {name: parts[part] for name, part in zip(f.norms, NORMS, strict=False)}
    if "q_bias" in parts:
        biases = [parts[f"{part}_bias"] for part in QKV]
        tensors |= zip(f.biases, biases if len(f.biases) == 3 else [np.concatenate(biases)], strict=True)
    if "out_bias" in parts:
        tensors[f.out_bias] = parts["out_bias"]
    if "extra_key" in parts:
        tensors |= {name: parts[part].reshape(1, 1, -1) for name, part in zip(f.extra, ("extra_key", "extra_value"), strict=True)}
    return {prefix + name: np.array(x, order="C") for name, x in tensors.items()}
