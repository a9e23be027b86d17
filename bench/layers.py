"""What is built on attention: the multi-head layer and a sentence encoder, with the same weights for all, and their rivals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from importlib import import_module
from itertools import product
from json import loads
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

import qkvc
from qkvc.models import MiniLM, minilm

from .cases import Case
from .forms import Form
from .problems import Floats
from .rivals import limited, torch_setting

Tensors = Mapping[str, Floats]

WORDS = "a man woman dog river table house is was reads eats rides finds small old red green book bread horse near behind"


def attend(qkv: Floats, heads: int, lengths: NDArray[np.int64] | None = None) -> Floats:
    """Self-attention in NumPy, from (B, L, 3E) to (B, L, E)."""
    batch, length, _ = qkv.shape
    q, k, v = np.moveaxis(qkv.reshape(batch, length, 3, heads, -1), (2, 3), (0, 2))
    scores = (q * q.dtype.type(q.shape[-1] ** -0.5)) @ k.swapaxes(-1, -2)
    if lengths is not None:
        scores[np.broadcast_to(np.arange(length) >= lengths[:, None, None, None], scores.shape)] = -np.inf
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    heads_out: Floats = scores @ v
    return heads_out.swapaxes(1, 2).reshape(batch, length, -1)


def linear(x: Floats, weight: Floats, bias: Floats) -> Floats:
    """One matrix product for the whole batch, where NumPy's would be one per batch item."""
    y: Floats = x.reshape(-1, x.shape[-1]) @ weight.T
    y += bias
    return y.reshape(*x.shape[:-1], -1)


class Layer:
    """Self-attention of a multi-head layer: x (B, L, E), weights under torch's names."""

    rows = slice(None)

    def __init__(self, case: Case) -> None:
        self.case, width = case, case.width
        rng = np.random.default_rng(crc32(case.name.encode()))
        self.x = rng.standard_normal((case.batch, case.queries, width), dtype=np.float32)
        shapes = {"in_proj_weight": (3 * width, width), "out_proj.weight": (width, width), "in_proj_bias": (3 * width,)}
        shapes |= {"out_proj.bias": (width,)}
        # Of such size that queries and keys have about unit variance, as trained layers behind a normalisation do.
        self.tensors = {name: rng.standard_normal(shape, dtype=np.float32) / np.float32(width**0.5) for name, shape in shapes.items()}

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape

    @property
    def flops(self) -> int:
        """Of four projections and of attention."""
        c = self.case
        return 8 * c.batch * c.queries * c.width**2 + 4 * c.batch * c.queries**2 * c.width

    def compute(self, tensors: Tensors) -> Floats:
        """In NumPy, in the dtype of the weights."""
        x = self.x.astype(tensors["in_proj_bias"].dtype, copy=False)
        heads = attend(linear(x, tensors["in_proj_weight"], tensors["in_proj_bias"]), self.case.heads)
        return linear(heads, tensors["out_proj.weight"], tensors["out_proj.bias"])

    @cached_property
    def reference(self) -> Floats:
        return self.compute({name: x.astype(np.float64) for name, x in self.tensors.items()})


class Sentences:
    """Text to vectors of length 1, by all-MiniLM-L6-v2; the words mean nothing, the weights are the published ones."""

    rows = slice(None)

    def __init__(self, case: Case) -> None:
        self.case = case
        directory = minilm.installed(minilm.PACKAGE) / "model"
        self.model = MiniLM.from_package()  # it checks the files
        self.tensors: dict[str, Floats] = import_module("safetensors.numpy").load_file(directory / "model.safetensors")
        self.config: dict[str, Any] = loads((directory / "config.json").read_text(encoding="utf-8"))
        for index, kind in product(range(self.config["num_hidden_layers"]), ("weight", "bias")):
            name = f"encoder.layer.{index}.attention.self"
            self.tensors[f"{name}.{kind}"] = np.concatenate([self.tensors[f"{name}.{part}.{kind}"] for part in ("query", "key", "value")])
        rng = np.random.default_rng(crc32(case.name.encode()))
        self.texts = [" ".join(rng.choice(WORDS.split(), size=n)) for n in rng.integers(case.queries - 6, case.queries + 3, case.batch)]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.case.batch, self.case.width)

    @cached_property
    def flops(self) -> int:
        """Of the matrix products of all layers, padding not counted."""
        _, lengths = self.model.tokenize(self.texts)
        width, inner = self.case.width, self.config["intermediate_size"]
        each = 8 * lengths * width**2 + 4 * lengths**2 * width + 4 * lengths * width * inner
        return int(self.config["num_hidden_layers"] * each.sum())

    def compute(self, tensors: Tensors) -> Floats:
        """In NumPy, in the dtype of the weights; from text, as everybody else."""
        erf: Any = import_module("scipy.special").erf
        ids, lengths = self.model.tokenize(self.texts)

        def norm(x: Floats, name: str) -> Floats:
            x = x - x.mean(axis=-1, keepdims=True)
            x /= np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + x.dtype.type(self.config["layer_norm_eps"]))
            return x * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

        def dense(x: Floats, name: str) -> Floats:
            return linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

        x = tensors["embeddings.word_embeddings.weight"][ids] + tensors["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = norm(x + tensors["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for index in range(self.config["num_hidden_layers"]):
            name = f"encoder.layer.{index}"
            heads = attend(dense(x, f"{name}.attention.self"), self.case.heads, lengths)
            x = norm(x + dense(heads, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
            inner = dense(x, f"{name}.intermediate.dense")
            inner *= (1 + erf(inner * inner.dtype.type(0.5**0.5))) / 2
            x = norm(x + dense(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
        total = np.einsum("bld,bl->bd", x, (np.arange(ids.shape[1]) < lengths[:, None]).astype(x.dtype))
        vectors: Floats = total / np.linalg.norm(total, axis=-1, keepdims=True)
        return vectors

    @cached_property
    def reference(self) -> Floats:
        return self.compute({name: x.astype(np.float64) for name, x in self.tensors.items()})


def our_layer(problem: Layer, threads: int) -> Iterator[Form]:
    """The module as the documentation writes it, and into an array that is kept."""
    m = qkvc.MultiHeadAttention.from_state(problem.tensors, problem.case.heads)
    yield Form("MultiHeadAttention", partial(m, problem.x))
    yield Form("MultiHeadAttention into out", partial(m, problem.x, out=np.empty_like(problem.x)))


def our_model(problem: Sentences, threads: int) -> Iterator[Form]:
    yield Form("MiniLM.encode", partial(problem.model.encode, problem.texts))


def torch_layer(problem: Layer, threads: int) -> Iterator[Form]:
    """`nn.MultiheadAttention` on its fast path (eval, no gradients, no weights asked for), and the three functions that it stands for."""
    torch: Any = import_module("torch")
    c = problem.case
    setting = partial(torch_setting, threads)
    t = {name: torch.from_numpy(x) for name, x in problem.tensors.items()}
    x = torch.from_numpy(problem.x)
    module = torch.nn.MultiheadAttention(c.width, c.heads, batch_first=True, device="meta").eval()
    module.load_state_dict(t, assign=True)
    yield Form("MultiheadAttention", lambda: module(x, x, x, need_weights=False)[0], setting=setting)
    f = torch.nn.functional

    def functions() -> Any:
        heads = torch_attend(f.linear(x, t["in_proj_weight"], t["in_proj_bias"]), c.heads)
        return f.linear(heads, t["out_proj.weight"], t["out_proj.bias"])

    yield Form("linear, sdpa, linear", functions, setting=setting)


def torch_attend(qkv: Any, heads: int, mask: Any = None) -> Any:
    """(B, L, 3E) to (B, L, E)."""
    torch: Any = import_module("torch")
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


def torch_model(problem: Sentences, threads: int) -> Iterator[Form]:
    """The encoder in torch's functions, and as torch's own, whose fast path computes no padding."""
    torch: Any = import_module("torch")
    c, config = problem.case, problem.config
    f, eps, depth = torch.nn.functional, config["layer_norm_eps"], config["num_hidden_layers"]
    t = {name: torch.from_numpy(x) for name, x in problem.tensors.items()}

    def pair(name: str) -> tuple[Any, Any]:
        return t[f"{name}.weight"], t[f"{name}.bias"]

    def norm(x: Any, name: str) -> Any:
        return f.layer_norm(x, (c.width,), *pair(name), eps)

    def functions(x: Any, present: Any) -> Any:
        for name in (f"encoder.layer.{index}" for index in range(depth)):
            heads = torch_attend(f.linear(x, *pair(f"{name}.attention.self")), c.heads, present[:, None, None])
            x = norm(x + f.linear(heads, *pair(f"{name}.attention.output.dense")), f"{name}.attention.output.LayerNorm")
            inner = f.gelu(f.linear(x, *pair(f"{name}.intermediate.dense")))
            x = norm(x + f.linear(inner, *pair(f"{name}.output.dense")), f"{name}.output.LayerNorm")
        return x

    layer = torch.nn.TransformerEncoderLayer(c.width, c.heads, config["intermediate_size"], 0.0, "gelu", eps, True, device="meta")
    module = torch.nn.TransformerEncoder(layer, depth).eval()
    theirs = {"attention.self": "self_attn.in_proj_", "attention.output.dense": "self_attn.out_proj.", "intermediate.dense": "linear1."}
    theirs |= {"output.dense": "linear2.", "attention.output.LayerNorm": "norm1.", "output.LayerNorm": "norm2."}
    names = product(range(depth), theirs.items(), ("weight", "bias"))
    state = {f"layers.{index}.{their}{kind}": t[f"encoder.layer.{index}.{our}.{kind}"] for index, (our, their), kind in names}
    module.load_state_dict(state, assign=True)

    def encode(layers: Callable[[Any, Any], Any]) -> Any:
        numbers, lengths = map(torch.from_numpy, problem.model.tokenize(problem.texts))
        x = f.embedding(numbers, t["embeddings.word_embeddings.weight"]) + t["embeddings.position_embeddings.weight"][: numbers.shape[1]]
        x = norm(x + t["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        present = torch.arange(numbers.shape[1]) < lengths[:, None]
        return f.normalize((layers(x, present) * present[..., None]).sum(1), dim=-1)

    form = partial(Form, setting=partial(torch_setting, threads))
    yield form("functions", partial(encode, functions))
    yield form("TransformerEncoder", partial(encode, lambda x, present: module(x, src_key_padding_mask=~present)))


def numpy(problem: Layer | Sentences, threads: int) -> Iterator[Form]:
    """The formulas that the reference is computed by, in float32."""
    yield Form("matrix products", partial(problem.compute, problem.tensors), setting=limited(threads))
