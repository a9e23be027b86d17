"""A decode step is its row of the prefill, to the bit: few queries have kernels of their own, and keys in pieces (_decode.pyx)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import qkvc

from .options import DTYPES, HALVES, OPTIONS, operands_in, option
from .support import assert_same_bits

PREFILL, KEYS = 49, 300  # more queries than ever have their roles swapped


def rows(options: dict[str, Any], first: int, count: int) -> dict[str, Any]:
    """The options of all queries, for `count` of them."""
    step = dict(options)
    for name in ("mask", "bias"):
        if name in step:
            step[name] = step[name][..., first : first + count, :]
    if step.get("causal") == "bottom-right":
        step["causal"], step["q_offset"] = True, step.get("key_lengths", KEYS) - PREFILL + first
    elif "q_offset" in step:
        step["q_offset"] += first
    return step


#         heads of query and key, D and Dv; one and more pieces of the keys, remainders of vectors, chains and row groups
SHAPES = (((1, 1), (64, 64)), ((8, 8), (40, 24)), ((7, 1), (17, 9)), ((6, 2), (128, 80)), ((4, 4), (1, 1)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES + HALVES)
@pytest.mark.parametrize("kind", OPTIONS)
def test_a_step_is_its_row_of_the_prefill(isa: str, kind: str, dtype: str, shape: Any, rng: np.random.Generator) -> None:
    heads, dims = shape
    query, key, value = operands_in(dtype, rng, (2,), heads, (PREFILL, KEYS), dims)
    options = option(rng, kind, (2,), heads[0], (PREFILL, KEYS))
    whole = qkvc.attention_with_lse(query, key, value, **options)
    for first, count in ((0, 1), (PREFILL - 1, 1), (3, 2), (11, 5), (20, 8), (7, 38)):
        for threads in (1, 2, 7):
            chosen = slice(first, first + count)
            got = qkvc.attention_with_lse(query[..., chosen, :], key, value, **rows(options, first, count), num_threads=threads)
            assert_same_bits(got.out, whole.out[..., chosen, :], (first, count, threads))
            assert_same_bits(got.lse, whole.lse[..., chosen], (first, count, threads))


@pytest.mark.parametrize("queries", [1, 2, 3, 5, 8, 9, 15, 16, 17, 19, 20])
@pytest.mark.parametrize("keys", [1, 31, 32, 33, 127, 128, 129, 1000])
def test_every_number_of_queries(isa: str, queries: int, keys: int, rng: np.random.Generator) -> None:
    """One head, so that even nineteen have their roles swapped; against the queries among many, which do not."""
    query, key, value = operands_in("float32", rng, (), (1, 1), (64, keys), (80, 33))
    whole = qkvc.attention_with_lse(query, key, value)
    got = qkvc.attention_with_lse(query[:, :queries], key, value, num_threads=2)
    assert_same_bits(got.out, whole.out[:, :queries])
    assert_same_bits(got.lse, whole.lse[:, :queries])


def test_poison_is_found(isa: str, rng: np.random.Generator) -> None:
    """NaN and infinity behind a mask reach nothing; one that is attended comes out, in its head alone."""
    query, key, value = operands_in("float32", rng, (), (2, 2), (1, 200), (64, 64))
    mask = rng.random((2, 1, 200)) < 0.7
    clean = qkvc.attention(query, key, value, mask=mask)
    hidden = ~mask[:, 0]
    key[hidden], value[hidden] = np.nan, np.inf
    assert_same_bits(qkvc.attention(query, key, value, mask=mask), clean)
    value[1, np.argmax(mask[1, 0])] = np.nan
    got = qkvc.attention(query, key, value, mask=mask)
    assert_same_bits(got[0], clean[0])
    assert np.isnan(got[1]).all()
