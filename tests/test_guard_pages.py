"""No byte before or behind an array is read or written: every array ends at a page nobody may touch, then starts behind one.

A wrong access is a SIGSEGV that ends the test run with the stack printed by faulthandler, so a crash cannot pass for a success.
Sanitizers miss what masked vector loads and stores do; the memory management unit does not.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import qkvc
from qkvc._rotary import turn

from .options import DTYPES, HALVES, STORAGE
from .reference import PAIRS, lse_type, reference, reference_scores, shortening
from .rotation import rms_normed
from .support import ROOT, TOLERANCE, assert_close, assert_same_bits, in_pairs, operands

PAGE = mmap.PAGESIZE
NO_ACCESS, READ_ONLY = 0, mmap.PROT_READ
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Guarded:
    """Memory of whole pages with a page without access on both sides; inputs are read-only pages filled once with numbers."""

    def __init__(self, nbytes: int, content: NDArray[Any] | None = None) -> None:
        self.size = -(-nbytes // PAGE) * PAGE
        self.map = mmap.mmap(-1, self.size + 2 * PAGE)
        self.bytes = np.frombuffer(self.map, np.uint8)[PAGE : PAGE + self.size]
        self.content = content
        if content is not None:
            self.bytes[:] = np.resize(content.view(np.uint8), self.size)
            self._protect(self.bytes.ctypes.data, self.size, READ_ONLY)
        for page in (self.bytes.ctypes.data - PAGE, self.bytes.ctypes.data + self.size):
            self._protect(page, PAGE, NO_ACCESS)

    @staticmethod
    def _protect(address: int, size: int, access: int) -> None:
        if libc.mprotect(address, size, access):
            raise OSError(ctypes.get_errno(), "mprotect")

    def place(self, shape: tuple[int, ...], dtype: Any, side: str) -> NDArray[Any]:
        """An array right in front of the last guard page ("end") or right behind the first ("start")."""
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        assert nbytes <= self.size
        return self.bytes[self.size - nbytes if side == "end" else 0 :][:nbytes].view(dtype).reshape(shape)


PER_HEAD = ("alibi_slopes", "sinks", "head_scale")
Arena = dict[str, Guarded]


def make_arena(dtype: str) -> Arena:
    rng = np.random.default_rng(6)
    numbers = rng.standard_normal(40_000).astype(dtype)
    inputs = {name: Guarded(numbers.nbytes, np.roll(numbers, n * 7919)) for n, name in enumerate(("query", "key", "value", "bias"))}
    heads = {name: Guarded(1, np.abs(np.roll(numbers, n * 13))) for n, name in enumerate(PER_HEAD)}
    return {**inputs, **heads, "mask": Guarded(numbers.nbytes, rng.random(numbers.nbytes) < 0.7), "out": Guarded(numbers.nbytes)}


@pytest.fixture(scope="module")
def arenas() -> dict[str, Arena]:
    return {dtype: make_arena(dtype) for dtype in DTYPES + HALVES}


@pytest.fixture(scope="module")
def arena(arenas: dict[str, Arena]) -> Arena:
    return arenas["float32"]


def check(
    arenas: dict[str, Arena], dtype: str, lengths: tuple[int, int], dims: tuple[int, int], heads: tuple[int, int], kind: str, side: str
) -> None:
    (h, kv), (l_q, l_k), (d, d_v) = heads, lengths, dims
    arena = arenas[dtype]
    q, k, v = (
        arena[name].place(shape, dtype, side) for name, shape in (("query", (h, l_q, d)), ("key", (kv, l_k, d)), ("value", (kv, l_k, d_v)))
    )
    options: dict[str, Any] = {}
    if kind in ("top-left", "bottom-right"):
        options["causal"] = kind
    if kind in ("mask", "everything"):
        options["mask"] = arena["mask"].place((h, l_q, l_k), np.bool_, side)
    if kind in ("bias", "everything"):
        options["bias"] = arena["bias"].place((h, l_q, l_k), dtype, side)
    if kind in ("lengths", "everything"):
        options["key_lengths"] = l_k * 2 // 3
    if kind == "everything":
        options |= {"softcap": 3.0, **{name: arena[name].place((h,), dtype, side) for name in PER_HEAD}}
    if kind in ("window", "everything"):
        options |= {"window": (l_k // 3, l_q % 3 - 1), "causal": "bottom-right"}
    canary = arena["out"].bytes
    canary[:] = 0xA5
    out = arena["out"].place((h, l_q, d_v), dtype, side)
    qkvc.attention(q, k, v, out=out, **options)
    what = f"{kind} {side} {dtype} heads {heads} lengths {lengths} dims {dims}"
    rest = canary[: canary.size - out.nbytes] if side == "end" else canary[out.nbytes :]
    assert (rest == 0xA5).all(), f"{what}: written beside out"
    # float64 in the last bits is the business of other tests: what was read beside an array is wrong in the first.
    tolerance = TOLERANCE["out"] * 4 * (1e-6 if dtype == "float64" else 1.0)
    expected, inner = reference(q, k, v, **options), lse_type(q, k)
    rough = in_pairs(q, k, v) * PAIRS * 2 * np.abs(v.astype(np.float32)).max(initial=0) * (6 if kind == "everything" else 1)  # head_scale
    assert_close(out, expected.out, tolerance + rough + 2 * shortening(dtype, expected.out), what, dtype)
    options.pop("head_scale", None)
    assert_close(qkvc.attention_stats(q, k, top_k=1, **options).lse, expected.lse, 4 * tolerance, f"stats {what}", inner)
    weights = reference_scores(q, k, **options)
    assert_close(qkvc.attention_weights(q, k, **options), weights, tolerance, f"weights {what}", inner)


L_Q, L_K, D, D_V = range(10), range(34), range(34), (*range(6), 7, 8, 9, 15, 16, 17)
KINDS = ("plain", "top-left", "bottom-right", "mask", "bias", "lengths", "window", "everything")


@pytest.mark.parametrize("side", ["end", "start"])
def test_small_shapes_sampled(isa: str, arenas: dict[str, Arena], rng: np.random.Generator, side: str) -> None:
    for n in range(2400):
        sizes = [int(rng.choice(x)) for x in (L_Q, L_K, D, D_V)]
        heads = ((1, 1), (2, 1), (4, 2), (5, 1))[n // 5 % 4]
        check(arenas, (DTYPES + HALVES)[n % 7 % 4], (sizes[0], sizes[1]), (sizes[2], sizes[3]), heads, KINDS[n % len(KINDS)], side)


@pytest.mark.parametrize("dtype", DTYPES + HALVES)
@pytest.mark.parametrize("side", ["end", "start"])
def test_few_queries_and_keys_in_pieces(isa: str, arenas: dict[str, Arena], rng: np.random.Generator, side: str, dtype: str) -> None:
    """The squares of keys that decoding loads, and what it fetches of the next block."""
    widths = (1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 64, 65)
    for n in range(48):
        l_q, l_k, d, d_v = (int(rng.choice(x)) for x in ((1, 2, 3, 4), (32, 33, 47, 127, 128, 129, 255, 300), widths, widths))
        check(arenas, dtype, (l_q, l_k), (d, d_v), ((1, 1), (2, 1), (4, 1))[n % 3], KINDS[n % len(KINDS)], side)


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("side", ["end", "start"])
def test_rows_of_a_cache(isa: str, rng: np.random.Generator, side: str, dtype: str) -> None:
    """All of them in use, read and written beside the guard, in int8 with the unit that lies behind each."""
    memory = [Guarded(2 * 2 * 140 * (65 * 8 + 4)) for _ in range(2)]
    for (d, d_v), length, window in itertools.product(((64, 64), (17, 9), (1, 3), (33, 65)), (31, 128, 140), (None, 7)):
        sizes = {"v_head_dim": d_v, "dtype": dtype} | ({} if window is None else {"window": length - window, "keep_first": window})
        plain, cache = qkvc.KVCache(2, 2, length, d, **sizes), qkvc.KVCache(2, 2, length, d, **sizes)
        cache._rows = [m.place(x.shape, x.dtype, side) for m, x in zip(memory, cache._rows, strict=True)]
        q, k, v = operands(rng, (2,), (4, 2), (200, 200), (d, d_v))
        portions = (length - 3, 1, 2) if window is None else (length, 20, 1)
        for at, count in zip(np.cumsum((0, *portions)), portions, strict=False):
            new = [x[:, :, at : at + count] for x in (q, k, v)]
            assert_same_bits(cache.attend(*new), plain.attend(*new), (d, d_v, length, window, at))
        for m, x in zip(memory, cache._rows, strict=True):
            rest = m.bytes[: -x.nbytes] if side == "end" else m.bytes[x.nbytes :]
            rest[:] = 0xA5
        cache.reset()
        cache.append(k[:, :, :length], v[:, :, :length])
        cache.reorder([1, 0])
        for m, x in zip(memory, cache._rows, strict=True):
            assert ((m.bytes[: -x.nbytes] if side == "end" else m.bytes[x.nbytes :]) == 0xA5).all(), "written beside"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", ["end", "start"])
def test_parts_that_are_merged(isa: str, arenas: dict[str, Arena], side: str, dtype: str) -> None:
    """Any numbers will do."""
    arena = arenas[dtype]
    for blocks, l_q, d_v in itertools.product((1, 3), (1, 5, 16, 49), (1, 8, 17)):
        shapes = {"query": (blocks, 2, l_q), "key": (blocks, 2, l_q), "value": (blocks, 2, l_q, d_v)}
        parts = qkvc.AttentionParts(*(arena[name].place(shape, dtype, side) for name, shape in shapes.items()))
        expected = qkvc.merge_attention(qkvc.AttentionParts(*(x.copy() for x in parts)))
        assert_same_bits(qkvc.merge_attention(parts).out, expected.out, (blocks, l_q, d_v))


@pytest.mark.full
@pytest.mark.parametrize("dtype", DTYPES + HALVES)
@pytest.mark.parametrize("side", ["end", "start"])
@pytest.mark.parametrize("l_q", L_Q)
def test_small_shapes_all(isa: str, arenas: dict[str, Arena], l_q: int, side: str, dtype: str) -> None:
    kinds = itertools.cycle(KINDS)
    for l_k, d, d_v in itertools.product(L_K, D, D_V):
        check(arenas, dtype, (l_q, l_k), (d, d_v), (1, 1), next(kinds), side)


@pytest.mark.parametrize("dtype", DTYPES + HALVES)
@pytest.mark.parametrize("side", ["end", "start"])
def test_edges_of_tiles_and_blocks(isa: str, arenas: dict[str, Arena], side: str, dtype: str) -> None:
    """Around 16 and 48 queries, 128 and 256 keys, and dimensions that fill registers exactly or by one more or less."""
    cases = itertools.product((15, 16, 17, 47, 48, 49, 97), (1, 127, 128, 129, 257), ((8, 8), (31, 33), (64, 64), (65, 63)))
    for n, (l_q, l_k, dims) in enumerate(cases):
        check(arenas, dtype, (l_q, l_k), dims, ((1, 1), (2, 1))[n % 2], KINDS[n % len(KINDS)], side)


@pytest.mark.parametrize("side", ["end", "start"])
def test_strided_rows_and_softmax(isa: str, arena: Arena, side: str) -> None:
    """Columns, reversed rows and every second element: the last of them touches the guard page."""
    for l_k, d in itertools.product((1, 5, 16, 33, 130), (1, 3, 8, 17)):
        wide = [arena[name].place((l_k, 2 * d), np.float32, side) for name in ("query", "key", "value")]
        views = [
            [x[:, ::2] for x in wide],
            [x[:, 1::2] for x in wide],
            [x[::-1, d:] for x in wide],
            [x.reshape(2 * d, l_k).T[:, :d] for x in wide],
        ]
        for n, (q, k, v) in enumerate(views):
            assert_close(qkvc.attention(q, k, v), reference(q, k, v).out, TOLERANCE["out"] * 4, f"view {n} {side} {l_k} {d}")
    for n in (*range(1, 70), 127, 128, 129, 1000):
        x, out = arena["query"].place((3, n), np.float32, side), arena["out"].place((3, n), np.float32, side)
        assert np.abs(qkvc.softmax(x, out=out).sum(-1) - 1).max() < 1e-5
        assert np.isfinite(qkvc.logsumexp(x)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", ["end", "start"])
def test_heads_normed_and_turned_in_place(isa: str, arenas: dict[str, Arena], side: str, dtype: str) -> None:
    arena = arenas[dtype]
    for width, rows, interleaved in itertools.product((*range(2, 36), 63, 64, 65, 128), (1, 3), (False, True)):
        heads, pairs = arena["out"].place((rows, width), dtype, side), width // 2 - width % 3 // 2
        table, weight = arena["query"].place((rows, 2, pairs), dtype, side), arena["key"].place((width,), dtype, side)
        arena["out"].bytes[:] = 0xA5
        heads[...] = before = arena["value"].place((rows, width), dtype, side)
        turn(heads, table, interleaved, weight, 1e-6)
        x = rms_normed(before, weight, 1e-6)
        low, high = (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)) if interleaved else (slice(0, pairs), slice(pairs, 2 * pairs))
        (a, b), (cos, sin) = (x[:, low], x[:, high]), table.astype(x.dtype).swapaxes(0, 1)
        x[:, low], x[:, high] = a * cos - b * sin, b * cos + a * sin
        assert_close(heads, x, 1e-4 if dtype == "float32" else 1e-12, f"{side} {width} {rows}", dtype)
        rest = arena["out"].bytes[: -heads.nbytes] if side == "end" else arena["out"].bytes[heads.nbytes :]
        assert (rest == 0xA5).all(), f"{side} {width} {rows}: written beside"


@pytest.mark.parametrize("offset", ["array.size", "-1"], ids=["behind", "before"])
def test_the_guards_bite(offset: str) -> None:
    """One read beside the array must end the process, or everything above is blind."""
    code = f"""
import ctypes, numpy as np
from tests.test_guard_pages import Guarded
memory = Guarded(4096, np.ones(1024, np.float32))
array = memory.bytes
print("before", flush=True)
ctypes.string_at(array.ctypes.data + {offset}, 1)
print("after", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    assert "before" in done.stdout, done.stderr
    assert "after" not in done.stdout
    assert done.returncode == -11
