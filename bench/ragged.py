"""Ragged batches: `attention_varlen`, and the rivals' loops, padding and nested tensors."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial
from importlib import import_module
from itertools import pairwise
from typing import Any
from zlib import crc32

import numpy as np

import qkvc

from .cases import Case
from .forms import Form
from .problems import Floats
from .rivals import limited, torch_setting


class Ragged:
    """Tokens of all sequences (total, H, D); a sequence has as many queries as keys, or each the same few."""

    rows = slice(None)

    def __init__(self, case: Case) -> None:
        self.case = c = case
        rng = np.random.default_rng(crc32(c.name.encode()))
        self.l_k = np.array(c.lengths)
        self.l_q = self.l_k if c.queries == c.keys else np.full(c.batch, c.queries)
        self.starts_q, self.starts_k = (np.concatenate(([0], np.cumsum(x))) for x in (self.l_q, self.l_k))
        self.query = rng.standard_normal((self.starts_q[-1], c.heads, c.dim), dtype=np.float32)
        self.key = rng.standard_normal((self.starts_k[-1], c.kv_heads, c.dim), dtype=np.float32)
        self.value = rng.standard_normal((self.starts_k[-1], c.kv_heads, c.v_dim), dtype=np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.case.heads, int(self.starts_q[-1]), self.case.v_dim)

    @property
    def flops(self) -> int:
        """Of the pairs within sequences."""
        c = self.case
        pairs = np.sum(self.l_q * (self.l_k + 1) // 2 if c.causal else self.l_q * self.l_k)
        return 2 * (c.dim + c.v_dim) * c.heads * int(pairs)

    def sequences(self) -> Iterator[tuple[slice, slice]]:
        """Rows of queries and of keys."""
        for rows, keys in zip(pairwise(self.starts_q), pairwise(self.starts_k), strict=True):
            yield slice(*rows), slice(*keys)

    def compute(self, dtype: type[np.floating[Any]]) -> Floats:
        """In NumPy, sequence by sequence."""
        c = self.case
        out = np.empty(self.shape, dtype)
        for rows, keys in self.sequences():
            q = self.query[rows].astype(dtype, copy=False).swapaxes(0, 1).reshape(c.kv_heads, -1, c.dim)
            k, v = (x[keys].astype(dtype, copy=False).swapaxes(0, 1) for x in (self.key, self.value))
            scores = ((q * dtype(c.dim**-0.5)) @ k.swapaxes(-1, -2)).reshape(c.heads, -1, k.shape[1])
            if c.causal:
                i = np.arange(k.shape[1])
                scores[:, i > i[:, None]] = -np.inf
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=-1, keepdims=True)
            out[:, rows] = (scores.reshape(c.kv_heads, -1, k.shape[1]) @ v).reshape(c.heads, -1, c.v_dim)
        return out

    @cached_property
    def reference(self) -> Floats:
        return self.compute(np.float64)


def heads_first(tokens: Any) -> Floats:
    return np.asarray(tokens).swapaxes(0, 1)


def ours(problem: Ragged, threads: int) -> Iterator[Form]:
    """The plain call, and into an array that is kept."""
    x, causal = problem, bool(problem.case.causal)
    call = partial(qkvc.attention_varlen, x.query, x.key, x.value, x.starts_q, x.starts_k, causal=causal)
    yield Form("attention_varlen", call, heads_first)
    kept = np.empty((*x.query.shape[:-1], x.case.v_dim), np.float32)
    yield Form("attention_varlen into out", partial(call, out=kept), heads_first)


def torch(problem: Ragged, threads: int) -> Iterator[Form]:
    """A loop over the sequences; a padded batch, whose padding is not timed; nested tensors, which know no causal mask here."""
    torch: Any = import_module("torch")
    c = problem.case
    tokens = [torch.from_numpy(x) for x in (problem.query, problem.key, problem.value)]
    sdpa = partial(torch.nn.functional.scaled_dot_product_attention, is_causal=bool(c.causal), enable_gqa=c.group > 1)
    form = partial(Form, setting=partial(torch_setting, threads))

    def loop() -> Any:
        parts = [[x[at].transpose(0, 1)[None] for x, at in zip(tokens, (rows, keys, keys), strict=True)] for rows, keys in where]
        return torch.cat([sdpa(*x)[0].transpose(0, 1) for x in parts])

    where = list(problem.sequences())
    yield form("sdpa, sequence by sequence", loop, heads_first)

    def padded(x: Any, starts: Any) -> Any:
        rows = torch.nn.utils.rnn.pad_sequence([x[a:b] for a, b in pairwise(starts)], batch_first=True)
        return rows.transpose(1, 2).contiguous()

    starts = (problem.starts_q, problem.starts_k, problem.starts_k)
    batch = [padded(x, at) for x, at in zip(tokens, starts, strict=True)]
    hide = None if c.causal else torch.from_numpy(np.arange(c.keys) < problem.l_k[:, None])[:, None, None]

    def gathered(y: Any) -> Floats:
        return np.concatenate([part[:, :n] for part, n in zip(np.asarray(y), problem.l_q, strict=True)], axis=1)

    yield form("sdpa, padded", partial(sdpa, *batch, attn_mask=hide), gathered)
    if not c.causal and c.queries == c.keys and c.group == 1:
        offsets = torch.from_numpy(problem.starts_k)
        nested = [torch.nested.nested_tensor_from_jagged(x, offsets).transpose(1, 2) for x in tokens]

        def in_nested_tensors() -> Any:
            with torch.inference_mode(False), torch.no_grad():  # inference mode cannot make them
                return sdpa(*nested).transpose(1, 2).values()

        yield form("sdpa, nested", in_nested_tensors, heads_first)


def numpy(problem: Ragged, threads: int) -> Iterator[Form]:
    """The formulas that the reference is computed by, in float32."""
    yield Form("sequence by sequence", partial(problem.compute, np.float32), setting=limited(threads))
