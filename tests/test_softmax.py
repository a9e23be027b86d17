"""softmax and logsumexp against scipy.special in more digits: any axis, any shape, any memory, and every number float32 has."""

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
FINER = {np.float32: np.float64, np.float64: np.longdouble}


@pytest.fixture(params=[np.float32, np.float64], ids=lambda dtype: dtype.__name__)
def dtype(request: pytest.FixtureRequest) -> Any:
    return request.param


def exact(function: Any, x: NDArray[Any], axis: Any) -> NDArray[Any]:
    with np.errstate(all="ignore"):
        return np.asarray(function(x.astype(FINER[x.dtype.type]), axis=axis))


def check_softmax(x: NDArray[Any], axis: Any = -1, what: object = "") -> float:
    """The NaNs of SciPy, and everything else within 4 ULP of the result in more digits; the largest error in ULP."""
    got = qkvc.softmax(x, axis)
    expected = exact(scipy.special.softmax, x, axis)
    assert got.shape == expected.shape, what
    assert got.dtype == x.dtype, what
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected), err_msg=str(what))
    known = ~np.isnan(expected)
    with np.errstate(all="ignore"):
        rounded = expected[known].astype(x.dtype)
    error = np.abs(got[known] - expected[known]) / np.spacing(rounded).astype(expected.dtype)
    worst = float(error.max(initial=0))
    assert worst <= ULP, f"{what}: {worst:.4g} ULP at {expected[known][error.argmax()]:.6g}"
    return worst


def check_logsumexp(x: NDArray[Any], axis: Any = -1, what: object = "") -> None:
    """Within 4 ULP of the result or, where numbers of both signs cancel, of the largest number that went in."""
    got = qkvc.logsumexp(x, axis)
    expected = exact(scipy.special.logsumexp, x, axis)
    assert np.shape(got) == expected.shape, what
    assert got.dtype == x.dtype, what
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.asarray(got)[~finite], expected[~finite], err_msg=str(what))
    with np.errstate(all="ignore"):
        largest = np.where(np.isfinite(x), np.abs(x), 0).max(axis, initial=1)
        allowed = ULP * np.spacing(np.maximum(np.abs(expected), largest).astype(x.dtype)).astype(expected.dtype)
    error = np.abs(np.asarray(got, expected.dtype)[finite] - expected[finite])
    assert (error <= allowed[finite]).all(), f"{what}: {(error / allowed[finite]).max() * ULP:.4g} ULP"


def check(x: NDArray[Any], axis: Any = -1, what: object = "") -> None:
    check_softmax(x, axis, what)
    check_logsumexp(x, axis, what)


# --- numbers ---------------------------------------------------------------------------------------------------------------------------


SPREADS = (0, 1e-3, 1, 10, 30, 90, 150, 300, 1e4, 1e30)
ERRORS: dict[str, float] = {}


@pytest.mark.parametrize("spread", SPREADS)
def test_any_spread(isa: str, dtype: Any, rng: np.random.Generator, figures: list[str], spread: float) -> None:
    worst, name = 0.0, f"{isa}, {dtype.__name__}"
    for n in (1, 2, 3, 7, 8, 16, 17, 31, 64, 100, 257, 1000, 4099):
        x = (rng.standard_normal((20, n)) * spread).astype(dtype)
        worst = max(worst, check_softmax(x, what=n))
        check_logsumexp(x, what=n)
        check(x - dtype(80 * spread), what=f"{n}, far from zero")
    ERRORS[name] = max(worst, ERRORS.get(name, 0))
    if spread == SPREADS[-1]:
        figures.append(f"softmax, {name}: largest error {ERRORS[name]:.2f} ULP")


def test_denormal_results(isa: str, dtype: Any) -> None:
    """Between 2**-126 and 2**-149 (2**-1022 and 2**-1074) a result is denormal, below it is 0; no cliff between them."""
    smallest = np.finfo(dtype).tiny
    end = -np.log(smallest)
    x = np.concatenate([[0], -np.linspace(end - 10, end + 40, 5001)]).astype(dtype)
    check(x)
    got = qkvc.softmax(x)
    assert ((got > 0) & (got < smallest)).sum() > 500
    assert got[-1] == 0


@pytest.mark.parametrize("kind", ["uniform", "normal", "wide", "one large", "ascending", "descending"])
def test_rows_of_a_million(isa: str, dtype: Any, rng: np.random.Generator, kind: str) -> None:
    """One chain over 1e6 terms would be wrong by hundreds of ULP."""
    n = 1_000_003
    x = {
        "uniform": np.zeros(n),
        "normal": rng.standard_normal(n),
        "wide": rng.standard_normal(n) * 20,
        "one large": np.where(np.arange(n) == 777_777, 12, 0),
        "ascending": np.linspace(-30, 30, n),
        "descending": np.linspace(30, -30, n),
    }[kind]
    check(x.astype(dtype), what=kind)


def test_special_numbers(isa: str, dtype: Any) -> None:
    """Every combination of them, at every place of a short and of a long row: NaN and Inf as in SciPy."""
    largest = float(np.finfo(dtype).max)
    numbers = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, largest, -largest, float(np.finfo(dtype).smallest_subnormal)]
    pairs = np.array(np.meshgrid(*[numbers] * 3)).reshape(3, -1).T.astype(dtype)
    check(pairs, what="all triples")
    check(np.ascontiguousarray(pairs.T), 0, what="all triples in columns")
    for number in numbers:
        for n in (1, 2, 17, 70, 300):
            rows = np.tile(np.linspace(-3, 3, n, dtype=dtype), (n, 1))
            np.fill_diagonal(rows, number)
            check(rows, what=f"{number} in {n}")
    for pattern in (0x7F800001 if dtype is np.float32 else 0x7FF00001, 0xFFFFFFFF, 0xFFFBFFFF):
        odd = np.zeros(40, dtype)
        odd.view(np.uint32)[24 * odd.itemsize // 4 - 1] = pattern
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
    width = data.draw(st.sampled_from([32, 64]))
    numbers = st.floats(width=width) | st.floats(-100, 100, width=width)
    x = data.draw(hnp.arrays(np.dtype(f"float{width}"), shape, elements=numbers))
    axis = data.draw(st.none() | st.integers(-len(shape), len(shape) - 1))
    with qkvc.use_kernels(data.draw(st.sampled_from(qkvc.kernels()))):
        check(x, axis)


# --- memory, bits and out --------------------------------------------------------------------------------------------------------------


def test_any_memory_same_bits(isa: str, dtype: Any, rng: np.random.Generator) -> None:
    for shape in ((5, 7), (33, 140), (3, 4, 50)):
        x = normal(rng, *shape).astype(dtype)
        expected, lse = qkvc.softmax(x), qkvc.logsumexp(x)
        for name, place in MEMORY.items():
            assert_same_bits(qkvc.softmax(place(x)), expected, name)
            assert_same_bits(qkvc.logsumexp(place(x)), lse, name)
            assert_same_bits(qkvc.softmax(place(x).swapaxes(-1, -2), -2), expected.swapaxes(-1, -2), name)
        for row in range(shape[0]):
            assert_same_bits(qkvc.softmax(x[row]), expected[row], "a row alone")
        stretched = np.broadcast_to(x[..., :1], shape)
        np.testing.assert_allclose(qkvc.softmax(stretched), 1 / shape[-1], rtol=1e-6)


def test_integers_and_bools_count_as_float64(isa: str) -> None:
    for x in ([0, 1, 3], [[True, False], [True, True]], np.arange(5, dtype=np.uint8)):
        assert_same_bits(qkvc.softmax(x), qkvc.softmax(np.asarray(x, np.float64)))
        assert_same_bits(qkvc.logsumexp(x), qkvc.logsumexp(np.asarray(x, np.float64)))
    assert qkvc.softmax(3) == 1.0


def test_out(isa: str, dtype: Any, rng: np.random.Generator) -> None:
    x = normal(rng, 6, 9).astype(dtype)
    for axis in (-1, 0, None):
        expected = qkvc.softmax(x, axis)
        for name in ("contiguous", "fortran", "gaps on every axis", "reversed", "padded rows"):
            out = MEMORY[name](np.full_like(x, np.nan))
            assert qkvc.softmax(x, axis, out=out) is out
            assert_same_bits(out, expected, name)
        in_place = x.copy()
        assert qkvc.softmax(in_place, axis, out=in_place) is in_place
        assert_same_bits(in_place, expected, "in place")
    memory = np.concatenate([x.ravel(), np.zeros(1, dtype)])
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
        ("float16", np.zeros(3, np.float16), -1, TypeError, ("x", "float32", "float16")),
        ("long double", np.zeros(3, np.longdouble), -1, TypeError, ("x", "float32", "float64")),
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
