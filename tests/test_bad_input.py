"""Misuse: which exception, what its message names, and that a refused call has written nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

import qkvc

from .options import HALVES
from .support import assert_refused, assert_same_bits, operands

F32 = np.float32
HUGE = 10**30
INF, NAN = float("inf"), float("nan")


def arrays(heads: tuple[int, int] = (4, 2)) -> dict[str, Any]:
    query, key, value = operands(np.random.default_rng(5), (2,), heads, (3, 5), (8, 6))
    return {"query": query, "key": key, "value": value}


def ones(*shape: int, dtype: Any = F32) -> NDArray[Any]:
    return np.ones(shape, dtype)


class Explodes:
    """Conversion raises what the caller's own code raised."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
        raise RuntimeError("lost the file")


# Each row changes the good call of `arrays`: query (2, 4, 3, 8), key (2, 2, 5, 8), value (2, 2, 5, 6), result (2, 4, 3, 6).
#  name                                        changed arguments                        exception   words of the message
TABLE: list[tuple[str, dict[str, Any], Any, tuple[str, ...]]] = [
    # what is not an array of numbers
    *[(f"{name} None", {name: None}, TypeError, (name, "None")) for name in ("query", "key", "value")],
    *[(f"{name} a string", {name: "abc"}, TypeError, (name, "float32")) for name in ("query", "key", "value")],
    ("query ragged", {"query": [[1.0, 2.0], [3.0]]}, TypeError, ("query",)),
    ("query of objects", {"query": ones(2, 4, 3, 8, dtype=object)}, TypeError, ("query", "object")),
    ("query a set", {"query": {1.0}}, TypeError, ("query", "object")),
    ("query of dates", {"query": ones(2, 4, 3, 8).astype("M8[s]")}, TypeError, ("query", "datetime64")),
    ("query structured", {"query": np.zeros((2, 4, 3, 8), [("re", F32)])}, TypeError, ("query", "float32", "re")),
    ("query of bytes", {"query": np.zeros((2, 4, 3, 8), "S4")}, TypeError, ("query", "S4")),
    # numbers without kernels
    *[(f"query {dtype}", {"query": ones(2, 4, 3, 8, dtype=dtype)}, TypeError, ("query", "float32", "float64", str(np.dtype(dtype))))
      for dtype in ("longdouble", "complex64", "complex128", "float8_e4m3fn")],
    ("precision unknown", {"precision": "fp8"}, ValueError, ("precision", "bf16", "fp8")),
    ("precision True", {"precision": True}, ValueError, ("precision", "bf16", "True")),
    ("precision of float64", {"query": ones(2, 4, 3, 8, dtype="f8"), "precision": "bf16"}, ValueError, ("precision", "float64")),
    # arrays that mean something else
    *[(f"{name} masked", {name: np.ma.masked_invalid(ones(2, 2, 5, 8))}, TypeError, (name, "MaskedArray", "mask"))
      for name in ("query", "key", "value", "mask", "bias")],
    *[(f"{name} np.matrix", {name: np.asmatrix(ones(5, 8))}, TypeError, (name, "matrix"))
      for name in ("query", "key", "value", "mask", "bias")],
    # ranks and shapes
    ("query without axes", {"query": F32(1)}, ValueError, ("query", "()")),
    ("query of one axis", {"query": ones(8)}, ValueError, ("query", "(8,)")),
    ("key of one axis", {"key": ones(8)}, ValueError, ("key", "(8,)")),
    ("value of one axis", {"value": ones(6)}, ValueError, ("value", "(6,)")),
    ("query of another dimension", {"query": ones(2, 4, 3, 7)}, ValueError, ("key", "8", "7")),
    ("key of another dimension", {"key": ones(2, 2, 5, 9)}, ValueError, ("key", "9", "8")),
    ("value shorter than key", {"value": ones(2, 2, 4, 6)}, ValueError, ("value", "5", "4")),
    ("value of one row", {"value": ones(2, 2, 1, 6)}, ValueError, ("value", "5", "1")),
    ("value of other heads", {"value": ones(2, 4, 5, 6)}, ValueError, ("value", "heads", "2", "4")),
    ("value of one head", {"value": ones(2, 1, 5, 6)}, ValueError, ("value", "heads")),
    ("heads that do not divide", {"query": ones(2, 3, 3, 8)}, ValueError, ("heads", "3", "2")),
    ("fewer query heads than key heads", {"query": ones(2, 1, 3, 8)}, ValueError, ("heads", "1", "2")),
    ("no key heads", {"key": ones(2, 0, 5, 8), "value": ones(2, 0, 5, 6)}, ValueError, ("heads", "4", "0")),
    ("batches that do not broadcast", {"key": ones(3, 2, 5, 8)}, ValueError, ("batch", "key", "(3, 2, 5, 8)", "(2, 4, 3, 8)")),
    ("value's batch does not broadcast", {"value": ones(3, 2, 5, 6)}, ValueError, ("batch", "value", "(3, 2, 5, 6)")),
    ("the other layout", {"layout": "blhd"}, ValueError, ("heads",)),
    # mask and bias
    *[(f"mask {dtype}", {"mask": ones(3, 5, dtype=dtype)}, TypeError, ("mask", "bool", dtype))
      for dtype in ("float64", "int32", "uint8", "object")],
    ("mask a string", {"mask": "causal"}, TypeError, ("mask", "bool")),
    ("bias complex", {"bias": ones(3, 5, dtype=complex)}, TypeError, ("bias", "complex128")),
    ("bias of objects", {"bias": ones(3, 5, dtype=object)}, TypeError, ("bias", "object")),
    *[(f"{name} of shape {shape}", {name: ones(*shape, dtype=dtype)}, ValueError, (name, str(shape), "(2, 4, 3, 5)", "broadcast"))
      for name, dtype in (("mask", bool), ("bias", F32))
      for shape in ((4, 5), (3, 4), (2, 3, 5), (3, 1, 3, 5), (1, 2, 4, 3, 5), (0,), (3, 0))],
    # positions
    ("causal an int", {"causal": 1}, TypeError, ("causal", "top-left", "int")),
    ("causal None", {"causal": None}, TypeError, ("causal", "NoneType")),
    ("causal an array", {"causal": np.ones(2, bool)}, TypeError, ("causal", "ndarray")),
    ("causal empty", {"causal": ""}, ValueError, ("causal", "top-left", "bottom-right")),
    ("q_offset float", {"causal": True, "q_offset": 1.0}, TypeError, ("q_offset", "integer", "float")),
    ("q_offset True", {"causal": True, "q_offset": True}, TypeError, ("q_offset", "integer", "bool")),
    ("q_offset a string", {"causal": True, "q_offset": "1"}, TypeError, ("q_offset", "integer")),
    ("q_offset per head", {"causal": True, "q_offset": [0, 0, 0, 0]}, ValueError, ("q_offset", "(2,)", "(4,)")),
    ("q_offset of two axes", {"causal": True, "q_offset": [[0, 0]]}, ValueError, ("q_offset", "(2,)", "(1, 2)")),
    *[(f"q_offset {sign}10**30", {"causal": True, "q_offset": int(f"{sign}{HUGE}")}, ValueError, ("q_offset", "integer")) for sign in "+-"],
    ("q_offset of 10**30 in a list", {"causal": True, "q_offset": [0, HUGE]}, (TypeError, ValueError), ("q_offset", "integer")),
    ("q_offset near 2**64", {"causal": True, "q_offset": np.uint64(2**64 - 1)}, ValueError, ("q_offset", "18446744073709551615")),
    ("q_offset near 2**63", {"causal": True, "q_offset": [0, 2**63 - 1]}, ValueError, ("q_offset", "9223372036854775807")),
    ("key_lengths per head", {"key_lengths": [5, 5, 5, 5]}, ValueError, ("key_lengths", "(2,)", "(4,)")),
    ("key_lengths one too long", {"key_lengths": [5, 6]}, ValueError, ("key_lengths", "6", "5")),
    ("key_lengths negative", {"key_lengths": [-1, 5]}, ValueError, ("key_lengths", "-1")),
    ("key_lengths floats", {"key_lengths": [1.0, 5.0]}, TypeError, ("key_lengths", "integer", "float64")),
    ("key_lengths bools", {"key_lengths": [True, False]}, TypeError, ("key_lengths", "integer", "bool")),
    ("key_lengths objects", {"key_lengths": np.array([1, None])}, TypeError, ("key_lengths", "integer", "object")),
    ("key_lengths of nothing", {"key_lengths": np.zeros(0, int)}, ValueError, ("key_lengths", "(2,)", "(0,)")),
    *[(f"key_lengths {n}", {"key_lengths": n}, ValueError, ("key_lengths", "integer", "5"))
      for n in (HUGE, -HUGE, 2**63, 2**31, 2**32 + 3, -(2**63))],
    # windows
    *[(f"window {x!r}", {"window": x, "q_offset": 0}, TypeError, ("window", "pair", "integers", got))
      for x, got in ((3, "3"), ((1,), "tuple"), ((1, 2, 3), "tuple"), ("ab", "str"), ((1.0, 0), "float"), ((0, True), "bool"),
                     ((0, None), "None"))],
    ("window below -1", {"window": (0, -2), "q_offset": 0}, ValueError, ("window", "-1", "-2")),
    ("window of -10**30", {"window": (-HUGE, 0), "q_offset": 0}, ValueError, ("window", "-1")),
    # one number per head
    *[(f"{name} {label}", {name: x, **({"q_offset": 0} if name == "alibi_slopes" else {})}, exception, (name, *words))
      for name in ("alibi_slopes", "sinks", "head_scale")
      for label, x, exception, words in (
          ("a string", "steep", TypeError, ("real numbers", "U5")),
          ("of bools", [True] * 4, TypeError, ("real numbers", "bool")),
          ("complex", ones(4, dtype=complex), TypeError, ("real numbers", "complex128")),
          ("of objects", ones(4, dtype=object), TypeError, ("real numbers", "object")),
          ("masked", np.ma.masked_invalid(ones(4)), TypeError, ("MaskedArray",)),
          ("nan", [0, NAN, 0, 0], ValueError, ("finite", "nan")),
          ("+inf", [0, 0, 0, INF], ValueError, ("finite", "inf")),
          ("of 1e31", 1e31, ValueError, ("finite", "1e+30", "1e+31")),
          ("of -1e300", [0, 0, -1e300, 0], ValueError, ("finite", "1e+30", "-1e+300")),
          ("per key head", ones(2), ValueError, ("(2, 4)", "(2,)")),
          ("per row", ones(4, 3), ValueError, ("(2, 4)", "(4, 3)")),
          ("of three axes", ones(1, 2, 4), ValueError, ("(2, 4)", "(1, 2, 4)")),
          ("of nothing", ones(0), ValueError, ("(2, 4)", "(0,)")),
      )],
    ("alibi_slopes -inf", {"alibi_slopes": -INF, "q_offset": 0}, ValueError, ("alibi_slopes", "finite", "-inf")),
    ("head_scale -inf", {"head_scale": -INF}, ValueError, ("head_scale", "finite", "-inf")),
    # softcap
    *[(f"softcap {x}", {"softcap": x}, ValueError, ("softcap", "above 0")) for x in (0, 0.0, -1.0, 1e-40, 1e40)],
    *[(f"softcap {x}", {"softcap": x}, ValueError, ("softcap", "finite", str(x))) for x in (NAN, INF)],
    *[(f"softcap {type(x).__name__}", {"softcap": x}, TypeError, ("softcap", "number", type(x).__name__))
      for x in ("2", True, 1j, ones(4))],
    # scale
    ("scale nan", {"scale": float("nan")}, ValueError, ("scale", "finite", "nan")),
    ("scale -inf", {"scale": -float("inf")}, ValueError, ("scale", "finite", "inf")),
    ("scale a string", {"scale": "0.5"}, TypeError, ("scale", "number", "str")),
    ("scale True", {"scale": True}, TypeError, ("scale", "number", "bool")),
    ("scale complex", {"scale": 1j}, TypeError, ("scale", "number", "complex")),
    ("scale per head", {"scale": ones(4)}, TypeError, ("scale", "number", "ndarray")),
    ("scale 10**400", {"scale": 10**400}, ValueError, ("scale", "finite")),
    # layout
    ("layout unknown", {"layout": "bshd"}, ValueError, ("layout", "bhld", "blhd", "bshd")),
    ("layout None", {"layout": None}, (ValueError, TypeError), ("layout", "bhld", "blhd", "None")),
    ("layout an array", {"layout": np.array(["bhld", "blhd"])}, (ValueError, TypeError), ("layout", "bhld", "blhd")),
    # threads
    ("num_threads 0", {"num_threads": 0}, ValueError, ("num_threads", "1", "0")),
    ("num_threads -1", {"num_threads": -1}, ValueError, ("num_threads", "1", "-1")),
    ("num_threads -10**30", {"num_threads": -HUGE}, ValueError, ("num_threads", "1")),
    ("num_threads 1.5", {"num_threads": 1.5}, TypeError, ("num_threads", "int", "float")),
    ("num_threads a string", {"num_threads": "2"}, TypeError, ("num_threads", "int", "str")),
    ("num_threads True", {"num_threads": True}, TypeError, ("num_threads", "int", "bool")),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "exception", "words"), [pytest.param(*row[1:], id=row[0]) for row in TABLE])
def test_misuse(changed: dict[str, Any], exception: Any, words: tuple[str, ...]) -> None:
    out = np.full((2, 4, 3, 6), np.nan, F32)
    before = out.copy()
    for function in (qkvc.attention, qkvc.attention_with_lse):
        message = assert_refused(lambda function=function: function(**{**arrays(), **changed}, out=out), exception, *words)
        assert_same_bits(out, before, "out was written")
        assert message.startswith("attention: "), message
        assert ": expected " in message, message
        assert ", got " in message, message


@pytest.mark.parametrize("dtype", HALVES)
def test_an_out_of_another_dtype_than_the_result(dtype: str) -> None:
    halves = {name: x.astype(dtype) for name, x in arrays().items()}
    for given, out in ((halves, "float32"), (halves, "uint16"), (arrays(), dtype), ({**arrays(), "key": halves["key"]}, dtype)):
        wrong = ones(2, 4, 3, 6, dtype=out)
        wanted = dtype if given is halves else "float32"
        assert_refused(lambda given=given, wrong=wrong: qkvc.attention(**given, out=wrong), ValueError, "out", wanted, out)
        assert (wrong == 1).all()


def test_an_error_of_the_callers_own_array_is_kept() -> None:
    with pytest.raises((RuntimeError, TypeError), match="lost the file"):
        qkvc.attention(**{**arrays(), "query": Explodes()})


def test_calls_that_python_refuses() -> None:
    q = ones(3, 8)
    for call in (
        lambda: qkvc.attention(q, q),  # type: ignore[call-arg]
        lambda: qkvc.attention(q, q, q, True),  # type: ignore[misc]
        lambda: qkvc.attention(q, q, q, attn_mask=None),  # type: ignore[call-arg]
    ):
        with pytest.raises(TypeError):
            call()


# --- out -------------------------------------------------------------------------------------------------------------------------------

#  name                   out                                                         exception   words
OUT: list[tuple[str, Callable[[], Any], type[Exception], tuple[str, ...]]] = [
    ("float64", lambda: ones(2, 4, 3, 6, dtype=float), ValueError, ("out", "float32", "float64")),
    ("int32", lambda: ones(2, 4, 3, 6, dtype=np.int32), ValueError, ("out", "float32", "int32")),
    ("the other byte order", lambda: ones(2, 4, 3, 6, dtype=F32).astype(np.dtype(F32).newbyteorder()), ValueError, ("out", "float32")),
    ("too short", lambda: ones(2, 4, 2, 6), ValueError, ("out", "(2, 4, 3, 6)", "(2, 4, 2, 6)")),
    ("too long", lambda: ones(2, 4, 4, 6), ValueError, ("out", "(2, 4, 3, 6)", "(2, 4, 4, 6)")),
    ("D for Dv", lambda: ones(2, 4, 3, 8), ValueError, ("out", "(2, 4, 3, 6)", "(2, 4, 3, 8)")),
    ("the other layout", lambda: ones(2, 3, 4, 6), ValueError, ("out", "(2, 4, 3, 6)", "(2, 3, 4, 6)")),
    ("an axis too many", lambda: ones(1, 2, 4, 3, 6), ValueError, ("out", "(2, 4, 3, 6)", "(1, 2, 4, 3, 6)")),
    ("flat", lambda: ones(144), ValueError, ("out", "(2, 4, 3, 6)", "(144,)")),
    ("a list", lambda: ones(2, 4, 3, 6).tolist(), TypeError, ("out", "ndarray", "list")),
    ("a number", lambda: 0.0, TypeError, ("out", "ndarray", "float")),
    ("a masked array", lambda: np.ma.ones((2, 4, 3, 6), F32), TypeError, ("out", "MaskedArray")),
    ("read-only", lambda: np.broadcast_to(ones(2, 4, 3, 6), (2, 4, 3, 6)), ValueError, ("out", "read-only")),
    ("rows that are one row", lambda: as_strided(ones(2, 4, 3, 6), strides=(288, 72, 0, 4)), ValueError, ("out", "memory")),
    ("rows that overlap", lambda: as_strided(ones(2, 4, 3, 6), strides=(288, 72, 4, 4)), ValueError, ("out", "memory")),
]  # fmt: skip


@pytest.mark.parametrize(("make", "exception", "words"), [pytest.param(*row[1:], id=row[0]) for row in OUT])
def test_out(make: Callable[[], Any], exception: type[Exception], words: tuple[str, ...]) -> None:
    out = make()
    before = np.array(out)
    assert_refused(lambda: qkvc.attention(**arrays(), out=out), exception, *words)
    np.testing.assert_array_equal(np.array(out), before)


def test_out_has_the_dtype_of_the_result() -> None:
    """float64 where one of the inputs is, or is made of integers; float32 is refused there, and nothing is written."""
    for name, dtype in (("query", float), ("key", np.int8), ("value", bool)):
        inputs = arrays()
        inputs[name] = inputs[name].astype(dtype)
        out = np.full((2, 4, 3, 6), np.nan, F32)
        assert_refused(lambda inputs=inputs, out=out: qkvc.attention(**inputs, out=out), ValueError, "out", "float64", "float32")
        assert np.isnan(out).all()
        out = out.astype(float)
        assert qkvc.attention(**inputs, out=out) is out
        assert np.isfinite(out).all()


def test_out_that_overlaps_an_input() -> None:
    """Same memory, shifted, reversed, by one element, with the mask's and the bias's bytes: all refused, nothing written."""
    for name in ("query", "key", "value"):
        for shift in (0, 1, 7, 23):
            memory = np.random.default_rng(2).standard_normal(64, dtype=F32)
            inputs = {n: ones(4, 6) for n in ("query", "key", "value")}
            inputs[name], out = memory[:24].reshape(4, 6), memory[shift : shift + 24].reshape(4, 6)
            for view in (out, out[::-1], out[:, ::-1]):
                before = memory.copy()
                assert_refused(lambda inputs=inputs, view=view: qkvc.attention(**inputs, out=view), ValueError, "out", name, "memory")
                assert_same_bits(memory, before)
    inputs = {n: ones(4, 6) for n in ("query", "key", "value")}
    bias = np.zeros((4, 24), F32)
    assert_refused(lambda: qkvc.attention(**inputs, bias=bias[:, :4], out=bias[:, 3:9]), ValueError, "out", "bias", "memory")
    mask = np.zeros((4, 24), bool)
    assert_refused(lambda: qkvc.attention(**inputs, mask=mask[:, :4], out=mask.view(F32)), ValueError, "out", "mask", "memory")


def test_out_beside_its_inputs_in_one_array() -> None:
    """Disjoint views of the same memory pass, also interleaved ones whose bounds overlap."""
    memory = np.random.default_rng(2).standard_normal((4, 4, 6), dtype=F32)
    separate = [memory[n].copy() for n in range(3)]
    expected = qkvc.attention(*separate)
    assert_same_bits(qkvc.attention(*memory[:3], out=memory[3]), expected)
    fused = np.ascontiguousarray(memory.transpose(1, 0, 2))  # (L, [q k v out], D), as a fused projection leaves it
    fused[:, 3] = 0
    assert_same_bits(qkvc.attention(fused[:, 0], fused[:, 1], fused[:, 2], out=fused[:, 3]), expected)
    elements = np.ascontiguousarray(memory.transpose(1, 2, 0))
    assert_same_bits(qkvc.attention(elements[..., 0], elements[..., 1], elements[..., 2], out=elements[..., 3]), expected)
    for n in range(3):
        assert_same_bits(fused[:, n], separate[n])
        assert_same_bits(elements[..., n], separate[n])


def test_queries_that_share_memory_with_keys_are_fine() -> None:
    x = np.random.default_rng(3).standard_normal((2, 5, 8), dtype=F32)
    expected = qkvc.attention(x.copy(), x.copy(), x.copy())
    assert_same_bits(qkvc.attention(x, x, x), expected)
    assert_same_bits(qkvc.attention(x, x[:, ::-1], x[:, ::-1]), qkvc.attention(x.copy(), x[:, ::-1].copy(), x[:, ::-1].copy()))


def test_inputs_are_never_written() -> None:
    inputs = arrays()
    inputs |= {"mask": np.random.default_rng(4).random((3, 5)) < 0.5, "bias": ones(3, 5), "key_lengths": np.array([3, 5])}
    inputs |= {name: ones(2, 4, dtype=float) for name in ("alibi_slopes", "sinks", "head_scale")} | {"q_offset": np.array([0, 2])}
    before = {name: x.copy() for name, x in inputs.items()}
    qkvc.attention(**inputs)
    for name, x in inputs.items():
        np.testing.assert_array_equal(x, before[name])


# --- sizes beyond the machine ----------------------------------------------------------------------------------------------------------


def test_a_result_too_big_is_an_error() -> None:
    """Shapes that cost no memory to write down: stride 0 makes them, the result would not fit."""
    one = ones(1, 1, 1, 1)
    query = np.broadcast_to(one, (2**20, 2**10, 2**20, 1))
    key = np.broadcast_to(one, (1, 2**10, 1, 1))
    with pytest.raises((MemoryError, ValueError)):
        qkvc.attention(query, key, key)
    with pytest.raises((MemoryError, ValueError)):
        qkvc.attention(
            np.broadcast_to(one, (2**30, 1, 1, 1)), np.broadcast_to(one, (2**30, 1, 1, 1)), np.broadcast_to(one, (1, 1, 1, 2**34))
        )


# --- the other functions ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "exception", "words"),
    [
        (lambda: qkvc.split_heads(ones(2, 8), 3), ValueError, ("num_heads", "8", "3")),
        (lambda: qkvc.split_heads(ones(2, 8), 0), ValueError, ("num_heads", "0")),
        (lambda: qkvc.split_heads(ones(2, 8), -2), ValueError, ("num_heads", "-2")),
        (lambda: qkvc.split_heads(ones(2, 8), 2.0), TypeError, ("num_heads", "float")),
        (lambda: qkvc.split_heads(ones(8), 2), ValueError, ("x", "(8,)")),
        (lambda: qkvc.concat_heads(ones(2, 8)), ValueError, ("x", "(2, 8)")),
        (lambda: qkvc.set_num_threads(0), ValueError, ("1", "0")),
        (lambda: qkvc.set_num_threads(-3), ValueError, ("1", "-3")),
        (lambda: qkvc.set_num_threads(1.0), TypeError, ("int", "float")),
        (lambda: qkvc.set_num_threads("2"), TypeError, ("int", "str")),
        (lambda: qkvc.set_num_threads(None), TypeError, ("int", "None")),
        (lambda: qkvc.show_config("json"), ValueError, ("mode", "stdout", "dicts", "json")),
    ],
    ids=["split 8 by 3", "split by 0", "split by -2", "split by a float", "split one axis", "concat two axes", "0 threads", "-3 threads",
         "1.0 threads", "threads of str", "threads of None", "config mode"],
)  # fmt: skip
def test_other_functions(call: Callable[[], object], exception: type[Exception], words: tuple[str, ...]) -> None:
    before = qkvc.get_num_threads()
    assert_refused(call, exception, *words)
    assert qkvc.get_num_threads() == before


def test_zero_scale_and_negative_scale_are_fine() -> None:
    for scale in (0, 0.0, -0.0, -1, 2, F32(0.5), np.array(0.5), np.int8(2), 1e-45, 1e-300):
        assert np.isfinite(qkvc.attention(**arrays(), scale=scale)).all()
