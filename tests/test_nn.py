"""Layers that learn: their gradients against central differences in float64, float32 against float64, torch, and the promises."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.special import erf, expit, log_softmax

import qkvc
from qkvc.models import LanguageModel
from qkvc.nn import (
    Embedding,
    FeedForward,
    Layer,
    LayerNorm,
    Linear,
    Loss,
    Parameter,
    RMSNorm,
    SelfAttention,
    TransformerBlock,
    cross_entropy,
)

from .slopes import Array, assert_layer, assert_slopes
from .support import assert_refused, assert_same_bits, run_child

WIDTH = 24


def attention(dtype: str, **options: Any) -> SelfAttention:
    return SelfAttention(qkvc.MultiHeadAttention(WIDTH, 4, rng=3, dtype=dtype, **options), causal=True)


def block(dtype: str) -> TransformerBlock:
    norms = LayerNorm(WIDTH, dtype=dtype), RMSNorm(WIDTH, dtype=dtype)
    return TransformerBlock(attention(dtype), FeedForward(WIDTH, dtype=dtype, rng=4), norms)


LAYERS: dict[str, Callable[[str], Layer]] = {
    "linear": lambda dtype: Linear(WIDTH, 7, dtype=dtype, rng=0),
    "linear without bias": lambda dtype: Linear(WIDTH, 33, bias=False, dtype=dtype, rng=0),
    "layer norm": lambda dtype: LayerNorm(WIDTH, dtype=dtype),
    "rms norm": lambda dtype: RMSNorm(WIDTH, dtype=dtype),
    "gelu": lambda dtype: FeedForward(WIDTH, dtype=dtype, rng=1),
    "swiglu": lambda dtype: FeedForward(WIDTH, 40, activation="swiglu", bias=False, dtype=dtype, rng=2),
    "attention": attention,
    "grouped heads": lambda dtype: attention(dtype, num_kv_heads=2, qkv_bias=False),
    "rotated": lambda dtype: attention(dtype, rope=qkvc.RopeConfig()),
    "normed and rotated": lambda dtype: attention(dtype, rope=qkvc.RopeConfig(interleaved=True), qk_norm=1e-6),
    "block": block,
}


def made(name: str, dtype: str) -> Layer:
    """A layer whose norms' weights are not 1."""
    layer, rng = LAYERS[name](dtype), np.random.default_rng(9)
    for parameter in layer.parameters().values():
        if parameter.value.ndim == 1:
            parameter.value[...] += rng.normal(0, 0.3, parameter.value.shape)
    return layer


@pytest.mark.parametrize("name", LAYERS)
def test_gradients(isa: str, rng: np.random.Generator, name: str) -> None:
    assert_layer(made(name, "float64"), rng.standard_normal((2, 5, WIDTH)), rng)


@pytest.mark.parametrize("width", [1, 2, 7, 16, 17, 33, 48])
def test_norms_of_any_width(isa: str, rng: np.random.Generator, width: int) -> None:
    for norm in (LayerNorm(width, dtype="float64"), RMSNorm(width, dtype="float64")):
        norm.weight.value[...] = rng.standard_normal(width)
        x, grad = rng.standard_normal((2, 300, width))
        y = norm.forward(x)
        d = x - x.mean(-1, keepdims=True) if isinstance(norm, LayerNorm) else x
        r = 1 / np.sqrt((d * d).mean(-1, keepdims=True) + norm.eps)
        np.testing.assert_allclose(y, d * r * norm.weight.value, rtol=1e-12, atol=1e-12)
        g = grad * norm.weight.value
        expected = g - d * r * (g * d * r).mean(-1, keepdims=True)
        expected = r * (expected - g.mean(-1, keepdims=True) if isinstance(norm, LayerNorm) else expected)
        assert_close_to(norm.backward(grad), expected, 1e-11)
        assert_close_to(norm.weight.grad, (grad * d * r).sum(0), 1e-11)


def assert_close_to(actual: Array | None, expected: Array, share: float, what: object = "", least: float = 1e-3) -> None:
    """Within a share of the largest number expected, if that is not too small."""
    assert actual is not None, what
    np.testing.assert_allclose(actual, expected, rtol=0, atol=share * max(least, np.abs(expected).max()), err_msg=str(what))


def trained(layer: Layer, x: Array, grad: Array) -> dict[str, Array]:
    """The result and all gradients."""
    layer.zero_grad()
    found = {"y": layer.forward(x), "dx": layer.backward(grad)}  # type: ignore[attr-defined]
    return found | {name: parameter.grad for name, parameter in layer.parameters().items() if parameter.grad is not None}


@pytest.mark.parametrize("name", LAYERS)
def test_float32_is_float64_rounded(isa: str, rng: np.random.Generator, name: str) -> None:
    narrow, wide = made(name, "float32"), made(name, "float64")
    wide.load(narrow.state())
    x = rng.standard_normal((3, 70, WIDTH)).astype(np.float32)
    grad = rng.standard_normal(narrow(x).shape).astype(np.float32)
    expected = trained(wide, x.astype(np.float64), grad.astype(np.float64))
    for what, got in trained(narrow, x, grad).items():
        assert got.dtype == np.float32
        assert_close_to(got, expected[what], 1e-5, (name, what), least=1)  # of a key's bias: 0, what all scores gain changes nothing


@pytest.mark.parametrize("name", LAYERS)
def test_threads_and_memory_change_no_bit(isa: str, rng: np.random.Generator, name: str) -> None:
    layer = made(name, "float32")
    x = rng.standard_normal((8, 130, WIDTH)).astype(np.float32)
    grad = rng.standard_normal(layer(x).shape).astype(np.float32)
    before = qkvc.get_num_threads()
    try:
        qkvc.set_num_threads(1)
        one = trained(layer, x, grad)
        qkvc.set_num_threads(2)
        for what, got in trained(layer, np.asfortranarray(x), grad[::-1].copy()[::-1]).items():
            assert_same_bits(np.ascontiguousarray(got), np.ascontiguousarray(one[what]), (name, what))
        alone = trained(layer, x[3:4], grad[3:4])
        assert_same_bits(np.ascontiguousarray(alone["dx"]), np.ascontiguousarray(one["dx"][3:4]), "neighbours")
    finally:
        qkvc.set_num_threads(before)


def test_gradients_add_up(rng: np.random.Generator) -> None:
    layer = made("block", "float64")
    x, grad = rng.standard_normal((2, 4, 9, WIDTH))
    whole = trained(layer, x, grad)
    layer.zero_grad()
    for half in (slice(2), slice(2, 4)):
        layer.forward(x[half])
        layer.backward(grad[half])  # type: ignore[attr-defined]
    for name, parameter in layer.parameters().items():
        assert_close_to(parameter.grad, whole[name], 1e-12, name)


def test_activations(isa: str, rng: np.random.Generator) -> None:
    from qkvc._passes import gelu, gelu_grad, swiglu, swiglu_grad

    for dtype, share in ((np.float32, 1e-6), (np.float64, 1e-14)):
        for size in (1, 15, 16, 17, 40_001):
            x, gate, grad = (rng.normal(0, 4, size).astype(dtype) for _ in range(3))
            a, b, g = (array.astype(np.float64) for array in (x, gate, grad))
            normal, bell = (1 + erf(a / np.sqrt(2))) / 2, np.exp(-a * a / 2) / np.sqrt(2 * np.pi)
            assert_close_to(gelu(x), a * normal, share, least=1)
            assert_close_to(gelu_grad(x, grad), g * (normal + a * bell), share, least=1)
            s = expit(b)
            assert_close_to(swiglu(gate, x), a * b * s, share, least=1)
            dgate, dx = swiglu_grad(gate, x, grad)
            assert_close_to(dgate, g * a * s * (1 + b * (1 - s)), share, least=1)
            assert_close_to(dx, g * b * s, share, least=1)
    far = np.array([-1e30, -1000, -200, 200, 1000, 1e30, np.nan], np.float32)
    ones = np.ones_like(far)
    np.testing.assert_allclose(gelu_grad(far, ones), [0, 0, 0, 1, 1, 1, np.nan], rtol=0, atol=2e-38)
    np.testing.assert_array_equal(swiglu_grad(far, ones, ones)[0], [0, 0, 0, 1, 1, 1, np.nan])
    np.testing.assert_array_equal(swiglu(far, ones), [0, 0, 0, 200, 1000, np.float32(1e30), np.nan])


# --------------------------------------------------------------------------------------------------------------------------------- ends


def test_embedding(isa: str, rng: np.random.Generator) -> None:
    layer = Embedding(11, 8, dtype="float64", rng=0)
    ids = rng.integers(0, 11, (3, 40))
    np.testing.assert_array_equal(layer(ids), layer.weight.value[ids])
    grad = rng.standard_normal((3, 40, 8))
    expected = np.zeros((11, 8))
    np.add.at(expected, ids, grad)
    layer.forward(ids)
    layer.backward(grad)
    assert_same_bits(layer.weight.grad, expected)  # type: ignore[arg-type]  # the same order
    assert_same_bits(layer(3), layer.weight.value[3])
    layer.forward(ids)
    layer.weight = Parameter(np.zeros((1, 8)))  # fewer rows than forward had, so the gradient has none to go to
    assert_refused(lambda: layer.backward(grad), ValueError, "Parameter: grad:", "(1, 8)")
    for wrong, error in ((11, ValueError), (-1, ValueError), (0.5, TypeError)):
        assert_refused(lambda wrong=wrong: layer([wrong]), error, "Embedding: ids:")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [1, 3, 16, 257, 5000])
def test_loss(isa: str, rng: np.random.Generator, dtype: type, classes: int) -> None:
    logits, targets = rng.normal(0, 5, (4, 9, classes)).astype(dtype), rng.integers(0, classes, (4, 9))
    targets[0, 3] = targets[2, 2] = -100
    logits[2, 2] = np.nan  # counts for nothing
    loss, counted = cross_entropy(logits, targets), targets >= 0
    exact = np.where(counted[..., None], logits, 0).astype(np.float64)
    of_targets = np.take_along_axis(log_softmax(exact, -1), np.where(counted, targets, 0)[..., None], -1)[..., 0]
    assert loss.counted == counted.sum() == 34
    np.testing.assert_allclose(loss.value, -of_targets[counted].mean(), rtol=1e-6 if dtype is np.float32 else 1e-13)
    expected = np.exp(log_softmax(exact, -1)) - (np.arange(classes) == targets[..., None])
    assert_close_to(loss.grad, np.where(counted[..., None], expected, 0) / 34, 1e-6 if dtype is np.float32 else 1e-13)
    assert not loss.grad[2, 2].any()


def test_loss_differences(rng: np.random.Generator) -> None:
    logits, targets = rng.standard_normal((5, 7)), np.array([3, 0, 6, -1, 2])
    assert_slopes(
        lambda: cross_entropy(logits, targets, ignore_index=-1).value, logits, cross_entropy(logits, targets, ignore_index=-1).grad, rng
    )


def test_loss_at_the_edges() -> None:
    assert cross_entropy([[1000.0, 0.0]], [1]) == Loss(1000.0, pytest.approx(np.array([[1, -1]])), 1)
    assert np.isnan(cross_entropy(np.zeros((2, 3)), [-100, -100]).value)
    assert np.isnan(cross_entropy([[np.nan, 0.0]], [0]).value)
    assert cross_entropy(np.zeros((0, 3)), np.zeros(0, int)).grad.shape == (0, 3)
    logits = np.zeros((2, 3))
    assert_refused(lambda: cross_entropy(logits, [0]), ValueError, "cross_entropy: targets:", "(2,)", "(1,)")
    assert_refused(lambda: cross_entropy(logits, [0, 3]), ValueError, "cross_entropy: targets:", "3")
    assert_refused(lambda: cross_entropy(logits, [0, -50]), ValueError, "cross_entropy: targets:", "-50")
    assert_refused(lambda: cross_entropy(logits, [0.0, 1.0]), TypeError, "cross_entropy: targets:", "integers")


# -------------------------------------------------------------------------------------------------------------------------------- torch


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_as_torch_does(rng: np.random.Generator, activation: Any) -> None:
    """A block and its loss, by autograd."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    f = torch.nn.functional
    ours = TransformerBlock(
        attention("float32"), FeedForward(WIDTH, activation=activation, rng=5), (LayerNorm(WIDTH), RMSNorm(WIDTH, eps=1e-5))
    )
    x, targets = rng.standard_normal((4, 33, WIDTH)).astype(np.float32), rng.integers(0, WIDTH, (4, 33))
    weights = {name: torch.tensor(array, requires_grad=True) for name, array in ours.state().items()}
    given = torch.tensor(x, requires_grad=True)

    def linear(x: Any, name: str) -> Any:
        return f.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    y = f.layer_norm(given, (WIDTH,), weights["norm_1.weight"], weights["norm_1.bias"])
    heads = [f.linear(y, weights[f"attention.{part}_weight"], weights[f"attention.{part}_bias"]) for part in "qkv"]
    heads = [head.reshape(4, 33, 4, WIDTH // 4).transpose(1, 2) for head in heads]
    mixed = f.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).reshape(4, 33, WIDTH)
    between = given + f.linear(mixed, weights["attention.out_weight"], weights["attention.out_bias"])
    y = f.rms_norm(between, (WIDTH,), weights["norm_2.weight"], 1e-5)
    up = linear(y, "feed_forward.up")
    inner = f.gelu(up) if activation == "gelu" else f.silu(linear(y, "feed_forward.gate")) * up
    result = between + linear(inner, "feed_forward.down")
    loss = f.cross_entropy(result.reshape(-1, WIDTH), torch.tensor(targets).reshape(-1))
    loss.backward()

    got = cross_entropy(ours.forward(x), targets)
    assert got.value == pytest.approx(loss.item(), rel=1e-6)
    assert_close_to(ours.backward(got.grad), given.grad.numpy(), 2e-6, "x")
    for name, parameter in ours.parameters().items():
        of_torch = weights[name].grad.numpy()
        largest = 1e-4 if name == "attention.k_bias" else 0  # exactly 0 but for rounding: it adds the same to all of a row's scores
        np.testing.assert_allclose(parameter.grad, of_torch, rtol=0, atol=max(largest, 3e-6 * np.abs(of_torch).max()), err_msg=name)


# ------------------------------------------------------------------------------------------------------------------------ multi-head


def test_multi_head_backward_of_two_inputs(isa: str, rng: np.random.Generator) -> None:
    m = qkvc.MultiHeadAttention(12, 4, num_kv_heads=2, kdim=9, vdim=5, head_dim=6, rng=0, dtype="float64", rope=qkvc.RopeConfig(dim=4))
    query, key, value = (rng.standard_normal(shape) for shape in ((2, 3, 12), (4, 9), (4, 5)))
    factors = rng.standard_normal((2, 3, 12))
    options: dict[str, Any] = {"causal": "bottom-right", "softcap": 2.0, "positions": [7, 1, 3], "key_positions": 2}
    grads = m.backward(factors, m.forward(query, key, value, **options)[1])

    def f() -> float:
        return float((m(query, key, value, **options) * factors).sum())

    for what, x, grad in (("query", query, grads.query), ("key", key, grads.key), ("value", value, grads.value)):
        assert_slopes(f, x, grad, rng, what)
    for name, part in m._parts().items():
        assert_slopes(f, part, grads.weights[name], rng, name)


def test_given_twice_is_one_gradient(rng: np.random.Generator) -> None:
    m = qkvc.MultiHeadAttention(8, 2, rng=0, dtype="float64")
    x, y, factors = rng.standard_normal((3, 5, 8))
    apart = m.backward(factors, m.forward(x, x.copy(), x.copy())[1])
    assert apart.key is not None
    assert apart.value is not None
    together = m.backward(factors, m.forward(x)[1])
    assert together.key is together.value is None
    np.testing.assert_allclose(together.query, apart.query + apart.key + apart.value, atol=1e-13)
    crossed = m.backward(factors, m.forward(x, y)[1])
    assert crossed.key is not None
    assert crossed.value is None


def test_one_product_or_three_learn_the_same(isa: str, rng: np.random.Generator) -> None:
    """Q, K and V of one array are one projection: where one is frozen, the others' gradients keep their bits."""
    m = qkvc.MultiHeadAttention(24, 4, num_kv_heads=2, rng=0)
    x, factors = rng.standard_normal((2, 3, 40, 24)).astype(np.float32)
    trace = m.forward(x, causal=True)[1]
    together = m.backward(factors, trace)
    assert {name: grad.shape for name, grad in together.weights.items()} == {name: part.shape for name, part in m._parts().items()}
    for part in "qkv":
        m.freeze(part)
        some = m.backward(factors, trace)
        assert f"{part}_weight" not in some.weights
        assert len(some.weights) == len(together.weights) - 2
        for name, grad in some.weights.items():
            assert_same_bits(grad, together.weights[name], name)
        assert_same_bits(some.query, together.query)
        m.freeze()


def test_freeze(rng: np.random.Generator) -> None:
    layer = attention("float32", qk_norm=1e-6)
    x = rng.standard_normal((5, WIDTH)).astype(np.float32)
    layer.heads.freeze("v", "q")
    assert layer.heads.frozen == {"v_weight", "v_bias", "q_weight", "q_bias", "q_norm"}
    assert_refused(lambda: layer.heads.freeze("x"), ValueError, "freeze: parts:", "'x'")  # type: ignore[arg-type]
    found = trained(layer, x, np.ones_like(x))
    assert {"k_weight", "k_bias", "k_norm", "out_weight", "out_bias"} == found.keys() - {"y", "dx"}
    layer.heads.freeze()
    free = trained(layer, x, np.ones_like(x))
    assert {"q_weight", "v_weight"} < free.keys()
    assert_same_bits(free["dx"], found["dx"], "the gradient of x goes through what is frozen")
    linear = Linear(WIDTH, 3, rng=0)
    linear.weight.frozen = True
    assert trained(linear, x, np.ones((5, 3), np.float32)).keys() == {"y", "dx", "bias"}


# ----------------------------------------------------------------------------------------------------------------------------- the rest


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_share_nothing(rng: np.random.Generator, copied: Callable[[Layer], Layer]) -> None:
    layer, x = block("float32"), rng.standard_normal((5, WIDTH)).astype(np.float32)
    other = copied(layer)
    assert_same_bits(other(x), layer(x))
    before = layer(x)
    other.parameters()["attention.q_weight"].value[...] = 0
    assert not np.array_equal(other(x), before), "the copy's parameters are what it computes with"
    assert_same_bits(layer(x), before)


def test_state(rng: np.random.Generator) -> None:
    layer, other = block("float32"), TransformerBlock(attention("float32"), FeedForward(WIDTH, rng=77), (LayerNorm(WIDTH), RMSNorm(WIDTH)))
    x = rng.standard_normal((5, WIDTH)).astype(np.float32)
    assert not np.array_equal(layer(x), other(x))
    state = layer.state()
    other.load(state)
    assert_same_bits(layer(x), other(x))
    assert layer.num_parameters() == sum(array.size for array in state.values())
    state["norm_1.weight"][...] = 7
    other.load({**layer.state()})
    for wrong, word in (
        ({}, "got none"),
        ({**state, "more": np.zeros(1)}, "expected none"),
        ({**state, "norm_2.weight": np.zeros(3)}, "(24,)"),
    ):
        assert_refused(lambda wrong=wrong: other.load(wrong), ValueError, "TransformerBlock.load: state,", word)
    last = "norm_2.weight"
    for kind in (complex, str, object):
        wrong = {name: np.zeros_like(x) for name, x in state.items()} | {last: state[last].astype(kind)}
        assert_refused(lambda wrong=wrong: other.load(wrong), TypeError, f"TransformerBlock.load: state, {last}:")
    assert_refused(lambda: other.load(None), TypeError, "TransformerBlock.load: state:", "NoneType")  # type: ignore[arg-type]
    assert_same_bits(layer(x), other(x), "a refused state has changed nothing")


def test_misuse() -> None:
    linear, x = Linear(4, 3, rng=0), np.ones((2, 4), np.float32)
    with pytest.raises(RuntimeError, match=r"Linear\.backward: expected a forward"):
        linear.backward(x)
    linear.forward(x)
    assert_refused(lambda: linear.backward(np.ones((2, 4), np.float32)), ValueError, "Linear: grad:", "(..., 3)")
    assert_refused(lambda: linear.backward(np.ones((1, 3), np.float32)), ValueError, "Linear: grad:", "(2, 3)")
    assert_refused(lambda: linear(x.astype(np.float64)), TypeError, "Linear: x:", "float32", "float64")
    assert_refused(lambda: linear(x[:, :3]), ValueError, "Linear: x:", "(..., 4)", "(2, 3)")
    assert_refused(lambda: Linear(0, 3), ValueError, "Linear: in_features:", "0")
    assert_refused(lambda: FeedForward(8, activation="relu"), ValueError, "FeedForward: activation:", "relu")  # type: ignore[arg-type]
    assert_refused(lambda: SelfAttention(linear), TypeError, "SelfAttention: heads:", "Linear")  # type: ignore[arg-type]
    parts = (linear, FeedForward(8), (LayerNorm(8), LayerNorm(8)))
    assert_refused(lambda: TransformerBlock(*parts), TypeError, "TransformerBlock: attention:", "Linear")  # type: ignore[arg-type]
    for wrong in ((LayerNorm(8),), (LayerNorm(8), linear), None):
        assert_refused(
            lambda wrong=wrong: TransformerBlock(attention("float32"), FeedForward(8), wrong), TypeError, "TransformerBlock: norms:"
        )
    for norm in (LayerNorm(4), RMSNorm(4)):
        norm.weight = Parameter(np.ones(4))
        assert_refused(lambda norm=norm: norm(x), TypeError, "weight:", "float32", "float64")
    assert_refused(lambda: linear.forward(x, [[0, 0, 0]] * 2), TypeError, "plus:", "list")  # type: ignore[arg-type]
    assert_refused(lambda: RMSNorm(4, eps=0), ValueError, "RMSNorm: eps:", "0")
    extra = qkvc.MultiHeadAttention(8, 2, extra_kv=True)
    assert_refused(lambda: extra.forward(np.ones((2, 8), np.float32)), ValueError, "extra_kv")
    m = qkvc.MultiHeadAttention(8, 2)
    trace = m.forward(np.ones((2, 8), np.float32))[1]
    assert_refused(lambda: m.backward(np.ones((3, 8), np.float32), trace), ValueError, "grad_out", "(2, 8)")


@pytest.mark.parametrize("name", LAYERS)
def test_a_refused_backward_changes_nothing(rng: np.random.Generator, name: str) -> None:
    layer = made(name, "float32")
    x = rng.standard_normal((9, WIDTH)).astype(np.float32)
    grad = rng.standard_normal(layer(x).shape).astype(np.float32)
    whole = trained(layer, x, grad)
    layer.zero_grad()
    layer.forward(x)
    for wrong in (grad[1:], grad[:, 1:], grad.astype(np.float64), np.float32(1), None):
        assert_refused(lambda wrong=wrong: layer.backward(wrong), (TypeError, ValueError), ": expected")  # type: ignore[attr-defined]
        assert all(parameter.grad is None for parameter in layer.parameters().values())
    layer.backward(grad)  # type: ignore[attr-defined]
    for key, parameter in layer.parameters().items():
        assert_same_bits(parameter.grad, whole[key], key)


def test_a_parameter_is_what_kernels_may_touch() -> None:
    for wrong in ([1.0], np.ones(3, np.float16), np.ones(3, int), np.ones(3, ">f4")):
        assert_refused(lambda wrong=wrong: Parameter(wrong), TypeError, "Parameter: value:")
    frozen = np.ones(3)
    frozen.flags.writeable = False
    for wrong in (np.ones((4, 4))[:, ::2], frozen):
        assert_refused(lambda wrong=wrong: Parameter(wrong), ValueError, "Parameter: value:", "C-contiguous")
    parameter = Parameter(np.ones((2, 3), np.float32))
    for give in (lambda grad: setattr(parameter, "grad", grad), parameter.add):
        assert_refused(lambda give=give: give(np.ones((2, 3))), TypeError, "Parameter: grad:", "float64")
        assert_refused(lambda give=give: give(np.ones(3, np.float32)), ValueError, "Parameter: grad:", "(2, 3)", "(3,)")
        give(np.ones((2, 6), np.float32)[:, ::2])
        assert_refused(lambda give=give: give(np.ones((1, 3), np.float32)), ValueError, "Parameter: grad:", "(2, 3)", "(1, 3)")
    assert_same_bits(parameter.grad, np.full((2, 3), 2, np.float32))
    with pytest.raises(AttributeError):
        parameter.value = np.ones(1, np.float32)  # type: ignore[misc]


def test_what_is_called_is_forgotten(rng: np.random.Generator) -> None:
    layer, x = block("float32"), rng.standard_normal((5, WIDTH)).astype(np.float32)
    layer(x)
    with pytest.raises(RuntimeError, match="expected a forward"):
        layer.backward(x)


def test_a_call_drops_nothing(rng: np.random.Generator) -> None:
    """`forward` is training and a call evaluation, in every layer inside and even after a call that failed."""
    model, ids = LanguageModel(13, 8, layers=2, heads=2, dropout=0.4, rng=0, dtype="float64"), rng.integers(0, 13, (2, 9))
    whole = LanguageModel(13, 8, layers=2, heads=2, rng=0, dtype="float64")
    with pytest.raises(ValueError, match="ids"):
        model([[13]])
    assert_same_bits(model(ids), whole(ids))
    assert_same_bits(model(ids), whole.forward(ids))
    first, second = model.forward(ids), model.forward(ids)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, model(ids))
    attention, x = model.blocks[0].attention, rng.standard_normal((2, 9, 8))
    assert_same_bits(attention(x), whole.blocks[0].attention(x))
    assert not np.array_equal(attention.forward(x), attention(x))
    assert_same_bits(model.forward(ids, 5), model.forward(ids, 5))
    seeds = [block.attention._kept[0].options["rng"] for block in model.blocks]  # type: ignore[index]
    assert seeds[0] != seeds[1]
    assert_refused(lambda: LanguageModel(13, 8, layers=1, heads=2, dropout=1.0), ValueError, "LanguageModel: dropout:", "below 1", "1.0")


def test_the_model_is_a_llama(rng: np.random.Generator) -> None:
    """Token by token, with a cache, the scores of all at once."""
    model, ids = LanguageModel(50, 32, layers=3, heads=4, rng=0), rng.integers(0, 50, (2, 21))
    llama = model.llama()
    np.testing.assert_allclose(llama.logits(llama.states(ids)), model(ids), rtol=0, atol=2e-5)
    caches = llama.caches(2, 21)
    steps = [llama.logits(llama.states(ids[:, i : i + 1], caches)) for i in range(21)]
    np.testing.assert_allclose(np.concatenate(steps, 1), model(ids), rtol=0, atol=2e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_model_gradients(isa: str, rng: np.random.Generator, dropout: float) -> None:
    model = LanguageModel(13, 8, layers=2, heads=2, dropout=dropout, rng=0, dtype="float64")
    ids, targets = rng.integers(0, 13, (2, 2, 6))
    loss = cross_entropy(model.forward(ids, 1), targets)
    model.zero_grad()
    model.backward(loss.grad)
    for name, parameter in model.parameters().items():
        assert_slopes(lambda: cross_entropy(model.forward(ids, 1), targets).value, parameter.value, parameter.grad, rng, name)


def test_memory_is_kept() -> None:
    """Freed and wanted again, in a process of its own: without it some 10,000 pages would come back cleared."""
    told = run_child(
        """
        import numpy as np, resource
        from qkvc.nn import keep_memory
        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for array in [np.empty(1 << 20, np.float32) for _ in range(10)]:
                array.fill(1)
            del array
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        kept = keep_memory()
        faults()
        print(kept, faults())
        """
    )
    kept, faults = told.split()
    if kept == "False":
        pytest.skip("this C library has no mallopt")
    assert int(faults) < 100
