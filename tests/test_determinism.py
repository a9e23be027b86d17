"""The same bits: run to run, for any number of threads, alone or in a batch, in any layout, memory and instruction set with FMA."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import qkvc

from .options import DTYPES, HALVES, OPTIONS, option
from .support import MEMORY, assert_same_bits, at_byte, operands

#         batch, (H_q, H_kv), (L_q, L_k), (D, Dv): one tile, many tiles, few queries, long rows, groups, remainders everywhere
SHAPES = (
    ((1,), (1, 1), (3, 5), (4, 4)),
    ((2,), (12, 12), (129, 129), (64, 64)),
    ((2,), (8, 2), (65, 300), (40, 24)),
    ((3,), (7, 1), (1, 700), (64, 64)),
    ((1,), (2, 1), (260, 1030), (32, 80)),
    ((2, 2), (4, 4), (31, 97), (17, 9)),
)
KINDS = [*itertools.product(OPTIONS, DTYPES), *itertools.product(("plain", "everything"), HALVES)]

Operands = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def call(rng: np.random.Generator, shape: tuple[Any, ...], kind: str, dtype: str = "float32") -> tuple[Operands, dict[str, Any]]:
    batch, heads, lengths, _ = shape
    query, key, value = (x.astype(dtype) for x in operands(rng, *shape))
    return (query, key, value), option(rng, kind, batch, heads[0], lengths)


@pytest.fixture(params=[(shape, *kind) for shape in SHAPES for kind in KINDS], ids=lambda p: "-".join(map(str, p)).replace(" ", ""))
def case(request: pytest.FixtureRequest, rng: np.random.Generator) -> tuple[Operands, dict[str, Any]]:
    return call(rng, *request.param)


def same(actual: qkvc.AttentionOutput, expected: qkvc.AttentionOutput, what: object) -> None:
    assert_same_bits(actual.out, expected.out, what)
    assert_same_bits(actual.lse, expected.lse, what)


def test_threads(isa: str, case: tuple[Operands, dict[str, Any]]) -> None:
    arrays, options = case
    expected = qkvc.attention_with_lse(*arrays, **options, num_threads=1)
    for threads in (1, 2, 3, 7):
        same(qkvc.attention_with_lse(*arrays, **options, num_threads=threads), expected, f"{threads} threads")


def test_run_to_run(isa: str, rng: np.random.Generator) -> None:
    """Forty times on threads that race for tiles, with other work between."""
    arrays, options = call(rng, SHAPES[2], "causal")
    expected = qkvc.attention_with_lse(*arrays, **options)
    for n in range(40):
        qkvc.attention(*(x[..., : n + 1, :] for x in arrays))
        same(qkvc.attention_with_lse(*arrays, **options), expected, f"run {n}")


def test_every_batch_item_alone(isa: str, case: tuple[Operands, dict[str, Any]]) -> None:
    (q, k, v), options = case
    batch = q.shape[:-3]
    whole = qkvc.attention_with_lse(q, k, v, **options)
    for item in np.ndindex(*batch):
        alone = {name: x[item] if isinstance(x, np.ndarray) else x for name, x in options.items()}
        got = qkvc.attention_with_lse(q[item], k[item], v[item], **alone)
        same(got, qkvc.AttentionOutput(whole.out[item], whole.lse[item]), f"item {item}")


def share_of_head(name: str, x: Any, h: int) -> Any:
    if name in ("mask", "bias"):
        return x[..., h : h + 1, :, :]
    return x[..., h : h + 1] if name in ("alibi_slopes", "sinks", "head_scale") else x


def test_every_head_alone(isa: str, case: tuple[Operands, dict[str, Any]]) -> None:
    (q, k, v), options = case
    group = q.shape[-3] // k.shape[-3]
    whole = qkvc.attention_with_lse(q, k, v, **options)
    for h in range(q.shape[-3]):
        kv = slice(h // group, h // group + 1)
        alone = {name: share_of_head(name, x, h) for name, x in options.items()}
        got = qkvc.attention_with_lse(q[..., h : h + 1, :, :], k[..., kv, :, :], v[..., kv, :, :], **alone)
        same(got, qkvc.AttentionOutput(whole.out[..., h : h + 1, :, :], whole.lse[..., h : h + 1, :]), f"head {h}")


def test_other_neighbours(isa: str, rng: np.random.Generator) -> None:
    """An item's bits do not move when the batch grows, shrinks or carries other numbers, poison included."""
    q, k, v = operands(rng, (1,), (4, 2), (33, 150), (24, 24))
    expected = qkvc.attention_with_lse(q, k, v)
    for size in (2, 3, 8, 17):
        others = operands(rng, (size,), (4, 2), (33, 150), (24, 24))
        others[2][size // 2] = np.nan
        place = size - 1
        for mine, x in zip((q, k, v), others, strict=True):
            x[place] = mine[0]
        got = qkvc.attention_with_lse(*others)
        same(qkvc.AttentionOutput(got.out[place:], got.lse[place:]), expected, f"in a batch of {size}")


def test_broadcast_batch_is_the_repeated_batch(isa: str, rng: np.random.Generator) -> None:
    q, k, v = operands(rng, (3,), (4, 2), (33, 65), (16, 16))
    expected = qkvc.attention_with_lse(q, k[:1].repeat(3, 0), v[:1].repeat(3, 0))
    same(qkvc.attention_with_lse(q, k[:1], v[:1]), expected, "one key for three queries")
    same(qkvc.attention_with_lse(q, k[0], v[0]), expected, "no batch axis")


def test_layout(isa: str, case: tuple[Operands, dict[str, Any]]) -> None:
    arrays, options = case
    expected = qkvc.attention_with_lse(*arrays, **options)
    for copy in (np.ascontiguousarray, np.asarray):
        got = qkvc.attention_with_lse(*(copy(x.swapaxes(-2, -3)) for x in arrays), **options, layout="blhd")
        same(qkvc.AttentionOutput(got.out.swapaxes(-2, -3), got.lse), expected, "blhd")


def test_memory(isa: str, case: tuple[Operands, dict[str, Any]]) -> None:
    arrays, options = case
    expected = qkvc.attention_with_lse(*arrays, **options)
    for name, place in MEMORY.items():
        moved = {key: place(x) if key == "bias" else x for key, x in options.items()}
        same(qkvc.attention_with_lse(*map(place, arrays), **moved), expected, name)


def test_every_alignment(isa: str, rng: np.random.Generator) -> None:
    q, k, v = operands(rng, (), (2, 1), (37, 70), (20, 12))
    expected = qkvc.attention_with_lse(q, k, v)
    for offset in range(64):
        same(qkvc.attention_with_lse(*(at_byte(x, offset) for x in (q, k, v))), expected, f"{offset} bytes off a cache line")


def test_out(isa: str, case: tuple[Operands, dict[str, Any]]) -> None:
    arrays, options = case
    expected = qkvc.attention_with_lse(*arrays, **options)
    for name in ("contiguous", "fortran", "gaps on every axis", "reversed", "one element off a cache line"):
        out = MEMORY[name](np.full_like(expected.out, np.nan))
        same(qkvc.attention_with_lse(*arrays, **options, out=out), expected, name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_masked_keys_change_no_bit(isa: str, rng: np.random.Generator, dtype: str) -> None:
    """Keys behind the lengths, masked keys at the end and fully masked blocks merge as the identity."""
    for l_q, length in ((1, 5), (20, 70), (33, 129), (7, 256), (64, 300)):
        q, k, v = (x.astype(dtype) for x in operands(rng, (), (4, 2), (l_q, length + 400), (16, 16)))
        expected = qkvc.attention_with_lse(q, k[:, :length], v[:, :length])
        for total in (length, length + 1, length + 31, length + 128, length + 400):
            keys, values = k[:, :total], v[:, :total]
            exists = np.arange(total) < length
            same(qkvc.attention_with_lse(q, keys, values, key_lengths=length), expected, f"length {length} of {total}")
            same(qkvc.attention_with_lse(q, keys, values, mask=exists), expected, f"mask, {length} of {total}")
            bias = np.where(exists, 0, -np.inf).astype(np.float32)[np.newaxis]
            same(qkvc.attention_with_lse(q, keys, values, bias=bias), expected, f"bias, {length} of {total}")
        # 256 empty keys in front shift every block by whole blocks, so the sums keep their order.
        front = [np.concatenate([np.full((2, 256, 16), np.nan, dtype), x[:, :length]], 1) for x in (k, v)]
        same(qkvc.attention_with_lse(q, *front, mask=np.arange(256 + length) >= 256), expected, f"256 masked keys before {length}")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_way_to_say_causal(isa: str, rng: np.random.Generator, dtype: str) -> None:
    """Skipping tiles must not differ from masking them."""
    for l_q, l_k in ((40, 40), (50, 180), (130, 300), (5, 3)):
        q, k, v = (x.astype(dtype) for x in operands(rng, (), (2, 1), (l_q, l_k), (16, 16)))
        i, j = np.arange(l_q)[:, np.newaxis], np.arange(l_k)
        for name, offset in (("top-left", 0), ("bottom-right", l_k - l_q)):
            expected = qkvc.attention_with_lse(q, k, v, causal=name)
            same(qkvc.attention_with_lse(q, k, v, causal=True, q_offset=offset), expected, name)
            same(qkvc.attention_with_lse(q, k, v, mask=j <= i + offset), expected, f"{name} as a mask")
            bias = np.where(j <= i + offset, 0, -np.inf).astype(np.float32)
            same(qkvc.attention_with_lse(q, k, v, bias=bias), expected, f"{name} as a bias")


def test_kernel_sets_with_fma_agree(case: tuple[Operands, dict[str, Any]]) -> None:
    """Wider vectors hold more queries; they do not change the order of any sum."""
    arrays, options = case
    with_fma = [name for name in qkvc.kernels() if name != "portable"]
    if arrays[0].dtype.name == "bfloat16":
        with_fma = [name for name in with_fma if not name.endswith("bf16")]  # products of pairs are a class of their own
    if len(with_fma) < 2:
        pytest.skip(f"this CPU runs only {with_fma or 'the portable kernels'}, and two kernel sets with FMA are needed")
    results = []
    for name in with_fma:
        with qkvc.use_kernels(name):
            results.append(qkvc.attention_with_lse(*arrays, **options))
    for name, result in zip(with_fma[1:], results[1:], strict=True):
        same(result, results[0], f"{name} and {with_fma[0]}")
