"""Checkpoints of attention layers: what is read computes what its own framework computes, and is written back to the bit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import qkvc

from .reference import reference
from .rotation import angles, rms_normed, turned
from .support import assert_refused, assert_same_bits, normal

Module = qkvc.MultiHeadAttention
Tensors = dict[str, NDArray[Any]]
E, H = 24, 4
ATOL = 1e-5  # as in test_multihead.py


def checkpoint(rng: np.random.Generator, form: str, *, kv_heads: int = 2, head_dim: int = 9) -> Tensors:
    """Random tensors under the names and in the shapes of the form, written down here once more, by hand."""
    q, kv = H * head_dim, kv_heads * head_dim
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "torch": {"in_proj_weight": (3 * E, E), "in_proj_bias": (3 * E,), "out_proj.weight": (E, E), "out_proj.bias": (E,)},
        "bert": {
            **{f"attention.self.{name}.weight": (E, E) for name in ("query", "key", "value")},
            **{f"attention.self.{name}.bias": (E,) for name in ("query", "key", "value")},
            "attention.output.dense.weight": (E, E),
            "attention.output.dense.bias": (E,),
        },
        "gpt2": {"c_attn.weight": (E, 3 * E), "c_attn.bias": (3 * E,), "c_proj.weight": (E, E), "c_proj.bias": (E,)},
        "llama": {"q_proj.weight": (q, E), "k_proj.weight": (kv, E), "v_proj.weight": (kv, E), "o_proj.weight": (E, q)},
    }
    shapes["qwen3"] = {**shapes["llama"], "q_norm.weight": (head_dim,), "k_norm.weight": (head_dim,)}
    shapes["qwen2"] = {**shapes["llama"], "q_proj.bias": (q,), "k_proj.bias": (kv,), "v_proj.bias": (kv,)}
    return {name: normal(rng, *shape) / 5 for name, shape in shapes[form].items()}


BESIDE = {
    "torch": (),
    "bert": ("attention.output.LayerNorm.weight", "intermediate.dense.bias", "output.dense.weight"),
    "gpt2": ("bias", "masked_bias"),
    "llama": ("rotary_emb.inv_freq",),
    "qwen2": ("rotary_emb.inv_freq",),
    "qwen3": ("rotary_emb.inv_freq",),
}


def layer(form: str, t: Tensors, x: NDArray[Any], causal: bool, rope: qkvc.RopeConfig | None = None) -> NDArray[np.float64]:
    """The layer of that framework, from its definition, in float64."""
    t = {name: tensor.astype(float) for name, tensor in t.items()}
    if form == "torch":
        q, k, v = np.split(x @ t["in_proj_weight"].T + t["in_proj_bias"], 3, axis=-1)
        out, bias = t["out_proj.weight"].T, t["out_proj.bias"]
    elif form == "gpt2":
        q, k, v = np.split(x @ t["c_attn.weight"] + t["c_attn.bias"], 3, axis=-1)
        out, bias = t["c_proj.weight"], t["c_proj.bias"]
    else:
        names = [f"attention.self.{name}" for name in ("query", "key", "value")] if form == "bert" else ["q_proj", "k_proj", "v_proj"]
        q, k, v = (x @ t[f"{name}.weight"].T + t.get(f"{name}.bias", 0) for name in names)
        name = "attention.output.dense" if form == "bert" else "o_proj"
        out, bias = t[f"{name}.weight"].T, t.get(f"{name}.bias", np.zeros(1))
    width = q.shape[-1] // H
    heads = [np.moveaxis(part.reshape(*part.shape[:-1], -1, width), -2, -3) for part in (q, k, v)]
    if form == "qwen3":
        heads[:2] = (rms_normed(part, t[f"{name}_norm.weight"], 1e-6).astype(float) for part, name in zip(heads, "qk", strict=False))
    if rope is not None:
        heads[:2] = (turned(part, angles(rope, width, np.arange(x.shape[-2])), False).astype(float) for part in heads[:2])
    result = np.moveaxis(reference(*heads, causal=causal).out, -3, -2)
    return result.reshape(*result.shape[:-2], -1) @ out + bias


@pytest.mark.parametrize("form", BESIDE)
def test_reads_computes_and_writes(form: str, rng: np.random.Generator, tmp_path: Path) -> None:
    tensors, x = checkpoint(rng, form), normal(rng, 2, 6, E)
    prefix = "model.3.attn."
    whole = {prefix + name: tensor for name, tensor in tensors.items()}
    whole |= {prefix + name: normal(rng, 3) for name in BESIDE[form]} | {
        "model.4.attn.q_proj.weight": normal(rng, 2, 2),
        "lm_head": normal(rng, 2),
    }
    m = Module.from_state(whole, H, prefix=prefix)
    for causal in (False, True):
        np.testing.assert_allclose(m(x, causal=causal), layer(form, tensors, x, causal), rtol=0, atol=ATOL)

    written = m.state(form, prefix=prefix)
    assert written.keys() == {prefix + name for name in tensors}
    for name, tensor in tensors.items():
        assert_same_bits(written[prefix + name], tensor, name)
        assert written[prefix + name].flags.c_contiguous
    written[next(iter(written))][...] = 0
    assert_same_bits(m.state(form)[next(iter(tensors))], next(iter(tensors.values())))

    safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors reads and writes the files")
    safetensors.save_file(whole, tmp_path / "model.safetensors")
    for path in (tmp_path / "model.safetensors", str(tmp_path / "model.safetensors")):
        assert_same_bits(Module.from_state(path, H, prefix=prefix, form=form)(x), m(x))


@pytest.mark.parametrize("form", ["llama", "qwen2", "qwen3"])
def test_models_that_turn(form: str, rng: np.random.Generator) -> None:
    """What the tensors do not tell is given beside them, and does not come back among them."""
    tensors, x = checkpoint(rng, form, head_dim=10), normal(rng, 2, 6, E)
    rope = qkvc.RopeConfig(500000.0, scaling=qkvc.Llama3Scaling(original_max_position=8))
    m = Module.from_state(tensors, H, rope=rope)
    np.testing.assert_allclose(m(x, causal=True), layer(form, tensors, x, True, rope), rtol=0, atol=ATOL)
    written = m.state(form)
    assert written.keys() == tensors.keys()
    assert_same_bits(Module.from_state(written, H, rope=rope)(x), m(x))
    if form == "qwen3":
        assert m.qk_norm == 1e-6
        other = Module.from_state(tensors, H, qk_norm=0.5)
        assert other.qk_norm == 0.5
        assert np.abs(other(x) - Module.from_state(tensors, H)(x)).max() > 0.01


def test_weights_are_copied(rng: np.random.Generator) -> None:
    tensors, x = checkpoint(rng, "torch"), normal(rng, 6, E)
    m = Module.from_state(tensors, H)
    before = m(x)
    for tensor in tensors.values():
        tensor[...] = 0
    assert_same_bits(m(x), before)


def test_one_layer_in_other_forms(rng: np.random.Generator) -> None:
    """What two forms can hold goes through both to the same bits."""
    m, x = Module.from_state(checkpoint(rng, "gpt2"), H), normal(rng, 6, E)
    for form in ("torch", "bert", "gpt2", "llama"):
        assert_same_bits(Module.from_state(m.state(form), H)(x), m(x), form)


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16", ">f4", ">f8"])
def test_dtypes(dtype: str, rng: np.random.Generator) -> None:
    """Half precision is widened, exactly; the rest stays what it is, in native order."""
    wanted = pytest.importorskip("ml_dtypes", reason="ml_dtypes has the dtype").bfloat16 if dtype == "bfloat16" else dtype
    tensors = {name: tensor.astype(wanted) for name, tensor in checkpoint(rng, "llama").items()}
    m = Module.from_state(tensors, H)
    assert m.dtype == ("float64" if dtype in ("float64", ">f8") else "float32")
    np.testing.assert_array_equal(m.out_weight, tensors["o_proj.weight"].astype(float))
    assert m(np.ones((3, E), m.dtype)).dtype == m.dtype


# --- against torch ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [{}, {"bias": False}, {"kdim": 17, "vdim": 11}, {"add_bias_kv": True}, {"add_bias_kv": True, "kdim": 17}], ids=str
)
def test_like_torch(kind: dict[str, Any], rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    theirs = torch.nn.MultiheadAttention(E, H, batch_first=True, **kind).eval()
    state = {name: torch.from_numpy(normal(rng, *tensor.shape) / 5) for name, tensor in theirs.state_dict().items()}
    theirs.load_state_dict(state)
    ours = Module.from_state(state, H)
    query, key, value = normal(rng, 2, 5, E), normal(rng, 2, 7, ours.kdim), normal(rng, 2, 7, ours.vdim)
    attn_mask, padding = rng.random((5, 7)) < 0.3, np.arange(7) >= np.array([[4], [7]])  # True in torch: may not attend
    attn_mask[:, 0] = False  # torch answers NaN where nothing is left

    def assert_like(got: Any, weights: Any, *arrays: Any, **options: Any) -> None:
        with torch.inference_mode():
            expected = theirs(
                *map(torch.from_numpy, arrays), average_attn_weights=False, **{n: torch.from_numpy(x) for n, x in options.items()}
            )
        np.testing.assert_allclose(got, expected[0].numpy(), rtol=0, atol=ATOL)
        np.testing.assert_allclose(weights, expected[1].numpy(), rtol=0, atol=ATOL)

    assert_like(ours(query, key, value), ours.weights(query, key), query, key, value)
    may = ~attn_mask & ~padding[:, None, None, :]
    options = {"attn_mask": attn_mask, "key_padding_mask": padding}
    assert_like(ours(query, key, value, mask=may), ours.weights(query, key, mask=may), query, key, value, **options)
    if ours.kdim == ours.vdim == E:
        assert_like(ours(query), ours.weights(query), query, query, query)
    written = ours.state("torch")
    assert written.keys() == state.keys()
    for name, tensor in state.items():
        assert_same_bits(written[name], tensor.numpy(), name)


# --- what is refused -------------------------------------------------------------------------------------------------------------------


def without(*names: str) -> Any:
    return lambda t: {name: tensor for name, tensor in t.items() if name not in names}


def shaped(name: str, *shape: int) -> Any:
    return lambda t: t | {name: np.ones(shape, np.float32)}


#  name, form, what is done to its tensors, exception, words of the message
SETS: list[tuple[str, str, Any, Any, tuple[str, ...]]] = [
    ("nothing", "torch", lambda t: {}, ValueError, ("tensors", "known form", "in_proj_weight", "c_attn.weight", "nothing")),
    ("another model", "torch", lambda t: {"wq": t["in_proj_weight"]}, ValueError, ("known form", "wq")),
    ("no output weight", "llama", without("o_proj.weight"), ValueError, ("tensors", "o_proj.weight for form llama", "k_proj.weight")),
    ("no key bias", "bert", without("attention.self.key.bias"), ValueError, ("attention.self.key.bias for form bert",)),
    ("norms of queries", "llama", shaped("q_norm.weight", 9), ValueError, ("nothing but the weights of form llama", "q_norm.weight too")),
    ("norms wider than a head", "qwen3", shaped("k_norm.weight", 36), ValueError, ("k_norm", "(9,)", "(36,)")),
    ("norms without one of them", "qwen3", without("k_norm.weight"), ValueError, ("nothing but the weights", "q_norm.weight too")),
    ("norms and biases of inputs", "qwen2", lambda t: t | {f"{x}_norm.weight": np.ones(9, np.float32) for x in "qk"}, ValueError,
     ("nothing but the weights of form qwen2", "k_norm.weight, q_norm.weight too")),
    ("a bias of its own", "llama", shaped("q_proj.bias", 36), ValueError, ("q_proj.bias",)),
    ("half of the extra key", "torch", shaped("bias_k", 1, 1, E), ValueError, ("bias_k and bias_v", "one")),
    ("keys of other rows", "llama", shaped("k_proj.weight", 10, E), ValueError, ("k_weight", "(9, 24)", "(10, 24)")),
    ("values of other rows", "llama", shaped("v_proj.weight", 9, E), ValueError, ("v_weight", "(18, 24)", "(9, 24)")),
    ("key heads that do not divide", "llama", lambda t: shaped("k_proj.weight", 27, E)(shaped("v_proj.weight", 27, E)(t)), ValueError,
     ("num_kv_heads", "4", "3")),
    ("output of other columns", "bert", shaped("attention.output.dense.weight", E, 23), ValueError, ("out_weight", "(24, 24)", "(24, 23)")),
    ("bias of another length", "qwen2", shaped("v_proj.bias", 17), ValueError, ("v_bias", "(18,)", "(17,)")),
    ("stack that is no stack", "torch", shaped("in_proj_weight", 71, E), ValueError, ("in_proj_weight", "divisible by 3", "71")),
    ("the other orientation", "gpt2", shaped("c_attn.weight", 3 * E, E), ValueError, ("q_weight", "(8, 24)", "(8, 72)")),
    ("weights without rows", "gpt2", shaped("c_attn.weight", E), ValueError, ("c_attn.weight", "2 axes", "(24,)")),
    ("integers", "torch", lambda t: t | {"in_proj_weight": np.ones((72, E), int)}, TypeError, ("in_proj_weight", "float32", "int")),
    ("more than float64", "torch", lambda t: t | {"in_proj_bias": np.ones(72, np.longdouble)}, TypeError, ("in_proj_bias", "float128")),
    ("not tensors", "torch", lambda t: list(t), TypeError, ("tensors", "dict", "list")),
]  # fmt: skip


@pytest.mark.parametrize(("form", "change", "exception", "words"), [row[1:] for row in SETS], ids=[row[0] for row in SETS])
def test_refused_sets(form: str, change: Any, exception: Any, words: tuple[str, ...], rng: np.random.Generator) -> None:
    assert_refused(lambda: Module.from_state(change(checkpoint(rng, form)), H), exception, *words)


def test_other_refusals(rng: np.random.Generator, tmp_path: Path) -> None:
    llama = checkpoint(rng, "llama")
    assert_refused(lambda: Module.from_state(llama, 5), ValueError, "num_heads", "36", "5")
    assert_refused(lambda: Module.from_state(llama, H, form="qwen2"), ValueError, "q_proj.bias", "form qwen2")
    assert_refused(lambda: Module.from_state(llama, H, form="qwen3"), ValueError, "k_norm.weight, q_norm.weight", "form qwen3")
    assert_refused(lambda: Module.from_state(llama, H, qk_norm=1e-6), ValueError, "qk_norm", "no norms", "1e-06")
    assert_refused(lambda: Module.from_state(llama, H, rope=1e4), TypeError, "rope", "RopeConfig", "float")
    assert_refused(lambda: Module.from_state(llama, H, form="opt"), ValueError, "form", "one of torch", "'opt'")
    assert_refused(lambda: Module.from_state(llama, H, prefix="x."), ValueError, "under 'x.'", "nothing")
    with pytest.raises(FileNotFoundError, match=re.escape("absent.safetensors")):
        Module.from_state(tmp_path / "absent.safetensors", H)


@pytest.mark.parametrize(
    ("options", "form", "words"),
    [
        ({"num_kv_heads": 2}, "torch", ("grouped heads", "'torch'")),
        ({"head_dim": 5}, "gpt2", ("embed_dim / num_heads", "'gpt2'")),
        ({"out_bias": False}, "bert", ("biases", "'bert'", "output")),
        ({"extra_kv": True}, "bert", ("extra key", "'bert'")),
        ({"kdim": 5}, "gpt2", ("another width", "'gpt2'")),
        ({"qk_norm": 1e-6}, "torch", ("with norms", "'torch'")),
        ({"qkv_bias": False, "out_bias": False}, "qwen3", ("without norms", "'qwen3'")),
        ({"rope": qkvc.RopeConfig()}, "gpt2", ("positions", "'gpt2'")),
        ({}, "mistral", ("one of torch", "'mistral'")),
    ],
)
def test_forms_that_cannot_hold_it(options: dict[str, Any], form: str, words: tuple[str, ...]) -> None:
    assert_refused(lambda: Module(E, H, **options).state(form), ValueError, "state: form", *words)
