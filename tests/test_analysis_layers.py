"""What is said of attention layers, against the thing itself done in float64: values zeroed one by one, matrices formed, heads removed."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import qkvc
from qkvc.analysis import (
    circuits,
    head_importance,
    layer_value_zeroing,
    model_importance,
    norm_weighted_attention,
    prune_heads,
    value_zeroing,
)
from qkvc.models import LanguageModel

from .reference import reference
from .support import assert_refused, normal

Module = qkvc.MultiHeadAttention
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"num_kv_heads": 2},
    "no biases": {"qkv_bias": False, "out_bias": False, "head_dim": 5},
    "other widths": {"kdim": 17, "vdim": 11},
    "turned and normed": {"rope": qkvc.RopeConfig(100.0), "qk_norm": 1e-6, "num_kv_heads": 2, "qkv_bias": False},
}


def layer(rng: np.random.Generator, **options: Any) -> Module:
    """Width 24, 4 heads, float64, with biases and norms that are not zero and one."""
    m = Module(24, 4, rng=rng, dtype="float64", **options)
    for name in ("q_bias", "k_bias", "v_bias", "out_bias", "q_norm", "k_norm"):
        if (part := getattr(m, name)) is not None:
            part[...] = rng.standard_normal(part.shape)
    return m


def cosine_distance(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return 1 - (a * b).sum(-1) / lengths


# --- values ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "causal", "masked"])
def test_value_zeroing_is_what_zeroing_does(kind: str, rng: np.random.Generator) -> None:
    query, key, value = normal(rng, 2, 4, 6, 8), normal(rng, 2, 2, 6, 8), normal(rng, 2, 2, 6, 5)
    options: dict[str, Any] = {"causal": True} if kind == "causal" else {}
    if kind == "masked":
        options["mask"] = rng.random((2, 4, 6, 6)) < 0.7
    got = value_zeroing(query, key, value, **options)
    before = reference(query, key, value, **options).out
    weights = reference(query, key, np.broadcast_to(np.eye(6), (2, 2, 6, 6)), **options).out
    assert got.shape == (2, 4, 6, 6)
    for j in range(6):
        zeroed = value.copy()
        zeroed[..., j, :] = 0
        after = reference(query, key, zeroed, **options).out
        left = np.linalg.norm(after, axis=-1) > 1e-12
        with np.errstate(invalid="ignore", divide="ignore"):
            expected = np.where(left, cosine_distance(before, after), 1)
        np.testing.assert_allclose(got[..., j], np.where(weights[..., j] > 0, expected, 0), rtol=0, atol=2e-6)


def test_value_zeroing_of_little_keeps_its_digits() -> None:
    """A weight of 1e-7 turns the output by 1e-7, and 1 - cos is 5e-15: less than float64's own rounding of a cosine near 1."""
    key = np.array([[0.0], [-np.log(1e7)]])
    got = value_zeroing(np.ones((1, 1)), key, np.eye(2), scale=1.0)
    np.testing.assert_allclose(got[0, 1], 0.5e-14, rtol=1e-6)
    np.testing.assert_allclose(got[0, 0], 1 - 1e-7, rtol=0, atol=1e-8)


def test_other_dtypes_and_no_keys(rng: np.random.Generator) -> None:
    """Of 16 bits the numbers that they are: nothing is rounded to 16 again.  Integers count as float64."""
    operands = [normal(rng, 2, 5, 4).astype(ml_dtypes.bfloat16) for _ in range(3)]
    np.testing.assert_array_equal(value_zeroing(*operands), value_zeroing(*(x.astype(np.float32) for x in operands)))
    whole = [rng.integers(-2, 3, (5, 4)) for _ in range(3)]
    np.testing.assert_array_equal(value_zeroing(*whole), value_zeroing(*(x.astype(float) for x in whole)))
    assert value_zeroing(whole[0], whole[1][:0], whole[2][:0]).shape == (5, 0)
    assert value_zeroing(whole[0][:0], whole[1], whole[2]).shape == (0, 5)


def test_a_value_that_nobody_takes_is_not_looked_at(rng: np.random.Generator) -> None:
    query, key, value = normal(rng, 3, 4), normal(rng, 3, 4), normal(rng, 3, 4)
    value[2] = np.nan
    got = value_zeroing(query, key, value, mask=np.array([True, True, False]))
    assert np.isfinite(got).all()
    assert not got[:, 2].any()
    only_one = value_zeroing(query, key, value, mask=np.array([True, False, False]))
    np.testing.assert_array_equal(only_one, [[1, 0, 0]] * 3)


@pytest.mark.parametrize("kind", KINDS)
def test_layer_value_zeroing_and_norms(kind: str, rng: np.random.Generator) -> None:
    m = layer(rng, **KINDS[kind])
    query, key, value = (rng.standard_normal((2, n, width)) for n, width in ((5, 24), (7, m.kdim), (7, m.vdim)))
    plus, weights = rng.standard_normal((2, 5, 24)), m.weights(query, key)
    v = np.einsum("bse,hde->bhsd", value, m.W_V)
    if m.v_bias is not None:
        v = v + m.v_bias.reshape(m.num_kv_heads, 1, -1)
    v = np.repeat(v, 4 // m.num_kv_heads, axis=1)
    brought = np.einsum("bhls,bhsd,hed->bhlse", weights, v, m.W_O)
    found = norm_weighted_attention(m, query, key, value)
    np.testing.assert_allclose(found.values, np.linalg.norm(np.einsum("bhsd,hed->bhse", v, m.W_O), axis=-1), rtol=1e-10)
    np.testing.assert_allclose(found.heads, np.linalg.norm(brought, axis=-1), rtol=1e-10)
    np.testing.assert_allclose(found.layer, np.linalg.norm(brought.sum(1), axis=-1), rtol=1e-8)
    out = m(query, key, value)[:, :, np.newaxis]
    for added in (None, plus):
        y = out if added is None else out + added[:, :, np.newaxis]
        got = layer_value_zeroing(m, query, key, value, plus=added)
        np.testing.assert_allclose(got, cosine_distance(y, y - brought.sum(1)), rtol=0, atol=1e-12)


def test_values_refuse(rng: np.random.Generator) -> None:
    m, x = layer(rng), rng.standard_normal((5, 24))
    extra = Module(24, 4, extra_kv=True, dtype="float64")
    assert_refused(lambda: norm_weighted_attention(extra, x), ValueError, "norm_weighted_attention", "extra key")
    assert_refused(lambda: layer_value_zeroing(m, x, plus=x[:4]), ValueError, "plus", "(5, 24)", "(4, 24)")
    assert_refused(lambda: layer_value_zeroing(m, x, heads=[1]), TypeError, "options", "heads")
    assert_refused(lambda: value_zeroing(x, x, x, layout="blhd"), TypeError, "value_zeroing", "layout")
    assert_refused(lambda: value_zeroing(x, x, x, dropout_p=0.5, rng=rng), TypeError, "value_zeroing", "no dropout", "dropout_p")
    assert_refused(lambda: layer_value_zeroing(m, x, dropout_p=0.5), TypeError, "layer_value_zeroing", "no dropout", "dropout_p")
    calls: list[Any] = [
        norm_weighted_attention,
        layer_value_zeroing,
        prune_heads,
        lambda m, x: circuits(m),
        lambda m, x: head_importance(m, x, x),
    ]
    for call in calls:
        assert_refused(lambda call=call: call("layer", x), TypeError, "attention", "qkvc.MultiHeadAttention", "str")
    assert_refused(lambda: model_importance(m, [[1, 2]]), TypeError, "model", "LanguageModel", "MultiHeadAttention")  # type: ignore[arg-type]


# --- circuits --------------------------------------------------------------------------------------------------------------------------


def top(matrix: NDArray[Any], count: int) -> NDArray[Any]:
    return np.linalg.svd(matrix, compute_uv=False)[:count]


@pytest.mark.parametrize("kind", KINDS)
def test_circuits_are_those_of_the_whole_matrices(kind: str, rng: np.random.Generator) -> None:
    m = layer(rng, **KINDS[kind])
    found, depth = circuits(m), m.head_dim
    for h in range(4):
        g = h // (4 // m.num_kv_heads)
        query, key = m.W_Q[h], m.W_K[g]
        if m.q_norm is not None:
            query, key = query * m.q_norm[:, None], key * m.k_norm[:, None]
        pairs = (
            (query.T @ key, found.qk, found.qk_rank, found.qk_positive),
            (m.W_O[h] @ m.W_V[g], found.ov, found.ov_rank, found.ov_positive),
        )
        for whole, values, rank, positive in pairs:
            np.testing.assert_allclose(values[h], top(whole, depth), rtol=1e-9, atol=1e-12)
            p = values[h] / values[h].sum()
            np.testing.assert_allclose(rank[h], np.exp(-(p * np.log(p)).sum()), rtol=1e-9)
            if whole.shape[0] != whole.shape[1]:
                assert positive is None
                continue
            eigenvalues = np.linalg.eigvals(whole)
            np.testing.assert_allclose(positive[h], eigenvalues.real.sum() / np.abs(eigenvalues).sum(), atol=1e-9)
        if m.q_bias is None:
            assert found.key_bias is found.query_bias is found.value_bias is None
        else:
            bias = [x.reshape(-1, depth) for x in (m.q_bias, m.k_bias, m.v_bias)]
            np.testing.assert_allclose(found.key_bias[h], key.T @ bias[0][h])
            np.testing.assert_allclose(found.query_bias[h], query.T @ bias[1][g])
            np.testing.assert_allclose(found.value_bias[h], m.W_O[h] @ bias[2][g])


def test_a_copying_head_has_positive_eigenvalues(rng: np.random.Generator) -> None:
    m = Module(12, 3, rng=rng)
    m.W_O[:2] = m.W_V[:2].swapaxes(1, 2)
    m.W_O[1] *= -1
    found = circuits(m).ov_positive
    assert found is not None
    np.testing.assert_allclose(found[:2], [1, -1], atol=1e-6)
    assert abs(found[2]) < 1


def test_a_circuit_between_positions(rng: np.random.Generator) -> None:
    """The score of a query three places behind its key, without their norms, is x^T W_Q^T R W_K y."""
    m = Module(24, 4, rng=rng, rope=qkvc.RopeConfig(10.0), qkv_bias=False, dtype="float64")
    step = np.eye(6)[np.newaxis]
    turned = np.stack([qkvc.rope(step, 3, base=10.0)[0, :1], qkvc.rope(step, 0, base=10.0)[0, :1]])
    assert not np.allclose(*turned)
    found = circuits(m, offset=3).qk
    for h in range(4):
        rows = [qkvc.rope(w.T[:, np.newaxis], at, base=10.0)[:, 0] for w, at in ((m.W_Q[h], 3), (m.W_K[h], 0))]
        np.testing.assert_allclose(found[h], top(rows[0] @ rows[1].T, 6), rtol=1e-9)
    assert not np.allclose(found, circuits(m).qk)
    assert_refused(lambda: circuits(layer(rng), offset=1), ValueError, "offset", "rope")
    assert_refused(lambda: circuits(m, offset=-1), ValueError, "offset", "0 or more")


# --- pruning ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        ({}, [2]),
        ({}, [3, 0, 3]),
        ({}, []),
        ({"num_kv_heads": 2}, [0, 1]),
        ({"num_kv_heads": 2}, [1, 2]),
        ({"num_kv_heads": 1, "out_bias": False}, [0]),
        ({"extra_kv": True, "num_kv_heads": 2}, [0, 1]),
        ({"kdim": 17, "vdim": 11, "head_dim": 9}, [1]),
        ({"rope": qkvc.RopeConfig(100.0), "qk_norm": 1e-6, "qkv_bias": False}, [0, 2, 3]),
    ],
)
def test_pruned_is_ablated_by_zero(options: dict[str, Any], gone: list[int], rng: np.random.Generator) -> None:
    m = layer(rng, **options)
    m.freeze("v")
    pruned, scale = prune_heads(m, gone), np.ones(4)
    scale[gone] = 0
    query, key, value = (rng.standard_normal((2, n, width)) for n, width in ((5, 24), (7, m.kdim), (7, m.vdim)))
    np.testing.assert_allclose(pruned(query, key, value), m(query, key, value, head_scale=scale), rtol=0, atol=1e-13)
    np.testing.assert_array_equal(pruned.heads(query, key, value), m.heads(query, key, value)[:, scale > 0])
    assert pruned.num_heads == 4 - len(set(gone))
    assert pruned.frozen == m.frozen
    assert not any(np.shares_memory(a, b) for a in pruned._parts().values() for b in m._parts().values())


def test_pruning_refuses(rng: np.random.Generator) -> None:
    m = layer(rng, num_kv_heads=2)
    assert_refused(lambda: prune_heads(m, [1]), ValueError, "heads", "whole groups", "1 left of group 0, 2 left of group 1")
    assert_refused(lambda: prune_heads(m, range(4)), ValueError, "heads", "all of them")
    assert_refused(lambda: prune_heads(m, [4]), ValueError, "heads", "0 to 3", "4")
    assert_refused(lambda: prune_heads(m, [-1]), ValueError, "heads", "-1")
    assert_refused(lambda: prune_heads(m, [0.5]), TypeError, "heads", "integers")  # type: ignore[list-item]
    assert_refused(lambda: prune_heads(m, 1), TypeError, "prune_heads", "heads", "int")  # type: ignore[arg-type]


# --- importance ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "grouped", "turned and normed"])
def test_importance_is_the_slope_in_a_heads_scale(kind: str, rng: np.random.Generator) -> None:
    m = layer(rng, **KINDS[kind])
    x, grad = rng.standard_normal((3, 6, 24)), rng.standard_normal((3, 6, 24))
    got = head_importance(m, grad, x, causal=True)
    for h in range(4):
        slope = [(m(x, causal=True, head_scale=1 + sign * 1e-5 * (np.arange(4) == h)) * grad).sum((1, 2)) for sign in (1, -1)]
        np.testing.assert_allclose(got[:, h], np.abs(slope[0] - slope[1]) / 2e-5, rtol=1e-7, atol=1e-9)
    assert_refused(lambda: head_importance(m, grad[:2], x), ValueError, "grad_out", "(3, 6, 24)", "(2, 6, 24)")
    assert_refused(lambda: head_importance(m, grad.astype(np.float32), x), TypeError, "grad_out", "float64", "float32")


def test_importance_is_that_of_torch(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    m = layer(rng)
    x, grad = rng.standard_normal((2, 5, 24)), rng.standard_normal((2, 5, 24))
    scale = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
    q, k, v = (torch.from_numpy(np.ascontiguousarray(part.swapaxes(1, 2))) for part in m.project(x))
    heads = torch.nn.functional.scaled_dot_product_attention(q, k, v) * scale[:, :, None, None]
    out = heads.transpose(1, 2).reshape(2, 5, 24) @ torch.from_numpy(m.out_weight).T
    (out * torch.from_numpy(grad)).sum().backward()
    np.testing.assert_allclose(head_importance(m, grad, x), scale.grad.abs().numpy(), rtol=1e-9)


def test_importance_in_a_model_is_the_slope_of_its_loss(rng: np.random.Generator) -> None:
    from qkvc.nn import cross_entropy

    model = LanguageModel(11, 12, layers=2, heads=3, dtype="float64", rng=0)
    ids = rng.integers(11, size=(3, 8))
    got = model_importance(model, ids)
    assert got.shape == (2, 3)
    for index, block in enumerate(model.blocks):
        for h in range(3):
            kept, slopes = block.attention.heads.W_O[h].copy(), []
            for text in ids[:, np.newaxis]:
                losses = []
                for factor in (1 + 1e-5, 1 - 1e-5):
                    block.attention.heads.W_O[h] = kept * factor
                    losses.append(cross_entropy(model.forward(text[:, :-1]), text[:, 1:]).value)
                slopes.append(abs(losses[0] - losses[1]) / 2e-5)
            block.attention.heads.W_O[h] = kept
            np.testing.assert_allclose(got[index, h], np.mean(slopes), rtol=1e-5, atol=1e-9)
    assert_refused(lambda: model_importance(model, [[1]]), ValueError, "ids", "2 tokens")
    model.blocks[0].attention.heads.freeze("o")
    assert_refused(lambda: model_importance(model, ids), ValueError, "model", "frozen")
