"""Rotary embeddings and the norm before them: against the paper's matrices, as properties, and as other packages compute them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import qkvc
from qkvc._rotary import turn
from qkvc.rotary import KEPT, turns

from .rotation import angles, published_scaling, rms_normed, turned
from .support import MEMORY, assert_refused, assert_same_bits, normal

LLAMA3 = qkvc.Llama3Scaling(8.0, 1.0, 4.0, 8192)
CONFIGS = {
    "half-split": {},
    "interleaved": {"interleaved": True},
    "partial": {"dim": 4},
    "partial, interleaved": {"dim": 6, "interleaved": True, "base": 500000.0},
    "linear": {"scaling": 4},
    "llama 3": {"base": 500000.0, "scaling": LLAMA3},
}


def assert_turned(got: NDArray[Any], x: NDArray[Any], positions: Any, **options: Any) -> None:
    """Three roundings by eps / 2 of a cos t - b sin t, at most twice a token's largest number, and an angle in float64."""
    config = qkvc.RopeConfig(**options)
    angle = angles(config, x.shape[-1], positions)
    expected, eps = turned(x, angle, config.interleaved), np.finfo(x.dtype).eps
    allowed = np.abs(x).max(-1, keepdims=True) * (3 * eps + 4 * np.finfo(float).eps * np.abs(angle).max(initial=0))
    assert got.dtype == x.dtype
    assert got.shape == x.shape
    assert (np.abs(got - expected) <= allowed).all(), f"{np.max(np.abs(got - expected) / allowed):.3g} of what is allowed"


# --- against the matrices --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CONFIGS)
def test_against_the_paper(name: str, dtype: str, isa: str, rng: np.random.Generator) -> None:
    options = CONFIGS[name]
    x = normal(rng, 2, 3, 7, 10).astype(dtype)
    ids = rng.integers(-50, 10**6, (2, 7))
    for positions, where in ((None, np.arange(7)), (40, 40 + np.arange(7)), (ids[0], ids[0]), (ids, ids), (ids[:, ::-1], ids[:, ::-1])):
        got = qkvc.rope(x, positions, **options)
        assert_turned(got, x, where, **options)
        across = qkvc.rope(x.swapaxes(1, 2), positions, layout="blhd", **options)
        assert_same_bits(across.swapaxes(1, 2), got)
    assert_same_bits(qkvc.rope(x[0, 0], ids[0], **options), qkvc.rope(x, ids, **options)[0, 0])


@pytest.mark.parametrize("width", [2, 4, 14, 30, 32, 34, 64, 80, 96, 130, 256])
@pytest.mark.parametrize("interleaved", [False, True])
def test_every_width(width: int, interleaved: bool, isa: str, rng: np.random.Generator) -> None:
    x = normal(rng, 3, 5, width)
    assert_turned(qkvc.rope(x, interleaved=interleaved), x, np.arange(5), interleaved=interleaved)


def test_far_positions_stay_exact(rng: np.random.Generator) -> None:
    """In float32 angles, position 10**6 would be off by 0.06 radians."""
    x = normal(rng, 2, 9, 64)
    where = 10**6 + np.arange(9)
    assert_turned(qkvc.rope(x, where), x, where)
    assert_turned(qkvc.rope(x, -where), x, -where)


def test_scaled_frequencies() -> None:
    """Short wavelengths stay, long ones grow by the factor, both ends of the slope are met."""
    config = qkvc.RopeConfig(500000.0, scaling=LLAMA3)
    plain, scaled = qkvc.RopeConfig(500000.0).frequencies(128), config.frequencies(128)
    np.testing.assert_allclose(scaled, [published_scaling(f, 8, 1, 4, 8192) for f in plain], rtol=1e-14)
    ratio = plain / scaled
    assert set(np.round(ratio[[0, 20, 40, 63]], 12)) == {1.0, 8.0}
    assert ((ratio > 1.01) & (ratio < 7.99)).sum() == 6
    np.testing.assert_array_equal(qkvc.RopeConfig(scaling=4).frequencies(64), qkvc.RopeConfig().frequencies(64) / 4)
    np.testing.assert_allclose(qkvc.RopeConfig().frequencies(8), [1, 0.1, 0.01, 0.001], rtol=1e-15)


# --- what it is for --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_products_know_the_distance_alone(name: str, rng: np.random.Generator) -> None:
    options = CONFIGS[name]
    query, key = rng.standard_normal((2, 5, 16))
    products = [
        np.einsum("ld,md->lm", qkvc.rope(query, 30 + shift, **options), qkvc.rope(key, shift, **options)) for shift in (0, 17, -400, 10**5)
    ]
    for other in products[1:]:
        np.testing.assert_allclose(other, products[0], rtol=0, atol=1e-9)
    moved = np.einsum("ld,md->lm", qkvc.rope(query, 31, **options), qkvc.rope(key, **options))
    assert np.abs(moved - products[0]).max() > 0.1


@pytest.mark.parametrize("name", CONFIGS)
def test_lengths_stay_and_position_0_is_where_one_is(name: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((3, 6, 12))
    got = qkvc.rope(x, 123, **CONFIGS[name])
    np.testing.assert_allclose(np.linalg.norm(got, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-14)
    np.testing.assert_array_equal(qkvc.rope(x, np.zeros(6, int), **CONFIGS[name]), x)
    back = qkvc.rope(got, -123 - np.arange(6), **CONFIGS[name])
    np.testing.assert_allclose(back, x, rtol=0, atol=1e-12)
    if (dim := CONFIGS[name].get("dim")) is not None:
        assert_same_bits(got[..., dim:], x[..., dim:])


def test_interleaved_is_half_split_in_another_order(isa: str, rng: np.random.Generator) -> None:
    x = normal(rng, 3, 7, 26)
    order = np.arange(26).reshape(13, 2).T.reshape(-1)
    assert_same_bits(qkvc.rope(x, 5, interleaved=True)[..., order], qkvc.rope(x[..., order], 5))


# --- memory, threads, bits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", MEMORY)
def test_memory(memory: str, rng: np.random.Generator) -> None:
    x = normal(rng, 2, 3, 5, 8)
    assert_same_bits(qkvc.rope(MEMORY[memory](x), 3), qkvc.rope(x, 3))


def test_out(rng: np.random.Generator) -> None:
    x = normal(rng, 2, 3, 5, 8)
    expected = qkvc.rope(x, 3, dim=6)
    room = np.full((2, 3, 5, 16), 7, np.float32)
    for out in (room[..., :8], room[..., 1::2], room[..., ::-2], room[:, ::-1, ::-1, 8:]):
        room[...] = 7
        assert qkvc.rope(x, 3, dim=6, out=out) is out
        assert_same_bits(out.copy(), expected)
        assert (room == 7).sum() == room.size - x.size
    for y in (x.copy(), np.asfortranarray(x)):  # in place
        assert qkvc.rope(y, 3, dim=6, out=y) is y
        assert_same_bits(y.copy(), expected)


def test_threads_and_neighbours(isa: str, rng: np.random.Generator) -> None:
    x = normal(rng, 2, 5, 301, 48)
    whole = qkvc.rope(x, 9, num_threads=1)
    assert_same_bits(qkvc.rope(x, 9, num_threads=3), whole)
    assert_same_bits(qkvc.rope(x[:, 2:3, 100:103], 109), whole[:, 2:3, 100:103])


def test_every_set_gives_the_same_bits(rng: np.random.Generator) -> None:
    """The rotation in portable C too; the norm wherever there is an FMA."""
    x, weight, table = normal(rng, 4, 9, 90), normal(rng, 90), np.empty((1, 2, 0), np.float32)
    rotations, norms = [], []
    for name in qkvc.kernels():
        with qkvc.use_kernels(name):
            rotations += [qkvc.rope(x, 3), qkvc.rope(x, 3, interleaved=True)]
            norms.append(x.copy())
            turn(norms[-1], table, weight=weight, eps=1e-6)
    for index, rotation in enumerate(rotations):
        assert_same_bits(rotation, rotations[index % 2])
    for norm in norms[1:-1]:
        assert_same_bits(norm, norms[0])


def test_nothing_to_turn(rng: np.random.Generator) -> None:
    for shape in ((0, 8), (3, 0, 8), (0, 3, 5, 8), (3, 4, 0)):
        assert qkvc.rope(np.ones(shape)).shape == shape
    x = normal(rng, 3, 4, 5)
    assert_same_bits(qkvc.rotate(x, np.ones((4, 0)), np.ones((4, 0))), x)


def test_integers_count_as_float64() -> None:
    x = np.arange(24).reshape(1, 3, 8)
    assert_turned(qkvc.rope(x), x.astype(float), np.arange(3))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", ">f2"])
def test_16_bits_are_rounded_once(dtype: str, rng: np.random.Generator) -> None:
    wanted = np.dtype(pytest.importorskip("ml_dtypes", reason="ml_dtypes has the dtype").bfloat16 if dtype == "bfloat16" else dtype)
    x = normal(rng, 2, 3, 5, 8).astype(wanted)
    expected = qkvc.rope(x.astype(np.float32), 7).astype(wanted.newbyteorder("="))
    assert_same_bits(qkvc.rope(x, 7), expected)
    out = np.zeros_like(expected)
    assert qkvc.rope(x, 7, out=out) is out
    assert_same_bits(out, expected)
    cos, sin = qkvc.RopeConfig().tables(7 + np.arange(5), 8)
    assert_same_bits(qkvc.rotate(x, cos, sin), expected)


def test_a_config_is_its_numbers() -> None:
    plain = qkvc.RopeConfig(5e5, 4, True, qkvc.Llama3Scaling(8, 1, 4, 8192))
    scaling = qkvc.Llama3Scaling(np.float32(8), np.array(1.0), np.int8(4), np.int64(8192))
    other = qkvc.RopeConfig(np.array(500000), np.int16(4), np.True_, scaling)
    assert (other, hash(other), repr(other)) == (plain, hash(plain), repr(plain))
    assert eval(repr(other), {"RopeConfig": qkvc.RopeConfig, "Llama3Scaling": qkvc.Llama3Scaling}) == plain
    assert repr(qkvc.RopeConfig(scaling=np.float64(4))) == "RopeConfig(base=10000.0, dim=None, interleaved=False, scaling=4.0)"


def test_tables_are_kept_and_cannot_be_written(rng: np.random.Generator) -> None:
    config = qkvc.RopeConfig(dim=6)
    cos, sin = config.tables(np.arange(20).reshape(4, 5), 10, "float64")
    assert cos.shape == sin.shape == (4, 5, 3)
    np.testing.assert_allclose(cos**2 + sin**2, 1, rtol=1e-15)
    with pytest.raises(ValueError, match="read-only"):
        cos[0] = 0
    f32, few, many = np.dtype("float32"), np.arange(5), np.arange(KEPT // 3 + 1)
    assert turns(config, 10, few, f32) is turns(config, 10, few.copy(), f32)
    assert turns(config, 10, few, f32) is not turns(config, 10, few + 1, f32)
    assert turns(config, 10, many, f32) is not turns(config, 10, many, f32)
    x = normal(rng, 2, 4, 5, 10)
    by_table = qkvc.rotate(x, *config.tables(np.arange(5), 10))
    assert_same_bits(by_table, qkvc.rope(x, dim=6))


# --- the norm before it ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", [1, 2, 7, 16, 17, 33, 64, 128, 250])
def test_norm(width: int, dtype: str, isa: str, rng: np.random.Generator) -> None:
    x, weight = normal(rng, 5, 3, width).astype(dtype), normal(rng, width).astype(dtype)
    x[0, 0] = 0
    x[1, 1] *= 1e-4  # where eps is what counts
    x[2, 2, -1] = np.nan
    got = x.copy()
    turn(got, np.empty((1, 2, 0), dtype), weight=weight, eps=1e-6)
    expected = rms_normed(x, weight, 1e-6)
    clean = np.isfinite(expected)
    assert np.isnan(got[2, 2]).all()
    assert clean.sum() == x.size - width
    assert (np.abs(got - expected)[clean] <= 8 * np.finfo(dtype).eps * np.abs(expected)[clean]).all()


# --- second opinions -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dim", [None, 4])
def test_like_onnx(dim: int | None, interleaved: bool, rng: np.random.Generator) -> None:
    op = pytest.importorskip("onnx.reference.ops.op_rotary_embedding", reason="onnx is the oracle of this test")
    x, ids = normal(rng, 2, 3, 5, 8), rng.integers(0, 50, (2, 5))
    cos, sin = rng.standard_normal((2, 50, (dim or 8) // 2), dtype=np.float32)
    got = qkvc.rotate(x, cos[ids], sin[ids], interleaved=interleaved)
    theirs = op.rotary_embedding(x, cos, sin, ids, interleaved=interleaved, rotary_embedding_dim=dim or 0)
    np.testing.assert_allclose(got, theirs, rtol=0, atol=1e-6)
    flat = np.ascontiguousarray(x.swapaxes(1, 2)).reshape(2, 5, 24)
    got = qkvc.rotate(flat.reshape(2, 5, 3, 8), cos[ids], sin[ids], interleaved=interleaved, layout="blhd").reshape(2, 5, 24)
    theirs = op.rotary_embedding(flat, cos, sin, ids, interleaved=interleaved, rotary_embedding_dim=dim or 0, num_heads=3)
    np.testing.assert_allclose(got, theirs, rtol=0, atol=1e-6)


def test_like_torch(rng: np.random.Generator) -> None:
    """rotate_half as LLaMA's model code has it, the norm of `torch.nn.RMSNorm`, and complex numbers for the interleaved form."""
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    x, weight = normal(rng, 2, 3, 5, 8), normal(rng, 8)
    t = torch.from_numpy(x)
    inverse = 1 / 500000.0 ** (torch.arange(0, 8, 2, dtype=torch.int64).float() / 8)
    angle = torch.arange(5).float()[:, None] * inverse
    both = torch.cat((angle, angle), -1)
    theirs = t * both.cos() + torch.cat((-t[..., 4:], t[..., :4]), -1) * both.sin()
    np.testing.assert_allclose(qkvc.rope(x, base=500000.0), theirs.numpy(), rtol=0, atol=2e-6)
    theirs = torch.view_as_real(torch.view_as_complex(t.reshape(2, 3, 5, 4, 2)) * torch.polar(torch.ones(5, 4), angle)).flatten(-2)
    np.testing.assert_allclose(qkvc.rope(x, base=500000.0, interleaved=True), theirs.numpy(), rtol=0, atol=2e-6)
    got = x.copy()
    turn(got, np.empty((1, 2, 0), np.float32), weight=weight, eps=1e-6)
    np.testing.assert_allclose(got, torch.nn.functional.rms_norm(t, (8,), torch.from_numpy(weight), 1e-6).numpy(), rtol=0, atol=1e-6)


# --- misuse ----------------------------------------------------------------------------------------------------------------------------

NAN, HUGE = float("nan"), 10**30
# Each row changes the good call: x (2, 3, 5, 8).
TABLE: list[tuple[str, dict[str, Any], Any, tuple[str, ...]]] = [
    ("x None", {"x": None}, TypeError, ("x", "None")),
    ("x complex", {"x": np.ones((5, 8), complex)}, TypeError, ("x", "complex128")),
    ("x masked", {"x": np.ma.ones((5, 8))}, TypeError, ("x", "MaskedArray")),
    ("x of one axis", {"x": np.ones(8)}, ValueError, ("x", "(8,)")),
    ("odd width", {"x": np.ones((2, 3, 5, 7))}, ValueError, ("dim", "even", "7")),
    *[(f"positions {label}", {"positions": x}, exception, ("positions", *words)) for label, x, exception, words in (
        ("floats", [0.0] * 5, TypeError, ("integers", "float64")),
        ("a float", 1.5, TypeError, ("integers", "float64")),
        ("True", True, TypeError, ("integers", "bool")),
        ("text", "0", TypeError, ("integers",)),
        ("too few", [0] * 4, ValueError, ("(..., 5)", "(4,)")),
        ("one for all", [3], ValueError, ("(..., 5)", "(1,)")),
        ("per head", np.zeros((3, 5), int), ValueError, ("(2,)", "(3, 5)")),
        ("of more axes", np.zeros((4, 2, 5), int), ValueError, ("(2,)", "(4, 2, 5)")),
        ("of 10**30", HUGE, ValueError, ("64 bits",)),
        ("of 2**60", [0, 0, 2**60, 0, 0], ValueError, (str(2**60),)),
        ("near 2**64", np.uint64(2**64 - 1), ValueError, (str(2**64 - 1),)),
    )],
    *[(f"{name} {x!r}", {name: x}, exception, (name, *words)) for name in ("base", "scaling") for x, exception, words in (
        (0, ValueError, ("above 0", "0")), (-1.0, ValueError, ("above 0", "-1.0")), (NAN, ValueError, ("finite", "nan")),
        ("10", TypeError, ("number", "str")), (True, TypeError, ("number", "bool")), ([1.0, 2.0], TypeError, ("number", "list")),
    )],
    ("base None", {"base": None}, TypeError, ("base", "NoneType")),
    ("dim odd", {"dim": 3}, ValueError, ("dim", "even", "3")),
    ("dim 0", {"dim": 0}, ValueError, ("dim", "1 or more", "0")),
    ("dim beyond", {"dim": 10}, ValueError, ("dim", "8", "10")),
    ("dim float", {"dim": 4.0}, TypeError, ("dim", "float")),
    ("interleaved a number", {"interleaved": 1}, TypeError, ("interleaved", "True or False", "int")),
    ("layout unknown", {"layout": "bshd"}, ValueError, ("layout", "blhd", "bshd")),
    ("layout None", {"layout": None}, TypeError, ("layout", "bhld", "None")),
    ("num_threads 0", {"num_threads": 0}, ValueError, ("num_threads", "0")),
    ("num_threads 1.5", {"num_threads": 1.5}, TypeError, ("num_threads", "float")),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "exception", "words"), [pytest.param(*row[1:], id=row[0]) for row in TABLE])
def test_misuse(changed: dict[str, Any], exception: Any, words: tuple[str, ...]) -> None:
    given = {"x": np.ones((2, 3, 5, 8), np.float32), "out": np.full((2, 3, 5, 8), 7, np.float32)} | changed
    assert_refused(lambda: qkvc.rope(**given), exception, *words)
    assert (given["out"] == 7).all()


def test_misuse_of_tables() -> None:
    x, t, out = np.ones((2, 3, 5, 8), np.float32), np.ones((5, 4)), np.full((2, 3, 5, 8), 7, np.float32)
    for cos, sin, words in (
        (t, np.ones((5, 3)), ("sin", "(5, 3)")),
        (np.ones((4, 4)), np.ones((4, 4)), ("cos", "(2, 5)", "(4, 4)")),
        (np.ones((5, 5)), np.ones((5, 5)), ("cos", "8 numbers", "(5, 5)")),
        (np.ones((3, 5, 4)), np.ones((3, 5, 4)), ("cos", "(2, 5)", "(3, 5, 4)")),
        (np.ones((1, 2, 5, 4)), np.ones((1, 2, 5, 4)), ("cos", "(1, 2, 5, 4)")),
    ):
        assert_refused(lambda cos=cos, sin=sin: qkvc.rotate(x, cos, sin, out=out), ValueError, "rotate", *words)
    assert_refused(lambda: qkvc.rotate(x, t, None, out=out), TypeError, "rotate: sin", "None")
    assert_refused(lambda: qkvc.rotate(x, t, t.astype(complex), out=out), TypeError, "rotate: sin", "complex128")
    assert_refused(lambda: qkvc.rotate(x, t, t, interleaved=None, out=out), TypeError, "rotate: interleaved", "NoneType")
    assert (out == 7).all()


def test_misuse_of_out(rng: np.random.Generator) -> None:
    x = normal(rng, 3, 5, 8)
    before = x.copy()
    for out, error, words in (
        (np.zeros((3, 5, 8)), ValueError, ("out", "float32", "float64")),
        (np.zeros((3, 5, 9), np.float32), ValueError, ("out", "(3, 5, 8)", "(3, 5, 9)")),
        (x[::-1], ValueError, ("out", "memory", "x")),
        (x[:], ValueError, ("out", "memory", "x")),
        (x.tolist(), TypeError, ("out", "list")),
    ):
        assert_refused(lambda out=out: qkvc.rope(x, 1, out=out), error, *words)
    assert_same_bits(x, before)


def test_other_misuse() -> None:
    config = qkvc.RopeConfig()
    for call, error, words in (
        (lambda: qkvc.rope(np.ones((1,) * 31 + (5, 8))), ValueError, ("x", "32 axes")),
        (lambda: config.tables([0.5], 8), TypeError, ("positions", "integers", "float64")),
        (lambda: config.tables([0], 7), ValueError, ("dim", "even", "7")),
        (lambda: config.tables([0], "8"), TypeError, ("head_dim", "str")),
        (lambda: config.tables([0], 8, "float16"), TypeError, ("dtype", "float32", "float16")),
        (lambda: qkvc.RopeConfig(dim=10).frequencies(8), ValueError, ("dim", "8", "10")),
    ):
        assert_refused(call, error, "rope", *words)


@pytest.mark.parametrize(
    ("options", "exception", "words"),
    [
        ({"factor": 0}, ValueError, ("factor", "above 0")),
        ({"low_freq_factor": "1"}, TypeError, ("low_freq_factor", "str")),
        ({"low_freq_factor": 4.0}, ValueError, ("low_freq_factor", "high_freq_factor, 4.0", "4.0")),
        ({"original_max_position": 8192.0}, TypeError, ("original_max_position", "float")),
    ],
)
def test_misuse_of_scaling(options: dict[str, Any], exception: Any, words: tuple[str, ...]) -> None:
    assert_refused(lambda: qkvc.Llama3Scaling(**options), exception, *words)
