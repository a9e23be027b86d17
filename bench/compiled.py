"""Rivals whose graphs are compiled before the clock starts: ONNX Runtime, OpenVINO, JAX."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .forms import Form, additive_mask, flat_heads, native_causal, reported, room_for_scores, stacked_heads, without
from .problems import CannotExpress, Floats, Problem


def onnxruntime(problem: Problem, threads: int) -> Iterator[Form]:
    """ONNX `Attention`, and Microsoft's MultiHeadAttention and GroupQueryAttention, arrays bound beforehand."""
    onnx: Any = import_module("onnx")
    ort: Any = import_module("onnxruntime")

    c = problem.case
    if c.dtype == "bfloat16":
        raise CannotExpress("it has no attention in bfloat16 on a CPU")
    ort.set_default_logger_severity(4)  # an operator that refuses a shape says so in the exception as well
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1

    @reported
    def bound(name: str, domain: str, inputs: dict[str, Any], flat: bool, aliases: Sequence[str] = (), **attributes: Any) -> Form:
        """One operator; `aliases` are inputs that its further outputs write in place."""
        shape = (c.batch, c.queries, c.heads * c.v_dim) if flat else problem.shape
        real = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(c.dtype))
        held = {key: ort.OrtValue.ortvalue_from_numpy(x) for key, x in inputs.items() if x is not None}
        out = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(c.dtype))
        infos = {
            key: onnx.helper.make_tensor_value_info(key, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for key, x in inputs.items()
            if x is not None
        }
        results = {"out": onnx.helper.make_tensor_value_info("out", real, shape)}
        for key in aliases:
            results[f"{key}_out"] = onnx.helper.make_tensor_value_info(f"{key}_out", real, inputs[key].shape)
        names = [key if x is not None else "" for key, x in inputs.items()]
        node = onnx.helper.make_node(name, names, list(results), domain=domain, **attributes)
        graph = onnx.helper.make_graph([node], name, list(infos.values()), list(results.values()))
        opsets = [onnx.helper.make_opsetid("", 24), onnx.helper.make_opsetid("com.microsoft", 1)]
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=11)
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        for key, value in held.items():
            binding.bind_ortvalue_input(key, value)
        for key in results:
            binding.bind_ortvalue_output(key, out if key == "out" else held[key.removesuffix("_out")])

        def result(_: Any) -> NDArray[Any]:
            y: NDArray[Any] = out.numpy()
            return y.reshape(c.batch, c.queries, c.heads, c.v_dim).swapaxes(1, 2) if flat else y

        return Form(f"{name}, {'BLHD' if flat else 'BHLD'}", partial(session.run_with_iobinding, binding), result)

    q, k, v = problem.query, problem.key, problem.value
    flat = {"query": flat_heads(q), "key": flat_heads(k), "value": flat_heads(v)}
    extra = None if problem.vast else additive_mask(problem)
    full = None if extra is None else np.ascontiguousarray(np.broadcast_to(extra, (*extra.shape[:2], c.queries, c.keys)))
    causal = native_causal(problem)
    standard: dict[str, Any] = {"is_causal": int(causal)} | ({"softcap": problem.softcap} if problem.softcap else {})
    general = problem.sinks is None and not problem.vast
    if general:
        yield bound("Attention", "", {**flat, "mask": full}, True, q_num_heads=c.heads, kv_num_heads=c.kv_heads, **standard)
    if general and c.layout == "bhld":
        yield bound("Attention", "", {"query": q, "key": k, "value": v, "mask": full}, False, **standard)
    if general and c.group == 1 and not problem.softcap:
        more: dict[str, Any] = {"bias": None, "padding": None, "attention_bias": full}
        yield bound("MultiHeadAttention", "com.microsoft", {**flat, **more}, True, num_heads=c.heads, unidirectional=int(causal))
    if (extra is None or c.window) and c.queries <= c.keys and (c.diagonal or not causal or c.queries == c.keys):
        # All but the last L_q keys lie in its cache, which it extends in place.
        past = c.keys - c.queries
        cache = {"past_key": np.array(k, order="C"), "past_value": np.array(v, order="C")}
        new = {"query": flat["query"], "key": flat_heads(k[:, :, past:]), "value": flat_heads(v[:, :, past:])}
        lengths = {"seqlens": np.full(c.batch, c.keys - 1, np.int32), "total": np.array(c.keys, np.int32)}
        rest = {} if problem.sinks is None else {**dict.fromkeys(("cos", "sin", "positions", "bias")), "sinks": problem.sinks}
        heads: dict[str, Any] = {"num_heads": c.heads, "kv_num_heads": c.kv_heads, "causal": int(bool(c.causal or c.window))}
        heads |= {"local_window_size": c.window + 1} if c.window else {}
        heads |= {"softcap": problem.softcap} if problem.softcap else {}
        inputs = {**new, **cache, **lengths, **rest}
        yield bound("GroupQueryAttention", "com.microsoft", inputs, True, ("past_key", "past_value"), **heads)


def openvino(problem: Problem, threads: int) -> Iterator[Form]:
    """A compiled graph of ScaledDotProductAttention-13; it shares no heads, so they are stacked or repeated in the graph."""
    ov: Any = import_module("openvino")
    op: Any = import_module("openvino.opset13")

    c = problem.case
    without(problem, "softcap", "sinks")
    extra = additive_mask(problem)
    causal = native_causal(problem)
    core = ov.Core()
    precision = "bf16" if c.pairs else "f32"
    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    known = {"float32": ov.Type.f32, "float64": ov.Type.f64, "float16": ov.Type.f16, "bfloat16": ov.Type.bf16}

    @reported
    def compiled(name: str, repeat: bool, query_shape: tuple[int, ...] | None = None, mask: Floats | None = extra) -> Form:
        swapped = c.layout == "blhd"
        arrays: list[Any] = [x.swapaxes(1, 2) if swapped else x for x in (problem.query, problem.key, problem.value)]
        arrays += [mask] * (mask is not None)
        inputs = [op.parameter(x.shape, known[c.dtype]) for x in arrays]
        nodes: list[Any] = list(inputs)
        if swapped:
            nodes[:3] = [op.transpose(x, op.constant([0, 2, 1, 3])) for x in nodes[:3]]
        if query_shape:
            nodes[0] = op.reshape(nodes[0], op.constant(list(query_shape)), False)
        if repeat:
            for i, width in ((1, c.dim), (2, c.v_dim)):
                wide = op.broadcast(op.unsqueeze(nodes[i], op.constant(2)), op.constant([c.batch, c.kv_heads, c.group, c.keys, width]))
                nodes[i] = op.reshape(wide, op.constant([c.batch, c.heads, c.keys, width]), False)
        out = op.scaled_dot_product_attention(*nodes, causal=causal)
        if swapped:
            out = op.transpose(op.reshape(out, op.constant(list(problem.shape)), False), op.constant([0, 2, 1, 3]))
        request = core.compile_model(ov.Model([out], inputs, "attention"), "CPU", config).create_infer_request()
        for i, x in enumerate(arrays):
            request.set_input_tensor(i, ov.Tensor(x.view(np.int16) if c.dtype == "bfloat16" else x, x.shape, known[c.dtype]))

        def result(_: Any) -> NDArray[Any]:
            assert arrays  # the request reads their memory: they must live as long as this form
            y: NDArray[Any] = request.get_output_tensor(0).data.view(c.dtype)  # of bfloat16 it says float16
            return y.swapaxes(1, 2) if swapped else y.reshape(problem.shape)

        return Form(name, request.infer, result)

    yield compiled("graph, heads repeated" if c.group > 1 else "graph", c.group > 1)
    if stacked := stacked_heads(problem):
        yield compiled("graph, heads stacked", False, *stacked)


def jax(problem: Problem, threads: int) -> Iterator[Form]:
    """Compiled `jax.nn.dot_product_attention` on BLHD arrays, the same behind transposes, and plain products."""
    jax: Any = import_module("jax")
    jnp: Any = import_module("jax.numpy")

    c = problem.case
    if c.dtype == "float64":
        raise CannotExpress("float64 is off unless the whole process turns it on")
    if not room_for_scores(problem):
        raise CannotExpress("it lays out all scores, and they do not fit into memory")
    cpu = jax.devices("cpu")[0]
    causal = native_causal(problem)
    mask = problem.allowed if c.window or (c.causal and not causal and not c.sees_all) else problem.mask
    attend = partial(jax.nn.dot_product_attention, is_causal=causal)
    where = {"mask": mask, "bias": problem.bias}
    extra = {name: jax.device_put(x, cpu) for name, x in where.items() if x is not None}

    @reported
    def compiled(name: str, function: Callable[..., Any], arrays: list[NDArray[Any]], swapped: bool) -> Form:
        inputs = [jax.device_put(np.ascontiguousarray(x), cpu) for x in arrays]
        call = jax.jit(function).lower(*inputs, **extra).compile()
        result = partial(np.swapaxes, axis1=1, axis2=2) if swapped else np.asarray
        return Form(name, lambda: call(*inputs, **extra).block_until_ready(), result)

    def transposed(q: Any, k: Any, v: Any, **extra: Any) -> Any:
        return attend(q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2), **extra).swapaxes(1, 2)

    def products(q: Any, k: Any, v: Any, mask: Any = None, bias: Any = None) -> Any:
        rows = (c.batch, c.kv_heads, c.group * c.queries)
        scores = jnp.matmul(q.reshape(*rows, c.dim) * c.dim**-0.5, k.swapaxes(-1, -2)).reshape(c.batch, c.heads, c.queries, c.keys)
        scores = problem.softcap * jnp.tanh(scores / problem.softcap) if problem.softcap else scores
        scores = scores if bias is None else scores + bias
        seen = jnp.tril(jnp.ones((c.queries, c.keys), bool)) if causal else mask
        scores = scores if seen is None else jnp.where(seen, scores, -jnp.inf)
        if sinks is not None:  # one more key, whose value is nothing
            column = jnp.broadcast_to(sinks[:, None, None], (c.batch, c.heads, c.queries, 1))
            scores = jax.nn.softmax(jnp.concatenate([scores, column], -1), -1)[..., :-1]
        else:
            scores = jax.nn.softmax(scores, -1)
        weights = scores.reshape(*rows, c.keys)
        return jnp.matmul(weights, v).reshape(problem.shape)

    arrays = [problem.query, problem.key, problem.value]
    sinks = None if problem.sinks is None else jax.device_put(problem.sinks, cpu)
    if sinks is not None or problem.softcap:
        yield compiled("matmul, softmax, matmul", products, arrays, False)
        return
    yield compiled("dot_product_attention", attend, [x.swapaxes(1, 2) for x in arrays], True)
    if c.layout == "bhld":
        yield compiled("dot_product_attention, BHLD", transposed, arrays, False)
        yield compiled("matmul, softmax, matmul", products, arrays, False)
