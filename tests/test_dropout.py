"""Dropout: Philox's known answers, the oracle's mask in every setting, and the same one on the way back."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import qkvc
from qkvc.nn import SelfAttention

from .options import DTYPES, HALVES, OPTIONS, SHAPES, operands_in, option
from .philox import numbers, philox
from .reference import reference_scores
from .slopes import assert_layer
from .support import MEMORY, assert_attention, assert_refused, assert_same_bits, normal
from .test_backward import assert_gradients, gradients, named
from .test_varlen import LENGTHS, ragged

SEED = 0x9_1234_5678_9ABC
DROP = {"dropout_p": 0.3, "rng": SEED}
ALL = 2**32 - 1

# Random123's kat_vectors: counter, key, answer of philox4x32 with 10 rounds.
KNOWN = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ALL, ALL, ALL, ALL), (ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_the_oracle_knows_the_answers(counter: Any, key: Any, answer: Any) -> None:
    assert tuple(map(int, philox(counter, key))) == answer


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [0, SEED, 2**64 - 1])
def test_all_32_bits(isa: str, seed: int, dtype: str) -> None:
    """A weight is kept up to the rate that is its number, and no further: the first four of seed 0 are Random123's, others the oracle's."""
    q, k = np.zeros((2, 3, 5, 1), dtype), np.zeros((2, 3, 7, 1), dtype)
    drawn = numbers(seed, 2, 3, 5, 7)
    if seed == 0:
        assert tuple(map(int, drawn[0, 0, 0, :4])) == KNOWN[0][2]
    for place in [(0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 2), (0, 0, 0, 3), (1, 2, 4, 6), (0, 2, 3, 5)]:
        number = int(drawn[place])
        for rate, expected in ((number / 2**32, True), ((number + 1) / 2**32, False)):
            weights = qkvc.attention_weights(q, k, dropout_p=rate, rng=seed)
            assert (weights[place] > 0) == expected


# ---------------------------------------------------------------------------------------------------------------------------- numbers

CASES = [*itertools.product(DTYPES, SHAPES), *itertools.product(HALVES, SHAPES[1::3])]


@pytest.mark.parametrize(("dtype", "shape"), CASES, ids=str)
@pytest.mark.parametrize("kind", OPTIONS)
def test_every_option(isa: str, kind: str, dtype: str, shape: Any, rng: np.random.Generator) -> None:
    """There and back; lse is that of all weights."""
    batch, heads, lengths, _ = shape
    arrays = operands_in(dtype, rng, *shape)
    options = option(rng, kind, batch, heads[0], lengths) | DROP
    assert_attention(*arrays, **options)
    out, lse = qkvc.attention_with_lse(*arrays, **options)
    grad_out, grad_lse = normal(rng, *out.shape).astype(dtype), normal(rng, *lse.shape)
    got = qkvc.attention_backward(grad_out, *arrays, out, lse, **options, grad_lse=grad_lse, needs=named(options))
    assert_gradients(got, grad_out, *arrays, grad_lse=grad_lse, **options)


@pytest.mark.parametrize("kind", ["plain", "everything"])
def test_finite_differences(kind: str, rng: np.random.Generator) -> None:
    """A seed makes it a function like any other."""
    moving: dict[str, Any] = dict(zip(("query", "key", "value"), operands_in("float64", rng, (2,), (4, 2), (9, 140), (6, 5)), strict=True))
    options = option(rng, kind, (2,), 4, (9, 140)) | DROP
    moving |= {name: options.pop(name) for name in ("bias", "sinks") if name in options}
    out, lse = qkvc.attention_with_lse(**moving, **options)
    grad_out, step = rng.standard_normal(out.shape), 1e-5
    got = qkvc.attention_backward(grad_out, out=out, lse=lse, needs=list(moving), **moving, **options)
    for name, x in moving.items():
        towards = rng.standard_normal(x.shape)
        ahead, behind = (float((qkvc.attention(**moving | {name: x + d * step * towards}, **options) * grad_out).sum()) for d in (1, -1))
        grad = getattr(got, name)
        size = np.abs(grad * towards).sum() + np.abs(grad_out).sum() * 1e-2
        assert abs((grad * towards).sum() - (ahead - behind) / (2 * step)) <= 1e-6 * size, name


@pytest.mark.parametrize("rate", [0.01, 0.5, 0.9])
def test_rate(rate: float) -> None:
    """As many as a fair die drops, in all and in every head, row and column: to 5 standard deviations."""
    dropped = qkvc.attention_weights(np.zeros((8, 300, 1), "f"), np.zeros((8, 400, 1), "f"), dropout_p=rate, rng=SEED) == 0
    for axes in ((0, 1, 2), (1, 2), (0, 2), (0, 1)):
        shares = dropped.mean(axes)
        assert np.abs(shares - rate).max() <= 5 * np.sqrt(rate * (1 - rate) * np.size(shares) / dropped.size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_dropped_half_doubled(isa: str, dtype: str, rng: np.random.Generator) -> None:
    """The weights that are kept have the bits that they have without dropout, times 2; others are 0."""
    q, k, _ = operands_in(dtype, rng, (2,), (4, 2), (70, 300), (16, 1))
    keep = numbers(5, 2, 4, 70, 300) >= 2**31
    assert_same_bits(qkvc.attention_weights(q, k, dropout_p=0.5, rng=5), 2 * qkvc.attention_weights(q, k) * keep)
    some = qkvc.attention_weights(q, k, queries=[60, 3], dropout_p=0.5, rng=5)
    assert_same_bits(some, qkvc.attention_weights(q, k, dropout_p=0.5, rng=5)[..., [60, 3], :])


# ------------------------------------------------------------------------------------------------------------------------- the same mask


@pytest.mark.parametrize("dtype", DTYPES + HALVES)
@pytest.mark.parametrize("shape", [((2,), (4, 2), (130, 300), (24, 16)), ((3,), (7, 1), (1, 700), (24, 16))], ids=str)
def test_threads_memory_and_layout_change_no_bit(isa: str, shape: Any, dtype: str, rng: np.random.Generator) -> None:
    arrays = operands_in(dtype, rng, *shape)
    out, lse = qkvc.attention_with_lse(*arrays, **DROP, num_threads=1)
    grad_out = normal(rng, *out.shape)
    grads = qkvc.attention_backward(grad_out, *arrays, out, lse, **DROP, num_threads=1)
    for threads in (2, 3, 7):
        assert_same_bits(qkvc.attention(*arrays, **DROP, num_threads=threads), out, f"{threads} threads")
        again = qkvc.attention_backward(grad_out, *arrays, out, lse, **DROP, num_threads=threads)
        for mine, theirs in zip(again[:3], grads[:3], strict=True):
            assert_same_bits(mine, theirs, f"{threads} threads")
    for move in MEMORY.values():
        assert_same_bits(qkvc.attention(*map(move, arrays), **DROP), out)
    turned = qkvc.attention(*(x.swapaxes(-2, -3) for x in arrays), **DROP, layout="blhd")
    assert_same_bits(turned.swapaxes(-2, -3), out)


def test_kernel_sets_and_dtypes_have_one_mask() -> None:
    q, k, v = np.zeros((2, 4, 50, 8)), np.zeros((2, 2, 200, 8)), np.broadcast_to(np.eye(200), (2, 2, 200, 200))
    kept = numbers(SEED, 2, 4, 50, 200) >= np.floor(0.3 * 2**32)
    for isa in qkvc.kernels():
        with qkvc.use_kernels(isa):
            for dtype in DTYPES + HALVES:
                picture = qkvc.attention(*(x.astype(dtype) for x in (q, k, v)), **DROP)
                np.testing.assert_array_equal(picture.astype(float) > 0, kept, f"{isa}, {dtype}")


def test_first_items_heads_rows_and_keys_keep_their_numbers(rng: np.random.Generator) -> None:
    q, k, _ = operands_in("float64", rng, (3,), (4, 4), (50, 200), (8, 1))
    whole = qkvc.attention_weights(q, k, **DROP) > 0
    part = qkvc.attention_weights(q[:2, :3, :20], k[:2, :3, :130], **DROP) > 0
    np.testing.assert_array_equal(part, whole[:2, :3, :20, :130])
    assert not np.array_equal(whole[0], whole[1])


@pytest.mark.parametrize("lengths", LENGTHS)
def test_sequences_are_the_items_of_a_batch(isa: str, lengths: str, rng: np.random.Generator) -> None:
    batch = ragged(rng, lengths)
    grad_out = normal(rng, 4, int(batch.q[-1]), batch.arrays[2].shape[-1])
    got = qkvc.attention_varlen_with_lse(*batch.arrays, batch.q, batch.k, layout="bhld", **DROP)
    back = qkvc.attention_varlen_backward(grad_out, *batch.arrays, *got, batch.q, batch.k, layout="bhld", **DROP)
    for i in range(batch.q.size - 1):
        alone, mine, keys = batch.alone(i), slice(batch.q[i], batch.q[i + 1]), slice(batch.k[i], batch.k[i + 1])
        items = [np.stack([x] * (i + 1)) for x in alone]
        out, lse = qkvc.attention_with_lse(*items, **DROP)
        assert_same_bits(got.out[:, mine], out[i])
        grads = qkvc.attention_backward(np.stack([grad_out[:, mine]] * (i + 1)), *items, out, lse, **DROP)
        for field, rows in (("query", mine), ("key", keys), ("value", keys)):
            assert_same_bits(getattr(back, field)[:, rows], getattr(grads, field)[i], field)


def test_nan_behind_a_mask_stays_there_and_what_is_dropped_is_still_attended(isa: str, rng: np.random.Generator) -> None:
    q, k, v = operands_in("float32", rng, (), (2, 1), (60, 200), (16, 16))
    mask = np.arange(200) != 77
    expected = gradients(np.ones_like(q), q, k, v, mask=mask, **DROP)
    k[:, 77] = v[:, 77] = np.nan
    assert_attention(q, k, v, mask=mask, **DROP)
    for mine, theirs in zip(gradients(np.ones_like(q), q, k, v, mask=mask, **DROP)[:3], expected[:3], strict=True):
        assert_same_bits(mine, theirs)
    k[:, 77] = 0
    assert np.isnan(qkvc.attention(q, k, v, **DROP)).all()


# ------------------------------------------------------------------------------------------------------------------------------- seeds


def test_nothing_is_dropped_at_0(rng: np.random.Generator) -> None:
    arrays = operands_in("float32", rng, (), (4, 2), (3, 300), (16, 16))
    assert_same_bits(qkvc.attention(*arrays, dropout_p=0, rng=3), qkvc.attention(*arrays))


def test_a_generator_gives_one_seed() -> None:
    q = np.ones((2, 9, 4))
    expected = int(np.random.default_rng(8).integers(2**64, dtype=np.uint64))
    mine = np.random.default_rng(8)
    assert_same_bits(qkvc.attention(q, q, q, dropout_p=0.5, rng=mine), qkvc.attention(q, q, q, dropout_p=0.5, rng=expected))
    state = mine.bit_generator.state
    assert_refused(lambda: qkvc.attention(q, q, q[:1], dropout_p=0.5, rng=mine), ValueError, "value")
    assert_refused(lambda: qkvc.attention_vjp(q, q, q[:1], dropout_p=0.5, rng=mine), ValueError, "value")
    qkvc.attention(q, q, q, rng=mine)
    assert mine.bit_generator.state == state


def test_without_a_seed_every_call_has_its_own() -> None:
    q = np.ones((2, 9, 4))
    first, second = (qkvc.attention_weights(q, q, dropout_p=0.5) for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("given", [None, 5, np.random.default_rng(3)], ids=["fresh", "seed", "generator"])
def test_vjp_keeps_the_seed(given: Any, rng: np.random.Generator) -> None:
    """With equal scores, ones for values and 1/2, out says how many keys were kept of each row, and so do sums of the value's gradient."""
    q, v = np.zeros((1, 40, 3)), np.ones((1, 40, 1))
    out, vjp = qkvc.attention_vjp(q, q, v, dropout_p=0.5, rng=given)
    for row in range(0, 40, 4):
        only = np.zeros_like(out)
        only[0, row] = 1
        np.testing.assert_allclose(vjp(only).value.sum(), out[0, row, 0], rtol=1e-12)


def test_torch_door(rng: np.random.Generator) -> None:
    arrays = operands_in("float64", rng, (2,), (2, 2), (9, 9), (8, 8))
    got = qkvc.scaled_dot_product_attention(*arrays, None, 0.3, True, rng=SEED)
    assert_same_bits(got, qkvc.attention(*arrays, causal=True, **DROP))
    np.testing.assert_allclose(got, reference_scores(*arrays[:2], causal=True, **DROP) @ arrays[2], atol=1e-14)


def test_layer_learns_through_it(rng: np.random.Generator) -> None:
    layer = SelfAttention(qkvc.MultiHeadAttention(12, 3, dtype="float64", rng=1), causal=True, **DROP)
    assert_layer(layer, rng.standard_normal((2, 7, 12)), rng)


def test_layer_draws_anew_and_its_trace_remembers(rng: np.random.Generator) -> None:
    layer, x = qkvc.MultiHeadAttention(12, 3, dtype="float64", rng=1), rng.standard_normal((2, 7, 12))
    (first, trace), (second, _) = (layer.forward(x, dropout_p=0.5, rng=rng) for _ in range(2))
    assert not np.array_equal(first, second)
    again, other = layer.forward(x, dropout_p=0.5, rng=trace.options["rng"])
    assert_same_bits(again, first)
    assert_same_bits(layer.backward(first, trace).query, layer.backward(first, other).query)


# --------------------------------------------------------------------------------------------------------------------------- bad input

Q = np.ones((2, 5, 4), np.float32)

#  name                       function            options                                      exception   words
REFUSED: list[tuple[str, Callable[..., Any], dict[str, Any], type[Exception], tuple[str, ...]]] = [
    ("1", qkvc.attention, {"dropout_p": 1}, ValueError, ("dropout_p", "below 1", "1.0")),
    ("below 0", qkvc.attention, {"dropout_p": -0.1}, ValueError, ("dropout_p", "-0.1")),
    ("NaN", qkvc.attention, {"dropout_p": np.nan}, ValueError, ("dropout_p", "nan")),
    ("True", qkvc.attention, {"dropout_p": True}, TypeError, ("dropout_p", "bool")),
    ("None", qkvc.attention, {"dropout_p": None}, TypeError, ("dropout_p", "None")),
    ("a rate for each head", qkvc.attention, {"dropout_p": np.ones(2)}, TypeError, ("dropout_p", "ndarray")),
    ("a seed below 0", qkvc.attention, {"dropout_p": 0.1, "rng": -1}, ValueError, ("rng", "64 bits", "-1")),
    ("a seed of 65 bits", qkvc.attention, {"dropout_p": 0.1, "rng": 2**64}, ValueError, ("rng", "64 bits", str(2**64))),
    ("a seed of float", qkvc.attention, {"dropout_p": 0.1, "rng": 1.0}, TypeError, ("rng", "integer", "float")),
    ("a seed of bool", qkvc.attention, {"dropout_p": 0.1, "rng": True}, TypeError, ("rng", "bool")),
    ("a legacy generator", qkvc.attention, {"rng": np.random.RandomState(0)}, TypeError, ("rng", "Generator", "RandomState")),
    ("some heads", qkvc.attention_weights, {"dropout_p": 0.1, "heads": [0]}, ValueError, ("heads", "dropout_p")),
]  # fmt: skip


@pytest.mark.parametrize(("function", "options", "exception", "words"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_refused(function: Callable[..., Any], options: dict[str, Any], exception: type[Exception], words: tuple[str, ...]) -> None:
    arrays = (Q, Q) if function is qkvc.attention_weights else (Q, Q, Q)
    assert_refused(lambda: function(*arrays, **options), exception, *words)


@pytest.mark.parametrize("given", [None, np.random.default_rng(0)], ids=["none", "generator"])
def test_the_way_back_asks_for_the_seed(given: Any) -> None:
    out, lse = qkvc.attention_with_lse(Q, Q, Q, dropout_p=0.1, rng=3)
    call: Callable[..., Any] = qkvc.attention_backward
    assert_refused(lambda: call(Q, Q, Q, Q, out, lse, dropout_p=0.1, rng=given), TypeError, "rng", "forward", type(given).__name__)


def test_an_extra_key_has_no_number() -> None:
    layer = qkvc.MultiHeadAttention(4, 2, extra_kv=True)
    assert_refused(lambda: layer(Q, dropout_p=0.1), ValueError, "dropout_p", "extra")
