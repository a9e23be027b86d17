"""Random calls over the whole option space against the oracle, each element within its own bound.

Every number is a whole configuration: shapes, memory, dtypes, options, kernel set and threads.  A failure prints the line that repeats it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import qkvc

from .options import STORAGE
from .reference import (
    PAIRS,
    Bounds,
    Reference,
    certificate,
    exact_for,
    lse_type,
    reference,
    reference_scores,
    reference_stats,
    result_type,
    shortening,
    stats_certificate,
    unit_of,
)
from .support import MEMORY, assert_same_bits, in_bytes, in_pairs, share_of_bound
from .test_cache import stored
from .test_int8 import bytes_lose
from .test_parts import of_whole, parts_between

LENGTHS = (0, 1, 2, 3, 5, 15, 16, 17, 31, 33, 47, 48, 49, 63, 64, 65, 95, 97, 127, 128, 129, 143, 255, 256, 257, 300, 385)
DIMS = (1, 2, 3, 4, 7, 8, 16, 17, 31, 32, 33, 40, 64, 65, 80, 96, 127, 128, 130)
BATCHES = ((), (), (1,), (2,), (3,), (2, 2), (1, 3), (0,), (2, 1, 2))
DTYPES = ("float32", "float32", "float32", "float32", "float32", "float32", ">f4", "float64", "float64", "float64", ">f8", "int16", "bool",
          "float16", "float16", "bfloat16", "bfloat16", "bfloat16")  # fmt: skip
OUT = (None, None, "contiguous", "fortran", "gaps on every axis", "reversed", "rows outermost")
WORK = 600_000  # multiply-adds of one configuration: long double, the oracle of float64, has no BLAS


class Call(NamedTuple):
    isa: str
    arrays: list[NDArray[Any]]
    options: dict[str, Any]
    threads: int

    def __str__(self) -> str:
        named = {**dict(zip(("query", "key", "value"), self.arrays, strict=True)), **self.options, "num_threads": self.threads}
        parts = (f"{name}={x.dtype}{list(x.shape)}" if isinstance(x, np.ndarray) else f"{name}={x!r}" for name, x in named.items())
        return f"{self.isa}: {', '.join(parts)}"


def configuration(number: int) -> Call:
    rng = np.random.default_rng(number)

    def chance(p: float) -> bool:
        return bool(rng.random() < p)

    def pick(choices: Any) -> Any:
        return choices[rng.integers(len(choices))]

    def length() -> int:
        return int(pick(LENGTHS) if chance(0.7) else rng.integers(0, 200))

    def dim() -> int:
        return int(pick(DIMS) if chance(0.6) else rng.integers(0 if chance(0.05) else 1, 131))

    def smaller(shape: tuple[int, ...], p: float = 0.35) -> tuple[int, ...]:
        """A shape that broadcasts to this one, sometimes with fewer axes."""
        shape = tuple(1 if chance(p) else n for n in shape)
        while shape and shape[0] == 1 and chance(0.5):
            shape = shape[1:]
        return shape

    def numbers(*shape: int, dtype: str = "float32") -> NDArray[Any]:
        kind = np.dtype(dtype).kind
        return rng.integers(0 if kind == "b" else -3, 2, shape).astype(dtype) if kind in "bi" else rng.standard_normal(shape).astype(dtype)

    def placed(x: NDArray[Any]) -> NDArray[Any]:
        if x.ndim < 2 or chance(0.5):
            return x
        return MEMORY[pick(list(MEMORY))](x)

    batch, kv_heads, group = pick(BATCHES), int(rng.integers(1, 4)), pick((1, 1, 2, 3, 7, 8))
    l_q, l_k, d, d_v = length(), length(), dim(), dim()
    if chance(0.3):
        l_q = l_k
    while np.prod(batch, dtype=int) * kv_heads * group * l_q * l_k * (d + d_v + 20) > WORK * 10:
        batch, kv_heads, group, l_q = batch[1:], max(1, kv_heads - 1), max(1, group // 2), l_q - l_q // 4
    heads, layout = kv_heads * group, pick(("bhld", "blhd"))

    dtypes = [pick(DTYPES)] * 3 if chance(0.8) else [pick(DTYPES) for _ in range(3)]
    arrays = []
    for n, tail in enumerate([(heads, l_q, d), (kv_heads, l_k, d), (kv_heads, l_k, d_v)]):
        lead = batch if n == 0 else smaller(batch)
        shape = (*lead, *tail) if layout == "bhld" else (*lead, tail[1], tail[0], tail[2])
        flat = not batch and heads == kv_heads == 1 and layout == "bhld" and chance(0.3)
        arrays.append(placed(numbers(*(shape[1:] if flat else shape), dtype=dtypes[n])))

    options: dict[str, Any] = {"layout": layout}
    scores = (*batch, heads, l_q, l_k)
    if chance(0.3):
        options["mask"] = placed(rng.random(smaller(scores)) < pick((0.05, 0.5, 0.95)))
    if chance(0.3):
        bias = numbers(*smaller(scores), dtype=pick(("float32", "float64")))
        options["bias"] = placed(np.where(rng.random(bias.shape) < 0.1, -np.inf, bias).astype(bias.dtype) if chance(0.3) else bias)
    if chance(0.3):
        options["key_lengths"] = rng.integers(0, l_k + 1, smaller(batch))
    if chance(0.35):
        options["window"] = tuple(int(pick((-1, 0, 1, 5, 16, 60, 127, 128, 200))) for _ in range(2))
    if chance(0.3):
        options["alibi_slopes"] = (2.0 ** -rng.uniform(0, 8, smaller((*batch, heads), 0.2))).astype(pick(("float32", "float64")))
    if chance(0.4):
        options["causal"] = pick((True, "top-left", "bottom-right"))
    aligned = isinstance(options.get("causal", False), str)
    uses = options.get("causal", False) is True or "alibi_slopes" in options or options.get("window", (-1, -1)) != (-1, -1)
    if uses and not aligned and (l_q != l_k or chance(0.5)):
        options["q_offset"] = rng.integers(-l_q - 2, l_k + 3, smaller(batch))
    if chance(0.3):
        sinks = rng.normal(0, 3, smaller((*batch, heads), 0.2))
        options["sinks"] = np.where(rng.random(sinks.shape) < 0.2, -np.inf, sinks)
    if chance(0.3):
        options["softcap"] = float(pick((0.5, 2.0, 15.0, 50.0)))
    if chance(0.2):
        options["head_scale"] = numbers(*smaller((*batch, heads), 0.2))
    if chance(0.3):
        options["scale"] = float(rng.uniform(-1, 1))
    return Call(pick(qkvc.kernels()), arrays, options, int(pick((1, 2, 3, 7))))


def check(number: int) -> dict[str, float]:
    """Run one configuration through the functions; the largest error of each result, in units of its bound."""
    call = configuration(number)
    dtype, exact = result_type(*call.arrays), exact_for(*call.arrays)
    with qkvc.use_kernels(call.isa):
        inside = INSIDE[number % len(INSIDE)]
        expected = reference(*call.arrays, dtype=exact, **call.options)
        place = OUT[number // len(INSIDE) % len(OUT)]
        out = None if place is None else MEMORY[place](np.full(expected.out.shape, np.nan, dtype))
        got = qkvc.attention_with_lse(*call.arrays, **call.options, out=out, num_threads=call.threads)
        assert out is None or got.out is out
        loss = in_pairs(*call.arrays) * PAIRS
        bounds = certificate(*call.arrays, unit=unit_of(dtype), weights_lose=loss, dtype=exact, **call.options)
        shares = {
            f"out {dtype}": share_of_bound("out", got.out, expected.out, bounds.out + shortening(dtype, expected.out), dtype),
            f"lse {dtype}": share_of_bound("lse", got.lse, expected.lse, bounds.lse, lse_type(*call.arrays)),
        }
        return {**shares, **inside(call, got, expected, bounds)}


def in_parts(call: Call, whole: qkvc.AttentionOutput, expected: Reference, bounds: Bounds) -> dict[str, float]:
    """Keys in three ranges, by masks, and merged; results of 16 bits have lost what merging needs."""
    dtype = whole.out.dtype
    if dtype.itemsize == 2:
        return {}
    l_k = call.arrays[1].shape[-2 if call.options["layout"] == "bhld" or call.arrays[1].ndim == 2 else -3]
    parts = []
    for n, (low, high) in enumerate(itertools.pairwise((0, l_k // 3, l_k // 3 * 2, l_k))):
        inside = (np.arange(l_k) >= low) & (np.arange(l_k) < high)
        options = {**call.options, "mask": call.options.get("mask", True) & inside, "sinks": call.options.get("sinks") if n == 1 else None}
        parts.append(qkvc.attention_with_lse(*call.arrays, **options, num_threads=call.threads))
    merged = qkvc.merge_attention([x.out for x in parts], [x.lse for x in parts], layout=call.options["layout"])
    return {
        f"merged {dtype}": share_of_bound("merged", merged.out, expected.out, 4 * bounds.out, dtype),
        f"merged lse {dtype}": share_of_bound("merged lse", merged.lse, expected.lse, 4 * bounds.lse, dtype),
    }


def looked_into(call: Call) -> tuple[NDArray[Any], NDArray[Any], dict[str, Any], dict[str, Any]]:
    """Query, key, the options of the functions that look inside, and how the oracle computes for them."""
    query, key, _ = call.arrays
    options = {name: x for name, x in call.options.items() if name != "head_scale"}
    return query, key, options, {**options, "dtype": exact_for(query, key)}


def scores(call: Call, *_: Any) -> dict[str, float]:
    query, key, options, exactly = looked_into(call)
    dtype = lse_type(query, key)
    bounds = certificate(query, key, unit=unit_of(dtype), **exactly)
    shares = {}
    for stage in ("raw", "softcap", "bias", "softmax"):
        got = qkvc.attention_scores(query, key, stage=stage, **options, num_threads=call.threads)
        expected = reference_scores(query, key, stage, **exactly)
        size = np.where(np.isinf(expected), 0, np.abs(expected))
        bound = bounds.weight if stage == "softmax" else bounds.score + 4 * unit_of(dtype) * size
        shares[f"{stage} {dtype}"] = share_of_bound(stage, got, expected, bound, dtype)
    return shares


def selected(call: Call, *_: Any) -> dict[str, float]:
    query, key, options, exactly = looked_into(call)
    dtype = lse_type(query, key)
    expected = reference_scores(query, key, "softmax", **exactly)
    bound = certificate(query, key, unit=unit_of(dtype), **exactly).weight
    rng = np.random.default_rng(expected.size)
    l_q = expected.shape[-2]
    queries = rng.integers(-l_q, l_q, 5) if l_q else []
    chosen: dict[str, Any] = {"queries": queries}
    pick = (..., np.asarray(queries, int), slice(None))
    if min(query.ndim, key.ndim) > 2:
        heads = rng.integers(-expected.shape[-3], expected.shape[-3], 2)
        chosen["heads"] = list(map(int, heads))
        expected, bound = expected[..., heads, :, :], bound[..., heads, :, :]
    got = qkvc.attention_weights(query, key, **options, **chosen, num_threads=call.threads)
    return {f"weights {dtype}": share_of_bound("weights", got, expected[pick], bound[pick], dtype)}


def stats(call: Call, *_: Any) -> dict[str, float]:
    query, key, options, exactly = looked_into(call)
    dtype = lse_type(query, key)
    bounds = stats_certificate(query, key, unit=unit_of(dtype), **exactly)
    expected = reference_stats(query, key, **exactly)
    twice = qkvc.attention_stats(query, key, **options, top_k=3, num_threads=call.threads)
    once = qkvc.attention_stats(query, key, **options, lse=twice.lse, num_threads=call.threads)
    shares = {}
    for name, exact, bound in zip(expected._fields, expected, bounds, strict=True):
        found = [share_of_bound(f"{name} {n}", getattr(got, name), exact, bound, dtype) for n, got in (("twice", twice), ("once", once))]
        shares[f"{name} {dtype}"] = max(found)
    return shares


def heads_first(call: Call) -> list[NDArray[Any]]:
    return [x.swapaxes(-2, -3) if call.options["layout"] == "blhd" and x.ndim > 2 else x for x in call.arrays]


def in_blocks(call: Call, whole: qkvc.AttentionOutput, *_: Any) -> dict[str, float]:
    """Keys cut at some of their blocks: the bits of the whole."""
    arrays, options = heads_first(call), {name: x for name, x in call.options.items() if name != "layout"}
    l_k = arrays[1].shape[-2]
    middle = [n for n in range(128, l_k, 128) if (n // 128 + call.threads) % 3]
    merged = qkvc.merge_attention(parts_between([0, *middle, l_k], arrays, options, num_threads=call.threads), **of_whole(options))
    out = merged.out.swapaxes(-2, -3) if call.options["layout"] == "blhd" and whole.out.ndim > 2 else merged.out
    assert_same_bits(out.astype(whole.out.dtype), whole.out, "parts")
    assert_same_bits(merged.lse, whole.lse, "lse of parts")
    return {}


def ragged(call: Call, *_: Any) -> dict[str, float]:
    """An item of the batch cut into sequences."""
    if any(0 in x.shape[:-3] for x in call.arrays):
        return {}
    q, k, v = (x[(0,) * (x.ndim - 3)] if x.ndim > 2 else x[np.newaxis] for x in heads_first(call))
    rng = np.random.default_rng(q.size + k.size)
    count = int(rng.integers(1, 7))
    starts = [np.sort([0, *rng.integers(0, n + 1, count - 1), n]) for n in (q.shape[1], k.shape[1])]
    options = {name: x for name, x in call.options.items() if name in ("softcap", "scale", "window")}
    options |= {name: rng.random((count, len(q))) for name in call.options if name in ("alibi_slopes", "sinks", "head_scale")}
    positions = rng.integers(4)
    if "causal" in call.options or "alibi_slopes" in options or options.get("window", (-1, -1)) != (-1, -1):
        options |= {"causal": ("top-left", "bottom-right", True, False)[positions]}
        options |= {"q_offset": rng.integers(-9, k.shape[1] + 3, count)} if positions > 1 else {}
        if not options["causal"] and "alibi_slopes" not in options and options.get("window", (-1, -1)) == (-1, -1):
            options["causal"] = True
    swapped = [x if call.options["layout"] == "bhld" else x.swapaxes(0, 1) for x in (q, k, v)]
    got = qkvc.attention_varlen_with_lse(*swapped, *starts, **options, layout=call.options["layout"], num_threads=call.threads)
    out, worst = got.out if call.options["layout"] == "bhld" else got.out.swapaxes(0, 1), 0.0
    dtype, exact = result_type(q, k, v), exact_for(q, k, v)
    for i, ((a, b), (c, d)) in enumerate(zip(*map(itertools.pairwise, starts), strict=True)):
        alone = q[:, a:b], k[:, c:d], v[:, c:d]
        mine = {name: x[i] if isinstance(x, np.ndarray) else x for name, x in options.items()}
        expected = reference(*alone, dtype=exact, **mine)
        bounds = certificate(*alone, unit=unit_of(dtype), weights_lose=in_pairs(*alone) * PAIRS, dtype=exact, **mine)
        worst = max(
            worst,
            share_of_bound(f"sequence {i}", out[:, a:b], expected.out, bounds.out + shortening(dtype, expected.out), dtype),
            share_of_bound(f"lse of sequence {i}", got.lse[:, a:b], expected.lse, bounds.lse, lse_type(q, k, v)),
        )
    return {f"ragged {dtype}": worst}


def cached(call: Call, *_: Any) -> dict[str, float]:
    """Keys and values of these sizes in a cache of any storage, sequences of unlike lengths, and the last tokens' queries."""
    rng = np.random.default_rng(sum(x.size for x in call.arrays))
    q, k, v = (x if x.ndim > 2 else x[np.newaxis] for x in heads_first(call))
    (heads, l_q, dim), (kv_heads, l_k), v_dim, batch = q.shape[-3:], k.shape[-3:-1], v.shape[-1], int(rng.integers(1, 3))
    if 0 in (heads, l_k, dim, v_dim):
        return {}
    count, storage = min(l_q, l_k, 40), STORAGE[rng.integers(len(STORAGE))]
    query = rng.standard_normal((batch, heads, count, dim)).astype(("float32", "bfloat16", "float16", "float64")[rng.integers(4)])
    keys, values = (rng.standard_normal((batch, kv_heads, l_k, width), np.float32) for width in (dim, v_dim))
    before = rng.integers(0, l_k - count + 1, batch)
    options = {name: x for name, x in call.options.items() if name in ("softcap", "scale")}
    options |= {name: rng.random(heads) for name in call.options if name in ("sinks", "head_scale")}
    window, first = (int(rng.integers(1, l_k + 1)), int(rng.integers(0, 5))) if "window" in call.options else (None, 0)
    capacity = l_k + int(rng.integers(9)) if window is None else window + first + int(rng.integers(9))
    cache = qkvc.KVCache(batch, kv_heads, capacity, dim, v_head_dim=v_dim, dtype=storage, window=window, keep_first=first)
    for start in range(0, l_k - count, 100):
        portion = slice(start, min(start + 100, l_k - count))
        cache.append(keys[:, :, portion], values[:, :, portion], np.clip(before - start, 0, portion.stop - start))
    got = cache.attend(query, keys[:, :, l_k - count :], values[:, :, l_k - count :], **options, num_threads=call.threads)
    worst, dtype = 0.0, np.dtype(storage if storage != "int8" else np.float32)
    result = result_type(query, np.zeros(0, dtype))
    for i, n in enumerate(before.tolist()):
        mine = np.r_[:n, l_k - count : l_k]
        alone = [stored(x[i][:, mine], storage).astype(dtype) for x in (keys, values)]
        p, j = n + np.arange(count)[:, np.newaxis], np.arange(n + count)
        seen = {"mask": (j <= p) & ((j < first) | (j > p - window) if window else True), "dtype": exact_for(query, *alone)}
        expected = reference(query[i], *alone, **options, **seen).out
        loss = in_pairs(query, *alone) * PAIRS * (storage != "int8")
        bounds = certificate(query[i], *alone, unit=unit_of(result), weights_lose=loss, **options, **seen).out
        if storage == "int8" and in_bytes(query):  # some of them, where a window lets through few together
            bounds = bounds + bytes_lose(query[i], *alone, **options, **seen)
        worst = max(worst, share_of_bound(f"sequence {i}", got[i], expected, bounds + shortening(result, expected), result))
    return {f"cached {storage}": worst}


INSIDE: tuple[Callable[..., dict[str, float]], ...] = (scores, selected, stats, in_parts, in_blocks, ragged, cached)


def sweep(numbers: range, figures: list[str]) -> None:
    shares: dict[str, list[float]] = {}
    missed: list[str] = []
    for number in numbers:
        try:
            for name, share in check(number).items():
                shares.setdefault(name, []).append(share)
        except Exception as error:
            line = f'python -c "from tests.test_random import check; check({number})"'
            missed.append(f"{line}\n    {type(error).__name__}: {error}\n    {configuration(number)}")
    for name, found in sorted(shares.items()):
        quantiles = ", ".join(f"{q:.1%} {np.quantile(found, q):.3f}" for q in (0.5, 0.95, 0.999))
        figures.append(f"error / bound, {name}, {len(found)} random configurations: {quantiles}, largest {max(found):.3f}")
    assert not missed, f"{len(missed)} of {len(numbers)} configurations:\n" + "\n".join(missed[:8])


def test_a_thousand_random_calls(figures: list[str]) -> None:
    sweep(range(1000), figures)


@pytest.mark.full
def test_ten_thousand_random_calls(figures: list[str]) -> None:
    sweep(range(1000, 13_000), figures)
