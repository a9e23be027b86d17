"""A training step of a small language model in LLaMA's form: forward, backward, the gradient shortened to length 1, AdamW."""

from __future__ import annotations

from collections.abc import Iterator
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
        angle = np.arange(case.queries)[:, None] * BASE ** (-np.arange(0, case.dim, 2) / case.dim)
        self.cos, self.sin = (np.tile(turned, 2) for turned in (np.cos(angle), np.sin(angle)))

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


def loss_of(loss: float) -> Floats:
    return np.reshape(np.float32(loss), Step.shape)


def ours(problem: Step, threads: int) -> Iterator[Form]:
    model = problem.model
    optimiser = AdamW(model.parameters(), lr=RATE, clip=1.0)

    def step() -> float:
        loss = cross_entropy(model.forward(problem.ids), problem.targets)
        model.zero_grad()
        model.backward(loss.grad)
        optimiser.step()
        return loss.value

    yield Form("LanguageModel", step, loss_of)


def torch(problem: Step, threads: int) -> Iterator[Form]:
    """Eager, with the projections of a block apart or as one, and AdamW in one pass."""
    torch: Any = import_module("torch")
    c, f = problem.case, torch.nn.functional
    ids, targets = torch.from_numpy(problem.ids), torch.from_numpy(problem.targets).flatten()
    cos, sin = (torch.from_numpy(table.astype(np.float32)) for table in (problem.cos, problem.sin))

    def turned(x: Any) -> Any:
        low, high = x.chunk(2, -1)
        return x * cos + torch.cat((-high, low), -1) * sin

    def form(name: str, fused: bool) -> Form:
        """`fused` stacks Q, K and V, and gate and up."""
        t = {name: torch.from_numpy(x.copy()) for name, x in problem.model.state().items()}
        if fused:
            for block in (f"blocks.{index}" for index in range(LAYERS)):
                t[f"{block}.qkv"] = torch.cat([t.pop(f"{block}.attention.{part}_weight") for part in "qkv"])
                t[f"{block}.both"] = torch.cat([t.pop(f"{block}.feed_forward.{part}.weight") for part in ("gate", "up")])
        for x in t.values():
            x.requires_grad_()
        optimiser = torch.optim.AdamW(t.values(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

        def norm(x: Any, name: str) -> Any:
            return f.rms_norm(x, (c.width,), t[f"{name}.weight"], EPS)

        def products(x: Any, block: str) -> Any:
            if fused:
                return f.linear(x, t[f"{block}.qkv"]).chunk(3, -1)
            return [f.linear(x, t[f"{block}.attention.{part}_weight"]) for part in "qkv"]

        def gate_and_up(x: Any, block: str) -> Any:
            if fused:
                return f.linear(x, t[f"{block}.both"]).chunk(2, -1)
            return [f.linear(x, t[f"{block}.feed_forward.{part}.weight"]) for part in ("gate", "up")]

        def step() -> float:
            x = f.embedding(ids, t["embedding.weight"])
            for block in (f"blocks.{index}" for index in range(LAYERS)):
                q, k, v = (y.unflatten(-1, (c.heads, c.dim)).transpose(1, 2) for y in products(norm(x, f"{block}.norm_1"), block))
                mixed = f.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)
                x = x + f.linear(mixed.transpose(1, 2).flatten(2), t[f"{block}.attention.out_weight"])
                gate, up = gate_and_up(norm(x, f"{block}.norm_2"), block)
                x = x + f.linear(f.silu(gate) * up, t[f"{block}.feed_forward.down.weight"])
            loss = f.cross_entropy(f.linear(norm(x, "norm"), t["head.weight"]).flatten(0, 1), targets)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(t.values(), 1.0)
            optimiser.step()
            return float(loss.item())

        return Form(name, step, loss_of, partial(torch_setting, threads, learning=True))

    yield form("autograd, fused AdamW", False)
    yield form("stacked projections", True)
