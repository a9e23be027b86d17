"""The kernel sets alone: exp2 of each of them, and the choice between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import qkvc
from qkvc import _kernels

from .support import assert_refused, assert_same_bits, bits, run_child

LOWEST = np.float32(-126)  # the end of exp2's domain: 2**-126 is the smallest normal number


def negatives(first: int, last: int, step: int = 1) -> NDArray[np.float32]:
    """Negative numbers by their bit patterns, from -0.0 (0) downwards; consecutive patterns are neighbours."""
    return (np.arange(first, last, step, dtype=np.uint64) | 0x80000000).astype(np.uint32).view(np.float32)


PATTERNS = int(bits(LOWEST)[()]) - 0x80000000 + 1  # from -0.0 to -126, both included


def check_exp2(x: NDArray[np.float32]) -> float:
    """Largest error, in units of the last place of the float64 result rounded to float32."""
    got = _kernels.exp2(x)
    assert got.dtype == np.float32
    assert got.shape == x.shape
    exact = np.exp2(x.astype(np.float64))
    return float((np.abs(got - exact) / np.spacing(exact.astype(np.float32))).max())


def edges() -> Iterator[NDArray[np.float32]]:
    """A thousand neighbours around each place where the integer part of x changes, and half-way, where its rounding does."""
    for n in range(126):
        for middle in (-n, -n - 0.5):
            pattern = int(bits(np.float32(middle))[()]) & 0x7FFFFFFF
            yield negatives(max(pattern - 500, 0), pattern + 500)


def test_exp2_is_within_one_ulp_sampled(isa: str, figures: list[str]) -> None:
    worst = check_exp2(negatives(0, PATTERNS, 997))  # 1.1 million numbers of every exponent
    worst = max(worst, check_exp2(negatives(PATTERNS - 200_000, PATTERNS)), *map(check_exp2, edges()))
    figures.append(f"exp2, {isa}: largest error {worst:.3f} ULP of 1.4 million arguments")
    assert worst <= 1


@pytest.mark.full
def test_exp2_is_within_one_ulp_everywhere(isa: str, figures: list[str]) -> None:
    """All 1,123,811,329 float32 from -0.0 to -126."""
    piece, worst = 1 << 24, 0.0
    for first in range(0, PATTERNS, piece):
        worst = max(worst, check_exp2(negatives(first, min(first + piece, PATTERNS))))
    figures.append(f"exp2, {isa}: largest error {worst:.4f} ULP of all {PATTERNS:,} arguments")
    assert worst <= 1


def test_exp2_steps_back_by_one_ulp_at_most(isa: str) -> None:
    """An error below 1 ULP allows neighbours in the wrong order, by their last bit and no more."""
    for x in (*edges(), negatives(0, PATTERNS, 9973)):
        y = _kernels.exp2(x).view(np.int32)  # positive floats order as their bit patterns do
        assert np.diff(y).max(initial=0) <= 1


def test_exp2_at_its_ends(isa: str) -> None:
    ones = np.array([0.0, -0.0, -1e-45, -1e-38, -1e-30, -1e-9], np.float32)
    assert_same_bits(_kernels.exp2(ones), np.ones(6, np.float32), "exp2 of nearly 0 is exactly 1")
    whole = -np.arange(127, dtype=np.float32)
    assert_same_bits(_kernels.exp2(whole), np.ldexp(np.float32(1), -np.arange(127)).astype(np.float32), "powers of two are exact")
    below = np.array([np.nextafter(LOWEST, np.float32(-np.inf)), -126.5, -127, -150, -1000, -1e10, -3.4e38, -np.inf], np.float32)
    assert_same_bits(_kernels.exp2(below), np.zeros(8, np.float32), "below the domain +0")


def test_exp2_keeps_nan(isa: str) -> None:
    payloads = np.array([0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFC00000, 0xFF800001, 0xFFFFFFFF, 0x7FA00000, 0xFFD5A5A5], np.uint32)
    for n in range(1, 70):  # in every lane, beside numbers that must not be touched
        x = -np.arange(n, dtype=np.float32)
        expected = _kernels.exp2(x)
        for lane in range(n):
            hit = x.copy()
            hit.view(np.uint32)[lane] = payloads[lane % 8]
            got = _kernels.exp2(hit)
            assert np.isnan(got[lane])
            assert_same_bits(np.delete(got, lane), np.delete(expected, lane))


# --- exp2 of float64 -------------------------------------------------------------------------------------------------------------------


def doubles(rng: np.random.Generator, n: int) -> Iterator[NDArray[np.float64]]:
    """From the whole domain, from where weights are large, of every magnitude, and around each place where an integer part changes."""
    yield -rng.uniform(0, 1022, n)
    yield -rng.uniform(0, 2, n)
    yield -(2.0 ** rng.uniform(-60, 10, n)).clip(0, 1022)
    steps = np.arange(0, 1022, 0.5)[:, None] * (1 + np.arange(-8, 9) * 2.0**-52)
    yield -steps.ravel()


def worst_ulp_of_float64(rng: np.random.Generator, n: int) -> float:
    """Against long double, which has eleven bits more."""
    assert np.finfo(np.longdouble).nmant >= 63
    worst = 0.0
    for x in doubles(rng, n):
        exact = np.exp2(x.astype(np.longdouble))
        error = np.abs(_kernels.exp2(x) - exact) / np.spacing(exact.astype(np.float64))
        worst = max(worst, float(error.max()))
    return worst


def test_exp2_of_float64_is_within_one_ulp(isa: str, rng: np.random.Generator, figures: list[str]) -> None:
    worst = worst_ulp_of_float64(rng, 400_000)
    figures.append(f"exp2, {isa}, float64: largest error {worst:.3f} ULP of 1.2 million arguments")
    assert worst <= 1


@pytest.mark.full
def test_exp2_of_float64_is_within_one_ulp_often(isa: str, rng: np.random.Generator, figures: list[str]) -> None:
    worst = max(worst_ulp_of_float64(rng, 1_000_000) for _ in range(35))
    figures.append(f"exp2, {isa}, float64: largest error {worst:.3f} ULP of 105 million arguments")
    assert worst <= 1


def test_exp2_of_float64_at_its_ends(isa: str) -> None:
    ones = np.array([0.0, -0.0, -5e-324, -1e-300, -1e-17])
    np.testing.assert_array_equal(_kernels.exp2(ones), 1, "exp2 of nearly 0 is exactly 1")
    np.testing.assert_array_equal(_kernels.exp2(-np.arange(1023.0)), 2.0 ** -np.arange(1023.0), "powers of two are exact")
    below = np.array([np.nextafter(-1022, -np.inf), -1022.5, -1023, -1100, -1e10, -1.7e308, -np.inf])
    assert_same_bits(_kernels.exp2(below), np.zeros(7), "below the domain +0")


def test_exp2_of_float64_keeps_nan(isa: str) -> None:
    payloads = np.array([0x7FF8, 0x7FF0_0000_0000_0001, 0x7FFF_FFFF_FFFF_FFFF, 0xFFF0_0000_0000_0001, 0xFFFF_FFFF_FFFF_FFFF], np.uint64)
    payloads[0] <<= np.uint64(48)
    for n in range(1, 40):
        x = -np.arange(n, dtype=np.float64)
        expected = _kernels.exp2(x)
        for lane in range(n):
            hit = x.copy()
            hit.view(np.uint64)[lane] = payloads[lane % 5]
            got = _kernels.exp2(hit)
            assert np.isnan(got[lane])
            assert_same_bits(np.delete(got, lane), np.delete(expected, lane))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp2_of_any_length(isa: str, dtype: Any) -> None:
    """Remainders compute what full vectors compute."""
    x = (-np.abs(np.random.default_rng(1).standard_normal(300)) * 20).astype(dtype)
    whole = _kernels.exp2(x)
    for n in (*range(70), 127, 255):
        assert_same_bits(_kernels.exp2(x[:n]), whole[:n], f"{n} numbers")


@pytest.mark.parametrize("x", [negatives(0, PATTERNS, 9973), -np.linspace(0, 1022, 100_003)], ids=["float32", "float64"])
def test_exp2_is_the_same_in_every_set_with_fma(x: NDArray[Any]) -> None:
    results = {}
    for name in qkvc.kernels():
        with qkvc.use_kernels(name):
            results[name] = _kernels.exp2(x)
    fused = [result for name, result in results.items() if name != "portable"] or [results["portable"]]
    for result in fused:
        assert_same_bits(result, fused[0])


# --- the choice ------------------------------------------------------------------------------------------------------------------------


def in_use() -> str:
    return qkvc.show_config("dicts")["kernels"]["in use"]


def test_use_kernels_nests_and_restores() -> None:
    before = in_use()
    for outer in qkvc.kernels():
        with qkvc.use_kernels(outer):
            assert in_use() == outer
            with qkvc.use_kernels("portable"):
                assert in_use() == "portable"
            assert in_use() == outer
            with pytest.raises(RuntimeError, match="inside"), qkvc.use_kernels("portable"):
                raise RuntimeError("inside")
            assert in_use() == outer
    assert in_use() == before


def test_the_best_set_is_first_and_the_default() -> None:
    names = qkvc.kernels()
    assert names[-1] == "portable"
    assert len(set(names)) == len(names)
    printed = run_child("import qkvc; print(qkvc.show_config('dicts')['kernels']['in use'])", QKVC_ISA="")
    assert printed.strip() == names[0]


def test_unknown_kernels_are_refused() -> None:
    before = in_use()
    for name in ("sse2", "", "AVX2 ", None, 3):

        def use(name: object = name) -> None:
            with qkvc.use_kernels(name):  # type: ignore[arg-type]
                raise AssertionError("must not get here")

        assert_refused(use, TypeError if not isinstance(name, str) else ValueError, *qkvc.kernels())
    assert in_use() == before


@pytest.mark.parametrize("name", qkvc.kernels())
def test_qkvc_isa_chooses_at_import(name: str) -> None:
    code = """
        import numpy as np, qkvc
        x = np.ones((3, 8), np.float32)
        assert (qkvc.attention(x, x, x) == 1).all()
        print(qkvc.show_config("dicts")["kernels"]["in use"])
    """
    assert run_child(code, QKVC_ISA=name).strip() == name


def test_an_unknown_qkvc_isa_is_an_import_error_that_says_so() -> None:
    code = """
        try:
            import qkvc
        except ImportError as error:
            print(error)
    """
    printed = run_child(code, QKVC_ISA="sse9")
    for word in ("QKVC_ISA", "sse9", *qkvc.kernels()):
        assert word in printed


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fma_peak_counts_something(dtype: Any) -> None:
    one = _kernels.fma_peak(1, 0.02, dtype)
    assert 0.1 < one < 10_000


@pytest.mark.parametrize("threads", [1, 3])
def test_read_rate_loads_every_number_once(isa: str, threads: int, rng: np.random.Generator) -> None:
    x = rng.integers(-9, 10, 12 * 128 * 50).astype(np.float32)  # whose sums are exact
    rate, total = _kernels.read_rate(x, threads)
    assert total == x.sum(dtype=np.float64)
    assert rate > 0
