"""Memory of gradients that nobody has any more is used for the next ones; of those that somebody has in any way it is not."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import qkvc

from .slopes import Array


def gradients(rng: np.random.Generator, length: int = 1024) -> qkvc.AttentionGrads:
    """Each of 4 * length * 64 * 4 bytes, in memory that is used again."""
    q, k, v, grad = rng.standard_normal((4, 4, length, 64), np.float32)
    return qkvc.attention_backward(grad, q, k, v, *qkvc.attention_with_lse(q, k, v))


def address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_of_gradients_is_used_again(rng: np.random.Generator) -> None:
    before = sorted(map(address, gradients(rng)[:3]))
    assert sorted(map(address, gradients(rng)[:3])) == before
    assert all(at % 64 == 0 for at in before)


@pytest.mark.parametrize(
    "held",
    [
        lambda x: x,
        lambda x: x[1:, ::3].T,
        lambda x: x.view(np.int32).reshape(-1)[5:],
        lambda x: np.lib.stride_tricks.as_strided(x, (2,), (4,)),
        memoryview,
        pickle.PickleBuffer,
        lambda x: np.frombuffer(x, np.uint8),
        lambda x: x.base,
        lambda x: x.__dlpack__(),
        iter,
    ],
)
def test_memory_of_a_gradient_that_somebody_has_is_not_used(held: Callable[[Any], Any], rng: np.random.Generator) -> None:
    grads = gradients(rng)
    at, kept = address(grads.key), held(grads.key)
    del grads
    for _ in range(3):
        new = gradients(rng)
        assert at not in map(address, new[:3])
    del kept


def test_memory_of_gradients_in_threads(rng: np.random.Generator) -> None:
    def work(seed: int) -> list[tuple[Array, Array]]:
        own = np.random.default_rng(seed)
        found = []
        for length in own.integers(520, 640, 8):
            grads = gradients(own, int(length))
            found.append((grads.value, grads.value.copy()))
            del grads
        return found

    with ThreadPoolExecutor(4) as pool:
        for pairs in list(pool.map(work, range(4))):
            for array, copy in pairs:
                np.testing.assert_array_equal(array, copy)


def test_a_frozen_gradient_stays_its_owners(rng: np.random.Generator) -> None:
    """Whoever makes an array constant walks down its bases, or it could still be written there."""
    array: Any = gradients(rng).key
    while isinstance(array, np.ndarray):
        array.flags.writeable = False
        array = array.base
    assert all(grad.flags.writeable for _ in range(2) for grad in gradients(rng)[:3])
