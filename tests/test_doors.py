"""The functions that carry a framework's name: its arguments, alignment and errors, with qkvc's meaning of empty rows and NaN.

The tables use the pictures of test_truth_table.py; the rest compares with the frameworks themselves where they are installed.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import qkvc

from .pictures import bias_of, bool_mask, picture, uniform, weights_of
from .support import TOLERANCE, assert_close, assert_refused, assert_same_bits, operands

INF = np.inf

#  question                                            heads, lengths, options of scaled_dot_product_attention           allowed keys
TORCH: list[tuple[str, tuple[int, int], tuple[int, int], dict[str, Any], str]] = [
    ("is_causal is top-left", (1, 1), (2, 4), {"is_causal": True}, "1000 1100"),
    ("is_causal with fewer keys is top-left", (1, 1), (3, 2), {"is_causal": True}, "10 11 11"),
    ("bool attn_mask: True may attend", (1, 1), (2, 3), {"attn_mask": bool_mask("110 011")}, "110 011"),
    ("float attn_mask is added", (1, 1), (1, 3), {"attn_mask": bias_of([0, -INF, 0])}, "101"),
    ("an empty row is zero", (1, 1), (2, 2), {"attn_mask": bool_mask("00 10")}, "00 10"),
    ("enable_gqa", (4, 2), (1, 2), {"enable_gqa": True}, "11"),
    ("enable_gqa with equal heads", (2, 2), (1, 2), {"enable_gqa": True}, "11"),
]  # fmt: skip


@pytest.mark.parametrize(("heads", "lengths", "options", "allowed"), [pytest.param(*row[1:], id=row[0]) for row in TORCH])
def test_torch_door(isa: str, heads: tuple[int, int], lengths: tuple[int, int], options: dict[str, Any], allowed: str) -> None:
    query, key, value = uniform(*lengths, heads, (2,))
    weights = weights_of(picture(allowed, (1,), heads[0]).repeat(2, 0))
    assert_same_bits(qkvc.scaled_dot_product_attention(query, key, value, **options), weights)


def test_torch_door_takes_its_arguments_in_order() -> None:
    query, key, value = uniform(2, 3)
    got = qkvc.scaled_dot_product_attention(query, key, value, bool_mask("110 011"), 0.0, False, 0.5, True)
    np.testing.assert_array_equal(got, [[[0.5, 0.5, 0], [0, 0.5, 0.5]]])


#  question                                            heads, lengths, options of dot_product_attention                  allowed keys
JAX: list[tuple[str, tuple[int, int], tuple[int, int], dict[str, Any], str]] = [
    ("is_causal is top-left", (1, 1), (2, 4), {"is_causal": True}, "1000 1100"),
    ("is_causal and mask intersect", (1, 1), (2, 3), {"is_causal": True, "mask": bool_mask("011 101")}, "000 100"),
    ("mask: True may attend", (1, 1), (2, 3), {"mask": bool_mask("110 011")}, "110 011"),
    ("bias and mask", (1, 1), (1, 3), {"bias": bias_of([0, -INF, 0]), "mask": bool_mask("110")}, "100"),
    ("fewer key heads need no flag", (4, 2), (1, 2), {}, "11"),
]  # fmt: skip


@pytest.mark.parametrize(("heads", "lengths", "options", "allowed"), [pytest.param(*row[1:], id=row[0]) for row in JAX])
def test_jax_door(isa: str, heads: tuple[int, int], lengths: tuple[int, int], options: dict[str, Any], allowed: str) -> None:
    query, key, value = (x.swapaxes(-2, -3) for x in uniform(*lengths, heads, (2,)))
    weights = weights_of(picture(allowed, (1,), heads[0]).repeat(2, 0))
    assert_same_bits(qkvc.dot_product_attention(query, key, value, **options).swapaxes(-2, -3), weights)
    without_batch = qkvc.dot_product_attention(query[0], key[0], value[0], **options)
    assert_same_bits(without_batch.swapaxes(-2, -3), weights[0])


#  question                                   door, heads, options, exception, what the message names
DOORS_REFUSE: list[tuple[str, str, tuple[int, int], dict[str, Any], type[Exception], tuple[str, ...]]] = [
    ("torch: mask with is_causal", "torch", (1, 1), {"attn_mask": bool_mask("11 11"), "is_causal": True}, ValueError,
     ("mask", "is_causal")),
    ("torch: groups without enable_gqa", "torch", (4, 2), {}, ValueError, ("enable_gqa", "4", "2")),
    ("torch: heads that do not divide", "torch", (4, 3), {"enable_gqa": True}, ValueError, ("4", "3", "head")),
    ("torch: dropout", "torch", (1, 1), {"dropout_p": 1.0}, ValueError, ("dropout_p", "1.0")),
    ("torch: an int mask", "torch", (1, 1), {"attn_mask": np.ones((2, 2), np.int32)}, TypeError, ("mask", "bool", "float", "int32")),
    ("jax: a float mask", "jax", (1, 1), {"mask": np.ones((2, 2), np.float32)}, TypeError, ("mask", "bool", "bias")),
    ("jax: heads that do not divide", "jax", (4, 3), {}, ValueError, ("4", "3", "head")),
]  # fmt: skip


@pytest.mark.parametrize(("door", "heads", "options", "exception", "words"), [pytest.param(*row[1:], id=row[0]) for row in DOORS_REFUSE])
def test_doors_refuse(
    door: str, heads: tuple[int, int], options: dict[str, Any], exception: type[Exception], words: tuple[str, ...]
) -> None:
    arrays = uniform(2, 2, heads, (1,))
    if door == "torch":
        assert_refused(lambda: qkvc.scaled_dot_product_attention(*arrays, **options), exception, *words)
    else:
        assert_refused(lambda: qkvc.dot_product_attention(*(x.swapaxes(-2, -3) for x in arrays), **options), exception, *words)


# --- against the frameworks themselves -------------------------------------------------------------------------------------------------

CASES: list[tuple[tuple[int, ...], tuple[int, int], tuple[int, int], tuple[int, int]]] = [
    ((2,), (4, 4), (7, 7), (16, 16)),
    ((1,), (3, 3), (33, 130), (40, 40)),
    ((2,), (8, 2), (65, 17), (64, 64)),
    ((), (2, 1), (5, 200), (8, 8)),
]


@pytest.mark.parametrize("kind", ["plain", "causal", "bool mask", "float mask", "scale"])
@pytest.mark.parametrize(("batch", "heads", "lengths", "dims"), CASES)
def test_agrees_with_torch(
    rng: np.random.Generator, batch: tuple[int, ...], heads: tuple[int, int], lengths: tuple[int, int], dims: tuple[int, int], kind: str
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    arrays = operands(rng, batch, heads, lengths, dims)
    options: dict[str, Any] = {"enable_gqa": heads[0] != heads[1]}
    options |= {"is_causal": True} if kind == "causal" else {"scale": 0.3} if kind == "scale" else {}
    if "mask" in kind:
        keep = rng.random(lengths) < 0.7
        keep[:, 0] = True  # torch's meaning of an empty row depends on its version
        options["attn_mask"] = keep if kind == "bool mask" else np.where(keep, rng.standard_normal(lengths), -INF).astype(np.float32)
    tensors = {name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}
    with torch.inference_mode():
        expected = torch.nn.functional.scaled_dot_product_attention(*map(torch.from_numpy, arrays), **tensors).numpy()
    got = qkvc.scaled_dot_product_attention(*arrays, **options)
    assert_close(got, expected, 2 * TOLERANCE["out"] * np.abs(arrays[2]).max())


@pytest.mark.parametrize("kind", ["plain", "causal", "mask", "causal mask", "bias", "scale"])
@pytest.mark.parametrize(("batch", "heads", "lengths", "dims"), CASES)
def test_agrees_with_jax(
    rng: np.random.Generator, batch: tuple[int, ...], heads: tuple[int, int], lengths: tuple[int, int], dims: tuple[int, int], kind: str
) -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    arrays = [x.swapaxes(-2, -3) for x in operands(rng, batch, heads, lengths, dims)]
    options: dict[str, Any] = {"is_causal": "causal" in kind, "scale": 0.3 if kind == "scale" else None}
    if "mask" in kind:
        options["mask"] = rng.random((1, 1, *lengths)) < 0.7
        options["mask"][..., 0] = True
    if kind == "bias":
        options["bias"] = rng.standard_normal((1, heads[0], *lengths), dtype=np.float32)
    expected = np.asarray(jax.nn.dot_product_attention(*map(jax.numpy.asarray, arrays), **options))
    # A JAX call without a batch still wants masks of four axes; here they may not have more axes than the scores.
    ours = {name: x[0] if isinstance(x, np.ndarray) and not batch else x for name, x in options.items()}
    assert_close(qkvc.dot_product_attention(*arrays, **ours), expected, 2 * TOLERANCE["out"] * np.abs(arrays[2]).max())


def test_signatures_are_the_frameworks() -> None:
    """Order, names and defaults: code that calls the framework by position must mean the same here."""
    torch_like = inspect.signature(qkvc.scaled_dot_product_attention)
    assert [(p.name, p.default) for p in torch_like.parameters.values()][3:] == [
        ("attn_mask", None), ("dropout_p", 0.0), ("is_causal", False), ("scale", None), ("enable_gqa", False),
        ("rng", None),  # by name only
    ]  # fmt: skip
    jax = pytest.importorskip("jax", reason="jax is not installed")
    theirs = inspect.signature(jax.nn.dot_product_attention).parameters
    for name, parameter in inspect.signature(qkvc.dot_product_attention).parameters.items():
        assert (parameter.kind, parameter.default) == (theirs[name].kind, theirs[name].default), name
