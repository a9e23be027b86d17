"""The caller's floating-point environment: it changes no bit of a result, and a call leaves it as it was.

Somebody else's library, compiled with -ffast-math, sets flush-to-zero for whoever loads it; interval arithmetic sets rounding modes.
"""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qkvc
from qkvc._rotary import turn
from qkvc.rotary import _kept

from .support import assert_same_bits, normal, operands, run_child

SOURCE = Path(__file__).with_name("fpenv.c")

#  name -> bits of the control word that are set
MODES = {
    "x86_64": {"flush to zero": 0x8000, "denormals are zero": 0x40, "both": 0x8040, "downwards": 0x2000, "upwards": 0x4000,
               "towards zero": 0x6000, "everything": 0xE040},
    "aarch64": {"flush to zero": 1 << 24, "upwards": 1 << 22, "downwards": 2 << 22, "towards zero": 3 << 22, "everything": 7 << 22},
}.get(platform.machine(), {})  # fmt: skip
FLAGS = 0x3F if platform.machine() == "x86_64" else 0


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    if not MODES:
        pytest.skip(f"the control word of {platform.machine()} is not known to this test")
    compiler = (sysconfig.get_config_var("CC") or "cc").split()
    path = str(tmp_path_factory.mktemp("fpenv") / "fpenv.so")
    try:
        subprocess.run([*compiler, "-O1", "-shared", "-fPIC", str(SOURCE), "-o", path, "-lm"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip(f"no C compiler {compiler[0]!r} here")
    return path


@pytest.fixture
def fpenv(library: str) -> Iterator[ctypes.CDLL]:
    loaded = ctypes.CDLL(library)
    before = loaded.get_control()
    yield loaded
    loaded.set_control(before)


@contextmanager
def control(fpenv: ctypes.CDLL, bits: int) -> Iterator[None]:
    before = fpenv.get_control()
    fpenv.set_control(before | bits)
    try:
        yield
        after = fpenv.get_control()
    finally:
        fpenv.set_control(before)
    assert after & ~FLAGS == (before | bits) & ~FLAGS, f"the control word was {before | bits:#x} and is {after:#x}"


def calls(rng: np.random.Generator) -> dict[str, Callable[[], Any]]:
    """Work that notices: denormals in and out, roundings everywhere, one thread and several."""
    q, k, v = operands(rng, (2,), (4, 2), (70, 200), (32, 24))
    tiny, faint = v * np.float32(1e-39), q * np.float32(1e-39)
    weight = normal(rng, 32)
    far = np.concatenate([np.zeros(3), -np.linspace(60, 104, 500)]).astype(np.float32)
    spread, bias = normal(rng, 30, 100) * 40, normal(rng, 70, 200)
    with_nan = np.where(np.arange(200)[:, np.newaxis] == 3, np.float32(np.nan), v)

    def turned() -> Any:
        _kept.cache_clear()  # or the cosines would be those of another environment
        return qkvc.rope(q, 1000)

    def normed() -> Any:
        x = faint.copy()
        turn(x, np.empty((1, 2, 0), np.float32), weight=weight, eps=1e-38)
        return x

    starts = [0, 1, 30, 70], [0, 100, 160, 200]
    ragged = [x[0].swapaxes(0, 1) for x in (q, k, v)]
    layer = qkvc.MultiHeadAttention(32, 4, num_kv_heads=2, rope=qkvc.RopeConfig(), qk_norm=1e-6, rng=0)
    beside = qkvc.MultiHeadAttention(32, 4, extra_kv=True, rng=0)
    split = [qkvc.attention_with_lse(q, k[:, :, part], tiny[:, :, part]) for part in (slice(90), slice(90, None))]
    faint_k, in_float64, faint_bias = k * np.float64(1e-40), (k / np.float64(3), v / np.float64(3)), bias * (1e-40 + np.float64(1) / 3)
    halves = {dtype: [x.astype(dtype) for x in (q, k, v)] for dtype in ("float16", "bfloat16")}
    tokens = normal(rng, 2, 9, 32)
    loud = tokens * 40
    angles = np.linspace(0, 1, 70 * 16).reshape(70, 16), np.linspace(0, 1e-39, 70 * 16).reshape(70, 16)

    sinks, wide, far_rows = np.array([-80.0, 80, 0.1, -np.inf]), rng.standard_normal((2, 4, 70, 24)) / 3, bias.astype(float)
    one = [q, *(x[0].astype("float16") for x in (k, v))]

    def backwards(*arrays: Any, small: float = 1, needs: Any = ("query", "key", "value", "head_importance"), **options: Any) -> Any:
        """Gradients of a loss in float64, which may be denormal in float32, as bytes."""
        out, lse = qkvc.attention_with_lse(*arrays, **options)
        given = {**options, "grad_lse": lse.astype(float) / 3 * small, "needs": needs, "num_threads": 2}
        grad_out = wide * small

        def call() -> Any:
            grads = qkvc.attention_backward(grad_out, *arrays, out, lse, **given)
            return np.concatenate([np.atleast_1d(x).view(np.uint8).ravel() for x in grads if x is not None])

        return call

    def remembered(dtype: str, **sizes: int) -> Any:
        cache = qkvc.KVCache(2, 2, 210, 32, v_head_dim=24, dtype=dtype, **sizes)
        cache.append(faint_k, tiny)
        cache.append(*in_float64, counts=[3, 10])
        return np.concatenate([x.view(np.uint8).ravel() for x in (cache.attend(q[:, :, :1]), cache.keys(), cache.values())])

    return {
        "gradients": backwards(q, k, v, dropout_p=0.3, rng=5),
        "gradients in float64": backwards(q.astype(float), k, v, softcap=2.0),
        "gradients of bfloat16": backwards(*halves["bfloat16"], small=1e-37),
        "gradients of float16 that were broadcast, many of them denormals": backwards(*one, small=1e-6),
        "denormal gradients": backwards(q, k, tiny, bias=far_rows, small=1e-38, needs=("value", "bias", "head_importance")),
        "gradients beyond float32": backwards(q, k, v, sinks=sinks, small=1e39, needs=("query", "sinks")),
        "gradients of sinks": backwards(q, k, v, sinks=sinks - 100, needs=("sinks", "head_importance")),
        "dropout": lambda: qkvc.attention(q, k, tiny, dropout_p=0.1, rng=2),
        "attention in float64": lambda: qkvc.attention(q.astype(float), k, tiny),
        "attention of bfloat16": lambda: qkvc.attention(*halves["bfloat16"]),
        "attention of float16": lambda: qkvc.attention(*halves["float16"]),
        "attention in bfloat16": lambda: qkvc.attention(q, k, v, precision="bf16"),
        "attention with a bias of float64": lambda: qkvc.attention_with_lse(q, k, v, bias=faint_bias)[1],
        "decoding": lambda: qkvc.attention(q[:, :, :1], k, v, num_threads=2),
        "decoding of denormal values": lambda: qkvc.attention(q[:, :, :2], k, tiny),
        "ragged batch": lambda: qkvc.attention_varlen(*ragged, *starts, causal="bottom-right"),
        "parts": lambda: qkvc.attention_parts(q, k, tiny).sums,
        "merged parts": lambda: qkvc.merge_attention(qkvc.attention_parts(q, k, tiny)).out,
        "merged results": lambda: qkvc.merge_attention([x.out for x in split], [x.lse - 80 * n for n, x in enumerate(split)]).out,
        "cache in float32": lambda: remembered("float32"),
        "cache in int8": lambda: remembered("int8"),
        "cache in float16, with a window": lambda: remembered("float16", window=150, keep_first=4),
        "a layer with a cache": lambda: layer(tokens, cache=qkvc.KVCache(2, 2, 9, 8, dtype="bfloat16")),
        "weights beside an extra key": lambda: beside.weights(loud),
        "attention": lambda: qkvc.attention(q, k, v, num_threads=1),
        "attention on threads": lambda: qkvc.attention(q, k, v, num_threads=3),
        "attention of denormal values": lambda: qkvc.attention(q, k, tiny),
        "attention with bias": lambda: qkvc.attention_with_lse(q, k, v, bias=bias)[1],
        "attention of NaN": lambda: qkvc.attention(q, k, with_nan),
        "rope": turned,
        "rotation by angles of float64": lambda: qkvc.rotate(q, *angles),
        "RMS norm of denormals": normed,
        "softmax": lambda: qkvc.softmax(spread),
        "softmax with denormal results": lambda: qkvc.softmax(far),
        "logsumexp": lambda: qkvc.logsumexp(spread),
    }


@pytest.mark.parametrize("mode", MODES or ["unknown machine"])
def test_control_word_changes_nothing_and_is_kept(isa: str, fpenv: ctypes.CDLL, rng: np.random.Generator, mode: str) -> None:
    for name, call in calls(rng).items():
        expected = call()
        with control(fpenv, MODES[mode]):
            got = call()
        assert_same_bits(got, expected, f"{name}, {mode}")
    assert (qkvc.attention(*(np.full((3, 3), 1e-40, np.float32) for _ in range(3))) > 0).all(), "denormals are numbers"


def test_an_error_state_of_numpy_changes_nothing(isa: str, rng: np.random.Generator) -> None:
    """Whoever asks NumPy to raise where numbers overflow or vanish means his own."""
    for name, call in calls(rng).items():
        expected = call()
        with np.errstate(all="raise"):
            assert_same_bits(call(), expected, name)


@pytest.mark.parametrize("mode", MODES or ["unknown machine"])
def test_threads_born_in_a_hostile_caller(library: str, mode: str) -> None:
    """A new thread inherits its maker's control word: the workers of a pool started under flush-to-zero must not keep it."""
    run_child(f"""
        import ctypes, numpy as np, qkvc
        fpenv = ctypes.CDLL({library!r})
        q, k, v = (np.random.default_rng(n).standard_normal((4, 300, 64), dtype=np.float32) for n in range(3))
        v *= np.float32(1e-39)
        before = fpenv.get_control()
        fpenv.set_control(before | {MODES[mode]})
        hostile = qkvc.attention(q, k, v, num_threads=3).tobytes()
        fpenv.set_control(before)
        assert qkvc.show_config("dicts")["threads"]["started"] >= 1
        later = qkvc.attention(q, k, v, num_threads=3).tobytes()
        alone = qkvc.attention(q, k, v, num_threads=1).tobytes()
        assert hostile == alone and later == alone
        assert np.frombuffer(alone, np.float32).any()
    """)


def test_no_flag_is_left_raised(isa: str, fpenv: ctypes.CDLL, rng: np.random.Generator) -> None:
    """Masked rows, far scores, NaN and overflow inside are nobody's business outside."""
    q, k, v = operands(rng, (), (2, 1), (20, 150), (8, 8))
    nan, infinite = k * np.float32(np.nan), np.full((3, 5), -np.inf, np.float32)
    large = q * np.float32(1e30), k * np.float32(1e30), q * np.float32(1000)
    everything = {
        **calls(rng),
        "empty rows": lambda: qkvc.attention(q, k, v, key_lengths=0),
        "some empty rows": lambda: qkvc.attention_with_lse(q, k, v, mask=np.arange(20)[:, np.newaxis] < 7)[1],
        "scores beyond exp": lambda: qkvc.attention(large[2], k, v),
        "scores beyond float32": lambda: qkvc.attention(large[0], large[1], v),
        "bias -inf": lambda: qkvc.attention(q, k, v, bias=np.full((1, 1), -np.inf, np.float32)),
        "NaN": lambda: qkvc.attention(q, nan, v),
        "softmax of -inf": lambda: qkvc.softmax(infinite),
        "logsumexp of -inf": lambda: qkvc.logsumexp(infinite),
    }
    for name, call in everything.items():
        fpenv.clear()
        call()
        assert fpenv.raised() == 0, f"{name} left flags {fpenv.raised():#x}"


def test_flags_of_the_caller_stay_raised(isa: str, fpenv: ctypes.CDLL, rng: np.random.Generator) -> None:
    q, k, v = operands(rng, (), (1, 1), (20, 150), (8, 8))
    fpenv.raise_all()
    try:
        qkvc.attention(q, k, v)
        assert fpenv.raised() == fpenv.watched()
    finally:
        fpenv.clear()


def test_callers_who_trap(library: str) -> None:
    """With exceptions unmasked, a NaN or an underflow inside would be a SIGFPE."""
    run_child("""
        import ctypes, ctypes.util, numpy as np, qkvc
        libm = ctypes.CDLL(ctypes.util.find_library("m"))
        q, k, v = (np.random.default_rng(n).standard_normal((4, 200, 64), dtype=np.float32) for n in range(3))
        k[:, 3] = np.nan
        q *= np.float32(1e20)
        x = np.array([[np.nan, -np.inf, 0], [-200, 0, 300]], np.float32)
        mask = np.arange(200) < 150
        expected = [qkvc.attention(q, k, v, mask=mask, num_threads=n).tobytes() for n in (1, 3)], qkvc.softmax(x).tobytes()
        assert libm.feenableexcept(0x1 | 0x4 | 0x8 | 0x10) != -1  # invalid, division by zero, overflow, underflow
        got = [qkvc.attention(q, k, v, mask=mask, num_threads=n).tobytes() for n in (1, 3)], qkvc.softmax(x).tobytes()
        assert libm.fegetexcept() == 0x1 | 0x4 | 0x8 | 0x10
        libm.fedisableexcept(0x3D)
        assert got == expected
    """)


def test_import_leaves_the_control_word_alone(library: str) -> None:
    """crtfastmath.o, which the linker adds for -ffast-math, would set flush-to-zero in whoever imports."""
    run_child(f"""
        import ctypes, numpy
        fpenv = ctypes.CDLL({library!r})
        before = fpenv.get_control()
        import qkvc
        assert fpenv.get_control() & ~{FLAGS} == before & ~{FLAGS}
    """)
