"""The layer of today's decoders, in Qwen3's form: grouped heads whose queries and keys are normed and turned, causal, no biases."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial
from importlib import import_module
from typing import Any
from zlib import crc32

import numpy as np

import qkvc

from .cases import Case
from .forms import Form
from .layers import Tensors
from .problems import Floats
from .rivals import limited, torch_setting

BASE, EPS = 1e6, 1e-6
PROJECTIONS = ("q_proj.weight", "k_proj.weight", "v_proj.weight")


class Layer:
    """x (B, L, E) and weights under Qwen3's names; cosines and sines of the positions, as a model computes them once for all layers."""

    rows = slice(None)

    def __init__(self, case: Case) -> None:
        self.case, width, dim = case, case.width, case.dim
        rng = np.random.default_rng(crc32(case.name.encode()))
        self.x = rng.standard_normal((case.batch, case.queries, width), dtype=np.float32)
        rows = (width, case.kv_heads * dim, case.kv_heads * dim, width)
        shapes = zip((*PROJECTIONS, "o_proj.weight"), rows, strict=True)
        self.tensors = {name: rng.standard_normal((n, width), dtype=np.float32) / np.float32(width**0.5) for name, n in shapes}
        self.tensors |= {f"{part}_norm.weight": 1 + rng.standard_normal(dim, dtype=np.float32) / 8 for part in "qk"}
        angle = np.arange(case.queries)[:, None] * BASE ** (-np.arange(0, dim, 2) / dim)
        self.cos, self.sin = np.cos(angle), np.sin(angle)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape

    @property
    def flops(self) -> int:
        """Of four projections and of attention, the causal half with its diagonal."""
        c = self.case
        projections = 4 * c.width * c.dim * (c.heads + c.kv_heads)
        return c.batch * c.queries * (projections + 2 * c.width * (c.queries + 1))

    def compute(self, tensors: Tensors) -> Floats:
        """In NumPy, in the dtype of the weights."""
        c, dtype = self.case, tensors["o_proj.weight"].dtype
        cos, sin, half = self.cos.astype(dtype), self.sin.astype(dtype), c.dim // 2
        flat = self.x.astype(dtype, copy=False).reshape(-1, c.width)
        q, k, v = ((flat @ tensors[name].T).reshape(c.batch, c.queries, -1, c.dim).swapaxes(1, 2) for name in PROJECTIONS)

        def placed(x: Floats, weight: Floats) -> Floats:
            x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + dtype.type(EPS)) * weight
            low, high = x[..., :half], x[..., half:]
            return np.concatenate([low * cos - high * sin, high * cos + low * sin], -1)

        q = placed(q, tensors["q_norm.weight"]).reshape(c.batch, c.kv_heads, c.group, c.queries, c.dim)
        scores = q * dtype.type(c.dim**-0.5) @ placed(k, tensors["k_norm.weight"])[:, :, None].swapaxes(-1, -2)
        scores[..., ~np.tri(c.queries, dtype=bool)] = -np.inf
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        heads = (scores @ v[:, :, None]).reshape(c.batch, c.heads, c.queries, c.dim).swapaxes(1, 2)
        out: Floats = heads.reshape(-1, c.width) @ tensors["o_proj.weight"].T
        return out.reshape(self.shape)

    @cached_property
    def reference(self) -> Floats:
        return self.compute({name: x.astype(np.float64) for name, x in self.tensors.items()})


def ours(problem: Layer, threads: int) -> Iterator[Form]:
    """The module as the documentation writes it, and into an array that is kept."""
    m = qkvc.MultiHeadAttention.from_state(problem.tensors, problem.case.heads, rope=qkvc.RopeConfig(BASE), qk_norm=EPS)
    yield Form("MultiHeadAttention", partial(m, problem.x, causal=True))
    yield Form("MultiHeadAttention into out", partial(m, problem.x, causal=True, out=np.empty_like(problem.x)))


def torch(problem: Layer, threads: int) -> Iterator[Form]:
    """The functions that models write it with, three projections or one."""
    torch: Any = import_module("torch")
    c, f = problem.case, torch.nn.functional
    t = {name: torch.from_numpy(x) for name, x in problem.tensors.items()}
    x = torch.from_numpy(problem.x)
    cos, sin = (torch.from_numpy(np.tile(table, 2).astype(np.float32)) for table in (problem.cos, problem.sin))
    stacked = torch.cat([t[name] for name in PROJECTIONS])
    sizes = [len(t[name]) for name in PROJECTIONS]

    def placed(heads: Any, weight: Any) -> Any:
        heads = f.rms_norm(heads, (c.dim,), weight, EPS).transpose(1, 2)
        low, high = heads.chunk(2, -1)
        return heads * cos + torch.cat((-high, low), -1) * sin

    def layer(projected: Any) -> Any:
        q, k, v = (part.unflatten(-1, (-1, c.dim)) for part in projected)
        q, k = placed(q, t["q_norm.weight"]), placed(k, t["k_norm.weight"])
        heads = f.scaled_dot_product_attention(q, k, v.transpose(1, 2), is_causal=True, enable_gqa=c.group > 1)
        return f.linear(heads.transpose(1, 2).flatten(2), t["o_proj.weight"])

    form = partial(Form, setting=partial(torch_setting, threads))
    yield form("three projections", lambda: layer([f.linear(x, t[name]) for name in PROJECTIONS]))
    yield form("one projection", lambda: layer(f.linear(x, stacked).split(sizes, -1)))


def numpy(problem: Layer, threads: int) -> Iterator[Form]:
    """The formulas that the reference is computed by, in float32."""
    yield Form("matrix products", partial(problem.compute, problem.tensors), setting=limited(threads))
