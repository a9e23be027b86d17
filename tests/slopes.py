"""Gradients by another road than the library's: central differences in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qkvc.nn import Layer

Array = NDArray[Any]


def slopes(f: Callable[[], float], x: Array, rng: np.random.Generator, most: int = 30, h: float = 1e-5) -> tuple[tuple[Array, ...], Array]:
    """Where, and how fast f grows there with x, a float64 array that f reads; at `most` places, or everywhere in a small one."""
    places = np.unravel_index(rng.choice(x.size, min(most, x.size), replace=False), x.shape)
    found = []
    for place in zip(*places, strict=True):
        before = x[place]
        x[place] = before + h
        up = f()
        x[place] = before - h
        found.append((up - f()) / (2 * h))
        x[place] = before
    return places, np.array(found)


def assert_slopes(f: Callable[[], float], x: Array, grad: Array | None, rng: np.random.Generator, what: object = "") -> None:
    """The gradient of f with respect to x is right to 1e-6 of its largest number, and is not 0 everywhere."""
    assert grad is not None, what
    assert (grad.shape, grad.dtype) == (x.shape, x.dtype), what
    largest = float(np.abs(grad).max())
    assert largest > 0, what
    places, expected = slopes(f, x, rng)
    np.testing.assert_allclose(grad[places], expected, rtol=0, atol=1e-6 * max(largest, 1e-3), err_msg=str(what))


def assert_layer(layer: Layer, x: Array, rng: np.random.Generator) -> None:
    """Gradients of a random sum of the results, with respect to x, unless it is token numbers, and to every parameter."""
    factors = rng.standard_normal(layer.forward(x).shape)

    def f() -> float:
        return float((layer.forward(x) * factors).sum())  # a call would drop nothing

    layer.zero_grad()
    dx = layer.backward(factors)  # type: ignore[attr-defined]
    if x.dtype.kind == "f":
        assert_slopes(f, x, dx, rng, "x")
    for name, parameter in layer.parameters().items():
        assert_slopes(f, parameter.value, parameter.grad, rng, name)
