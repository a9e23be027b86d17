"""int8 rows of a cache: what they stand for, and how near to it few queries come on a set that reads them where they lie."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import qkvc
from qkvc import KVCache

from .reference import reference, reference_scores
from .support import assert_same_bits, in_bytes, normal

Array = NDArray[Any]
BLOCK = 128


def bytes_lose(q: Array, k: Array, v: Array, block: int = 1 << 20, **options: Any) -> Array:
    """How far docs/arithmetic.md lets few queries be from exact arithmetic on rows of int8, given as the numbers that they stand for.

    (..., heads, L, D) and (..., kv_heads, n, D); blocks of any size bound the smaller ones.
    """
    scale, scales = options.pop("scale", q.shape[-1] ** -0.5), options.pop("head_scale", np.ones(q.shape[-3]))
    k, v = (np.repeat(x.astype(np.float64), q.shape[-3] // x.shape[-3], axis=-3) for x in (k, v))
    unit = np.abs(v).max(axis=-1, initial=0) / 127
    weights = reference_scores(q, k, scale=scale, **options)
    largest = np.abs(q.astype(np.float64)).max(axis=-1)
    moved = np.abs(k).sum(axis=-1).max(axis=-1)[..., np.newaxis] * largest * abs(scale) / 65278  # of a score
    bound = np.expm1(2 * moved)[..., np.newaxis] * (weights @ np.abs(v))
    for at in range(0, k.shape[-2], block):
        part = slice(at, at + block)
        most = (weights[..., part] * unit[..., np.newaxis, part]).max(axis=-1, keepdims=True)
        whole = np.abs(v[..., part, :]) / np.where(unit == 0, 1, unit)[..., part, np.newaxis]
        bound += most * np.exp(2 * moved)[..., np.newaxis] * whole.sum(axis=-2)[..., np.newaxis, :] / 131070
    return bound * np.abs(scales)[:, np.newaxis, np.newaxis]


def filled(rng: np.random.Generator, batch: int, count: int, dim: int, v_dim: int, kv_heads: int = 2) -> KVCache:
    cache = KVCache(batch, kv_heads, count + 7, dim, v_head_dim=v_dim, dtype="int8")
    cache.append(normal(rng, batch, kv_heads, count, dim), normal(rng, batch, kv_heads, count, v_dim))
    return cache


def test_few_queries_are_within_the_bound(isa: str, rng: np.random.Generator, figures: list[str]) -> None:
    """Every option, every remainder of pieces, and queries and rows that are large and small."""
    share = worst = 0.0
    for n, (dim, v_dim) in enumerate(((64, 64), (128, 128), (80, 80), (37, 19), (3, 1), (65, 130), (1, 16))):
        for group in (1, 4, 7, 8):
            count = int(rng.integers(32, 400))
            cache = filled(rng, 2, count, dim, v_dim)
            q = normal(rng, 2, 2 * group, 1, dim) * np.float32((1, 1e-3, 10)[n % 3])
            options: dict[str, Any] = {}
            if group > 1:
                options = {"sinks": np.ones(2 * group), "mask": rng.random((2, 2 * group, 1, count)) < 0.8, "softcap": 3.0, "scale": 0.2}
            if group > 4:
                options |= {"bias": normal(rng, 2 * group, 1, count), "alibi_slopes": np.full(2 * group, 0.01)}
            got = cache.attend(q, **options)
            how = options | ({"q_offset": count - 1} if "alibi_slopes" in options else {})
            exact = reference(q, cache.keys(), cache.values(), **how).out
            bound = bytes_lose(q, cache.keys(), cache.values(), BLOCK, **how) + 1e-5
            off = np.abs(got - exact)
            assert (off <= bound).all(), (dim, v_dim, group)
            share, worst = max(share, float((off / bound).max())), max(worst, float(off.max()))
            assert np.median(bound) < 0.02, "it says something"
    figures.append(f"few queries and int8 ({isa}): largest error {worst:.2g}, {share:.2f} of what is allowed")


def test_the_bits_know_neither_threads_nor_neighbours(isa: str, rng: np.random.Generator) -> None:
    cache = filled(rng, 3, 700, 80, 72)
    q = normal(rng, 3, 8, 1, 80)
    whole = cache.attend(q)
    for threads in (1, 2, 7):
        assert_same_bits(cache.attend(q, num_threads=threads), whole)
    assert_same_bits(cache.attend(q.swapaxes(1, 2), layout="blhd").swapaxes(1, 2), whole)
    cache.reorder([2, 0, 1])
    assert_same_bits(cache.attend(q[[2, 0, 1]]), whole[[2, 0, 1]])
    alone = KVCache(1, 1, 700, 80, v_head_dim=72, dtype="int8")
    alone._rows = [rows[:1, 1:, :700].copy() for rows in cache._rows]
    alone._lengths = alone._written = [700]
    for heads in (1, 2, 4):
        assert_same_bits(alone.attend(q[2:, 4 : 4 + heads]), whole[2:, 4 : 4 + heads])


def test_poison(isa: str, rng: np.random.Generator) -> None:
    """A row of NaN that is masked reaches nothing, not a bit; one that is attended comes out, and so does a query that is not finite."""
    clean, dirty = filled(rng, 1, 200, 64, 64), KVCache(1, 2, 207, 64, dtype="int8")
    dirty._rows, dirty._lengths, dirty._written = [rows.copy() for rows in clean._rows], clean._lengths, clean._written
    q, mask = normal(rng, 1, 8, 1, 64), np.ones((1, 1, 1, 200), bool)
    mask[..., 17] = mask[..., 130:140] = False
    for rows in dirty._rows:
        rows[:, :, :200, -4:][:, :, ~mask[0, 0, 0]] = np.array([np.nan], np.float32).view(np.int8)
    assert_same_bits(dirty.attend(q, mask=mask), clean.attend(q, mask=mask))
    for part in (0, 1):
        dirty._rows[part][0, 1, 50, -4:] = np.array([np.nan], np.float32).view(np.int8)
        got = dirty.attend(q, mask=mask)
        assert_same_bits(got[:, :4], clean.attend(q, mask=mask)[:, :4])
        assert np.isnan(got[:, 4:]).all()
    for wrong in (np.nan, np.inf):
        q[0, 2, 0, 5] = wrong
        got = clean.attend(q)
        assert np.isnan(got[0, 2]).all()
        assert np.isfinite(got[0, [0, 1, 3, 4, 5, 6, 7]]).all()


def test_tiny_and_huge(isa: str, rng: np.random.Generator) -> None:
    """Units that no quotient of floats can take: nothing overflows, and nothing is lost beside the largest."""
    for size in (1e-36, 1e-33, 1e-20, 1.0, 1e30):
        cache = KVCache(1, 1, 64, 16, dtype="int8")
        k, v = normal(rng, 1, 1, 64, 16), normal(rng, 1, 1, 64, 16) * np.float32(size)
        cache.append(k, v)
        for factor in (1e-37, 1e-30, 1.0):
            q = normal(rng, 1, 2, 1, 16) * np.float32(factor)
            exact = reference(q, cache.keys(), cache.values()).out
            np.testing.assert_allclose(cache.attend(q), exact, rtol=0, atol=2e-4 * size + 1e-34)


def test_what_qkvc_reads_in_bytes(isa: str, rng: np.random.Generator) -> None:
    """Elsewhere, and where queries are many, blocks are widened: the bits are those of arrays of float32."""
    cache = filled(rng, 1, 300, 64, 64)
    for count in (1, 40):
        q = normal(rng, 1, 8, count, 64)
        got, wide = cache.attend(q), qkvc.attention(q, cache.keys(), cache.values(), causal="bottom-right")
        if in_bytes(q) and count == 1:
            assert not np.array_equal(got, wide)
        else:
            assert_same_bits(got, wide)
