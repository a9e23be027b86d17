"""The operators of `qkvc.integrations.onnx`: the node cases of the onnx package, its evaluator in float64, and where they differ."""

from __future__ import annotations

import importlib
from collections import Counter
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", minversion="1.23", reason="onnx is not installed")

from onnx import TensorProto, helper
from onnx.backend.test.case.node import _NodeTestCases as NODE_CASES  # the public door imports all operators: 7 s instead of 0.5
from onnx.backend.test.runner import Runner
from onnx.reference import ReferenceEvaluator

from qkvc.integrations.onnx import ops

from .reference import PAIRS
from .support import assert_refused, in_pairs

for module in ("attention", "rotaryembedding"):
    importlib.import_module(f"onnx.backend.test.case.node.{module}")

CASES = [case for case in NODE_CASES if case.model.graph.node[0].op_type in ("Attention", "RotaryEmbedding")]

INPUTS = {
    "Attention": ("query", "key", "value", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen"),
    "RotaryEmbedding": ("x", "cos", "sin", "position_ids"),
}
OUTPUTS = {"Attention": ("y", "present_key", "present_value", "scores"), "RotaryEmbedding": ("y",)}
TYPES = {  # and relative and absolute error: half an ULP of 16 bits
    "float64": (np.dtype(np.float64), 1e-12, 1e-13),
    "float32": (np.dtype(np.float32), 1e-5, 3e-6),
    "float16": (np.dtype(np.float16), 2**-11, 3e-6),
    "bfloat16": (helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16), 2**-8, 3e-6),
}


def test_every_case_is_here() -> None:
    """Another number is another package: look at what is new."""
    assert Counter(case.model.graph.node[0].op_type for case in CASES) == {"Attention": 93, "RotaryEmbedding": 8}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.removeprefix("test_"))
def test_node_case(isa: str, case: Any) -> None:
    """With the comparison and the tolerances of ONNX itself."""
    evaluator = ReferenceEvaluator(case.model, new_ops=ops())
    assert [type(node) for node in evaluator.rt_nodes_] == [op for op in ops() if op.__name__ == case.model.graph.node[0].op_type]
    for inputs, wanted in case.data_sets:
        got = evaluator.run(None, dict(zip(evaluator.input_names, inputs, strict=True)))
        Runner.assert_similar_outputs(wanted, got, case.rtol, case.atol)


def run(inputs: dict[str, Any], new_ops: Any = None, outputs: int | None = None, **attributes: Any) -> dict[str, Any]:
    """One node of opset 25, on qkvc unless other operators are named."""
    op = "RotaryEmbedding" if "x" in inputs else "Attention"
    named = OUTPUTS[op][:outputs]
    node = helper.make_node(op, [name if name in inputs else "" for name in INPUTS[op]], named, **attributes)
    typed = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for n, x in inputs.items()]
    graph = helper.make_graph([node], "one", typed, [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in named])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)])
    evaluator = ReferenceEvaluator(model, new_ops=ops() if new_ops is None else new_ops)
    return dict(zip(named, evaluator.run(None, inputs), strict=True))


def draw(rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and attributes of an Attention that all implementations mean alike."""

    def chance(p: float) -> bool:
        return bool(rng.random() < p)

    batch, heads, group, rows, new, width, v_width = (int(n) for n in rng.integers(1, (4, 4, 4, 8, 10, 20, 20)))
    past = int(rng.integers(1, 6)) if chance(0.4) else 0
    inputs: dict[str, Any] = {
        "query": rng.normal(size=(batch, heads * group, rows, width)),
        "key": rng.normal(size=(batch, heads, new, width)),
        "value": rng.normal(size=(batch, heads, new, v_width)),
    }
    attributes: dict[str, Any] = {"qk_matmul_output_mode": int(rng.integers(4)), "is_causal": int(chance(0.5))}
    if chance(0.4):
        for name in ("query", "key", "value"):
            inputs[name] = inputs[name].swapaxes(1, 2).reshape(batch, -1, inputs[name].shape[1] * inputs[name].shape[3])
        attributes |= {"q_num_heads": heads * group, "kv_num_heads": heads}
    if past:
        inputs |= {"past_key": rng.normal(size=(batch, heads, past, width)), "past_value": rng.normal(size=(batch, heads, past, v_width))}
    elif chance(0.5):
        inputs["nonpad_kv_seqlen"] = rng.integers(0, new + 1, batch)
    if chance(0.6):
        keys = int(rng.integers(1, past + new + 1)) if chance(0.3) else past + new
        shape = [int(n) if chance(0.7) else 1 for n in (batch, heads * group, rows)]
        if attributes[
            "is_causal"
        ]:  # beside it the evaluator takes a mask of one row for a query of one row, and fails where it has one axis
            shape[2] = rows
        shape = [*shape, keys][int(rng.integers(3)) :]
        inputs["attn_mask"] = rng.random(shape) < 0.7 if chance(0.5) else np.where(rng.random(shape) < 0.8, rng.normal(size=shape), -np.inf)
    if chance(0.5):
        attributes |= {"left_window_size": int(rng.integers(-1, 6)), "right_window_size": int(rng.integers(-1, 6))}
    if chance(0.3) and attributes["qk_matmul_output_mode"]:
        attributes["softcap"] = float(rng.uniform(0.2, 3))
    if chance(0.3):
        attributes["scale"] = float(rng.integers(1, 12) / 8) ** 2  # the evaluator rounds its root to float32
    return inputs, attributes


@pytest.mark.parametrize("seed", range(200))
@pytest.mark.parametrize("name", ["float64", "float32", "float16", "bfloat16"])
def test_random_nodes(name: str, seed: int) -> None:
    """Against ONNX's evaluator in float64, with every combination of inputs and attributes that it and qkvc mean alike.

    Of 16 bits the result is the exact one rounded, give or take what float32 inside may tip over, and what pairs lose of a weight.
    """
    inputs, attributes = draw(np.random.default_rng(seed))
    dtype, rtol, atol = TYPES[name]
    inputs = {n: x.astype(dtype) if x.dtype == np.float64 else x for n, x in inputs.items()}
    wanted = run({n: x.astype(np.float64) if x.dtype == dtype else x for n, x in inputs.items()}, new_ops=[], **attributes)
    values = np.concatenate([x.astype(np.float64).ravel() for n, x in inputs.items() if n.endswith("value")])
    lost = {"y": 2 * PAIRS * np.abs(values).max(initial=0)} if in_pairs(values.astype(dtype)) else {}
    for output, got in run(inputs, **attributes).items():
        assert got.dtype == dtype
        what = f"{output} of seed {seed}, {attributes}"
        np.testing.assert_allclose(got.astype(np.float64), wanted[output], rtol=rtol, atol=atol + lost.get(output, 0), err_msg=what)


def plain(**others: Any) -> dict[str, Any]:
    """Two queries and four keys of one head, all scores 1 and values that name their key."""
    ones = np.ones((1, 1, 2, 1), np.float32)
    return {"query": ones, "key": np.ones((1, 1, 4, 1), np.float32), "value": np.eye(4, dtype=np.float32)[None, None], **others}


def test_mode_0_is_before_softcap() -> None:
    got = run(plain(), softcap=0.5)
    np.testing.assert_array_equal(got["scores"], np.ones((1, 1, 2, 4)))


def test_a_masked_nan_goes_no_further() -> None:
    inputs = plain(attn_mask=np.array([True, False, True, True]))
    inputs["key"][..., 1, :] = inputs["value"][..., 1, :] = np.nan
    got = run(inputs, qk_matmul_output_mode=2)
    np.testing.assert_allclose(got["y"][0, 0], [[1 / 3, 0, 1 / 3, 1 / 3]] * 2, rtol=1e-6)
    np.testing.assert_array_equal(got["scores"][0, 0], [[1, -np.inf, 1, 1]] * 2)


@pytest.mark.parametrize("mask", [np.ones((2, 1), bool), np.zeros(1, np.float32), np.zeros((1, 1), np.int8)], ids=lambda x: str(x.dtype))
def test_a_mask_of_one_key_masks_the_others(mask: Any) -> None:
    got = run(plain(attn_mask=mask), qk_matmul_output_mode=3)
    np.testing.assert_array_equal(got["scores"][0, 0], [[1, 0, 0, 0]] * 2)


def test_a_causal_mask_of_one_row_broadcasts() -> None:
    """As in the function body."""
    for mask in (np.array([True, False, True, True]), np.array([[0, -np.inf, 0, 0]], np.float32)):
        got = run(plain(attn_mask=mask), is_causal=1, qk_matmul_output_mode=2)
        np.testing.assert_array_equal(got["scores"][0, 0], [[1, -np.inf, -np.inf, -np.inf], [1, -np.inf, -np.inf, -np.inf]])
        got = run(plain(attn_mask=mask, nonpad_kv_seqlen=np.array([4])), is_causal=1)
        np.testing.assert_array_equal(got["y"][0, 0], [[0.5, 0, 0.5, 0], np.array([1, 0, 1, 1]) * np.float32(1 / 3)])


def test_a_mask_without_axes_broadcasts() -> None:
    got = run(plain(attn_mask=np.array(False)))
    np.testing.assert_array_equal(got["y"], np.zeros((1, 1, 2, 4)))


def test_softmax_precision_double_computes_in_float64() -> None:
    """Scores apart by 2^-30 of their size are equal in float32, and far apart after a scale of 2^30."""
    query = np.array([[1, 2**-15]], np.float32)[None, None]
    key = np.array([[1, 0], [1, 2**-15]], np.float32)[None, None]
    inputs = {"query": query, "key": key, "value": np.eye(2, dtype=np.float32)[None, None]}
    single = run(inputs, scale=2.0**30)["y"]
    double = run(inputs, scale=2.0**30, softmax_precision=TensorProto.DOUBLE)["y"]
    assert single.dtype == double.dtype == np.float32
    np.testing.assert_array_equal(single[0, 0], [[0.5, 0.5]])
    np.testing.assert_allclose(double[0, 0], [[1 / (1 + np.e), np.e / (1 + np.e)]], rtol=1e-6)


def test_the_matrix_is_computed_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("nobody asked for it")

    monkeypatch.setattr("qkvc.integrations.onnx.attention_scores", refuse)
    run(plain(), outputs=3)
    with pytest.raises(AssertionError, match="nobody"):
        run(plain())


THREE = {"query": np.ones((1, 2, 6), np.float32), "key": np.ones((1, 4, 6), np.float32), "value": np.ones((1, 4, 6), np.float32)}
PAST = np.ones((1, 1, 3, 1), np.float32)


def rotary(width: int, cos: tuple[int, ...], sin: tuple[int, ...], **others: Any) -> dict[str, Any]:
    return {"x": np.ones((1, 1, 2, width), np.float32), "cos": np.ones(cos, np.float32), "sin": np.ones(sin, np.float32), **others}


BAD: list[tuple[str, dict[str, Any], dict[str, Any], tuple[str, ...]]] = [
    ("two axes", {**THREE, "query": THREE["query"][0]}, {}, ("query", "3 or 4 axes", "(2, 6)")),
    ("axes apart", {**plain(), "key": THREE["key"]}, {}, ("key", "4 axes", "(1, 4, 6)")),
    ("three axes without heads", THREE, {}, ("query", "(1, 2, 6)", "None heads")),
    ("heads that do not divide", THREE, {"q_num_heads": 2, "kv_num_heads": 4}, ("key", "(1, 4, 6)", "4 heads")),
    ("heads that are not there", plain(), {"kv_num_heads": 2}, ("key", "2 heads", "(1, 1, 4, 1)")),
    ("half a past", plain(past_key=PAST), {}, ("past_value", "past_key", "one")),
    ("a past of other width", plain(past_key=PAST, past_value=PAST), {}, ("past_value", "(1, 1, 4, 4)", "(1, 1, 3, 1)")),
    ("a past of three axes", plain(past_key=PAST[0], past_value=PAST), {}, ("past_key", "(1, 1, 4, 1)", "(1, 3, 1)")),
    ("two kinds of cache", plain(past_key=PAST, past_value=PAST.repeat(4, 3), nonpad_kv_seqlen=np.array([4])), {}, ("nonpad", "past_key")),
    ("more keys than there are", plain(nonpad_kv_seqlen=np.array([5])), {}, ("nonpad_kv_seqlen", "0 to 4", "got 5")),
    ("a window of -2", plain(), {"left_window_size": -2}, ("window", "-2")),
    ("a negative softcap", plain(), {"softcap": -1.0}, ("softcap", "-1")),
    ("a fifth mode", plain(), {"qk_matmul_output_mode": 4}, ("qk_matmul_output_mode", "0 to 3", "got 4")),
    ("a precision of integers", plain(), {"softmax_precision": 7}, ("softmax_precision", "got 7")),
    ("an odd rotation", rotary(5, (1, 2, 2), (1, 2, 2)), {}, ("rotary_embedding_dim", "got 5")),
    ("too wide a rotation", rotary(4, (1, 2, 3), (1, 2, 3)), {"rotary_embedding_dim": 6}, ("rotary_embedding_dim", "up to 4", "got 6")),
    ("a cache too narrow", rotary(4, (1, 2, 2), (1, 2, 1)), {}, ("sin_cache", "(1, 2, 2)", "(1, 2, 1)")),
    ("too few positions", rotary(4, (9, 2), (9, 2), position_ids=np.array([[1]])), {}, ("position_ids", "(1, 2)", "(1, 1)")),
    ("a position too far", rotary(4, (9, 2), (9, 2), position_ids=np.array([[1, 9]])), {}, ("position_ids", "0 to 8", "got 9")),
    ("a position from the end", rotary(4, (9, 2), (9, 2), position_ids=np.array([[1, -1]])), {}, ("position_ids", "0 to 8", "got -1")),
]


@pytest.mark.parametrize(("inputs", "attributes", "words"), [pytest.param(*row[1:], id=row[0]) for row in BAD])
def test_bad_input(inputs: dict[str, Any], attributes: dict[str, Any], words: tuple[str, ...]) -> None:
    assert_refused(lambda: run(inputs, **attributes), ValueError, *words)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("turned", [0, 2, 6])
@pytest.mark.parametrize("axes", [3, 4])
def test_rotary_embedding(rng: np.random.Generator, axes: int, turned: int, interleaved: int, dtype: str) -> None:
    """Each pair of columns is a complex number that is multiplied by cos + i sin; what is not turned keeps its bits."""
    number, half_ulp, tiny = TYPES[dtype]
    batch, heads, length, width, positions = 2, 3, 5, 8, 11
    x, angle = rng.normal(size=(batch, heads, length, width)).astype(number), rng.uniform(0, 6, (positions, (turned or width) // 2))
    cos, sin, at = np.cos(angle).astype(number), np.sin(angle).astype(number), rng.integers(0, positions, (batch, length))
    given = x if axes == 4 else x.swapaxes(1, 2).reshape(batch, length, -1)
    inputs = {"x": given, "cos": cos, "sin": sin, "position_ids": at}
    got = run(inputs, num_heads=heads, interleaved=interleaved, rotary_embedding_dim=turned)["y"]
    assert got.dtype == number
    assert got.shape == given.shape
    got = got if axes == 4 else got.reshape(batch, length, heads, width).swapaxes(1, 2)

    exact, r = x.astype(np.float64), turned or width
    pairs = (
        exact[..., :r].reshape(*x.shape[:3], r // 2, 2) if interleaved else exact[..., :r].reshape(*x.shape[:3], 2, r // 2).swapaxes(-1, -2)
    )
    spun = (pairs[..., 0] + 1j * pairs[..., 1]) * (cos.astype(np.float64) + 1j * sin.astype(np.float64))[at][:, None]
    wanted = np.stack((spun.real, spun.imag), -1)
    wanted = (wanted if interleaved else wanted.swapaxes(-1, -2)).reshape(*x.shape[:3], r)
    np.testing.assert_allclose(got[..., :r].astype(np.float64), wanted, rtol=half_ulp, atol=tiny)
    np.testing.assert_array_equal(got[..., r:], x[..., r:])
    rows = {name: np.asarray(cache)[at] for name, cache in (("cos", cos), ("sin", sin))}
    same = run({"x": given, **rows}, num_heads=heads, interleaved=interleaved, rotary_embedding_dim=turned)["y"]
    np.testing.assert_array_equal(same if axes == 4 else same.reshape(batch, length, heads, width).swapaxes(1, 2), got)
