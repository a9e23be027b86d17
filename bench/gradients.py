"""The gradients of attention: `attention_backward` beside torch's autograd, and there and back with dropout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from importlib import import_module
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qkvc

from .cases import Case
from .forms import Form, additive_mask, native_causal
from .problems import Floats, Problem
from .rivals import array, tensor, torch_setting

RATE, SEED = 0.1, 1  # of dropout
Attend = Callable[[Any], Any]  # values to the result, with queries, keys and dropped weights given


class Backward(Problem):
    """Gradients of query, key and value, given that of the result: each in units of its largest, so that one tolerance does for all."""

    products = 3, 2  # as deep or wide as a key: S, dQ, dK; as a value: dP, dV
    first = 1  # of `chain`

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.grad = self._random(np.random.default_rng(self.query.size), case.batch, case.heads, case.queries, case.v_dim)

    @cached_property
    def flops(self) -> int:
        c, (keys, values) = self.case, self.products
        return super().flops // (c.dim + c.v_dim) * (keys * c.dim + values * c.v_dim)

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, sum(x.size for x in self._exact))

    @property
    def rows(self) -> slice:
        return slice(None)

    def chain(self, kept: NDArray[np.bool_] | None = None) -> list[Floats]:
        """The chain rule, a block of queries at a time: the result and the gradients; of the weights `kept`, if given."""
        c, wide = self.case, self.wide
        query, key, value, grad = (x.astype(wide) for x in (self.query, self.key, self.value, self.grad))
        out, dq, dk, dv = (np.zeros_like(x) for x in (grad, query, key, value))
        for b, h, _, i, keys in self.blocks():
            at, of = (b, h, i), (b, h // c.group, keys)
            weights = self.weights(b, h, i, keys)[1]
            factor = 1.0 if kept is None else kept[b, h, i, keys] / (1 - RATE)
            out[at] = weights * factor @ value[of]
            dv[of] += (weights * factor).T @ grad[at]
            dp = grad[at] @ value[of].T * factor
            ds = weights * (dp - np.sum(weights * dp, axis=-1, keepdims=True)) / sqrt(c.dim)
            dq[at] = ds @ key[of]
            dk[of] += ds.T @ query[at]
        return [out, dq, dk, dv][self.first :]

    @cached_property
    def _exact(self) -> list[Floats]:
        return self.chain()

    @cached_property
    def reference(self) -> Floats:
        return self.result(self._exact)

    def result(self, parts: Sequence[Floats]) -> Floats:
        return np.concatenate([np.ravel(x) / np.abs(unit).max() for x, unit in zip(parts, self._exact, strict=True)])[np.newaxis]


class Dropout(Backward):
    """The result and those gradients where weights are dropped, by everyone with numbers of his own."""

    products = 4, 3  # S and O of the way there, too
    first = 0

    def beside(self, attend: Attend, parts: Sequence[Floats]) -> Floats:
        """Off from the reference, where nothing is dropped, by as much as `parts` are off from what is exact for the weights dropped.

        Who these are is seen in what `attend` makes of an identity for values.

        Raises
        ------
        ValueError
            Another share of them than was asked for.
        """
        c = self.case
        eye = np.broadcast_to(np.eye(c.keys, dtype=c.dtype), (c.batch, c.kv_heads, c.keys, c.keys)).copy()
        kept = np.asarray(attend(eye)) != 0
        allowed = np.broadcast_to(self.allowed, kept.shape)
        share, count = 1 - float(kept[allowed].mean()), int(allowed.sum())
        if abs(share - RATE) > 6 * sqrt(RATE * (1 - RATE) / count):
            raise ValueError(f"{share:.1%} of the weights are dropped instead of {RATE:.0%}")
        return self.result(parts) - self.result(self.chain(kept)) + self.reference


def _options(problem: Problem) -> dict[str, Any]:
    c = problem.case
    return {"causal": True if c.queries == c.keys else c.causal} if c.causal else {}


def ours(problem: Backward, threads: int) -> Iterator[Form]:
    operands, options = (problem.query, problem.key, problem.value), _options(problem)
    out, lse = qkvc.attention_with_lse(*operands, **options)
    call = partial(qkvc.attention_backward, problem.grad, *operands, out, lse, **options)
    yield Form("attention_backward", call, lambda grads: problem.result(grads[:3]))


def our_dropout(problem: Dropout, threads: int) -> Iterator[Form]:
    options = {**_options(problem), "dropout_p": RATE, "rng": SEED}

    def both() -> list[Floats]:
        out, vjp = qkvc.attention_vjp(problem.query, problem.key, problem.value, **options)
        grads: Any = vjp(problem.grad)  # of all three, as none was left out
        return [out, *grads[:3]]

    attend = partial(qkvc.attention, problem.query, problem.key, **options)
    yield Form("attention_vjp", both, partial(problem.beside, attend))


def _attending(problem: Problem, torch: Any, rate: float = 0.0) -> Iterator[tuple[str, list[Any], Callable[[Any, Any, Any], Any]]]:
    """Ways to attend, each with its own query, key and value: the function, heads repeated before it or rows token-first, and products."""
    c, f = problem.case, torch.nn.functional

    def leaves(token_first: bool = False) -> list[Any]:
        tensors = map(tensor, (problem.query, problem.key, problem.value))
        laid = (x.transpose(1, 2).contiguous().transpose(1, 2) if token_first else x.clone() for x in tensors)
        return [x.requires_grad_() for x in laid]

    extra = additive_mask(problem)
    mask = None if extra is None else tensor(extra)
    sdpa = partial(f.scaled_dot_product_attention, attn_mask=mask, is_causal=native_causal(problem), dropout_p=rate)
    native = partial(sdpa, enable_gqa=True) if c.group > 1 else sdpa
    yield "sdpa", leaves(), native
    yield "sdpa, token-first", leaves(True), native
    if c.group > 1:
        yield "sdpa, heads repeated", leaves(), lambda q, k, v: sdpa(q, *(x.repeat_interleave(c.group, 1) for x in (k, v)))
    hidden = ~torch.from_numpy(problem.allowed)

    def products(q: Any, k: Any, v: Any) -> Any:
        scores = (q * c.dim**-0.5).unflatten(1, (c.kv_heads, c.group)) @ k.unsqueeze(2).transpose(-1, -2)
        weights = torch.softmax(scores.masked_fill(hidden, -torch.inf) if c.causal else scores, -1)
        return (f.dropout(weights, rate) @ v.unsqueeze(2)).flatten(1, 2)

    yield "matmul, softmax, matmul", leaves(), products


def torch(problem: Backward, threads: int) -> Iterator[Form]:
    """autograd, of a graph that is kept: the way there is not timed."""
    torch: Any = import_module("torch")
    grad = tensor(problem.grad)
    for name, operands, attend in _attending(problem, torch):
        call = partial(torch.autograd.grad, attend(*operands), operands, grad, retain_graph=True)
        yield Form(name, call, lambda grads: problem.result([array(x) for x in grads]), partial(torch_setting, threads, learning=True))


def torch_dropout(problem: Dropout, threads: int) -> Iterator[Form]:
    """There, and back with autograd."""
    torch: Any = import_module("torch")
    grad = tensor(problem.grad)

    def form(name: str, operands: list[Any], attend: Callable[[Any, Any, Any], Any]) -> Form:
        def seeded(q: Any, k: Any, v: Any) -> Any:
            torch.manual_seed(SEED)  # as ours is: one of its numbers a call, and the same weights are dropped when it is judged
            return attend(q, k, v)

        def both() -> list[Any]:
            out = seeded(*operands)
            return [out, *torch.autograd.grad(out, operands, grad)]

        def judged(parts: list[Any]) -> Floats:
            query, key, _ = operands
            return problem.beside(lambda value: array(seeded(query, key, tensor(value)).detach()), [array(x.detach()) for x in parts])

        return Form(name, both, judged, partial(torch_setting, threads, learning=True))

    for way in _attending(problem, torch, RATE):
        yield form(*way)
