"""The next token of a cache: `KVCache.attend`, and rivals that put its row into an array that is kept, or make a longer one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import qkvc

from . import compiled, rivals
from .cases import Case
from .forms import Form, Rival
from .problems import Problem


class Step(Problem):
    """All tokens but the last have been; for int8 they come as float32."""

    def __init__(self, case: Case) -> None:
        super().__init__(replace(case, work="attention", dtype="float32" if case.dtype == "int8" else case.dtype))
        self.case = case

    def cached(self, dtype: str) -> Form:
        """A step of the cache, and back, so that the next call finds what this one did."""
        c = self.case
        cache = qkvc.KVCache(c.batch, c.kv_heads, c.keys, c.dim, v_head_dim=c.v_dim, dtype=dtype)
        query, *rows = (x.astype("float32" if dtype == "int8" else dtype, copy=False) for x in (self.query, self.key, self.value))
        cache.append(*(x[:, :, :-1] for x in rows))
        last = [x[:, :, -1:].copy() for x in rows]

        def step() -> Any:
            out = cache.attend(query, *last)
            cache.trim(1)
            return out

        return Form(f"KVCache of {dtype}", step)


def ours(problem: Step, threads: int) -> Iterator[Form]:
    yield problem.cached(problem.case.dtype)


def in_bfloat16(problem: Step, threads: int) -> Iterator[Form]:
    """What int8 is measured beside: qkvc with twice the memory."""
    import_module("ml_dtypes")
    yield problem.cached("bfloat16")


def _after(write: Callable[[], Any], form: Form) -> Form:
    """The form, which reads the problem's own arrays, after the new row has been written."""

    def call() -> Any:
        write()
        return form.call()

    return replace(form, call=call)


def torch(problem: Step, threads: int, rival: Rival = rivals.torch) -> Iterator[Form]:
    """A static cache: the row is copied to its index; and a growing one, by `cat`."""
    torch: Any = import_module("torch")
    kept = [rivals.tensor(x) for x in (problem.key, problem.value)]
    last, at = [x[:, :, -1:].clone() for x in kept], torch.tensor([problem.case.keys - 1])
    forms = rival(problem, threads)
    yield from (_after(lambda: [x.index_copy_(2, at, row) for x, row in zip(kept, last, strict=True)], form) for form in forms)
    if rival is rivals.torch:
        past, query = [x[:, :, :-1].clone() for x in kept], rivals.tensor(problem.query)
        sdpa = partial(torch.nn.functional.scaled_dot_product_attention, query, enable_gqa=problem.case.group > 1)
        grown = partial(map, lambda x, row: torch.cat([x, row], 2))
        yield Form("cat, sdpa", lambda: sdpa(*grown(past, last)), rivals.array, partial(rivals.torch_setting, threads))


def onnxruntime(problem: Step, threads: int) -> Iterator[Form]:
    """Microsoft's GroupQueryAttention, which extends its cache in place."""
    yield from (form for form in compiled.onnxruntime(problem, threads) if form.name.startswith("GroupQueryAttention"))


def numpy(problem: Step, threads: int) -> Iterator[Form]:
    """The row is written, then the formulas."""
    last = [x[:, :, -1:].copy() for x in (problem.key, problem.value)]

    def write() -> None:
        problem.key[:, :, -1:], problem.value[:, :, -1:] = last

    yield from (_after(write, form) for form in rivals.numpy(problem, threads))
