"""project: x @ weight.T + bias, against NumPy in float64, in every memory, and to the bit whatever runs beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import qkvc
from qkvc._linear import project

from .support import MEMORY, assert_refused, assert_same_bits
from .test_guard_pages import Guarded

TOKENS = (0, 1, 17, 47, 48, 49, 1000)
SIZES = ((1, 1), (7, 5), (16, 48), (64, 64), (127, 33), (129, 130), (300, 1), (0, 9), (9, 0), (1100, 40), (24, 1600))  # E, N

Real = type[np.floating[Any]]
Operands = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


@pytest.fixture(params=[np.float32, np.float64])
def real(request: pytest.FixtureRequest) -> Real:
    """Every dtype that there are kernels for."""
    return request.param


def linear(rng: np.random.Generator, leading: tuple[int, ...], E: int, N: int, real: Real) -> Operands:
    x, weight, bias = (rng.standard_normal(shape, dtype=real) for shape in ((*leading, E), (N, E), (N,)))
    return x, weight, bias


def roundings(E: int) -> int:
    """What a term passes through: its chain of 16, the chains of its block of 128, the blocks, the bias and the product's own."""
    return min(E, 16) + -(-min(E, 128) // 16) + -(-E // 128) + 2


def assert_linear(got: NDArray[Any], x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any] | None, what: object = "") -> None:
    """Within the worst that the roundings of docs/arithmetic.md, clause 8, can do to each element."""
    wide = np.float64 if x.dtype == np.float32 else np.longdouble
    x, weight, bias = (np.asarray(a, wide) for a in (x, weight, 0.0 if bias is None else bias))
    expected = x @ weight.T + bias
    bound = roundings(x.shape[-1]) * np.finfo(got.dtype).eps * (np.abs(x) @ np.abs(weight).T + np.abs(bias))
    assert got.shape == expected.shape
    assert (np.abs(got - expected) <= bound).all(), what


@pytest.mark.parametrize("tokens", TOKENS)
def test_numbers(isa: str, rng: np.random.Generator, real: Real, tokens: int) -> None:
    for E, N in SIZES:
        x, weight, bias = linear(rng, (tokens,), E, N, real)
        got = project(x, weight, bias)
        assert got.dtype == real
        assert_linear(got, x, weight, bias, f"{E} -> {N}")
        assert_linear(project(x, weight), x, weight, None, f"{E} -> {N} without bias")


def test_leading_axes(isa: str, rng: np.random.Generator, real: Real) -> None:
    for leading in ((), (0, 3), (5,), (2, 3), (3, 1, 20), (2, 3, 4, 5)):
        x, weight, bias = linear(rng, leading, 20, 30, real)
        got = project(x, weight, bias)
        assert_linear(got, x, weight, bias, leading)
        assert got.flags.c_contiguous
        assert got.flags.owndata


def test_memory(isa: str, rng: np.random.Generator, real: Real) -> None:
    """Any strides of any operand, the transposed weight of GPT-2 among them, and not a bit moves."""
    x, weight, bias = linear(rng, (3, 21), 150, 70, real)
    expected = project(x, weight, bias)
    for name, place in MEMORY.items():
        if name != "other byte order":
            assert_same_bits(project(place(x), weight, bias), expected, f"x {name}")
            assert_same_bits(project(x, place(weight), bias), expected, f"weight {name}")
            assert_same_bits(project(x, weight, place(bias[:, np.newaxis])[:, 0]), expected, f"bias {name}")
            assert_same_bits(project(place(x), place(weight), bias), expected, f"both {name}")
    assert_same_bits(project(x, np.ascontiguousarray(weight.T).T, bias), expected, "transposed")
    swapped = np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1)
    assert_same_bits(project(swapped, weight, bias), expected, "tokens outermost")
    for corner in ((slice(2), slice(2)), (slice(2), slice(0, 9, 8)), (slice(None, None, -2), 5), (2, slice(3, 0, -1))):
        assert_same_bits(project(x[corner], weight, bias), expected[corner], f"few tokens {corner}")
        out = np.full_like(expected, np.nan)
        project(x[corner], weight, bias, out[corner])
        assert_same_bits(out[corner], expected[corner], f"few tokens {corner}, out")
        assert np.isnan(out).sum() == out.size - out[corner].size
    repeated = np.broadcast_to(x[:1], x.shape)
    assert_same_bits(project(repeated, weight, bias), np.broadcast_to(expected[:1], expected.shape), "stride 0")
    assert_same_bits(project(x, np.broadcast_to(weight[:1], weight.shape)), project(x, weight[:1].repeat(70, 0)), "one row for all")


def test_out(isa: str, rng: np.random.Generator, real: Real) -> None:
    """Any strides; and nothing is written beside it, as where Q, K and V share an array."""
    x, weight, bias = linear(rng, (2, 50), 40, 35, real)
    expected = project(x, weight, bias)
    for name in ("contiguous", "fortran", "gaps on every axis", "padded rows", "reversed", "rows outermost"):
        out = MEMORY[name](np.full(expected.shape, np.nan, real))
        assert project(x, weight, bias, out) is out
        assert_same_bits(out, expected, name)
    wide = np.full((2, 50, 105), np.nan, real)
    project(x, weight, bias, out=wide[..., 35:70])
    assert_same_bits(wide[..., 35:70], expected, "a slice")
    assert np.isnan(wide[..., :35]).all()
    assert np.isnan(wide[..., 70:]).all()
    heads = np.empty((2, 7, 50, 5), real)
    parts = np.moveaxis(project(x, weight, bias).reshape(2, 50, 7, 5), 2, 1)
    for h in range(7):
        project(x, weight[5 * h : 5 * h + 5], bias[5 * h : 5 * h + 5], heads[:, h])
    assert_same_bits(heads, parts, "head by head")


def test_plus(isa: str, rng: np.random.Generator, real: Real) -> None:
    """What the sums start from: exact with small integers, of any strides, and `out` itself may be it."""
    for tokens, E, N in ((1, 300, 40), (7, 16, 33), (50, 130, 70), (200, 1100, 20)):
        x, weight, bias, plus = (rng.integers(-8, 9, shape).astype(real) for shape in ((tokens, E), (N, E), (N,), (tokens, N)))
        expected = plus + x @ weight.T + bias
        for name in ("contiguous", "fortran", "padded rows", "reversed"):
            np.testing.assert_array_equal(project(x, weight, bias, plus=MEMORY[name](plus)), expected, name)
        assert project(x, weight, bias, plus, plus=plus) is plus
        np.testing.assert_array_equal(plus, expected)
    x, weight, bias = linear(rng, (130,), 90, 50, real)
    plus = rng.standard_normal((130, 50)).astype(real)
    whole = project(x, weight, bias, plus=plus, num_threads=1)
    for n in (1, 5, 129):
        assert_same_bits(project(x[:n], weight, bias, plus=plus[:n], num_threads=2), whole[:n], f"{n} tokens")


def test_gradients_are_products(isa: str, rng: np.random.Generator, real: Real) -> None:
    """Both operands turned, so that neighbouring rows of x are neighbours in memory: a whole vector of them is read at once."""
    for tokens, E, N in ((3, 5, 7), (50, 48, 96), (300, 33, 49), (1100, 20, 16)):
        x, dy = (rng.integers(-8, 9, shape).astype(real) for shape in ((tokens, E), (tokens, N)))
        np.testing.assert_array_equal(project(dy.T, x.T), dy.T @ x)
        out = np.empty((N, E), real)
        project(x.T, dy.T, None, out.T)
        np.testing.assert_array_equal(out, dy.T @ x)
        weight = rng.integers(-8, 9, (N, E)).astype(real)
        np.testing.assert_array_equal(project(dy, weight.T), dy @ weight)
    x, dy = rng.standard_normal((2, 400, 70)).astype(real)
    assert_same_bits(project(dy.T, x.T), project(np.ascontiguousarray(dy.T), np.ascontiguousarray(x.T)), "the same order")


@pytest.mark.parametrize("shape", [(1, 300, 2000), (5, 768, 700), (130, 200, 300), (1000, 64, 64)], ids=str)
def test_threads_and_neighbours(isa: str, rng: np.random.Generator, real: Real, shape: tuple[int, int, int]) -> None:
    """Bits depend on E alone: not on threads, on the number of tokens, nor on how many rows the weight has."""
    tokens, E, N = shape
    x, weight, bias = linear(rng, (tokens,), E, N, real)
    expected = project(x, weight, bias, num_threads=1)
    for threads in (1, 2, 3, 7):
        for _ in range(5):
            assert_same_bits(project(x, weight, bias, num_threads=threads), expected, f"{threads} threads")
        assert_same_bits(project(x, np.asfortranarray(weight), bias, num_threads=threads), expected, f"{threads} threads, columns")
    for n in {0, 1, tokens // 2, tokens - 1}:
        assert_same_bits(project(x[n:], weight, bias), expected[n:], f"tokens from {n}")
        assert_same_bits(project(x[: n + 1], weight, bias), expected[: n + 1], f"tokens to {n}")
    for n in (1, 7, N // 2):
        assert_same_bits(project(x, weight[n:], bias[n:]), expected[:, n:], f"rows from {n}")
        assert_same_bits(project(x, weight[:n], bias[:n]), expected[:, :n], f"rows to {n}")


@pytest.mark.parametrize(
    "shape", [(520, 1100, 760), (520, 1100, 800), (513, 90, 5600), (513, 2050, 20), (600, 0, 9), (700, 1025, 1)], ids=str
)
def test_adjacent_rows_in_pieces(isa: str, rng: np.random.Generator, real: Real, shape: tuple[int, int, int]) -> None:
    """From 512 tokens on such a weight is turned in pieces of 768 rows and 4096 bytes, or more where there is room; no bit moves."""
    tokens, E, N = shape
    x, weight, bias = linear(rng, (tokens,), E, N, real)
    plus, columns = rng.standard_normal((tokens, N)).astype(real), np.asfortranarray(weight)
    for options in ({}, {"bias": bias}, {"bias": bias, "plus": plus}, {"bias": bias, "gelu": real is np.float32}):
        expected = project(x, weight, **options)
        for threads in (1, 2):
            assert_same_bits(project(x, columns, **options, num_threads=threads), expected, f"{list(options)}, {threads} threads")
    expected = project(x, weight, bias, plus=plus)
    assert_same_bits(project(x, columns, bias, plus, plus=plus), expected, "in place")


def in_order(x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any], fused: bool) -> NDArray[np.float32]:
    """Clause 8 of docs/arithmetic.md, step by step: small integers in float64 are exact, so that each step rounds once, to float32."""

    def rounded(a: NDArray[Any]) -> NDArray[np.float64]:
        return a.astype(np.float32).astype(np.float64)

    E = x.shape[1]
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    total = np.zeros((len(x), len(weight)))
    for block in range(0, E, 128):
        end = min(block + 128, E)
        of_block = np.zeros_like(total)
        for segment in range(block, end, 16):
            chain = np.zeros_like(total)
            for e in range(segment, min(segment + 16, end)):
                product = x[:, e, np.newaxis] * weight[:, e]
                chain = rounded((product if fused else rounded(product)) + chain)
            of_block = rounded(of_block + chain)
        total = rounded(total + of_block)
    return rounded(total + bias).astype(np.float32)


@pytest.mark.parametrize("E", [1, 15, 16, 17, 127, 128, 130, 1023, 1025, 2200])
def test_order_of_the_sum(isa: str, rng: np.random.Generator, E: int) -> None:
    """Integers whose products fill a float32, so that every other order would round otherwise."""
    x, weight, bias = (rng.integers(-8191, 8192, shape).astype(np.float32) for shape in ((19, E), (150, E), (150,)))
    expected = in_order(x, weight, bias, fused=isa != "portable")
    assert_same_bits(project(x, weight, bias), expected, "rows")
    assert_same_bits(project(x, np.asfortranarray(weight), bias), expected, "columns")
    for n in range(1, 18):
        assert_same_bits(project(x[:n], weight, bias), expected[:n], f"{n} tokens")
        assert_same_bits(project(x[-n:], np.asfortranarray(weight), bias), expected[-n:], f"{n} tokens, columns")


@pytest.mark.parametrize("E", [5, 128, 200])
def test_few_tokens_wherever_cache_lines_begin(isa: str, rng: np.random.Generator, real: Real, E: int) -> None:
    """The weight's rows are transposed from the lines of memory that they lie in, the sums are of its columns."""
    x, weight, bias = linear(rng, (2,), E, 40, real)
    expected = project(x.repeat(20, 0), weight, bias)[::20]
    memory = np.empty(weight.size + 16, real)
    for offset in range(16):
        moved = memory[offset : offset + weight.size].reshape(weight.shape)
        moved[:] = weight
        assert_same_bits(project(x, moved, bias), expected, f"{offset} numbers further")


@pytest.mark.parametrize("tokens", [1, 3, 16])
def test_few_tokens_and_much_of_everything(isa: str, rng: np.random.Generator, tokens: int) -> None:
    """More columns than are packed at a time, more outputs than a task has: exact, because the integers are small."""
    for E, N in ((16384 + 33, 20), (40, 16384 + 129)):
        x, weight, bias = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((tokens, E), (N, E), (N,)))
        expected = x.astype(np.float64) @ weight.T.astype(np.float64) + bias
        for threads in (1, 3):
            np.testing.assert_array_equal(project(x, weight, bias, num_threads=threads), expected)
            np.testing.assert_array_equal(project(x, np.asfortranarray(weight), bias, num_threads=threads), expected)


def test_kernel_sets_with_fma_agree(rng: np.random.Generator, real: Real) -> None:
    with_fma = [name for name in qkvc.kernels() if name != "portable"]
    if len(with_fma) < 2:
        pytest.skip(f"this CPU runs only {with_fma or 'the portable kernels'}, and two kernel sets with FMA are needed")
    for tokens in TOKENS:
        x, weight, bias = linear(rng, (tokens,), 300, 77, real)
        results = []
        for name in with_fma:
            with qkvc.use_kernels(name):
                results.append(project(x, weight, bias))
        for result in results[1:]:
            assert_same_bits(result, results[0], f"{tokens} tokens")


def test_poison_stays_where_it_is(isa: str, rng: np.random.Generator, real: Real) -> None:
    """A token's NaN or infinity reaches that token alone, a weight row's that output alone."""
    x, weight, bias = linear(rng, (61,), 140, 50, real)
    clean = project(x, weight, bias)
    for bad in (np.nan, np.inf, -np.inf):
        sick = x.copy()
        sick[7, 3], sick[60, 139] = bad, bad
        got = project(sick, weight, bias)
        assert not np.isfinite(got[[7, 60]]).any()
        rest = np.delete(np.arange(61), [7, 60])
        assert_same_bits(got[rest], clean[rest], f"{bad} in x")
        sick = weight.copy()
        sick[49, 0] = bad
        got = project(x, sick, bias)
        assert not np.isfinite(got[:, 49]).any()
        assert_same_bits(got[:, :49], clean[:, :49], f"{bad} in the weight")
        sick = bias.copy()
        sick[0] = bad
        got = project(x, weight, sick)
        assert not np.isfinite(got[:, 0]).any()
        assert_same_bits(got[:, 1:], clean[:, 1:], f"{bad} in the bias")


def test_exact_where_exact_is_possible(isa: str, rng: np.random.Generator, real: Real) -> None:
    """Small integers: every order of the sum gives the same, so every element must be right to the last bit."""
    for tokens, E, N in ((1, 1000, 40), (100, 300, 33), (33, 16, 500)):
        x, weight, bias = (rng.integers(-8, 9, shape).astype(real) for shape in ((tokens, E), (N, E), (N,)))
        np.testing.assert_array_equal(project(x, weight, bias), x.astype(int) @ weight.T.astype(int) + bias.astype(int))


@pytest.fixture(scope="module")
def arena() -> dict[str, Guarded]:
    numbers = np.random.default_rng(3).standard_normal(40_000, dtype=np.float32)
    inputs = {name: Guarded(numbers.nbytes, np.roll(numbers, n * 7919)) for n, name in enumerate(("x", "weight", "bias"))}
    return {**inputs, "out": Guarded(numbers.nbytes)}


@pytest.mark.parametrize("side", ["end", "start"])
def test_guard_pages(isa: str, arena: dict[str, Guarded], rng: np.random.Generator, real: Real, side: str) -> None:
    for n in range(300):
        tokens, E, N = (int(rng.choice(sizes)) for sizes in ((*range(20), 47, 48, 49, 97), range(140), (*range(34), 63, 64, 65, 130)))
        x, bias = arena["x"].place((tokens, E), real, side), arena["bias"].place((N,), real, side)
        weight = arena["weight"].place((N, E), real, side) if n % 2 else arena["weight"].place((E, N), real, side).T
        canary = arena["out"].bytes
        canary[:] = 0xA5
        out = arena["out"].place((tokens, N), real, side)
        project(x, weight, bias, out)
        rest = canary[: canary.size - out.nbytes] if side == "end" else canary[out.nbytes :]
        assert (rest == 0xA5).all(), f"{tokens} x {E} -> {N}: written beside out"
        assert_linear(out, x, weight, bias, f"{tokens} x {E} -> {N}")


def test_refused() -> None:
    x, weight, bias = np.ones((3, 4), np.float32), np.ones((5, 4), np.float32), np.ones(5, np.float32)
    out = np.full((3, 5), 7, np.float32)
    for arguments, error, words in (
        ((np.float32(1), weight, bias), ValueError, ("project: x:", "axes", "()")),
        ((x, weight.T, bias), ValueError, ("project: weight:", "(N, 4)", "(4, 5)")),
        ((x, bias, bias), ValueError, ("project: weight:", "(5,)")),
        ((x, weight, bias[:4]), ValueError, ("project: bias:", "(5,)", "(4,)")),
        ((x, weight, weight), ValueError, ("project: bias:", "(5, 4)")),
        ((x.astype(np.float16), weight, bias), TypeError, ("project: x:", "float16")),
        ((x, weight.astype(int), bias), TypeError, ("project: weight:", "float32", "int64")),
        ((x.astype(np.float64), weight, bias), TypeError, ("project: weight:", "float64", "float32")),
        ((x, weight, bias.astype(">f4")), TypeError, ("project: bias:", ">f4")),
        ((x, weight, bias, out, None, False, bias), ValueError, ("project: plus:", "(3, 5)", "(5,)")),
        ((x, weight, bias, out, None, False, out.astype(float)), TypeError, ("project: plus:", "float64")),
        ((x, weight, bias, out, None, False, out[::-1]), ValueError, ("project: out:", "plus")),
    ):
        assert_refused(lambda a=arguments: project(*a), error, *words)
    assert_refused(lambda: project(x, weight, bias, out[:2]), ValueError, "project: out:", "(3, 5)", "(2, 5)")
    assert_refused(lambda: project(x, weight, bias, out, num_threads=0), ValueError, "num_threads", "0")
    assert_refused(lambda: project(x, x, None, x[:, :3]), ValueError, "project: out:", "memory")
    assert (out == 7).all()
