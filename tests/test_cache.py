"""KVCache against lists of keys that grow, and the oracle over them; what it promises of bits, memory and misuse."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import ml_dtypes  # noqa: F401  # NumPy knows "bfloat16" by it
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from numpy.typing import NDArray

import qkvc
from qkvc import KVCache

from .options import STORAGE
from .reference import reference
from .support import assert_close, assert_refused, assert_same_bits, in_bytes, normal

Array = NDArray[Any]


def stored(x: Array, dtype: str) -> Array:
    """What a cache of this dtype makes of rows, in float64: for int8 from its definition, 127ths of the largest number of a row."""
    if dtype != "int8":
        return x.astype(dtype).astype(np.float64)
    unit = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
    return np.rint(x / np.where(unit == 0, 1, unit)) * unit.astype(np.float64)


class Tokens:
    """The oracle: all tokens that have been, and who sees which of them, from the definition."""

    def __init__(self, cache: KVCache) -> None:
        self.window, self.keep_first, self.ring = cache.window, cache.keep_first, cache.capacity - cache.keep_first
        self.kv: list[list[Array]] = [[np.zeros((cache.kv_heads, 0, width)) for width in WIDTHS] for _ in range(cache.batch)]
        self.most = [0] * cache.batch  # tokens that there ever were: later ones lie where earlier ones did

    @property
    def lengths(self) -> list[int]:
        return [kv[0].shape[1] for kv in self.kv]

    def append(self, k: Array, v: Array, counts: list[int], dtype: str) -> None:
        for i, count in enumerate(counts):
            new = [stored(x[i, :, :count], dtype) for x in (k, v)]
            self.kv[i] = [np.concatenate(pair, axis=1) for pair in zip(self.kv[i], new, strict=True)]
        self.most = [max(pair) for pair in zip(self.most, self.lengths, strict=True)]

    def seen(self, item: int, positions: Array) -> NDArray[np.bool_]:
        """Does a token at a position see token j?"""
        j, p = np.arange(self.lengths[item]), positions[:, np.newaxis]
        near = (j > p - self.window) | (j < self.keep_first) if self.window is not None else True
        return np.asarray((j <= p) & near)

    def gone(self, item: int, position: int) -> bool:
        """Does the window of this position begin before the first token, behind those that stay, that has not been written over?"""
        first = self.most[item] - self.ring
        return self.window is not None and first > self.keep_first and position - self.window + 1 < first

    def attend(self, item: int, q: Array, first: int, **options: Any) -> Array:
        """Queries (H, L, D) of one sequence that stand at `first` and behind it: (H, L, Dv)."""
        return reference(q.astype(np.float64), *self.kv[item], mask=self.seen(item, first + np.arange(q.shape[1])), **options).out


WIDTHS, HEADS = (16, 12), 4
COPIES: list[Callable[[KVCache], KVCache]] = [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
CLOSE = 1e-5  # float32's arithmetic on values of N(0, 1), what is stored being exact but for int8's scales, which are float32


def near(cache: KVCache) -> float:
    """Few queries and int8 may be off by more; test_int8.py has the bound."""
    return 1e-3 if cache.dtype == np.int8 else CLOSE


def make(rng: np.random.Generator, batch: int, heads: int, count: int, width: int) -> Array:
    return normal(rng, batch, heads, count, width)


SEEDS = st.integers(0, 2**32 - 1)


class Life(RuleBasedStateMachine):
    """Anything that a cache can be asked, in any order: what it answers, what it keeps, and that what it refuses leaves no trace."""

    @initialize(
        batch=st.integers(1, 3),
        kv_heads=st.sampled_from([1, 2, 4]),
        dtype=st.sampled_from(STORAGE),
        window=st.sampled_from([None, (1, 0), (3, 2), (16, 0), (13, 4)]),
        slack=st.integers(0, 12),
    )
    def begin(self, batch: int, kv_heads: int, dtype: str, window: tuple[int, int] | None, slack: int) -> None:
        sizes = {"window": window[0], "keep_first": window[1]} if window else {}
        capacity = sum(window) + slack if window else 20 + 3 * slack
        self.cache = KVCache(batch, kv_heads, capacity, WIDTHS[0], v_head_dim=WIDTHS[1], dtype=dtype, **sizes)
        self.tokens, self.dtype = Tokens(self.cache), dtype

    def new(self, seed: int, count: int, ragged: bool) -> tuple[np.random.Generator, Array, Array, list[int], bool]:
        """Keys, values, how many of them, and whether there is room."""
        rng, cache = np.random.default_rng(seed), self.cache
        k, v = (make(rng, cache.batch, cache.kv_heads, count, width) for width in WIDTHS)
        counts = rng.integers(0, count + 1, cache.batch).tolist() if ragged else [count] * cache.batch
        fits = cache.window is not None or all(n + m <= cache.capacity for n, m in zip(self.tokens.lengths, counts, strict=True))
        return rng, k, v, counts, fits

    @rule(seed=SEEDS, count=st.integers(0, 60), ragged=st.booleans())
    def append(self, seed: int, count: int, ragged: bool) -> None:
        _, k, v, counts, fits = self.new(seed, count, ragged)
        if not fits:
            assert_refused(lambda: self.cache.append(k, v, counts), ValueError, "KVCache.append", "k", "capacity")
            return
        self.cache.append(k, v, counts)
        self.tokens.append(k, v, counts, self.dtype)

    @rule(seed=SEEDS, count=st.one_of(st.just(1), st.integers(0, 9), st.integers(10, 40)), ragged=st.booleans(), more=st.booleans())
    def attend(self, seed: int, count: int, ragged: bool, more: bool) -> None:
        rng, k, v, counts, fits = self.new(seed, count, ragged)
        q, before = make(rng, self.cache.batch, HEADS, count, WIDTHS[0]), self.tokens.lengths
        options = {"softcap": 2.0, "sinks": np.ones(HEADS), "scale": 0.3} if more else {}
        if not fits:
            assert_refused(lambda: self.cache.attend(q, k, v, counts=counts, **options), ValueError, "KVCache.attend", "k", "capacity")
            return
        got = self.cache.attend(q, k, v, counts=counts, **options)
        self.tokens.append(k, v, counts, self.dtype)
        for i, n in enumerate(counts):
            expected = self.tokens.attend(i, q[i, :, :n], before[i], **options)
            assert_close(got[i, :, :n], expected, near(self.cache), f"sequence {i}", got.dtype)

    @rule(seed=SEEDS, count=st.integers(0, 9))
    def look(self, seed: int, count: int) -> None:
        """Queries of tokens that have been appended before."""
        q = make(np.random.default_rng(seed), self.cache.batch, HEADS, count, WIDTHS[0])
        first = [n - count for n in self.tokens.lengths]
        if any(self.tokens.gone(i, at) for i, at in enumerate(first)):
            assert_refused(lambda: self.cache.attend(q), ValueError, "KVCache.attend", "q", "gone")
            return
        got = self.cache.attend(q)
        for i, at in enumerate(first):
            assert_close(got[i], self.tokens.attend(i, q[i], at), near(self.cache), f"sequence {i}", got.dtype)

    @rule(n=st.lists(st.integers(0, 12), min_size=3, max_size=3), together=st.booleans())
    def trim(self, n: list[int], together: bool) -> None:
        n = n[:1] * self.cache.batch if together else n[: self.cache.batch]
        left = [have - back for have, back in zip(self.tokens.lengths, n, strict=True)]
        if min(left) < 0 or any(self.tokens.gone(i, m - 1) for i, m in enumerate(left)):
            assert_refused(lambda: self.cache.trim(n[0] if together else n), ValueError, "KVCache.trim", "n")
            return
        self.cache.trim(n[0] if together else n)
        self.tokens.kv = [[x[:, :m] for x in kv] for kv, m in zip(self.tokens.kv, left, strict=True)]

    @rule(index=st.lists(st.integers(0, 2), min_size=3, max_size=3))
    def reorder(self, index: list[int]) -> None:
        index = [i % self.cache.batch for i in index[: self.cache.batch]]
        self.cache.reorder(index)
        self.tokens.kv, self.tokens.most = [self.tokens.kv[i] for i in index], [self.tokens.most[i] for i in index]

    @rule()
    def reset(self) -> None:
        self.cache.reset()
        self.tokens = Tokens(self.cache)

    @rule(how=st.sampled_from(COPIES))
    def duplicate(self, how: Callable[[KVCache], KVCache]) -> None:
        self.cache, old = how(self.cache), self.cache
        old.reset()
        old.append(*(np.full((old.batch, old.kv_heads, old.capacity, width), np.nan) for width in WIDTHS))

    @rule(wrong=st.sampled_from(["v", "counts", "num_threads", "sinks"]))
    def fail(self, wrong: str) -> None:
        """Late: only when one has been stored, or part of one, could it be seen."""
        cache = self.cache
        q, k, v = np.ones((cache.batch, HEADS, 2, WIDTHS[0])), *(np.ones((cache.batch, cache.kv_heads, 2, width)) for width in WIDTHS)
        if wrong in ("num_threads", "sinks"):
            full = cache.window is None and max(cache.lengths) + 2 > cache.capacity
            assert_refused(lambda: cache.attend(q, k, v, **{wrong: -1 if wrong == "num_threads" else np.ones(3)}), ValueError,
                           "capacity" if full else wrong)  # fmt: skip
        else:
            assert_refused(lambda: cache.append(k, v[:, :, :1] if wrong == "v" else v, 3), ValueError, wrong)

    @invariant()
    def keeps(self) -> None:
        np.testing.assert_array_equal(self.cache.lengths, self.tokens.lengths)
        parts = self.cache.keys(), self.cache.values()
        for i, n in enumerate(self.tokens.lengths):
            seen = self.tokens.seen(i, np.array([n - 1]))[0]
            for got, x in zip(parts, self.tokens.kv[i], strict=True):
                np.testing.assert_allclose(got[i, :, : seen.sum()].astype(np.float64), x[:, seen], rtol=1e-6)
                assert not got[i, :, seen.sum() :].astype(np.float64).any(), "zeros behind a shorter sequence"


def test_anything_in_any_order(isa: str) -> None:
    run_state_machine_as_test(Life, settings=settings(max_examples=50, stateful_step_count=30))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_a_step_has_the_bits_of_attention(isa: str, dtype: str, rng: np.random.Generator) -> None:
    """In whatever portions, and whatever the capacity, threads or neighbours: the row of the prefill over plain arrays."""
    k, v, q = (make(rng, 2, heads, 300, 64).astype(dtype) for heads in (2, 2, 8))
    whole = qkvc.attention(q, k, v, causal=True)
    for portions in ((300,), (1,) * 20 + (280,), (130, 1, 1, 128, 40), (290, 7, 3)):
        for capacity, threads in ((300, 1), (777, 2)):
            cache, at = KVCache(2, 2, capacity, 64, dtype=dtype), 0
            for n in portions:
                part = slice(at, at + n)
                got = cache.attend(q[:, :, part], k[:, :, part], v[:, :, part], num_threads=threads)
                assert_same_bits(got, whole[:, :, part], (portions, at))
                at += n
    ragged = KVCache(2, 2, 300, 64, dtype=dtype)
    ragged.append(k[:, :, :200], v[:, :, :200], counts=[200, 90])
    later = np.stack([x[i, :, start : start + 1] for i, start in ((0, 200), (1, 90)) for x in (q,)])
    k1, v1 = (np.stack([x[0, :, 200:201], x[1, :, 90:91]]) for x in (k, v))
    got = ragged.attend(later, k1, v1)
    assert_same_bits(got, np.stack([whole[0, :, 200:201], whole[1, :, 90:91]]))
    assert_same_bits(ragged.attend(later), got, "without new tokens")


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_int8_has_the_bits_of_what_it_stands_for(isa: str, dtype: str, rng: np.random.Generator) -> None:
    """Widened block by block, with every option, for few queries, unless the set reads bytes, and many, and widths that no vector
    divides."""
    for dim, v_dim in ((64, 64), (37, 19), (3, 1), (128, 80)):
        k, v, q = make(rng, 2, 2, 300, dim), make(rng, 2, 2, 300, v_dim), make(rng, 2, 6, 70, dim).astype(dtype)
        cache = KVCache(2, 2, 333, dim, v_head_dim=v_dim, dtype="int8")
        cache.append(k, v, counts=[300, 211])
        for count in (70,) if in_bytes(q) else (1, 3, 70):
            options = {"sinks": np.ones(6), "mask": rng.random((2, 6, count, 300)) < 0.8, "softcap": 3.0} if count != 1 else {}
            how = {"causal": "bottom-right", "key_lengths": [300, 211]}
            expected = qkvc.attention(q[:, :, :count], cache.keys(), cache.values(), **how, **options)
            assert_same_bits(cache.attend(q[:, :, :count], **options), expected, (dim, count))
            turned = cache.attend(q[:, :, :count].swapaxes(1, 2), layout="blhd", num_threads=2, **options)
            assert_same_bits(turned.swapaxes(1, 2), expected, (dim, count, "blhd"))
    if dtype != "float64":
        expected = qkvc.attention(q, cache.keys(), cache.values(), precision="bf16", **how)
        assert_same_bits(cache.attend(q, precision="bf16"), expected)


def test_layouts_and_options_of_a_cache_without_a_window(isa: str, rng: np.random.Generator) -> None:
    k, v, q = make(rng, 2, 2, 50, 16), make(rng, 2, 2, 50, 24), make(rng, 2, 4, 50, 16)
    options = {
        "mask": rng.random((2, 4, 5, 50)) < 0.7,
        "bias": normal(rng, 4, 5, 50),
        "alibi_slopes": np.array([0.5, 0.25, 0.125, 0.1]),
        "window": (30, 0),
        "head_scale": np.array([1.0, 0.5, 0.0, 2.0]),
    }
    expected = qkvc.attention(q[:, :, 45:], k, v, causal="bottom-right", **options)
    for layout in ("bhld", "blhd"):
        cache = KVCache(2, 2, 64, 16, v_head_dim=24)
        cache.append(k[:, :, :45], v[:, :, :45])
        last = [x[:, :, 45:] if layout == "bhld" else x[:, :, 45:].swapaxes(1, 2) for x in (q, k, v)]
        got = cache.attend(*last, layout=layout, **options)
        assert_same_bits(got if layout == "bhld" else got.swapaxes(1, 2), expected)


@pytest.mark.parametrize("dtype", STORAGE)
def test_rows_begin_where_a_cache_line_does(dtype: str) -> None:
    for capacity in range(1, 9):
        rows = KVCache(1, 3, capacity, 5, dtype=dtype)._rows
        assert all(x.ctypes.data % 64 == 0 and x.flags.c_contiguous and not x.any() for x in rows)


@pytest.mark.parametrize("dtype", STORAGE)
def test_what_is_kept(dtype: str, rng: np.random.Generator) -> None:
    k, v = make(rng, 2, 3, 40, 16), make(rng, 2, 3, 40, 8)
    cache = KVCache(2, 3, 64, 16, v_head_dim=8, dtype=dtype)
    cache.append(k, v, counts=[40, 25])
    windowed = KVCache(2, 3, 20, 16, v_head_dim=8, dtype=dtype, window=13, keep_first=2)
    windowed.append(k, v, counts=[40, 10])
    for part, x in (("keys", k), ("values", v)):
        got = getattr(cache, part)()
        assert got.dtype == (np.float32 if dtype == "int8" else np.dtype(dtype))
        expected = stored(x, dtype)
        expected[1, :, 25:] = 0
        np.testing.assert_allclose(got.astype(np.float64), expected, rtol=1e-6 if dtype == "int8" else 0)
        expected = np.concatenate([expected[:, :, :2], expected[:, :, 27:]], axis=2)
        expected[1] = 0
        expected[1, :, :10] = stored(x, dtype)[1, :, :10]
        got = getattr(windowed, part)()
        np.testing.assert_allclose(got.astype(np.float64), expected, rtol=1e-6 if dtype == "int8" else 0)
        got[...] = np.nan
        assert not np.isnan(getattr(windowed, part)().astype(np.float64)).any(), "a copy"
    assert cache.nbytes == 2 * 3 * 64 * ((16 + 8) * np.dtype(dtype).itemsize + (8 if dtype == "int8" else 0))


def test_int8_is_off_by_half_of_a_127th(rng: np.random.Generator, figures: list[str]) -> None:
    k = make(rng, 1, 2, 500, 64) * np.exp(rng.normal(0, 5, (1, 2, 500, 1))).astype(np.float32)
    k[0, 0, 3], k[0, 0, 4], k[0, 0, 5, 0], k[0, 0, 6, 1], k[0, 0, 7] = 0, 1e-44, np.nan, -np.inf, 3e38
    cache = KVCache(1, 2, 500, 64, dtype="int8")
    with np.errstate(all="raise", under="ignore"):
        cache.append(k, k)
    got = cache.keys()
    finite = np.isfinite(k).all(axis=-1)
    assert (~finite).sum() == 2
    assert np.isnan(got[~finite]).all(), "what was not finite poisons its row"
    error = np.abs(got[finite].astype(np.float64) - k[finite]).max(axis=-1)
    bound = np.abs(k[finite]).max(axis=-1).astype(np.float64) / 254
    assert (error <= bound * (1 + 1e-5) + 1e-37).all()
    assert error.max() > 0
    q, k, v = make(rng, 1, 8, 1, 64), make(rng, 1, 2, 500, 64), make(rng, 1, 2, 500, 64)
    exact = reference(q, k, v).out
    for dtype in ("int8", "bfloat16", "float16"):
        cache = KVCache(1, 2, 500, 64, dtype=dtype)
        cache.append(k, v)
        off = np.abs(cache.attend(q) - exact)
        figures.append(f"decoding 500 keys from {dtype}: largest error {off.max():.2g}, root of mean square {np.sqrt((off**2).mean()):.2g}")
        assert off.max() < 0.01


@pytest.mark.parametrize("dtype", STORAGE)
def test_rows_beyond_the_lengths_reach_nothing(isa: str, dtype: str, rng: np.random.Generator) -> None:
    """NaN and infinity that were trimmed, or given behind a count, or written over."""
    k, v, q = (make(rng, 2, 2, 40, 16) for _ in range(3))
    bad = np.full((2, 2, 30, 16), np.nan, np.float32)
    clean, dirty = (KVCache(2, 2, 80, 16, dtype=dtype) for _ in range(2))
    clean.append(k, v, counts=[40, 20])
    dirty.append(bad, np.where(bad == 0, 0, np.inf))
    dirty.trim([30, 30])
    behind = k.copy(), v.copy()
    for x in behind:
        x[1, :, 20:] = np.nan
    dirty.append(*behind, counts=[40, 20])
    dirty.append(bad, bad, counts=[30, 30])
    dirty.trim(30)
    for count in (1, 3, 20):
        assert_same_bits(dirty.attend(q[:, :, :count]), clean.attend(q[:, :, :count]))
    assert np.isfinite(dirty.keys().astype(np.float32)).all()

    windowed = KVCache(2, 2, 24, 16, dtype=dtype, window=20, keep_first=2)
    windowed.append(bad[:, :, :2], bad[:, :, :2])
    windowed.trim(2)
    windowed.append(k[:, :, :2], v[:, :, :2])
    windowed.append(bad, bad, counts=[30, 9])
    assert np.isnan(windowed.attend(q[:, :, :1]).astype(np.float32)).all(), "what is attended comes out"
    windowed.append(k, v)
    windowed.append(bad[:, :, :2], bad[:, :, :2])
    windowed.trim(2)
    assert np.isfinite(windowed.attend(q[:, :, :1]).astype(np.float32)).all()


@pytest.mark.parametrize("dtype", STORAGE)
def test_numbers_beyond_the_storage_are_infinite(dtype: str, rng: np.random.Generator) -> None:
    """No warning, no error: half-way, one would leave a window with rows of two times."""
    k, v = make(rng, 1, 2, 30, 8).astype(np.float64), make(rng, 1, 2, 30, 8).astype(np.float64)
    cache = KVCache(1, 2, 16, 8, dtype=dtype, window=12, keep_first=2)
    cache.append(k, v)
    k[0, 0, 25, 3], v[0, 0, 20, 3] = 1e300, -1e-300
    with np.errstate(all="raise"):
        cache.append(k, v)
        got = cache.keys().astype(np.float64)[0, 0, 2 + 25 - 18]
    expected = stored(k[0, 0, 25], "int8") * np.nan if dtype == "int8" else stored(k[0, 0, 25].clip(-9, 9), dtype)
    expected[3] = {"float64": 1e300, "int8": np.nan}.get(dtype, np.inf)
    np.testing.assert_array_equal(got, expected)


def good() -> tuple[KVCache, dict[str, Array]]:
    rng = np.random.default_rng(7)
    cache = KVCache(2, 2, 10, 8, v_head_dim=6)
    arrays = {"q": make(rng, 2, 4, 3, 8), "k": make(rng, 2, 2, 3, 8), "v": make(rng, 2, 2, 3, 6)}
    cache.append(arrays["k"], arrays["v"], counts=[3, 2])
    return cache, arrays


def ones(*shape: int, dtype: Any = np.float32) -> Array:
    return np.ones(shape, dtype)


#         name                          the call, given a cache and good arrays                        exception   words of the message
REFUSED: list[tuple[str, Callable[[KVCache, dict[str, Array]], object], Any, tuple[str, ...]]] = [
    ("a full cache", lambda c, a: c.append(ones(2, 2, 8, 8), ones(2, 2, 8, 6)), ValueError, ("append", "k", "at most 7", "10", "got 8")),
    ("attend a full cache", lambda c, a: c.attend(ones(2, 4, 8, 8), ones(2, 2, 8, 8), ones(2, 2, 8, 6)), ValueError, ("k", "at most 7")),
    ("k of one head", lambda c, a: c.append(a["k"][:, :1], a["v"]), ValueError, ("k", "(2, 2, L, 8)", "(2, 1, 3, 8)")),
    ("k of three axes", lambda c, a: c.append(a["k"][0], a["v"]), ValueError, ("k", "(2, 2, L, 8)", "(2, 3, 8)")),
    ("k of another batch", lambda c, a: c.append(a["k"][:1], a["v"]), ValueError, ("k", "(1, 2, 3, 8)")),
    ("v as wide as k", lambda c, a: c.append(a["k"], a["k"]), ValueError, ("v", "(2, 2, L, 6)", "(2, 2, 3, 8)")),
    ("v shorter", lambda c, a: c.append(a["k"], a["v"][:, :, :2]), ValueError, ("v", "3", "(2, 2, 2, 6)")),
    ("k of strings", lambda c, a: c.append("abc", a["v"]), TypeError, ("k", "float32")),
    ("k complex", lambda c, a: c.append(a["k"] * 1j, a["v"]), TypeError, ("k", "complex64")),
    ("v None", lambda c, a: c.append(a["k"], None), TypeError, ("v", "None")),
    ("v masked", lambda c, a: c.append(a["k"], np.ma.masked_invalid(a["v"])), TypeError, ("v", "MaskedArray")),
    ("counts beyond L", lambda c, a: c.append(a["k"], a["v"], [3, 4]), ValueError, ("counts", "0 to 3", "4")),
    ("counts negative", lambda c, a: c.append(a["k"], a["v"], -1), ValueError, ("counts", "-1")),
    ("counts floats", lambda c, a: c.append(a["k"], a["v"], [1.0, 2.0]), TypeError, ("counts", "integers", "float64")),
    ("counts of three", lambda c, a: c.append(a["k"], a["v"], [1, 1, 1]), ValueError, ("counts", "2 sequences", "(3,)")),
    ("counts huge", lambda c, a: c.append(a["k"], a["v"], 10**30), ValueError, ("counts", "64 bits")),
    ("counts alone", lambda c, a: c.attend(a["q"], counts=1), TypeError, ("k, v and counts",)),
    ("k alone", lambda c, a: c.attend(a["q"], a["k"]), TypeError, ("k, v and counts",)),
    ("q narrower", lambda c, a: c.attend(a["q"][..., :7]), ValueError, ("q", "width 8", "(2, 4, 3, 7)")),
    ("q of three heads", lambda c, a: c.attend(a["q"][:, :3]), ValueError, ("q", "multiple of 2", "(2, 3, 3, 8)")),
    ("q of another batch", lambda c, a: c.attend(a["q"][:1]), ValueError, ("q", "batch 2", "(1, 4, 3, 8)")),
    ("q of three axes", lambda c, a: c.attend(a["q"][0]), ValueError, ("q", "(4, 3, 8)")),
    ("q None", lambda c, a: c.attend(None), TypeError, ("q", "None")),
    ("k longer than q", lambda c, a: c.attend(a["q"][:, :, :2], a["k"], a["v"]), ValueError, ("k", "2 tokens", "(2, 2, 3, 8)")),
    ("another layout", lambda c, a: c.attend(a["q"], layout="lbhd"), ValueError, ("layout", "bhld", "lbhd")),
    ("layouts", lambda c, a: c.attend(a["q"], layout=np.array(["bhld", "blhd"])), TypeError, ("attend", "layout", "bhld", "ndarray")),
    ("causal", lambda c, a: c.attend(**a, causal=True), TypeError, ("options", "softcap", "causal")),
    ("an unknown option", lambda c, a: c.attend(**a, speed=3), TypeError, ("options", "speed")),
    ("a wrong option, found late", lambda c, a: c.attend(**a, softcap=-1.0), ValueError, ("softcap", "-1")),
    ("a mask of other keys", lambda c, a: c.attend(**a, mask=ones(3, 5, dtype=bool)), ValueError, ("mask", "(3, 5)")),
    ("trim negative", lambda c, a: c.trim(-1), ValueError, ("trim", "n", "-1")),
    ("trim too much", lambda c, a: c.trim(4), ValueError, ("trim", "n", "3", "4")),
    ("trim too much of one", lambda c, a: c.trim([1, 3]), ValueError, ("trim", "n", "at most 2", "sequence 1", "3")),
    ("trim a float", lambda c, a: c.trim(1.0), TypeError, ("trim", "n", "integers", "float64")),
    ("trim True", lambda c, a: c.trim(True), TypeError, ("trim", "n", "integers", "bool")),
    ("trim three", lambda c, a: c.trim([0, 0, 0]), ValueError, ("trim", "n", "(3,)")),
    ("reorder beyond", lambda c, a: c.reorder([0, 2]), ValueError, ("reorder", "index", "0 to 1", "2")),
    ("reorder negative", lambda c, a: c.reorder([0, -1]), ValueError, ("reorder", "index", "-1")),
    ("reorder three", lambda c, a: c.reorder([0, 0, 1]), ValueError, ("reorder", "index", "(2,)", "(3,)")),
    ("reorder floats", lambda c, a: c.reorder([0.0, 1.0]), TypeError, ("reorder", "index", "integers")),
]  # fmt: skip


@pytest.mark.parametrize(("call", "exception", "words"), [pytest.param(*row[1:], id=row[0]) for row in REFUSED])
def test_refused_and_unchanged(call: Any, exception: Any, words: Any) -> None:
    cache, arrays = good()
    before = cache.lengths, cache.keys(), cache.values()
    assert_refused(lambda: call(cache, arrays), exception, *words)
    for was, now in zip(before, (cache.lengths, cache.keys(), cache.values()), strict=True):
        assert_same_bits(now, was)
    cache.attend(**arrays)


SIZES: list[tuple[str, dict[str, Any], Any, tuple[str, ...]]] = [
    *[(f"{name} {got!r}", {name: got}, exception, (name, str(word)))
      for name in ("batch", "kv_heads", "capacity", "head_dim", "v_head_dim", "window")
      for got, exception, word in ((0, ValueError, "0"), (-1, ValueError, "-1"), (1.5, TypeError, "float"), (True, TypeError, "bool"))],
    ("keep_first -1", {"keep_first": -1, "window": 3}, ValueError, ("keep_first", "0 or more", "-1")),
    ("keep_first 0.0", {"keep_first": 0.0, "window": 3}, TypeError, ("keep_first", "0 or more", "float")),
    ("capacity beyond memory", {"capacity": 2**60}, ValueError, ("capacity", "1 x 2 x 1152921504606846976 tokens of 8")),
    ("capacity beyond 64 bits", {"capacity": 10**30}, ValueError, ("capacity", "tokens of 8 and 8")),
    ("keep_first without window", {"keep_first": 1}, ValueError, ("keep_first", "1")),
    ("a window that does not fit", {"window": 4, "keep_first": 7}, ValueError, ("capacity", "11", "10")),
    ("dtype int16", {"dtype": "int16"}, TypeError, ("dtype", "int8", "int16")),
    ("dtype unknown", {"dtype": "fp8"}, TypeError, ("dtype", "int8", "fp8")),
]  # fmt: skip


@pytest.mark.parametrize(("change", "exception", "words"), [pytest.param(*row[1:], id=row[0]) for row in SIZES])
def test_refused_sizes(change: Any, exception: Any, words: Any) -> None:
    sizes = {"batch": 1, "kv_heads": 2, "capacity": 10, "head_dim": 8} | change
    assert_refused(lambda: KVCache(**sizes), exception, "KVCache", *words)


def test_refused_in_a_window(rng: np.random.Generator) -> None:
    """What has been written over cannot be gone back to; a call that would write over rows is judged before."""
    k, v, q = (make(rng, 1, 2, 40, 8) for _ in range(3))
    cache = KVCache(1, 2, 16, 8, window=10, keep_first=2)
    cache.append(k, v)
    before = cache.lengths, cache.keys(), cache.values(), cache.attend(q[:, :, :1])
    assert_refused(lambda: cache.trim(5), ValueError, "trim", "n", "token 35", "token 34")
    assert_refused(lambda: cache.attend(q[:, :, :6]), ValueError, "attend", "q", "gone")
    assert_refused(lambda: cache.attend(q, k, v, softcap=-1), ValueError, "softcap")
    assert_refused(lambda: cache.attend(q, k, v, sinks=np.ones(3)), ValueError, "sinks")
    for option in ("mask", "bias", "alibi_slopes", "window"):
        assert_refused(lambda option=option: cache.attend(q, k, v, **{option: None}), TypeError, "options", "window", option)
    for was, now in zip(before, (cache.lengths, cache.keys(), cache.values(), cache.attend(q[:, :, :1])), strict=True):
        assert_same_bits(now, was)
    cache.trim(4)
    cache.attend(q[:, :, :5], k[:, :, :5], v[:, :, :5])


@pytest.mark.parametrize("dtype", STORAGE)
def test_copies_are_apart(dtype: str, rng: np.random.Generator) -> None:
    k, v, q = (make(rng, 2, 2, 30, 8) for _ in range(3))
    for duplicate in COPIES:
        cache = KVCache(2, 2, 20, 8, dtype=dtype, window=12, keep_first=3)
        cache.append(k, v, counts=[30, 7])
        other = duplicate(cache)
        assert repr(other) == repr(cache)
        expected = cache.attend(q[:, :, :1])
        other.append(v, k)
        assert_same_bits(cache.attend(q[:, :, :1]), expected)
        cache.append(v, k)
        assert_same_bits(cache.attend(q[:, :, :1]), other.attend(q[:, :, :1]))


def test_threads_and_neighbours_do_not_matter(isa: str, rng: np.random.Generator) -> None:
    k, v, q = (make(rng, 3, 2, 400, 64) for _ in range(3))
    for sizes in ({}, {"window": 300, "keep_first": 4}):
        together, alone = KVCache(3, 2, 400, 64, **sizes), KVCache(1, 2, 400, 64, **sizes)
        for cache, part in ((together, slice(None)), (alone, slice(1, 2))):
            cache.append(k[part], v[part], counts=[380, 350, 20][part])
        expected = together.attend(q[:, :, :2], num_threads=1)
        assert_same_bits(together.attend(q[:, :, :2], num_threads=2), expected)
        assert_same_bits(alone.attend(q[1:2, :, :2]), expected[1:2])


def test_repr() -> None:
    cache = KVCache(2, 3, 10, 8, v_head_dim=4, dtype="int8", window=5, keep_first=1)
    assert repr(cache) == ("KVCache(batch=2, kv_heads=3, capacity=10, head_dim=8, v_head_dim=4, dtype='int8', window=5, keep_first=1)"
                           "  # 0 tokens, 1,200 bytes")  # fmt: skip
    cache.append(np.ones((2, 3, 2, 8)), np.ones((2, 3, 2, 4)), counts=[1, 2])
    assert "# 1 to 2 tokens" in repr(cache)
    assert repr(KVCache(1, 2, 4, 8)).startswith("KVCache(batch=1, kv_heads=2, capacity=4, head_dim=8)  # 0 tokens")
