"""softmax and logsumexp against scipy.special in float64: any axis, any shape, any memory, and every number float32 has."""

from __future__ import annotations

from typing import Any

import hypothesis
import numpy as np
import pytest
import scipy.special
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

import qkvc

from .support import MEMORY, assert_refused, assert_same_bits, normal

ULP = 4  # the promise for softmax


def exact(function: Any, x: NDArray[Any], axis: Any) -> NDArray[Any]:
    with np.errstate(all="ignore"):
        return np.asarray(function(x.astype(np.float64), axis=axis))


def check_softmax(x: NDArray[Any], axis: Any = -1, what: object = "") -> float:
    """The NaNs of SciPy, and everything else within 4 ULP of the float64 result; the largest error in ULP."""
    got = qkvc.softmax(x, axis)
    expected = exact(scipy.special.softmax, x, axis)
    assert got.shape == expected.shape, what
    assert got.dtype == np.float32, what
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected), err_msg=str(what))
    known = ~np.isnan(expected)
    with np.errstate(all="ignore"):
        rounded = expected[known].astype(np.float32)
    error = np.abs(got[known] - expected[known]) / np.spacing(rounded).astype(np.float64)
    worst = float(error.max(initial=0))
    assert worst <= ULP, f"{what}: {worst:.4g} ULP at {expected[known][error.argmax()]:.6g}"
    return worst


def check_logsumexp(x: NDArray[Any], axis: Any = -1, what: object = "") -> None:
    """Within 4 ULP of the result or, where numbers of both signs cancel, of the largest number that went in."""
    got = qkvc.logsumexp(x, axis)
    expected = exact(scipy.special.logsumexp, x, axis)
    assert np.shape(got) == expected.shape, what
    assert got.dtype == np.float32, what
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.asarray(got)[~finite], expected[~finite], err_msg=str(what))
    with np.errstate(all="ignore"):
        largest = np.where(np.isfinite(x), np.abs(x), 0).max(axis, initial=1)
    allowed = ULP * np.spacing(np.maximum(np.abs(expected), largest).astype(np.float32)).astype(np.float64)
    error = np.abs(np.asarray(got, np.float64) - expected)[finite]
    assert (error <= allowed[finite]).all(), f"{what}: {(error / allowed[finite]).max() * ULP:.4g} ULP"


def check(x: NDArray[Any], axis: Any = -1, what: object = "") -> None:
    check_softmax(x, axis, what)
    check_logsumexp(x, axis, what)


# --- numbers ---------------------------------------------------------------------------------------------------------------------------


SPREADS = (0, 1e-3, 1, 10, 30, 90, 150, 300, 1e4, 1e30)
ERRORS: dict[str, float] = {}


@pytest.mark.parametrize("spread", SPREADS)
def test_any_spread(isa: str, rng: np.random.Generator, figures: list[str], spread: float) -> None:
    worst = 0.0
    for n in (1, 2, 3, 7, 8, 16, 17, 31, 64, 100, 257, 1000, 4099):
        x = normal(rng, 20, n) * np.float32(spread)
        worst = max(worst, check_softmax(x, what=n))
        check_logsumexp(x, what=n)
        check((x - 80 * np.float32(spread)), what=f"{n}, far from zero")
    ERRORS[isa] = max(worst, ERRORS.get(isa, 0))
    if spread == SPREADS[-1]:
        figures.append(f"softmax, {isa}: largest error {ERRORS[isa]:.2f} ULP")


def test_denormal_results(isa: str) -> None:
    """Between 2**-126 and 2**-149 a result is denormal, below it is 0; no cliff between them."""
    x = np.concatenate([[0], -np.linspace(80, 110, 3001)]).astype(np.float32)
    check(x)
    got = qkvc.softmax(x)
    assert ((got > 0) & (got < 2.0**-126)).sum() > 500
    assert got[-1] == 0


@pytest.mark.parametrize("kind", ["uniform", "normal", "wide", "one large", "ascending", "descending"])
def test_rows_of_a_million(isa: str, rng: np.random.Generator, kind: str) -> None:
    """One float32 chain over 1e6 terms would be wrong by hundreds of ULP."""
    n = 1_000_003
    x = {
        "uniform": np.zeros(n, np.float32),
        "normal": normal(rng, n),
        "wide": normal(rng, n) * 20,
        "one large": np.where(np.arange(n) == 777_777, 12, 0).astype(np.float32),
        "ascending": np.linspace(-30, 30, n, dtype=np.float32),
        "descending": np.linspace(30, -30, n, dtype=np.float32),
    }[kind]
    check(x, what=kind)


def test_special_numbers(isa: str) -> None:
    """Every combination of them, at every place of a short and of a long row: NaN and Inf as in SciPy."""
    numbers = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, 3.4e38, -3.4e38, 1e-45]
    pairs = np.array(np.meshgrid(*[numbers] * 3)).reshape(3, -1).T.astype(np.float32)
    check(pairs, what="all triples")
    check(np.ascontiguousarray(pairs.T), 0, what="all triples in columns")
    for number in numbers:
        for n in (1, 2, 17, 70, 300):
            rows = np.tile(np.linspace(-3, 3, n, dtype=np.float32), (n, 1))
            np.fill_diagonal(rows, number)
            check(rows, what=f"{number} in {n}")
    for pattern in (0x7F800001, 0xFFFFFFFF, 0xFFBFFFFF):
        odd = np.zeros(40, np.float32)
        odd.view(np.uint32)[23] = pattern
        assert np.isnan(qkvc.softmax(odd)).all()
        assert np.isnan(qkvc.logsumexp(odd))


# --- axes and shapes -------------------------------------------------------------------------------------------------------------------


def test_every_axis(isa: str, rng: np.random.Generator) -> None:
    x = normal(rng, 3, 1, 5, 4)
    axes: list[Any] = [None, 0, 1, 2, 3, -1, -2, -4, (0, 1), (2, 0), (-1, 1), (0, 1, 2, 3), (3, 2, 1, 0), ()]
    for axis in axes:
        check(x, axis, axis)
        check(np.moveaxis(x, 0, 2), axis, f"{axis} of a view")
    for shape in ((7,), (1,), (2, 3), (40, 70), (2, 129, 3), (2, 3, 4, 5, 6)):
        for n in (None, *range(-len(shape), len(shape))):
            check(normal(rng, *shape), n, (shape, n))


def test_no_axes(isa: str) -> None:
    for number in (3.0, -1e30, np.inf, np.nan):
        for axis in (None, -1, ()):
            assert np.shape(qkvc.softmax(np.array(number, np.float32), axis)) == ()
            np.testing.assert_array_equal(qkvc.softmax(np.array(number, np.float32), axis), 1 if np.isfinite(number) else np.nan)
            np.testing.assert_array_equal(qkvc.logsumexp(np.array(number, np.float32), axis), np.float32(number))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("axis", [-1, 0, None])
def test_nothing(shape: tuple[int, ...], axis: int | None) -> None:
    """No numbers along the axis: no softmax (a ValueError, as in SciPy) and a sum of 0; no rows: an empty result."""
    x = np.zeros(shape, np.float32)
    reduced = x.size if axis is None else shape[axis]
    rest = () if axis is None else tuple(np.delete(shape, axis))
    if reduced == 0 and 0 not in rest:
        assert_refused(lambda: qkvc.softmax(x, axis), ValueError, "softmax", "x")
    else:
        assert qkvc.softmax(x, axis).shape == shape
    got = qkvc.logsumexp(x, axis)
    assert np.shape(got) == rest
    np.testing.assert_array_equal(got, np.full(rest, -np.inf))


@hypothesis.settings(max_examples=300)
@hypothesis.given(data=st.data())
def test_any_array(data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(max_dims=4, max_side=6))
    numbers = st.floats(width=32) | st.floats(-100, 100, width=32)
    x = data.draw(hnp.arrays(np.float32, shape, elements=numbers))
    axis = data.draw(st.none() | st.integers(-len(shape), len(shape) - 1))
    with qkvc.use_kernels(data.draw(st.sampled_from(qkvc.kernels()))):
        check(x, axis)


# --- memory, bits and out --------------------------------------------------------------------------------------------------------------


def test_any_memory_same_bits(isa: str, rng: np.random.Generator) -> None:
    for shape in ((5, 7), (33, 140), (3, 4, 50)):
        x = normal(rng, *shape)
        expected, lse = qkvc.softmax(x), qkvc.logsumexp(x)
        for name, place in MEMORY.items():
            assert_same_bits(qkvc.softmax(place(x)), expected, name)
            assert_same_bits(qkvc.logsumexp(place(x)), lse, name)
            assert_same_bits(qkvc.softmax(place(x).swapaxes(-1, -2), -2), expected.swapaxes(-1, -2), name)
        for row in range(shape[0]):
            assert_same_bits(qkvc.softmax(x[row]), expected[row], "a row alone")
        stretched = np.broadcast_to(x[..., :1], shape)
        np.testing.assert_allclose(qkvc.softmax(stretched), 1 / shape[-1], rtol=1e-6)


def test_out(isa: str, rng: np.random.Generator) -> None:
    x = normal(rng, 6, 9)
    for axis in (-1, 0, None):
        expected = qkvc.softmax(x, axis)
        for name in ("contiguous", "fortran", "gaps on every axis", "reversed", "padded rows"):
            out = MEMORY[name](np.full_like(x, np.nan))
            assert qkvc.softmax(x, axis, out=out) is out
            assert_same_bits(out, expected, name)
        in_place = x.copy()
        assert qkvc.softmax(in_place, axis, out=in_place) is in_place
        assert_same_bits(in_place, expected, "in place")
    memory = np.concatenate([x.ravel(), np.zeros(1, np.float32)])
    qkvc.softmax(memory[:-1].reshape(6, 9), out=memory[1:].reshape(6, 9))  # overlaps by all but one: as if it did not
    assert_same_bits(memory[1:].reshape(6, 9), qkvc.softmax(x))


def test_inputs_are_not_changed(rng: np.random.Generator) -> None:
    x = normal(rng, 6, 9)
    before = x.copy()
    qkvc.softmax(x)
    qkvc.logsumexp(x)
    assert_same_bits(x, before)


@pytest.mark.parametrize(
    ("name", "x", "axis", "exception", "words"),
    [
        ("axis too large", np.zeros((2, 3), np.float32), 2, ValueError, ("axis", "2")),
        ("axis too small", np.zeros((2, 3), np.float32), -3, ValueError, ("axis", "-3")),
        ("axis twice", np.zeros((2, 3), np.float32), (0, -2), ValueError, ("axis",)),
        ("axis of a float", np.zeros((2, 3), np.float32), 1.0, TypeError, ()),
        ("float64", np.zeros(3), -1, TypeError, ("x", "float32", "float64")),
        ("float16", np.zeros(3, np.float16), -1, TypeError, ("x", "float32", "float16")),
        ("integers", np.zeros(3, np.int32), -1, TypeError, ("x", "float32", "int32")),
        ("a list", [0.0, 1.0], -1, TypeError, ("x", "float32", "float64")),
        ("complex", np.zeros(3, np.complex64), -1, TypeError, ("x", "complex64")),
        ("objects", np.array([None, 1]), -1, TypeError, ("x", "object")),
        ("a masked array", np.ma.zeros(3, np.float32), -1, TypeError, ("x", "MaskedArray")),
        ("nothing", None, -1, TypeError, ("x", "None")),
    ],
)
def test_refused(name: str, x: Any, axis: Any, exception: type[Exception], words: tuple[str, ...]) -> None:
    for function in (qkvc.softmax, qkvc.logsumexp):
        message = assert_refused(lambda function=function: function(x, axis), exception, *words)
        assert "attention" not in message, "the message names the function that was called"


@pytest.mark.parametrize(
    ("out", "exception"),
    [
        (np.zeros((2, 3)), ValueError),
        (np.zeros((3, 2), np.float32), ValueError),
        (np.zeros((1, 2, 3), np.float32), ValueError),
        ([[0.0] * 3] * 2, TypeError),
        (np.broadcast_to(np.float32(0), (2, 3)), ValueError),
    ],
    ids=["dtype", "shape", "rank", "list", "read-only"],
)
def test_out_refused(out: Any, exception: type[Exception]) -> None:
    before = np.array(out)
    assert_refused(lambda: qkvc.softmax(np.ones((2, 3), np.float32), out=out), exception, "softmax", "out")
    np.testing.assert_array_equal(np.array(out), before)
