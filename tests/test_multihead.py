"""MultiHeadAttention against the oracle and plain float64 products, against torch, and against the checkpoints it reads and writes."""

from __future__ import annotations

import copy
import pickle
import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import qkvc

from .reference import reference
from .rotation import angles, rms_normed, turned
from .support import MEMORY, assert_refused, assert_same_bits, normal

Module = qkvc.MultiHeadAttention

# Sizes that share no number, so that no axis can stand for another.  Two projections of about 30 terms around attention, whose own
# tolerance is 2e-6 for values of size 1; in float64 the oracle's own rounding is all that is left, some 1e-15 a sum.
ATOL = 1e-5
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"num_kv_heads": 2},
    "one key head": {"num_kv_heads": 1, "qkv_bias": False},
    "wide heads": {"head_dim": 9, "out_bias": False},
    "other widths": {"kdim": 17, "vdim": 11},
    "one width": {"kdim": 17, "vdim": 17, "num_kv_heads": 2},
    "extra": {"extra_kv": True},
    "extra, grouped": {"extra_kv": True, "num_kv_heads": 2, "head_dim": 7},
    "turned": {"rope": qkvc.RopeConfig(dim=4, interleaved=True)},
    "normed": {"qk_norm": 0.1, "kdim": 17},
    "turned and normed": {"rope": qkvc.RopeConfig(100.0), "qk_norm": 1e-6, "num_kv_heads": 2, "head_dim": 10, "qkv_bias": False},
}


def module(rng: np.random.Generator, **options: Any) -> Module:
    """Width 24, 4 heads, and biases and norms that are not zero and one."""
    m = Module(24, 4, rng=rng, **options)
    for name in ("q_bias", "k_bias", "v_bias", "out_bias", "q_norm", "k_norm"):
        if (bias := getattr(m, name)) is not None:
            bias[...] = normal(rng, *bias.shape)
    return m


def rows_at(length: int, keys: int, options: dict[str, Any]) -> Any:
    """Positions of the queries, as the table of meanings in README.md has them."""
    if "q_offset" in options:
        return np.asarray(options["q_offset"])[..., None] + np.arange(length)
    last = np.asarray(options.get("key_lengths", keys))[..., None] if options.get("causal") == "bottom-right" else length
    return last - length + np.arange(length)


def exact(
    m: Module, query: Any, key: Any = None, value: Any = None, positions: Any = None, key_positions: Any = None, **options: Any
) -> dict[str, NDArray[np.float64]]:
    """The layer in float64, head by head from the per-head weights; the extra key is a column of its own, in front of the others."""
    key = query if key is None else key
    value = key if value is None else value
    bias = [np.zeros(1) if b is None else b.astype(float).reshape(-1, 1, m.head_dim) for b in (m.q_bias, m.k_bias, m.v_bias)]
    q, k, v = (
        np.einsum("...le,hde->...hld", x.astype(float), w.astype(float)) + b
        for x, w, b in zip((query, key, value), (m.W_Q, m.W_K, m.W_V), bias, strict=True)
    )
    if m.qk_norm is not None:
        q, k = rms_normed(q, m.q_norm, m.qk_norm), rms_normed(k, m.k_norm, m.qk_norm)
    if m.rope is not None:
        places = rows_at(q.shape[-2], k.shape[-2], options) if positions is None else positions
        others = np.arange(k.shape[-2]) if key_positions is None else key_positions
        q, k = (turned(x, angles(m.rope, m.head_dim, at), m.rope.interleaved) for x, at in ((q, places), (k, others)))
    q, k = q.astype(float), k.astype(float)
    if m.extra_key is not None:
        k, v = (
            np.concatenate([np.broadcast_to(e[:, None], (*x.shape[:-2], 1, m.head_dim)), x], -2)
            for e, x in ((m.extra_key, k), (m.extra_value, v))
        )
        if "mask" in options:
            mask = np.broadcast_to(options["mask"], (*q.shape[:-1], k.shape[-2] - 1))
            options["mask"] = np.concatenate([np.ones((*mask.shape[:-1], 1), bool), mask], -1)
        if "key_lengths" in options:
            options["key_lengths"] = np.asarray(options["key_lengths"]) + 1
    heads = reference(q, k, v, **options).out
    weights = reference(q, k, np.broadcast_to(np.eye(k.shape[-2]), (*k.shape[:-1], k.shape[-2])), **options).out
    contributions = np.einsum("...hld,hed->...hle", heads, m.W_O.astype(float))
    out = contributions.sum(-3) + (0 if m.out_bias is None else m.out_bias.astype(float))
    if m.extra_key is not None:
        weights = np.roll(weights, -1, axis=-1)
    return {"heads": heads, "contributions": contributions, "out": out, "weights": weights}


def assert_layer(m: Module, query: Any, key: Any = None, value: Any = None, **options: Any) -> None:
    expected = exact(m, query, key, value, **options)
    got = {"out": m(query, key, value, **options), "heads": m.heads(query, key, value, **options)}
    got |= {"contributions": m.contributions(query, key, value, **options), "weights": m.weights(query, key, **options)}
    if not options.keys() - {"positions", "key_positions"}:
        projected = m.project(query, key, value, **options)
        got["heads"] = qkvc.attention(*projected, layout="blhd").swapaxes(-3, -2) if m.extra_key is None else got["heads"]
    for name, want in expected.items():
        assert got[name].dtype == m.dtype
        np.testing.assert_allclose(got[name], want, rtol=0, atol=ATOL if m.dtype == np.float32 else 1e-13, err_msg=name)


def inputs(rng: np.random.Generator, m: Module) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    return normal(rng, 2, 5, m.embed_dim), normal(rng, 2, 7, m.kdim), normal(rng, 2, 7, m.vdim)


# --- what it computes ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_cross_attention(kind: str, isa: str, rng: np.random.Generator) -> None:
    m = module(rng, **KINDS[kind])
    query, key, value = inputs(rng, m)
    assert_layer(m, query, key, value)
    assert_layer(m, query, key, value, mask=rng.random((2, 4, 5, 7)) < 0.5)
    assert_layer(m, query, key, value, key_lengths=[3, 7], scale=0.7)
    if m.kdim == m.vdim:
        assert_layer(m, query, key)
    assert_layer(m.astype("float64"), *(x.astype(float) for x in (query, key, value)))


@pytest.mark.parametrize("kind", [kind for kind, options in KINDS.items() if "kdim" not in options])
def test_self_attention(kind: str, isa: str, rng: np.random.Generator) -> None:
    m = module(rng, **KINDS[kind])
    x = normal(rng, 3, 6, 24)
    assert_layer(m, x)
    assert_layer(m, x[0])
    if m.extra_key is None:  # or the positions of the oracle's keys would have to move
        assert_layer(m, x, causal=True, bias=normal(rng, 4, 6, 6))
        assert_layer(m, x, x[:1, :4], causal="bottom-right")


@pytest.mark.parametrize("kind", ["extra", "extra, grouped"])
def test_an_extra_key_is_seen_from_everywhere(kind: str, rng: np.random.Generator) -> None:
    """Whatever the masks say: with causal, the first key is one more, and the others keep their distances."""
    m = module(rng, **KINDS[kind])
    x = normal(rng, 3, 6, 24)
    expected = exact(m, x, mask=np.tri(6, dtype=bool))
    for name, got in {"out": m(x, causal=True), "heads": m.heads(x, causal=True), "weights": m.weights(x, causal=True)}.items():
        np.testing.assert_allclose(got, expected[name], rtol=0, atol=ATOL)
    nothing = m.weights(x, mask=False)
    assert_same_bits(nothing, np.broadcast_to(np.float32([0] * 6 + [1]), nothing.shape))
    np.testing.assert_allclose(
        m.heads(x, mask=False), np.broadcast_to(np.repeat(m.extra_value, 4 // m.num_kv_heads, 0)[:, None], (3, 4, 6, m.head_dim)), atol=1e-6
    )
    chosen = m.weights(x, causal=True, heads=[3, 0], queries=[-1, 2])
    np.testing.assert_allclose(chosen, expected["weights"][:, [3, 0]][:, :, [-1, 2]], rtol=0, atol=ATOL)


@pytest.mark.parametrize("kind", ["turned", "turned and normed"])
def test_positions(kind: str, isa: str, rng: np.random.Generator) -> None:
    m = module(rng, **KINDS[kind])
    x, memory = normal(rng, 3, 6, 24), normal(rng, 3, 9, 24)
    ids = rng.integers(0, 1000, (3, 9))
    assert_layer(m, x, positions=ids[:, :6], key_positions=ids[:, :6])
    assert_layer(m, x, memory, positions=ids[0, :6], key_positions=ids)
    assert_same_bits(m(x, positions=ids[1, :6]), m(x, positions=ids[1, :6], key_positions=ids[1, :6]))
    assert_same_bits(m(x, positions=70), m(x, positions=70 + np.arange(6)))
    np.testing.assert_allclose(m(x, positions=70, causal=True), m(x, causal=True), rtol=0, atol=ATOL)  # the distances are the same
    assert_layer(m, x, memory, causal=True, q_offset=[0, 3, -2])
    assert_layer(m, x, memory, causal=True, q_offset=2)
    assert_layer(m, x, memory, causal="bottom-right", key_lengths=[9, 2, 6])
    assert_layer(m, x[0], memory, window=(3, 0), q_offset=[5, 1, 0])  # one query, turned in three ways
    assert_layer(m, x, memory[1], positions=ids[:, :6], key_positions=ids)


def test_the_last_rows_are_rows_of_the_whole(rng: np.random.Generator) -> None:
    """A chunk of queries stands where its causal mask puts it: what a cache comes down to."""
    m = module(rng, **KINDS["turned and normed"])
    x = normal(rng, 2, 40, 24)
    whole = m(x, causal=True)
    for first in (0, 13, 39):
        np.testing.assert_allclose(m(x[:, first:], x, causal="bottom-right"), whole[:, first:], rtol=0, atol=ATOL)
        np.testing.assert_allclose(m(x[:, first:], x, causal=True, q_offset=first), whole[:, first:], rtol=0, atol=ATOL)
    _, key, value = m.project(x)
    query, *_ = m.project(x[:, 13:], positions=13)
    heads = qkvc.attention(query, key, value, causal="bottom-right", layout="blhd")
    np.testing.assert_allclose(m.output(heads.swapaxes(1, 2)), whole[:, 13:], rtol=0, atol=ATOL)


def test_batches_broadcast(rng: np.random.Generator) -> None:
    m = module(rng)
    query, key = normal(rng, 3, 1, 5, 24), normal(rng, 2, 7, 24)
    assert m(query, key).shape == (3, 2, 5, 24)
    assert_layer(m, query, key)
    extra = module(rng, extra_kv=True)
    assert_layer(extra, query[0], key)


def test_given_twice_is_given_once(rng: np.random.Generator) -> None:
    """The same bits, whether the inputs are projected together or one by one."""
    m = module(rng)
    x, y = normal(rng, 2, 6, 24), normal(rng, 2, 9, 24)
    assert_same_bits(m(x, x, x), m(x))
    assert_same_bits(m(x, x.copy(), x.copy()), m(x))
    assert_same_bits(m(y, y.copy(), y), m(y))
    assert_same_bits(m(x, y, y.copy()), m(x, y))


@pytest.mark.parametrize("memory", MEMORY)
def test_memory_of_the_inputs(memory: str, rng: np.random.Generator) -> None:
    m = module(rng)
    x = normal(rng, 2, 6, 24)
    assert_same_bits(m(MEMORY[memory](x)), m(x))


def test_out(rng: np.random.Generator) -> None:
    m = module(rng)
    x = normal(rng, 2, 6, 24)
    room = np.full((2, 6, 48), 7, np.float32)
    assert m(x, out=room[..., ::2]).base is room
    assert_same_bits(room[..., ::2].copy(), m(x))
    assert (room[..., 1::2] == 7).all()


def test_head_scale_and_output_do_the_same(rng: np.random.Generator) -> None:
    """A head taken away: by scale, by hand between the two halves, and by leaving out what it adds."""
    m = module(rng)
    x = normal(rng, 2, 6, 24)
    heads, parts = m.heads(x), m.contributions(x)
    assert_same_bits(m.output(heads), m(x))
    heads[:, 2] = 0
    np.testing.assert_allclose(m(x, head_scale=[1, 1, 0, 1]), m.output(heads), rtol=0, atol=1e-6)
    np.testing.assert_allclose(parts[:, [0, 1, 3]].sum(1) + m.out_bias, m.output(heads), rtol=0, atol=1e-6)


def test_no_tokens(rng: np.random.Generator) -> None:
    m = module(rng)
    x = normal(rng, 2, 3, 24)
    assert m(x[:, :0]).shape == (2, 0, 24)
    assert m(x[:0]).shape == (0, 3, 24)
    assert_same_bits(m(x, x[:, :0]), np.broadcast_to(m.out_bias, (2, 3, 24)))


def test_threads_change_nothing(rng: np.random.Generator) -> None:
    m = Module(96, 3, rng=rng)
    x = normal(rng, 4, 130, 96)
    for threads in (1, 2, 3):
        assert_same_bits(m(x, num_threads=threads), m(x[:, :]))


@pytest.mark.parametrize("options", [{}, {"num_kv_heads": 2}, {"head_dim": 40}], ids=str)
def test_memory_of_a_call(options: dict[str, Any], rng: np.random.Generator) -> None:
    """The result, what is projected and what the heads bring back; at 600 tokens one head's matrix of weights would be 1.4 MB more."""
    m, batch, length = Module(32, 4, rng=rng, **options), 2, 600
    x = normal(rng, batch, length, 32)
    m(x)
    numbers = length * (32 + 2 * m.head_dim * (m.num_heads + m.num_kv_heads))
    tracemalloc.start()
    m(x)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= 4 * batch * numbers + 20_000


@pytest.mark.parametrize("kind", ["plain", "turned and normed"])
def test_a_broken_token_stays_alone(kind: str, rng: np.random.Generator) -> None:
    m = module(rng, **KINDS[kind])
    x = normal(rng, 2, 6, 24)
    clean = m(x, key_lengths=[4, 6])
    x[0, 5] = np.nan
    broken = m(x, key_lengths=[4, 6])
    assert_same_bits(broken[:, :5], clean[:, :5])
    assert np.isnan(broken[0, 5]).all()


# --- the module itself -----------------------------------------------------------------------------------------------------------------


def test_initial_weights() -> None:
    """torch's distributions: the limits, and the spread that a uniform distribution within them has."""
    m = Module(96, 4, rng=0)
    limit = np.sqrt(6 / (96 + 3 * 96))
    for weight, bound in ((m.q_weight, limit), (m.k_weight, limit), (m.v_weight, limit), (m.out_weight, 1 / np.sqrt(96))):
        assert np.abs(weight).max() <= bound
        assert np.std(weight) == pytest.approx(bound / np.sqrt(3), rel=0.03)
    assert not any(bias.any() for bias in (m.q_bias, m.k_bias, m.v_bias, m.out_bias))
    apart = Module(96, 4, kdim=32, extra_kv=True, rng=0)
    assert np.abs(apart.k_weight).max() == pytest.approx(np.sqrt(6 / (96 + 32)), rel=0.01)
    assert np.std(apart.extra_key) == pytest.approx(1 / np.sqrt(96), rel=0.2)
    assert_same_bits(Module(96, 4, rng=np.random.default_rng(0)).q_weight, m.q_weight)
    assert not np.array_equal(Module(96, 4, rng=1).q_weight, m.q_weight)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_are_views_that_write_through(kind: str, rng: np.random.Generator) -> None:
    m = module(rng, **KINDS[kind])
    d, g = m.head_dim, m.num_kv_heads
    assert (m.W_Q.shape, m.W_K.shape, m.W_V.shape, m.W_O.shape) == ((4, d, 24), (g, d, m.kdim), (g, d, m.vdim), (4, 24, d))
    for name, whole, rows in (
        ("W_Q", "q_weight", slice(d * 3, d * 4)),
        ("W_K", "k_weight", slice(d * (g - 1), None)),
        ("W_V", "v_weight", slice(d * (g - 1), None)),
    ):
        getattr(m, name)[-1] = 5
        assert (getattr(m, whole)[rows] == 5).all()
        assert np.sum(getattr(m, whole) == 5) == getattr(m, name)[-1].size
    m.W_O[1] = 5
    assert (m.out_weight[:, d : 2 * d] == 5).all()
    assert np.sum(m.out_weight == 5) == 24 * d


def test_self_attention_is_one_projection(rng: np.random.Generator) -> None:
    m = module(rng, num_kv_heads=2)
    query, key, value = m.project(normal(rng, 3, 6, 24))
    assert query.base is key.base is value.base is not None
    assert (query.shape, key.shape, value.shape) == ((3, 6, 4, 6), (3, 6, 2, 6), (3, 6, 2, 6))
    heads = qkvc.attention(query, key, value, layout="blhd")
    assert qkvc.concat_heads(heads.swapaxes(1, 2)).base is not None


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_counted(kind: str, rng: np.random.Generator) -> None:
    m = module(rng, **KINDS[kind])
    by_weight = m.num_parameters("weight")
    assert by_weight == {name: getattr(m, name).size for name in by_weight}
    assert sum(by_weight.values()) == sum(m.num_parameters("head").values()) == m.num_parameters()
    assert len(m.num_parameters("head")) == 4 + m.num_kv_heads + 1


def test_known_parameter_counts() -> None:
    """The tutorial's 12 blocks of 4 matrices of 512 x 512, about 12.6 million; more heads are not more parameters."""
    assert 12 * Module(512, 4, qkv_bias=False, out_bias=False).num_parameters() == 12_582_912
    assert Module(512, 4).num_parameters() == Module(512, 16).num_parameters() == 4 * 512 * 513
    assert Module(48, 4, num_kv_heads=2).num_parameters("head") == {f"query head {h}": 48 * 12 + 12 + 48 * 12 for h in range(4)} | {
        f"key head {h}": 2 * (48 * 12 + 12) for h in range(2)
    } | {"all heads": 48}


@pytest.mark.parametrize("kind", KINDS)
def test_copies(kind: str, rng: np.random.Generator) -> None:
    """Copied, pickled, or written out by repr: the same layer, and one of its own whose heads still write through."""
    m = module(rng, **KINDS[kind])
    query, key, value = inputs(rng, m)
    expected = m(query, key, value)
    for other in (copy.deepcopy(m), pickle.loads(pickle.dumps(m)), m.astype("float32")):
        assert repr(other) == repr(m)
        assert_same_bits(other(query, key, value), expected)
        other.W_V[...] = 0
        assert not np.array_equal(other(query, key, value), expected)
    assert_same_bits(m(query, key, value), expected)
    again = eval(repr(m), {"MultiHeadAttention": Module, "RopeConfig": qkvc.RopeConfig})
    assert repr(again) == repr(m)


def test_repr() -> None:
    assert repr(Module(8, 2)) == "MultiHeadAttention(embed_dim=8, num_heads=2)  # heads of 4, float32, 288 parameters"
    options = {"num_kv_heads": 2, "head_dim": 3, "kdim": 5, "qkv_bias": False, "extra_kv": True, "dtype": "float64"}
    text = repr(Module(8, 4, **options))
    assert text.startswith(
        "MultiHeadAttention(embed_dim=8, num_heads=4, num_kv_heads=2, head_dim=3, kdim=5, qkv_bias=False, extra_kv=True, dtype='float64')"
    )


# Each row changes the good call of a module of width 24 with 4 heads: query (2, 5, 24), key (2, 7, 24), value (2, 7, 24).
CALLS: list[tuple[str, dict[str, Any], Any, tuple[str, ...]]] = [
    ("query None", {"query": None}, TypeError, ("query", "None")),
    ("query float64", {"query": np.ones((2, 5, 24))}, TypeError, ("query", "float32", "float64", "astype")),
    ("query masked", {"query": np.ma.ones((2, 5, 24))}, TypeError, ("query", "MaskedArray")),
    ("query too narrow", {"query": np.ones((2, 5, 23), np.float32)}, ValueError, ("query", "(..., length, 24)", "(2, 5, 23)")),
    ("query one token", {"query": np.ones(24, np.float32)}, ValueError, ("query", "(24,)")),
    ("key too wide", {"key": np.ones((2, 7, 25), np.float32)}, ValueError, ("key", "24", "(2, 7, 25)")),
    ("value without key", {"key": None}, TypeError, ("key", "None")),
    ("value shorter", {"value": np.ones((2, 6, 24), np.float32)}, ValueError, ("value", "7 tokens", "(2, 6, 24)")),
    ("batches", {"key": np.ones((3, 7, 24), np.float32)}, ValueError, ("batches", "(3, 7, 24)")),
    ("unknown option", {"dropout": 0.1}, TypeError, ("options", "dropout", "causal")),
    ("layout", {"layout": "blhd"}, TypeError, ("options", "layout")),
    ("float mask", {"mask": np.ones((5, 7))}, TypeError, ("mask", "bool", "bias")),
    ("mask of another shape", {"mask": np.ones((5, 6), bool)}, ValueError, ("mask", "(5, 6)")),
    ("causal between unlike lengths", {"causal": True}, ValueError, ("causal", "bottom-right")),
    ("out of another shape", {"out": np.zeros((2, 7, 24), np.float32)}, ValueError, ("out", "(2, 5, 24)", "(2, 7, 24)")),
    ("out of another dtype", {"out": np.zeros((2, 5, 24))}, ValueError, ("out", "float32", "float64")),
    ("num_threads", {"num_threads": 0}, ValueError, ("num_threads", "0")),
    ("positions that nothing uses", {"positions": 3}, TypeError, ("positions", "rope")),
    ("key positions that nothing uses", {"key_positions": [0] * 7}, TypeError, ("key_positions", "rope")),
]

# The same of a module with rope.
TURNED: list[tuple[str, dict[str, Any], Any, tuple[str, ...]]] = [
    ("positions of the queries alone", {"positions": 3}, TypeError, ("key_positions", "None")),
    ("too few", {"positions": [0] * 4, "key_positions": 0}, ValueError, ("positions", "(..., 5)", "(4,)")),
    ("floats", {"positions": 0.5, "key_positions": 0}, TypeError, ("positions", "integers", "float64")),
    ("of a larger batch", {"key_positions": np.zeros((3, 2, 7), int)}, ValueError, ("key_positions", "(2,)", "(3, 2, 7)")),
    ("offsets of another batch", {"causal": True, "q_offset": [0, 1, 2]}, ValueError, ("q_offset", "(2,)", "(3,)")),
    ("offset a float", {"causal": True, "q_offset": 0.5}, TypeError, ("q_offset", "integers", "float64")),
    ("offset and alignment", {"causal": "bottom-right", "q_offset": 1}, ValueError, ("q_offset", "bottom-right")),
    ("lengths beyond", {"causal": "bottom-right", "key_lengths": 8}, ValueError, ("key_lengths", "8")),
    ("num_threads", {"num_threads": 0}, ValueError, ("num_threads", "0")),
]


@pytest.mark.parametrize(
    ("kind", "changed", "exception", "words"),
    [pytest.param(kind, *row[1:], id=row[0]) for kind, rows in (("plain", CALLS), ("turned", TURNED)) for row in rows],
)
def test_refused_calls(kind: str, changed: dict[str, Any], exception: Any, words: tuple[str, ...], rng: np.random.Generator) -> None:
    m = module(rng, **KINDS[kind])
    before = pickle.dumps(m)
    out = np.full((2, 5, 24), 7, np.float32)
    given = dict(zip(("query", "key", "value"), (normal(rng, 2, n, 24) for n in (5, 7, 7)), strict=True)) | {"out": out} | changed
    assert_refused(lambda: m(**given), exception, *words)
    assert (out == 7).all()
    assert pickle.dumps(m) == before


def test_out_is_not_an_input(rng: np.random.Generator) -> None:
    m, x = module(rng), normal(rng, 2, 5, 24)
    before = x.copy()
    assert_refused(lambda: m(x, out=x), ValueError, "out", "query")
    assert_refused(lambda: m(x[0], out=m.out_weight[:5]), ValueError, "out")
    assert_same_bits(x, before)


#  name, arguments, exception, words of the message
SIZES: list[tuple[str, dict[str, Any], Any, tuple[str, ...]]] = [
    ("heads that do not divide", {"num_heads": 5}, ValueError, ("embed_dim", "5", "24", "head_dim")),
    ("key heads that do not divide", {"num_kv_heads": 3}, ValueError, ("num_kv_heads", "4", "3")),
    ("more key heads", {"num_kv_heads": 8}, ValueError, ("num_kv_heads", "8")),
    ("no heads", {"num_heads": 0}, ValueError, ("num_heads", "0")),
    ("half a head", {"num_heads": 2.5}, TypeError, ("num_heads", "float")),
    ("True heads", {"num_heads": True}, TypeError, ("num_heads", "bool")),
    ("negative width", {"kdim": -1}, ValueError, ("kdim", "-1")),
    ("width as text", {"head_dim": "6"}, TypeError, ("head_dim", "str")),
    ("rope a number", {"rope": 10000.0}, TypeError, ("rope", "RopeConfig", "float")),
    ("rope of an odd width", {"rope": qkvc.RopeConfig(), "head_dim": 7}, ValueError, ("dim", "even", "7")),
    ("rope too wide", {"rope": qkvc.RopeConfig(dim=8)}, ValueError, ("dim", "6", "8")),
    ("rope beside an extra key", {"rope": qkvc.RopeConfig(), "extra_kv": True}, ValueError, ("rope", "extra key")),
    ("norm with eps 0", {"qk_norm": 0}, ValueError, ("qk_norm", "above 0")),
    ("norm True", {"qk_norm": True}, TypeError, ("qk_norm", "bool")),
    ("half precision", {"dtype": "float16"}, TypeError, ("dtype", "float32", "float16")),
]


@pytest.mark.parametrize(("changed", "exception", "words"), [row[1:] for row in SIZES], ids=[row[0] for row in SIZES])
def test_refused_sizes(changed: dict[str, Any], exception: Any, words: tuple[str, ...]) -> None:
    assert_refused(lambda: Module(**({"embed_dim": 24, "num_heads": 4} | changed)), exception, *words)


def test_other_refusals(rng: np.random.Generator) -> None:
    m = module(rng)
    assert_refused(lambda: m.num_parameters("layer"), ValueError, "by", "layer")
    assert_refused(lambda: m.output(normal(rng, 2, 3, 5, 6)), ValueError, "heads", "(..., 4, L, 6)", "(2, 3, 5, 6)")
    assert_refused(lambda: m.weights(normal(rng, 5, 24), head_scale=[1] * 4), TypeError, "options", "head_scale")


@pytest.mark.parametrize("shape", [(2, 0, 8), (0, 5, 8)])
def test_no_tokens_have_gradients_of_zero(shape: tuple[int, ...]) -> None:
    m = qkvc.MultiHeadAttention(8, 2, rng=0)
    y, trace = m.forward(np.zeros(shape, np.float32))
    grads = m.backward(y, trace)
    assert grads.query.shape == shape
    assert all(grads.weights[name].shape == part.shape and not grads.weights[name].any() for name, part in m._parts().items())


def test_a_trace_of_another_layer_is_refused(rng: np.random.Generator) -> None:
    y, trace = qkvc.MultiHeadAttention(8, 2, rng=0).forward(rng.standard_normal((5, 8)).astype(np.float32))
    for wrong in (None, trace._replace(heads=trace.heads[..., :2])):
        assert_refused(lambda wrong=wrong: qkvc.MultiHeadAttention(8, 2, rng=0).backward(y, wrong), TypeError, "backward: trace:")
    assert_refused(lambda: qkvc.MultiHeadAttention(8, 4, rng=0).backward(y, trace), TypeError, "backward: trace:")
