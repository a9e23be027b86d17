"""The rivals in attention: everything installed that does the same job, each in the forms that might be its best.

A rival is a function that yields its forms for a problem: the framework's own call, heads of a group stacked into the query
length, another layout, plain matrix products.  All conversions happen before a form is handed out; what is timed is one call.
Which form is best is not judged here but measured (`measure.py`), and so is whether it is right.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .forms import Form, Setting, additive_mask, native_causal, room_for_scores, stacked_heads, without
from .problems import CannotExpress, Floats, Problem, row_blocks

# ---------------------------------------------------------------------------------------------------------------- PyTorch, zentorch


@contextmanager
def torch_setting(threads: int, learning: bool = False) -> Iterator[None]:
    torch: Any = import_module("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode(not learning):
            yield
    finally:
        torch.set_num_threads(before)


def tensor(x: NDArray[Any]) -> Any:
    """The same memory in torch, which does not know NumPy's bfloat16."""
    torch: Any = import_module("torch")
    return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype.name == "bfloat16" else torch.from_numpy(x)


def array(x: Any) -> NDArray[Any]:
    """A tensor's numbers, bfloat16 as float32."""
    result: NDArray[Any] = (x.float() if x.itemsize == 2 else x).numpy()
    return result


def torch(problem: Problem, threads: int) -> Iterator[Form]:
    """`scaled_dot_product_attention`, with grouped heads native and stacked, masks as bools and floats; and plain products."""
    torch: Any = import_module("torch")
    c = problem.case
    sdpa = torch.nn.functional.scaled_dot_product_attention
    q, k, v = map(tensor, (problem.query, problem.key, problem.value))
    form = partial(Form, result=lambda y: array(y).reshape(problem.shape), setting=partial(torch_setting, threads))
    shared = {"enable_gqa": True} if c.group > 1 else {}
    if c.option == "bf16":
        causal = native_causal(problem)
        yield form("sdpa of bfloat16 copies", lambda: sdpa(*(x.bfloat16() for x in (q, k, v)), is_causal=causal, **shared).float())
    if problem.sinks is not None:  # one more key and value, both zero, whose bias is the sink
        sinks = tensor(problem.sinks)[:, None, None].expand(-1, c.queries, -1)
        extra = torch.cat([torch.zeros(c.heads, c.queries, c.keys, dtype=q.dtype), sinks], -1)[None]
        more = [torch.cat([x, torch.zeros_like(x[:, :, :1])], 2) for x in (k, v)]
        yield form("sdpa, one more key", partial(sdpa, q, *more, extra, **shared))
    elif c.window and c.batch == 1 and c.queries % c.window == 0:
        yield form("sdpa, chunks of a window", _in_chunks(problem, torch))
    if problem.sinks is None and not problem.softcap and not problem.vast:
        options = shared | ({"is_causal": True} if native_causal(problem) else {})
        extra = additive_mask(problem)
        if extra is None:
            yield form("sdpa", partial(sdpa, q, k, v, **options))
        else:
            yield form("sdpa, float mask", partial(sdpa, q, k, v, tensor(extra), **options))
        if extra is not None and problem.bias is None:
            yield form("sdpa, bool mask", partial(sdpa, q, k, v, torch.from_numpy(problem.allowed), **options))
    if problem.softcap == 0 and (stacked := None if problem.vast else stacked_heads(problem)):
        shape, rows = stacked
        tall = None if rows is None else tensor(rows)
        yield form("sdpa, heads stacked", lambda: sdpa(q.reshape(shape), k, v, attn_mask=tall))
    if c.sees_all and room_for_scores(problem):
        kt, scale, groups = k.transpose(-1, -2), c.dim**-0.5, (c.batch, c.kv_heads, c.group * c.queries, c.dim)

        def products() -> Any:
            scores = (q.reshape(groups) @ kt).mul_(scale)
            if problem.softcap:
                scores.div_(problem.softcap).tanh_().mul_(problem.softcap)
            return torch.softmax(scores, -1) @ v

        yield form("matmul, softmax, matmul", products)


def _in_chunks(problem: Problem, torch: Any) -> Callable[[], Any]:
    """A window as attention of each chunk of queries to its own keys and the chunk's before, as Longformer has it: linear in the length.

    The chunks are the heads of a four-dimensional call, overlapping views of the keys and values, and half of the work is masked.
    """
    c = problem.case
    chunks = c.queries // c.window
    i, j = torch.arange(c.window)[:, None], torch.arange(2 * c.window) - c.window
    mask = ((j <= i) & (j >= i - c.window)).repeat(chunks, 1, 1)
    mask[0] &= j >= 0
    q = tensor(problem.query).reshape(c.heads, chunks, c.window, c.dim)
    mask = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -torch.inf)[None]

    def overlapping(x: Floats) -> Any:
        padded = torch.nn.functional.pad(tensor(x)[0], (0, 0, c.window, 0))
        return padded.unfold(1, 2 * c.window, c.window).transpose(-1, -2)

    k, v = overlapping(problem.key), overlapping(problem.value)
    return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)


def zentorch(problem: Problem, threads: int) -> Iterator[Form]:
    """AMD's own kernels behind torch tensors: allocating, into a given output, and with grouped heads stacked."""
    torch: Any = import_module("torch")
    import_module("zentorch")  # registers its operators with torch

    without(problem, "softcap", "sinks")
    q, k, v = map(tensor, (problem.query, problem.key, problem.value))
    extra = additive_mask(problem)  # its masks are floats
    mask = None if extra is None else tensor(extra)
    causal = native_causal(problem)
    ops = torch.ops.zentorch
    form = partial(Form, setting=partial(torch_setting, threads))

    def first(results: Any) -> NDArray[Any]:
        return array(results[0]).reshape(problem.shape)

    if problem.case.option == "bf16":
        copies = partial(map, lambda x: x.bfloat16(), (q, k, v))
        yield form("sdpa of bfloat16 copies", lambda: [ops.zentorch_sdpa(*copies(), 0.0, causal, attn_mask=mask)[0].float()], first)
    yield form("sdpa", partial(ops.zentorch_sdpa, q, k, v, 0.0, causal, attn_mask=mask), first)
    if mask is None:
        out = torch.empty(problem.shape, dtype=q.dtype)
        yield form("sdpa into out", partial(ops.zentorch_sdpa_attn, q, k, v, out, None, causal), lambda _: array(out))
    if stacked := stacked_heads(problem):
        shape, rows = stacked
        tall = None if rows is None else tensor(rows)
        yield form("sdpa, heads stacked", lambda: ops.zentorch_sdpa(q.reshape(shape), k, v, attn_mask=tall), first)


# --------------------------------------------------------------------------------------------------------------------------- NumPy


def limited(threads: int) -> Setting:
    """Hold the BLAS of NumPy to a number of threads; without threadpoolctl it takes what it finds, which is every core."""
    try:
        controller: Any = import_module("threadpoolctl").ThreadpoolController()
    except ModuleNotFoundError:
        if threads != (os.cpu_count() or 1):
            raise CannotExpress("threadpoolctl, which holds its BLAS to fewer threads, is not installed") from None
        return nullcontext
    return partial(controller.limit, limits=threads, user_api="blas")


def numpy(problem: Problem, threads: int) -> Iterator[Form]:
    """Matrix products and a softmax in place: all at once, row block by row block, and the blocks dealt out to threads."""
    c = problem.case
    if c.dtype in ("float16", "bfloat16"):
        raise CannotExpress("it multiplies 16-bit numbers one by one")
    scale = np.array(c.dim**-0.5, c.dtype)
    kt, v = problem.key.swapaxes(-1, -2), problem.value
    by_group = (c.batch, c.kv_heads, c.group, c.queries)
    q = problem.query.reshape(*by_group, c.dim)
    sinks = None if problem.sinks is None else problem.sinks.reshape(c.kv_heads, c.group, 1, 1)
    extra = additive_mask(problem, causal_too=True) if not c.window or problem.mask is not None else None
    if extra is not None:
        extra = np.broadcast_to(extra, (c.batch, c.heads, c.queries, c.keys)).reshape(*by_group, c.keys)
    size = c.window or 256  # 256 rows: a block of scores stays near the L2 cache up to about 1,000 keys, and its products are still large
    first, limit = problem.limits
    bands = {
        rows.start: np.where(problem.seen(np.arange(rows.start, rows.stop), slice(first[rows.start], rows.stop)), 0, -np.inf).astype(
            c.dtype
        )
        for rows in row_blocks(c.queries, size)
        if c.window
    }
    flat = extra is None and sinks is None and not c.window

    def attend(out: Floats, heads: tuple[Any, ...], rows: slice) -> None:
        block = q[(*heads, slice(None), rows)]
        keys = slice(first[rows.start], limit[rows.stop - 1])
        if flat:  # the group's rows share their keys: one product for all of them
            scores = (block * scale).reshape(*block.shape[:-3], -1, c.dim) @ kt[heads]
        else:
            scores = (block * scale) @ kt[heads][..., None, :, keys]
        if problem.softcap:
            scores /= problem.softcap
            np.tanh(scores, out=scores)
            scores *= problem.softcap
        if extra is not None:
            scores += extra[(*heads, slice(None), rows, keys)]
        if c.window:
            scores += bands[rows.start]
        top = scores.max(axis=-1, keepdims=True)
        if sinks is not None:
            np.maximum(top, sinks[heads[1]], out=top)
        scores -= top
        np.exp(scores, out=scores)
        total = scores.sum(axis=-1, keepdims=True)
        if sinks is not None:
            total += np.exp(sinks[heads[1]] - top)
        result = scores @ (v[heads] if flat else v[heads][..., None, keys, :])
        result /= total
        out[(*heads, slice(None), rows)] = result.reshape(*block.shape[:-1], c.v_dim)

    def form(name: str, tasks: list[tuple[tuple[Any, ...], slice]], pool: ThreadPoolExecutor | None = None) -> Form:
        def call() -> Floats:
            out = np.empty((*by_group, c.v_dim), c.dtype)
            if pool is None:
                for heads, rows in tasks:
                    attend(out, heads, rows)
            else:
                for done in [pool.submit(attend, out, heads, rows) for heads, rows in tasks]:
                    done.result()
            return out

        return Form(name, call, lambda y: y.reshape(problem.shape), limited(threads if pool is None else 1))

    if room_for_scores(problem) and not c.window:
        yield form("whole", [((slice(None), slice(None)), slice(0, c.queries))])
    if c.window or c.queries * c.keys > 64 * 64:
        blocks = [(heads, rows) for heads, rows in product(np.ndindex(c.batch, c.kv_heads), row_blocks(c.queries, size))]
        yield form("blocked", blocks)
        if threads > 1:
            yield form("blocked, in threads", blocks, ThreadPoolExecutor(threads))
