"""The oracle of rotary embeddings: RoFormer's rotation matrices, and the scaled frequencies as Llama 3.1 was published with them."""

from __future__ import annotations

from math import pi
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qkvc

EXACT = np.longdouble  # 64 bits of mantissa where it has more than float64: at position 10**6 an angle has lost 20 of them


def published_scaling(theta: Any, factor: float, low: float, high: float, original: int) -> Any:
    """One frequency, by the cases of `apply_scaling` in Llama 3.1's reference code."""
    wavelength = 2 * pi / theta
    if wavelength < original / high:
        return theta
    if wavelength > original / low:
        return theta / factor
    smooth = (original / wavelength - low) / (high - low)
    return (1 - smooth) * theta / factor + smooth * theta


def angles(config: qkvc.RopeConfig, width: int, positions: Any) -> NDArray[Any]:
    """m theta_i of equation 15, (..., L, dim / 2)."""
    dim = width if config.dim is None else config.dim
    theta = [EXACT(config.base) ** (-2 * EXACT(i) / dim) for i in range(dim // 2)]
    if isinstance(config.scaling, qkvc.Llama3Scaling):
        s = config.scaling
        theta = [published_scaling(t, s.factor, s.low_freq_factor, s.high_freq_factor, s.original_max_position) for t in theta]
    elif config.scaling is not None:
        theta = [t / EXACT(config.scaling) for t in theta]
    return np.asarray(positions, EXACT)[..., np.newaxis] * np.array(theta, EXACT)


def turned(x: Any, angle: NDArray[Any], interleaved: bool) -> NDArray[Any]:
    """R x with the matrix R of equation 15 written out; x (..., H, L, D), angle (..., L, n)."""
    n = angle.shape[-1]
    R = np.zeros((*angle.shape[:-1], np.shape(x)[-1], np.shape(x)[-1]), EXACT)
    R[..., range(2 * n, R.shape[-1]), range(2 * n, R.shape[-1])] = 1
    for i in range(n):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + n)
        R[..., a, a] = R[..., b, b] = np.cos(angle[..., i])
        R[..., b, a] = np.sin(angle[..., i])
        R[..., a, b] = -R[..., b, a]
    return np.einsum("...lde,...hle->...hld", R, np.asarray(x, EXACT))


def rms_normed(x: Any, weight: NDArray[Any], eps: float) -> NDArray[Any]:
    x = np.asarray(x, EXACT)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EXACT(eps)) * weight.astype(EXACT)
