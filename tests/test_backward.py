"""Gradients: against the chain rule over the whole matrix, against differences and torch; bits, poison and memory as promised."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import qkvc
from qkvc.gradients import NEEDS

from .options import DTYPES, HALVES, OPTIONS, SHAPES, operands_in, option
from .reference import exact_for, lse_type, reference, reference_backward, result_type, shortening, unit_of
from .support import FINER, MEMORY, assert_same_bits, normal, run_child
from .test_guard_pages import Guarded
from .test_memory import EXACT
from .test_varlen import LENGTHS, options_of, ragged, share

INF, NAN = np.inf, np.nan
OPERANDS = ("query", "key", "value")

# What float32 gradients may be off by, of the largest of each array, beside twice what naive float32 is; float64 has 29 bits more.  Of 16
# bits out is rounded, which delta takes over, and in pairs lse is that of rounded weights.
TOLERANCE = {"float32": 3e-6, "float64": 3e-6 * FINER["float64"], "float16": 4e-3, "bfloat16": 4e-2}


def gradients(grad_out: Any, *arrays: Any, **options: Any) -> qkvc.AttentionGrads:
    """Forward and backward."""
    only_back = {name: options.pop(name) for name in ("grad_lse", "needs") if name in options}
    out, lse = qkvc.attention_with_lse(*arrays, **options)
    return qkvc.attention_backward(grad_out, *arrays, out, lse, **options, **only_back)


def named(options: dict[str, Any]) -> list[str]:
    return [name for name in NEEDS if name not in ("bias", "sinks") or name in options]


def assert_gradients(got: qkvc.AttentionGrads, grad_out: Any, *arrays: Any, grad_lse: Any = None, **options: Any) -> None:
    """As the oracle has them, in the operands' dtypes."""
    exact = exact_for(*arrays)
    expected = reference_backward(grad_out, *arrays, grad_lse=grad_lse, dtype=exact, **options)
    name = result_type(*arrays).name
    naive = reference_backward(grad_out, *arrays, grad_lse=grad_lse, dtype=lse_type(*arrays), **options)
    for field, actual, wanted, rough in zip(NEEDS, got, expected, naive, strict=True):
        if actual is None:
            continue
        dtype = dict(zip(OPERANDS, (result_type(x) for x in arrays), strict=True)).get(field, lse_type(*arrays))
        assert (actual.shape, actual.dtype) == (np.shape(wanted), dtype), field
        size = np.abs(np.asarray(wanted, np.float64)).max(initial=0)
        error = np.abs(actual.astype(exact) - wanted)
        floor = 2 * np.abs(rough - wanted).max(initial=0) if name in DTYPES else 0
        allowed = floor + TOLERANCE[name] * max(float(size), 1e-3) + shortening(dtype, wanted)
        assert (error <= allowed).all(), f"{field}: {error.max():.3g} off, allowed {np.max(allowed):.3g}"


# ---------------------------------------------------------------------------------------------------------------------------- numbers


# Of 16 bits, which only change how rows come and go, some shapes do.
@pytest.mark.parametrize(("dtype", "shape"), [*itertools.product(DTYPES, SHAPES), *itertools.product(HALVES, SHAPES[1::3])], ids=str)
@pytest.mark.parametrize("kind", OPTIONS)
def test_every_option(isa: str, kind: str, dtype: str, shape: Any, rng: np.random.Generator) -> None:
    batch, heads, lengths, _ = shape
    arrays = operands_in(dtype, rng, *shape)
    options = option(rng, kind, batch, heads[0], lengths)
    out, lse = qkvc.attention_with_lse(*arrays, **options)
    grad_out = normal(rng, *out.shape).astype(dtype)
    grad_lse = normal(rng, *lse.shape)
    got = qkvc.attention_backward(grad_out, *arrays, out, lse, **options, grad_lse=grad_lse, needs=named(options))
    assert_gradients(got, grad_out, *arrays, grad_lse=grad_lse, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [(1100, 200), (600, 300), (4400, 70)], ids=str)
@pytest.mark.parametrize("kind", ["plain", "causal", "window"])
def test_several_stripes_and_groups(isa: str, kind: str, lengths: tuple[int, int], dtype: str, rng: np.random.Generator) -> None:
    """4400 queries are 8 stripes, which 2 heads to a key head make 17 of, in 8 groups."""
    arrays = operands_in(dtype, rng, (), (2, 1), lengths, (24, 20))
    options = option(rng, kind, (), 2, lengths)
    grad_out = normal(rng, 2, lengths[0], 20)
    assert_gradients(gradients(grad_out, *arrays, **options), grad_out, *arrays, **options)


def accuracy(rng: np.random.Generator, lengths: tuple[int, int], dims: tuple[int, int]) -> list[float]:
    """Largest errors of dQ, dK and dV, in those of naive float32."""
    arrays = operands_in("float32", rng, (), (2, 1), lengths, dims)
    grad_out = normal(rng, 2, lengths[0], dims[1])
    exact = reference_backward(grad_out, *arrays)
    naive = reference_backward(grad_out, *arrays, dtype=np.float32)
    got = gradients(grad_out, *arrays)
    floor = [2 * unit_of("float32") * np.abs(x).max() for x in exact[:3]]
    return [np.abs(x - e).max() / (np.abs(n - e).max() + f) for x, e, n, f in zip(got[:3], exact[:3], naive[:3], floor, strict=True)]


@pytest.mark.parametrize("lengths", [(128, 128), (300, 200), (700, 900)], ids=str)
@pytest.mark.parametrize("dims", [(64, 64), (128, 32)], ids=str)
def test_as_accurate_as_promised(
    isa: str, lengths: tuple[int, int], dims: tuple[int, int], rng: np.random.Generator, figures: list[str]
) -> None:
    ratios = accuracy(rng, lengths, dims)
    assert max(ratios) <= 2, ratios
    figures.append(f"gradients, {isa}, {lengths}, {dims}: {', '.join(f'{r:.2f}' for r in ratios)} of naive float32's error")


@pytest.mark.parametrize("shape", [(2, 4, 9, 11), (4, 9, 11), (9, 11), (11,), (1,), (), (4, 1, 1), (2, 1, 9, 1), (2, 1, 1, 11)], ids=str)
def test_bias_along_every_axis(isa: str, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    arrays = operands_in("float64", rng, (2,), (4, 2), (9, 11), (6, 5))
    options = {"bias": rng.standard_normal(shape), "softcap": 2.0, "causal": "bottom-right", "sinks": rng.standard_normal(4)}
    grad_out = rng.standard_normal((2, 4, 9, 5))
    assert_gradients(gradients(grad_out, *arrays, **options, needs=["bias"]), grad_out, *arrays, **options)


@pytest.mark.parametrize("shape", [(300, 260), (1, 260), (300, 1), (2, 300, 260), (2, 2, 1, 260)], ids=str)
def test_bias_of_many_blocks(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    arrays = operands_in("float32", rng, (2,), (2, 1), (300, 260), (16, 16))
    options, grad_out = {"bias": normal(rng, *shape)}, normal(rng, 2, 2, 300, 16)
    results = [gradients(grad_out, *arrays, **options, needs=["bias"], num_threads=n) for n in (1, 2, 5)]
    assert_gradients(results[0], grad_out, *arrays, **options)
    for other in results[1:]:
        assert_same_bits(other.bias, results[0].bias)


@pytest.mark.parametrize("shapes", [((2, 1), (1, 3), (2, 3)), ((), (4,), (4,)), ((3,), (), ())], ids=str)
@pytest.mark.parametrize("layout", ["bhld", "blhd"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_batch_axes_that_broadcast(dtype: str, layout: str, shapes: Any, rng: np.random.Generator) -> None:
    def operand(batch: tuple[int, ...], heads: int, length: int, dim: int) -> NDArray[Any]:
        tail = (heads, length, dim) if layout == "bhld" else (length, heads, dim)
        return normal(rng, *batch, *tail).astype(dtype)

    arrays = [operand(b, *n) for b, n in zip(shapes, ((4, 6, 8), (2, 7, 8), (2, 7, 5)), strict=True)]
    grad_out = normal(rng, *qkvc.attention(*arrays, layout=layout).shape)
    assert_gradients(gradients(grad_out, *arrays, layout=layout), grad_out, *arrays, layout=layout)


def test_one_head_has_no_axis_for_it(rng: np.random.Generator) -> None:
    arrays, grad_out = operands_in("float64", rng, (), (1, 1), (5, 7), (3, 4)), rng.standard_normal((5, 4))
    flat = [x[0] for x in arrays]
    for layout in ("bhld", "blhd"):
        got = gradients(grad_out, *flat, layout=layout, sinks=0.5, needs=[n for n in NEEDS if n != "bias"])
        assert_gradients(got._replace(head_importance=None), grad_out, *flat, layout=layout, sinks=0.5)
        assert got.head_importance.shape == (1,)


def test_operands_of_several_dtypes(rng: np.random.Generator) -> None:
    """Each gradient has its operand's, whatever was computed in; integers count as float64."""
    q, k, v = operands_in("float32", rng, (), (2, 1), (5, 40), (8, 8))
    k, v = k.astype("bfloat16"), v.astype("float16")
    grad_out = normal(rng, 2, 5, 8).astype("float16")
    got = gradients(grad_out, q, k, v)
    assert [x.dtype.name for x in got[:3]] == ["float32", "bfloat16", "float16"]
    assert_gradients(got._replace(key=None, value=None), grad_out, q, k, v)
    for wide in (np.ones((2, 5, 8), int), q.astype("float64"), q.astype(">f8")):
        got = gradients(grad_out, wide, k, v)
        assert [x.dtype for x in got[:3]] == ["float64", "bfloat16", "float16"]
        assert_gradients(got, grad_out, wide, k, v)


def test_no_keys_no_queries_no_columns(isa: str) -> None:
    for l_q, l_k, d, d_v in itertools.product((0, 3), (0, 4), (0, 2), (0, 5)):
        q, k, v, g = np.ones((2, 2, l_q, d), "f"), np.ones((2, 1, l_k, d), "f"), np.ones((2, 1, l_k, d_v), "f"), np.ones((2, 2, l_q, d_v))
        got = gradients(g, q, k, v, bias=np.zeros(l_k), needs=(*OPERANDS, "bias", "head_importance"))
        assert_gradients(got, g, q, k, v, bias=np.zeros(l_k))


# -------------------------------------------------------------------------------------------------------------------------- differences


@given(st.data())
@settings(max_examples=200)
def test_finite_differences(data: st.DataObject) -> None:
    """Along a direction through everything that has a gradient, any options together: to 1e-6 of the sum of all terms' sizes."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    kv_heads, group = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    batch, heads = data.draw(st.sampled_from(((), (2,)))), (kv_heads * group, kv_heads)
    lengths = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 150)))
    dims = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    kinds = data.draw(st.sets(st.sampled_from(OPTIONS[1:-1])))
    options: dict[str, Any] = {}
    for kind in sorted(kinds):
        options |= option(rng, kind, batch, heads[0], lengths)
    if options.get("causal"):
        options.pop("q_offset", None)
    options |= data.draw(st.sampled_from(({}, {"dropout_p": 0.3, "rng": 2**64 - 5}))) | data.draw(st.sampled_from(({}, {"scale": -0.3})))
    moving = dict(zip(OPERANDS, operands_in("float64", rng, batch, heads, lengths, dims), strict=True))
    if data.draw(st.booleans()):
        moving, options["layout"] = {name: x.swapaxes(-2, -3) for name, x in moving.items()}, "blhd"
    moving |= {name: options.pop(name) for name in ("bias", "sinks") if name in options}
    out, lse = qkvc.attention_with_lse(**moving, **options)
    grad_out, grad_lse = rng.standard_normal(out.shape), np.where(np.isfinite(lse), rng.standard_normal(lse.shape), 0)

    def loss(arrays: dict[str, Any]) -> float:
        o, e = qkvc.attention_with_lse(**arrays, **options)
        return float((o * grad_out).sum() + (np.where(np.isfinite(e), e, 0) * grad_lse).sum())

    got = qkvc.attention_backward(grad_out, out=out, lse=lse, grad_lse=grad_lse, needs=list(moving), **moving, **options)
    step = 1e-5
    for name, x in moving.items():
        towards = rng.standard_normal(np.shape(x))
        ahead, behind = ({**moving, name: x + sign * step * towards} for sign in (1, -1))
        grad = getattr(got, name)
        assert grad is not None
        expected = (loss(ahead) - loss(behind)) / (2 * step)
        size = np.abs(grad * towards).sum() + np.abs(grad_out).sum() * 1e-2
        assert abs((grad * towards).sum() - expected) <= 1e-6 * size, name


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [(1, 1), (4, 2), (6, 1)], ids=str)
@pytest.mark.parametrize("length", [1, 17, 77, 257, 577])
@pytest.mark.parametrize("dim", [32, 40, 64, 80])
def test_as_torch_does(dim: int, length: int, heads: tuple[int, int], causal: bool, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    arrays = operands_in("float32", rng, (2,), heads, (length, length), (dim, dim))
    grad_out = normal(rng, 2, heads[0], length, dim)
    theirs = [torch.tensor(x.astype(np.float64), requires_grad=True) for x in arrays]
    out = torch.nn.functional.scaled_dot_product_attention(*theirs, is_causal=causal, enable_gqa=heads[0] != heads[1])
    out.backward(torch.tensor(grad_out.astype(np.float64)))
    for mine, tensor in zip(gradients(grad_out, *arrays, causal=causal)[:3], theirs, strict=True):
        expected = tensor.grad.numpy()
        assert np.abs(mine - expected).max() <= 3e-6 * np.abs(expected).max() + 3e-6


# --------------------------------------------------------------------------------------------------------------------------------- bits


@pytest.mark.parametrize("kind", ["causal", "everything"])
@pytest.mark.parametrize("dtype", DTYPES + HALVES)
@pytest.mark.parametrize("lengths", [(50, 140), (1300, 200)], ids=str)
def test_threads_neighbours_and_needs_change_no_bit(
    isa: str, lengths: tuple[int, int], dtype: str, kind: str, rng: np.random.Generator
) -> None:
    batch, heads = (2,), (4, 2)
    arrays = operands_in(dtype, rng, batch, heads, lengths, (24, 16))
    options, grad_out = option(rng, kind, batch, heads[0], lengths), normal(rng, 2, 4, lengths[0], 16)
    needs = named(options)
    out, lse = qkvc.attention_with_lse(*arrays, **options)
    whole = qkvc.attention_backward(grad_out, *arrays, out, lse, **options, needs=needs, num_threads=1)
    for threads in (2, 3, 7):
        again = qkvc.attention_backward(grad_out, *arrays, out, lse, **options, needs=needs, num_threads=threads)
        for name in needs:
            assert_same_bits(getattr(again, name), getattr(whole, name), f"{name}, {threads} threads")
    for b, h in np.ndindex(2, 2):
        mine = (b, slice(2 * h, 2 * h + 2))
        some = {n: x[mine] if np.ndim(x) > 1 else x[b] if isinstance(x, np.ndarray) else x for n, x in options.items()}
        one = [x[b, h : h + 1] if i else x[mine] for i, x in enumerate(arrays)]
        alone = qkvc.attention_backward(grad_out[mine], *one, out[mine], lse[mine], **some, needs=needs)
        for name in needs:
            theirs = getattr(whole, name)
            assert_same_bits(getattr(alone, name), theirs[b, h : h + 1] if name in ("key", "value") else theirs[mine], name)
    for name in needs:
        single = qkvc.attention_backward(grad_out, *arrays, out, lse, **options, needs=[name])
        assert [n for n, x in zip(NEEDS, single, strict=True) if x is not None] == [name]
        assert_same_bits(getattr(single, name), getattr(whole, name), f"{name} alone")


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_memory_and_layout_change_no_bit(memory: str, dtype: str, rng: np.random.Generator) -> None:
    arrays = operands_in(dtype, rng, (2,), (4, 2), (50, 140), (24, 16))
    out, lse = qkvc.attention_with_lse(*arrays)
    given = [normal(rng, *out.shape).astype(dtype), *arrays, out]
    expected = qkvc.attention_backward(*given, lse)
    moved = qkvc.attention_backward(*map(MEMORY[memory], given), MEMORY[memory](lse))
    turned = qkvc.attention_backward(*(x.swapaxes(1, 2) for x in map(MEMORY[memory], given)), lse, layout="blhd")
    for x, y, z in zip(expected[:3], moved[:3], turned[:3], strict=True):
        assert_same_bits(y, x)
        assert_same_bits(z.swapaxes(1, 2), x)


@pytest.mark.parametrize("kind", ["plain", "everything"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [(3, 40), (90, 200), (1300, 140)], ids=str)
def test_kernel_sets_with_fma_have_the_same_bits(lengths: tuple[int, int], dtype: str, kind: str, rng: np.random.Generator) -> None:
    """2600 rows are 5 stripes, which would begin at row 520, inside a tile of 48 but not of 8."""
    arrays = operands_in(dtype, rng, (), (4, 2), lengths, (24, 16))
    options, grad_out = option(rng, kind, (), 4, lengths), normal(rng, 4, lengths[0], 16)
    out, lse = qkvc.attention_with_lse(*arrays, **options)
    results = []
    for name in qkvc.kernels():
        if name != "portable":
            with qkvc.use_kernels(name):
                results.append(qkvc.attention_backward(grad_out, *arrays, out, lse, **options, needs=named(options)))
    for other in results[1:]:
        for name in named(options):
            assert_same_bits(getattr(other, name), getattr(results[0], name), name)


@pytest.mark.parametrize("kind", ["plain", "causal", "window", "sinks", "everything"])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_ragged_sequences_are_what_they_are_alone(isa: str, lengths: str, kind: str, rng: np.random.Generator) -> None:
    batch = ragged(rng, lengths)
    options = options_of(rng, kind, batch)
    needs = [name for name in named(options) if name != "bias"]
    for threads in (1, 2, 7):
        forward = qkvc.attention_varlen_with_lse(*batch.arrays, batch.q, batch.k, layout="bhld", **options)
        grad_out = normal(rng, *forward.out.shape)
        args = (grad_out, *batch.arrays, *forward, batch.q, batch.k)
        got = qkvc.attention_varlen_backward(*args, layout="bhld", needs=needs, num_threads=threads, **options)
        for i in range(batch.q.size - 1):
            of_q, of_k = slice(batch.q[i], batch.q[i + 1]), slice(batch.k[i], batch.k[i + 1])
            alone = (grad_out[:, of_q], *batch.alone(i), forward.out[:, of_q], forward.lse[:, of_q])
            one = qkvc.attention_backward(*alone, needs=needs, **share(options, i))
            assert_same_bits(got.query[:, of_q], one.query, f"query {i}")
            for name in ("key", "value"):
                assert_same_bits(getattr(got, name)[:, of_k], getattr(one, name), f"{name} {i}")
            for name in needs[3:]:
                assert_same_bits(getattr(got, name)[i], getattr(one, name), f"{name} {i}")


# ------------------------------------------------------------------------------------------------------------------------------- poison


@pytest.mark.parametrize("poison", [NAN, INF, -INF, 1e38])
@pytest.mark.parametrize("lengths", [(6, 7), (60, 150), (1200, 300)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_masked_reaches_no_gradient(
    isa: str, dtype: str, lengths: tuple[int, int], poison: float, rng: np.random.Generator
) -> None:
    """Keys that nobody sees, values behind them, queries that see nothing and what comes back to them: to the bit, and zero themselves."""
    arrays = operands_in(dtype, rng, (2,), (4, 2), lengths, (24, 16))
    blind, unseen = rng.random(lengths[0]) < 0.3, rng.random(lengths[1]) < 0.3
    mask = (rng.random((2, 4, *lengths)) < 0.7) & ~blind[:, np.newaxis] & ~unseen
    options: dict[str, Any] = {"mask": mask, "bias": normal(rng, *lengths)}
    grad_out = normal(rng, 2, 4, lengths[0], 16).astype(dtype)
    clean = gradients(grad_out, *arrays, **options, needs=(*OPERANDS, "bias"))
    dirty = [x.copy() for x in (grad_out, *arrays)]
    for x, rows in zip(dirty, (blind, blind, unseen, unseen), strict=True):
        x[..., rows, :] = poison
    options["bias"][blind] = options["bias"][:, unseen] = poison
    got = gradients(*dirty, **options, needs=(*OPERANDS, "bias"))
    for name, x in zip((*OPERANDS, "bias"), got[:4], strict=True):
        assert_same_bits(x, getattr(clean, name), name)
    for x, rows in zip(got[:3], (blind, unseen, unseen), strict=True):
        assert not x[..., rows, :].any()


@pytest.mark.parametrize("place", range(4))
def test_what_is_attended_is_not_lost(isa: str, place: int, rng: np.random.Generator) -> None:
    """A NaN in query, key, value or grad_out comes out wherever it belongs, and nowhere else."""
    arrays = [normal(rng, 1, 60, 16), *operands_in("float32", rng, (), (1, 1), (60, 60), (24, 16))]
    arrays[place][0, 20, 3] = NAN
    grads = gradients(*arrays, causal=True)
    dQ, dK, dV = (np.isnan(x).any(-1)[0] for x in grads[:3])
    i = np.arange(60)
    if place in (0, 1):  # grad_out, query: row 20 sees keys up to 20
        assert (dQ == (i == 20)).all()
        assert (dK == (i <= 20)).all()
        assert (dV == (i <= 20)).all() or place == 0
    else:  # key, value: seen by all queries from 20 on
        assert (dQ == (i >= 20)).all()
        assert dK.all()
        assert dV.all() == (place == 2)


def test_an_empty_row_has_no_gradient_but_its_sink(isa: str, rng: np.random.Generator) -> None:
    arrays, grad_out = operands_in("float64", rng, (), (2, 1), (6, 9), (4, 4)), rng.standard_normal((2, 6, 4))
    got = gradients(grad_out, *arrays, mask=np.zeros((6, 9), bool), bias=np.ones((6, 9)), needs=(*OPERANDS, "bias", "head_importance"))
    assert all(not x.any() for x in got if x is not None)
    sinks = np.array([0.5, -INF])
    got = gradients(grad_out, *arrays, key_lengths=0, sinks=sinks, grad_lse=np.ones((2, 6)), needs=("key", "sinks"))
    assert not got.key.any()
    np.testing.assert_allclose(got.sinks, [6, 0], rtol=1e-15)  # lse is the sink


# -------------------------------------------------------------------------------------------------------------------------- other doors


def test_vjp_is_forward_and_backward(rng: np.random.Generator) -> None:
    arrays = operands_in("float32", rng, (2,), (4, 2), (9, 20), (8, 8))
    options = option(rng, "everything", (2,), 4, (9, 20))
    out, vjp = qkvc.attention_vjp(*arrays, **options, needs=NEEDS)
    assert_same_bits(out, qkvc.attention(*arrays, **options))
    grad_out = normal(rng, *out.shape)
    for x, y in zip(vjp(grad_out), gradients(grad_out, *arrays, **options, needs=NEEDS), strict=True):
        assert_same_bits(x, y)


def test_precision_is_that_of_the_forward(rng: np.random.Generator) -> None:
    """The gradient at the rounded operands, in the operands' dtype."""
    arrays, grad_out = operands_in("float32", rng, (), (2, 2), (40, 60), (16, 16)), normal(rng, 2, 40, 16)
    rounded = [x.astype("bfloat16").astype("float32") for x in arrays]
    out, lse = qkvc.attention_with_lse(*rounded)
    got = qkvc.attention_backward(grad_out, *arrays, out, lse, precision="bf16")
    for x, y in zip(got[:3], qkvc.attention_backward(grad_out, *rounded, out, lse)[:3], strict=True):
        assert_same_bits(x, y)


# ---------------------------------------------------------------------------------------------------------------------------- memory


def starts(l_q: int, l_k: int) -> dict[str, list[int]]:
    return {"cu_seqlens_q": [0, l_q], "cu_seqlens_k": [0, l_k]}


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("side", ["start", "end"])
def test_no_byte_beyond_an_array_is_touched(isa: str, side: str, dtype: str, rng: np.random.Generator) -> None:
    pages = {n: Guarded(40_000, rng.standard_normal(5_000).astype(dtype)) for n in ("grad_out", *OPERANDS, "out")}
    for l_q, l_k, d, d_v in ((1, 1, 1, 1), (3, 5, 7, 9), (17, 33, 8, 16), (49, 20, 17, 31), (13, 130, 5, 4)):
        shapes = zip(pages, ((2, l_q, d_v), (2, l_q, d), (1, l_k, d), (1, l_k, d_v), (2, l_q, d_v)), strict=True)
        arrays = {name: pages[name].place(shape, dtype, side) for name, shape in shapes}
        lse = reference(*(arrays[name].astype("float64") for name in OPERANDS), causal="bottom-right").lse
        for options in ({}, {"dropout_p": 0.3, "rng": 3}):
            got = qkvc.attention_backward(**arrays, lse=lse, causal="bottom-right", **options)
            flat = qkvc.attention_varlen_backward(**arrays, lse=lse, causal="bottom-right", layout="bhld", **starts(l_q, l_k), **options)
            for x, y in zip(got[:3], flat[:3], strict=True):
                assert np.isfinite(x.astype("float64")).all()
                assert_same_bits(y, x)


@pytest.mark.parametrize(("length", "options"), [(6000, "causal=True"), (3000, "causal=True"), (3000, "dropout_p=0.1, rng=1")])
def test_memory_is_that_of_the_docstring(length: int, options: str) -> None:
    """One key head, so that its groups are together; linear in the length, and dropout stores nothing."""
    growth = run_child(
        f"""
        from tests.test_memory import METER
        exec(METER)
        q, k, v, g = arrays(2, {length}, {length}, 64)
        options = dict({options}, num_threads=2)
        small = [x[:, :700] for x in (g, q, k, v)]
        qkvc.attention_backward(*small, *qkvc.attention_with_lse(*small[1:], **options), **options)
        out, lse = qkvc.attention_with_lse(q, k, v, **options)
        print(growth(lambda: qkvc.attention_backward(g, q, k, v, out, lse, **options)))
        """,
        **EXACT,
    )
    results, parts = 4 * 64 * length * (2 + 1 + 1), 4 * 128 * length * (8 + 2)
    assert results + parts // 2 < int(growth) <= results + parts + 2 * 2**20
