"""Gradients by another road than the library's: central differences in float64, and attention's from its explicit matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def slopes(f: Callable[[], float], x: Array, rng: np.random.Generator, most: int = 40, h: float = 1e-5) -> tuple[tuple[Array, ...], Array]:
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


def assert_slopes(f: Callable[[], float], x: Array, grad: Array, rng: np.random.Generator, what: object = "") -> None:
    """The gradient of f with respect to x is right to 1e-6 of its largest number."""
    places, expected = slopes(f, x, rng)
    scale = max(1e-3, float(np.abs(grad).max(initial=0)))
    np.testing.assert_allclose(grad[places], expected, rtol=0, atol=1e-6 * scale, err_msg=str(what))
    assert np.abs(grad).max(initial=0) > 0, what


class Grads(NamedTuple):
    query: Array
    key: Array
    value: Array


def attention_backward(
    grad_out: Array,
    query: Array,
    key: Array,
    value: Array,
    out: Array,
    lse: Array,
    *,
    layout: str,
    num_threads: int | None,
    causal: bool = False,
) -> Grads:
    q, k, v, g = (np.swapaxes(x, -3, -2) for x in (query, key, value, grad_out))
    group = q.shape[-3] // k.shape[-3]
    k, v = np.repeat(k, group, -3), np.repeat(v, group, -3)
    scale = 1 / np.sqrt(q.shape[-1])
    scores = scale * q @ k.swapaxes(-1, -2)
    if causal:
        scores[..., np.triu(np.ones(scores.shape[-2:], bool), 1)] = -np.inf
    p = np.exp(scores - lse[..., None])
    dp = g @ v.swapaxes(-1, -2)
    ds = p * (dp - (g * np.swapaxes(out, -3, -2)).sum(-1, keepdims=True))

    def fold(x: Array) -> Array:
        x = x.reshape(*x.shape[:-3], x.shape[-3] // group, group, *x.shape[-2:]).sum(-3)
        return np.ascontiguousarray(np.swapaxes(x, -3, -2)).astype(query.dtype)

    dq = np.ascontiguousarray(np.swapaxes(scale * ds @ k, -3, -2)).astype(query.dtype)
    return Grads(dq, fold(scale * ds.swapaxes(-1, -2) @ q), fold(p.swapaxes(-1, -2) @ g))
