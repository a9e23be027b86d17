"""GELU and the norm of tokens against SciPy and NumPy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtr

import qkvc
from qkvc._layers import layer_norm
from qkvc._linear import project

from .support import assert_same_bits


def gelu(x: NDArray[Any], num_threads: int | None = None) -> NDArray[Any]:
    """Of each number alone, behind a product with 1, which changes none."""
    return project(x[..., np.newaxis], np.ones((1, 1), x.dtype), num_threads=num_threads, gelu=True)[..., 0]


def test_gelu(isa: str) -> None:
    x = np.concatenate([np.linspace(-12, 12, 200_000), np.geomspace(1e-30, 3e38, 4001), -np.geomspace(1e-30, 3e38, 4001)]).astype(
        np.float32
    )
    exact = x.astype(np.float64) * ndtr(x.astype(np.float64))
    assert np.max(np.abs(gelu(x) - exact) / np.abs(x)) < 1.3e-7
    assert gelu(np.zeros(1, np.float32))[0] == 0
    assert np.isnan(gelu(np.array([np.nan, 1], np.float32))).tolist() == [True, False]
    assert gelu(np.array([np.inf], np.float32))[0] == np.inf


@pytest.mark.parametrize("size", [0, 1, 7, 8, 15, 16, 17, 8191, 8193, 100_003])
def test_gelu_of_any_size(isa: str, size: int, rng: np.random.Generator) -> None:
    x = rng.standard_normal(size, dtype=np.float32)
    one = gelu(x, num_threads=1)
    np.testing.assert_allclose(one, x * ndtr(x.astype(np.float64)), rtol=0, atol=1e-6)
    assert_same_bits(gelu(x, num_threads=3), one)


@pytest.mark.parametrize("tokens", [1, 5, 12, 40, 100])
def test_gelu_of_a_projection(isa: str, tokens: int, rng: np.random.Generator) -> None:
    x, weight, bias = (rng.standard_normal(shape, dtype=np.float32) for shape in ((tokens, 33), (70, 33), 70))
    plain = project(x, weight, bias)
    np.testing.assert_allclose(project(x, weight, bias, gelu=True), plain * ndtr(plain.astype(np.float64)), rtol=0, atol=4e-6)
    assert_same_bits(project(x, weight, bias, gelu=True).ravel(), gelu(plain.ravel()))


def exact_norm(x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any], eps: float) -> NDArray[Any]:
    x = x.astype(np.longdouble)
    d = x - x.mean(-1, keepdims=True)
    return d / np.sqrt((d * d).mean(-1, keepdims=True) + eps) * weight + bias


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 384), (7, 3), (47, 33), (48, 16), (49, 768), (2, 5, 130), (3, 0), (0, 5), (200,)], ids=str)
def test_norm(isa: str, shape: tuple[int, ...], dtype: type, rng: np.random.Generator) -> None:
    x, residual = (rng.normal(3, 2, shape).astype(dtype) for _ in range(2))
    weight, bias = (rng.standard_normal(shape[-1]).astype(dtype) for _ in range(2))
    within = 60 * np.finfo(dtype).eps
    for extra in (None, residual):
        got = layer_norm(x, weight, bias, 1e-5, extra, num_threads=1)
        assert got.dtype == dtype
        assert got.shape == shape
        if x.size:
            expected = exact_norm(x if extra is None else x.astype(np.longdouble) + extra, weight, bias, 1e-5)
            assert np.max(np.abs(got - expected)) <= within * max(1, np.max(np.abs(expected)))
        assert_same_bits(layer_norm(x, weight, bias, 1e-5, extra, num_threads=3), got)


def test_norm_of_a_token_ignores_its_neighbours(isa: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((130, 64), dtype=np.float32)
    weight, bias = np.ones(64, np.float32), np.zeros(64, np.float32)
    whole = layer_norm(x, weight, bias)
    for tokens in (1, 3, 17, 48):
        assert_same_bits(layer_norm(x[:tokens], weight, bias), whole[:tokens])
    x[5, 3] = np.nan
    assert np.isnan(layer_norm(x, weight, bias)).any(-1).nonzero()[0].tolist() == [5]


def test_a_large_mean_costs_no_digits(isa: str, rng: np.random.Generator) -> None:
    x = (rng.standard_normal((20, 256)) + 1000).astype(np.float32)
    weight, bias = np.ones(256, np.float32), np.zeros(256, np.float32)
    np.testing.assert_allclose(layer_norm(x, weight, bias), exact_norm(x, weight, bias, 1e-5), rtol=0, atol=2e-4)


def test_every_set_with_an_fma_gives_the_same_bits(rng: np.random.Generator) -> None:
    x = rng.standard_normal((50, 100), dtype=np.float32)
    weight = rng.standard_normal(100, dtype=np.float32)
    results = []
    for name in set(qkvc.kernels()) - {"portable"}:
        with qkvc.use_kernels(name):
            results.append((gelu(x), layer_norm(x, weight, weight)))
    for one, other in results[1:]:
        assert_same_bits(one, results[0][0])
        assert_same_bits(other, results[0][1])


def test_misuse() -> None:
    x = np.zeros((4, 6), np.float32)
    w = np.zeros(6, np.float32)
    with pytest.raises(TypeError, match="project: x: expected float32, got float64"):
        gelu(np.zeros(3))
    with pytest.raises(TypeError, match="layer_norm: x: expected float32 or float64, got int64"):
        layer_norm(np.zeros((2, 2), np.int64), w, w)
    with pytest.raises(ValueError, match=r"layer_norm: weight: expected shape \(6,\) for x of shape \(4, 6\), got shape \(5,\)"):
        layer_norm(x, w[:5], w)
    with pytest.raises(ValueError, match="layer_norm: residual"):
        layer_norm(x, w, w, residual=x[:3])
    with pytest.raises(TypeError, match="layer_norm: bias: expected float32, the dtype of x, got float64"):
        layer_norm(x, w, w.astype(float))
