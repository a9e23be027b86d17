"""A training step of a small language model in LLaMA's form: forward, backward, the gradient shortened to length 1, AdamW."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from importlib import import_module
from typing import Any
from zlib import crc32

import numpy as np

from qkvc.models import LanguageModel
from qkvc.nn import AdamW, cross_entropy, keep_memory

from .cases import Case
from .forms import Form
from .problems import Floats
from .rivals import torch_setting

LAYERS, VOCABULARY, EPS, BASE = 6, 256, 1e-6, 10000.0
DECAY, CLIP = 0.1, 1.0
RATE = 1e-12  # all the work of a step, and no weight moves: every call begins with the same


class Step:
    """Token numbers (B, L), what follows them, and the first weights; the result is the loss, gradients are the tests' business."""

    rows = slice(None)
    shape = (1, 1)

    def __init__(self, case: Case) -> None:
        self.case = case
        keep_memory()  # for everybody: torch frees as much
        rng = np.random.default_rng(crc32(case.name.encode()))
        self.model = LanguageModel(VOCABULARY, case.width, layers=LAYERS, heads=case.heads, rng=rng)
        text = rng.integers(0, VOCABULARY, (case.batch, case.queries + 1))
        self.ids, self.targets = text[:, :-1], text[:, 1:]
        self.cos, self.sin = rotation(case.queries, case.dim)

    @property
    def flops(self) -> int:
        """Of the matrix products, forward and twice backward; of attention's two and five, the causal half."""
        c = self.case
        learned = sum(p.value.size for name, p in self.model.parameters().items() if p.value.ndim > 1 and name != "embedding.weight")
        return c.batch * c.queries * (6 * learned + 7 * LAYERS * c.width * (c.queries + 1))

    @cached_property
    def reference(self) -> Floats:
        """The formulas in NumPy, in float64."""
        c = self.case
        t = {name: x.astype(np.float64) for name, x in self.model.state().items()}

        def norm(x: Floats, name: str) -> Floats:
            normed: Floats = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + EPS) * t[f"{name}.weight"]
            return normed

        def heads(x: Floats, name: str) -> Floats:
            return (x @ t[name].T).reshape(c.batch, c.queries, c.heads, c.dim).swapaxes(1, 2)

        def turned(x: Floats) -> Floats:
            low, high = np.split(x, 2, -1)
            result: Floats = x * self.cos + np.concatenate([-high, low], -1) * self.sin
            return result

        x = t["embedding.weight"][self.ids]
        for name in (f"blocks.{index}" for index in range(LAYERS)):
            q, k, v = (heads(norm(x, f"{name}.norm_1"), f"{name}.attention.{part}_weight") for part in "qkv")
            weights = np.exp(turned(q) @ turned(k).swapaxes(-1, -2) / c.dim**0.5) * np.tri(c.queries)
            mixed = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(x.shape)
            x = x + mixed @ t[f"{name}.attention.out_weight"].T
            gate, up = (norm(x, f"{name}.norm_2") @ t[f"{name}.feed_forward.{part}.weight"].T for part in ("gate", "up"))
            x = x + gate / (1 + np.exp(-gate)) * up @ t[f"{name}.feed_forward.down.weight"].T
        scores = norm(x, "norm") @ t["head.weight"].T
        right = np.take_along_axis(scores, self.targets[..., None], -1)[..., 0]
        return np.reshape((np.log(np.exp(scores).sum(-1)) - right).mean(), self.shape)


def rotation(length: int, dim: int) -> tuple[Floats, Floats]:
    """Cosines and sines of every position, (length, dim)."""
    angle = np.arange(length)[:, None] * BASE ** (-np.arange(0, dim, 2) / dim)
    return np.tile(np.cos(angle), 2), np.tile(np.sin(angle), 2)


def loss_of(loss: float) -> Floats:
    return np.reshape(np.float32(loss), Step.shape)


class Ours:
    """qkvc's model and AdamW."""

    def __init__(self, model: LanguageModel, lr: float = RATE) -> None:
        self.model, self.optimiser = model, AdamW(model.parameters(), lr=lr, weight_decay=DECAY, clip=CLIP)

    def step(self, ids: Floats, targets: Floats, lr: float | None = None) -> float:
        loss = cross_entropy(self.model.forward(ids), targets)
        self.model.zero_grad()
        self.model.backward(loss.grad)
        self.optimiser.step(lr)
        return loss.value

    def loss(self, ids: Floats, targets: Floats) -> float:
        return cross_entropy(self.model(ids), targets).value


class Autograd:
    """The same model, from the same weights, in torch, eager; `stacked` makes Q, K and V one projection, and gate and up."""

    def __init__(self, model: LanguageModel, length: int, lr: float = RATE, stacked: bool = False) -> None:
        self.torch: Any = import_module("torch")
        attention = model.blocks[0].attention.heads
        self.blocks = [f"blocks.{index}" for index in range(len(model.blocks))]
        self.width, self.heads, self.stacked = attention.embed_dim, attention.num_heads, stacked
        self.cos, self.sin = (self.torch.from_numpy(x.astype(np.float32)) for x in rotation(length, attention.head_dim))
        t = {name: self.torch.from_numpy(x.copy()) for name, x in model.state().items()}
        for block in self.blocks if stacked else ():
            t[f"{block}.qkv"] = self.torch.cat([t.pop(f"{block}.attention.{part}_weight") for part in "qkv"])
            t[f"{block}.both"] = self.torch.cat([t.pop(f"{block}.feed_forward.{part}.weight") for part in ("gate", "up")])
        self.t = {name: x.requires_grad_() for name, x in t.items()}
        groups = [{"params": [x for x in t.values() if (x.ndim > 1) == decays], "weight_decay": DECAY * decays} for decays in (True, False)]
        self.optimiser = self.torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)

    def _norm(self, x: Any, name: str) -> Any:
        return self.torch.nn.functional.rms_norm(x, (self.width,), self.t[f"{name}.weight"], EPS)

    def _products(self, x: Any, together: str, apart: Sequence[str]) -> Any:
        linear = self.torch.nn.functional.linear
        if self.stacked:
            return linear(x, self.t[together]).chunk(len(apart), -1)
        return [linear(x, self.t[name]) for name in apart]

    def _turned(self, x: Any) -> Any:
        low, high = x.chunk(2, -1)
        return x * self.cos + self.torch.cat((-high, low), -1) * self.sin

    def _loss(self, ids: Floats, targets: Floats) -> Any:
        f, t = self.torch.nn.functional, self.t
        x = f.embedding(self.torch.from_numpy(ids), t["embedding.weight"])
        for block in self.blocks:
            parts = self._products(self._norm(x, f"{block}.norm_1"), f"{block}.qkv", [f"{block}.attention.{part}_weight" for part in "qkv"])
            q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in parts)
            mixed = f.scaled_dot_product_attention(self._turned(q), self._turned(k), v, is_causal=True)
            x = x + f.linear(mixed.transpose(1, 2).flatten(2), t[f"{block}.attention.out_weight"])
            names = [f"{block}.feed_forward.{part}.weight" for part in ("gate", "up")]
            gate, up = self._products(self._norm(x, f"{block}.norm_2"), f"{block}.both", names)
            x = x + f.linear(f.silu(gate) * up, t[f"{block}.feed_forward.down.weight"])
        scores = f.linear(self._norm(x, "norm"), t["head.weight"])
        return f.cross_entropy(scores.flatten(0, 1), self.torch.from_numpy(targets).flatten())

    def step(self, ids: Floats, targets: Floats, lr: float | None = None) -> float:
        for group in self.optimiser.param_groups if lr is not None else ():
            group["lr"] = lr
        loss = self._loss(ids, targets)
        self.optimiser.zero_grad()
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.t.values(), CLIP)
        self.optimiser.step()
        return float(loss.item())

    def loss(self, ids: Floats, targets: Floats) -> float:
        with self.torch.no_grad():
            return float(self._loss(ids, targets).item())


def ours(problem: Step, threads: int) -> Iterator[Form]:
    yield Form("LanguageModel", partial(Ours(problem.model).step, problem.ids, problem.targets), loss_of)


def torch(problem: Step, threads: int) -> Iterator[Form]:
    """Eager, with the projections of a block apart or as one, and AdamW in one pass."""
    for name, stacked in (("autograd, fused AdamW", False), ("stacked projections", True)):
        model = Autograd(problem.model, problem.case.queries, stacked=stacked)
        step = partial(model.step, problem.ids, problem.targets)
        yield Form(name, step, loss_of, partial(torch_setting, threads, learning=True))
