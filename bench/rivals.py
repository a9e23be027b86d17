"""The contestants: qkvc and everything installed that does the same job, each in the forms that might be its best.

A rival is a function that yields its forms for a problem: the framework's own call, heads of a group stacked into the query
length, another layout, plain matrix products.  All conversions happen before a form is handed out; what is timed is one call.
Which form is best is not judged here but measured (`measure.py`), and so is whether it is right.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qkvc

from .cases import Floats, Problem, row_blocks
from .forms import (
    CannotExpress,
    Form,
    Rival,
    Setting,
    additive_mask,
    flat_heads,
    native_causal,
    output_shape,
    reported,
    room_for_scores,
    stacked_heads,
)


def ours(problem: Problem, threads: int, isa: str | None = None) -> Iterator[Form]:
    """The plain call, as the documentation writes it, and into an array that is kept, as rivals' bound outputs are."""
    c = problem.case
    causal: bool | str = bool(c.causal) if c.queries == c.keys else c.causal or False
    options: dict[str, Any] = {}
    options |= {"causal": causal} if causal else {}
    options |= {"layout": c.layout} if c.layout != "bhld" else {}
    options |= {name: x for name, x in (("mask", problem.mask), ("bias", problem.bias)) if x is not None}
    arrays = [x if c.layout == "bhld" else x.swapaxes(1, 2) for x in (problem.query, problem.key, problem.value)]
    result = np.asarray if c.layout == "bhld" else partial(np.swapaxes, axis1=1, axis2=2)

    @contextmanager
    def setting() -> Iterator[None]:
        before = qkvc.get_num_threads()
        qkvc.set_num_threads(threads)  # as for the others: once, not by an argument of every call
        try:
            with nullcontext() if isa is None else qkvc.use_kernels(isa):
                yield
        finally:
            qkvc.set_num_threads(before)

    yield Form("attention", partial(qkvc.attention, *arrays, **options), result, setting)
    kept = np.empty((*arrays[0].shape[:-1], c.v_dim), np.float32)
    yield Form("attention into out", partial(qkvc.attention, *arrays, out=kept, **options), result, setting)


# ---------------------------------------------------------------------------------------------------------------- PyTorch, zentorch


@contextmanager
def _torch_setting(threads: int) -> Iterator[None]:
    torch: Any = import_module("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


def torch(problem: Problem, threads: int) -> Iterator[Form]:
    """`scaled_dot_product_attention`, with grouped heads native and stacked, masks as bools and floats; and plain products."""
    torch: Any = import_module("torch")
    c = problem.case
    sdpa = torch.nn.functional.scaled_dot_product_attention
    q, k, v = (torch.from_numpy(x) for x in (problem.query, problem.key, problem.value))
    options = {"is_causal": True} if native_causal(problem) else {}
    options |= {"enable_gqa": True} if c.group > 1 else {}
    form = partial(Form, result=lambda y: np.asarray(y).reshape(output_shape(problem)), setting=partial(_torch_setting, threads))
    extra = additive_mask(problem)
    if extra is None:
        yield form("sdpa", partial(sdpa, q, k, v, **options))
    else:
        yield form("sdpa, float mask", partial(sdpa, q, k, v, torch.from_numpy(extra), **options))
    if extra is not None and problem.bias is None:
        yield form("sdpa, bool mask", partial(sdpa, q, k, v, torch.from_numpy(problem.allowed), **options))
    if stacked := stacked_heads(problem):
        shape, rows = stacked
        tall = None if rows is None else torch.from_numpy(rows)
        yield form("sdpa, heads stacked", lambda: sdpa(q.reshape(shape), k, v, attn_mask=tall))
    if c.sees_all and room_for_scores(problem):
        kt, scale, groups = k.transpose(-1, -2), c.dim**-0.5, (c.batch, c.kv_heads, c.group * c.queries, c.dim)
        yield form("matmul, softmax, matmul", lambda: torch.softmax((q.reshape(groups) @ kt).mul_(scale), -1) @ v)


def zentorch(problem: Problem, threads: int) -> Iterator[Form]:
    """AMD's own kernels behind torch tensors: allocating, into a given output, and with grouped heads stacked."""
    torch: Any = import_module("torch")
    import_module("zentorch")  # registers its operators with torch

    q, k, v = (torch.from_numpy(x) for x in (problem.query, problem.key, problem.value))
    extra = additive_mask(problem)  # its masks are floats
    mask = None if extra is None else torch.from_numpy(extra)
    causal = native_causal(problem)
    ops = torch.ops.zentorch
    form = partial(Form, setting=partial(_torch_setting, threads))

    def first(results: Any) -> NDArray[Any]:
        return np.asarray(results[0]).reshape(output_shape(problem))

    yield form("sdpa", partial(ops.zentorch_sdpa, q, k, v, 0.0, causal, attn_mask=mask), first)
    if mask is None:
        out = torch.empty(output_shape(problem))
        yield form("sdpa into out", partial(ops.zentorch_sdpa_attn, q, k, v, out, None, causal), lambda _: out.numpy())
    if stacked := stacked_heads(problem):
        shape, rows = stacked
        tall = None if rows is None else torch.from_numpy(rows)
        yield form("sdpa, heads stacked", lambda: ops.zentorch_sdpa(q.reshape(shape), k, v, attn_mask=tall), first)


# --------------------------------------------------------------------------------------------------------------------- onnxruntime


def onnxruntime(problem: Problem, threads: int) -> Iterator[Form]:
    """ONNX `Attention`, and Microsoft's MultiHeadAttention and GroupQueryAttention, arrays bound beforehand."""
    onnx: Any = import_module("onnx")
    ort: Any = import_module("onnxruntime")

    c = problem.case
    ort.set_default_logger_severity(4)  # an operator that refuses a shape says so in the exception as well
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1

    @reported
    def bound(name: str, domain: str, inputs: dict[str, Any], flat: bool, aliases: Sequence[str] = (), **attributes: Any) -> Form:
        """One operator; `aliases` are inputs that its further outputs write in place."""
        shape = (c.batch, c.queries, c.heads * c.v_dim) if flat else output_shape(problem)
        held = {key: ort.OrtValue.ortvalue_from_numpy(x) for key, x in inputs.items() if x is not None}
        out = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32)
        infos = {
            key: onnx.helper.make_tensor_value_info(key, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for key, x in inputs.items()
            if x is not None
        }
        results = {"out": onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, shape)}
        for key in aliases:
            results[f"{key}_out"] = onnx.helper.make_tensor_value_info(f"{key}_out", onnx.TensorProto.FLOAT, inputs[key].shape)
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
    extra = additive_mask(problem)
    full = None if extra is None else np.ascontiguousarray(np.broadcast_to(extra, (*extra.shape[:2], c.queries, c.keys)))
    causal = native_causal(problem)
    standard: dict[str, Any] = {"is_causal": int(causal)}
    yield bound("Attention", "", {**flat, "mask": full}, True, q_num_heads=c.heads, kv_num_heads=c.kv_heads, **standard)
    if c.layout == "bhld":
        yield bound("Attention", "", {"query": q, "key": k, "value": v, "mask": full}, False, **standard)
    if c.group == 1:
        more: dict[str, Any] = {"bias": None, "padding": None, "attention_bias": full}
        yield bound("MultiHeadAttention", "com.microsoft", {**flat, **more}, True, num_heads=c.heads, unidirectional=int(causal))
    if extra is None and c.queries <= c.keys and (c.diagonal or not causal or c.queries == c.keys):
        # All but the last L_q keys lie in its cache, which it extends in place.
        past = c.keys - c.queries
        cache = {"past_key": np.array(k, order="C"), "past_value": np.array(v, order="C")}
        new = {"query": flat["query"], "key": flat_heads(k[:, :, past:]), "value": flat_heads(v[:, :, past:])}
        lengths = {"seqlens": np.full(c.batch, c.keys - 1, np.int32), "total": np.array(c.keys, np.int32)}
        heads: dict[str, Any] = {"num_heads": c.heads, "kv_num_heads": c.kv_heads, "causal": int(bool(c.causal))}
        yield bound("GroupQueryAttention", "com.microsoft", {**new, **cache, **lengths}, True, ("past_key", "past_value"), **heads)


# ------------------------------------------------------------------------------------------------------------------ OpenVINO, JAX


def openvino(problem: Problem, threads: int) -> Iterator[Form]:
    """A compiled graph of ScaledDotProductAttention-13; it shares no heads, so they are stacked or repeated in the graph."""
    ov: Any = import_module("openvino")
    op: Any = import_module("openvino.opset13")

    c = problem.case
    extra = additive_mask(problem)
    causal = native_causal(problem)
    core = ov.Core()
    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}

    @reported
    def compiled(name: str, repeat: bool, query_shape: tuple[int, ...] | None = None, mask: Floats | None = extra) -> Form:
        swapped = c.layout == "blhd"
        arrays: list[Any] = [x.swapaxes(1, 2) if swapped else x for x in (problem.query, problem.key, problem.value)]
        arrays += [mask] * (mask is not None)
        inputs = [op.parameter(x.shape, np.float32) for x in arrays]
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
            out = op.transpose(op.reshape(out, op.constant(list(output_shape(problem))), False), op.constant([0, 2, 1, 3]))
        request = core.compile_model(ov.Model([out], inputs, "attention"), "CPU", config).create_infer_request()
        for i, x in enumerate(arrays):
            request.set_input_tensor(i, ov.Tensor(x, shared_memory=True))

        def result(_: Any) -> NDArray[Any]:
            assert arrays  # the request reads their memory: they must live as long as this form
            y: NDArray[Any] = request.get_output_tensor(0).data
            return y.swapaxes(1, 2) if swapped else y.reshape(output_shape(problem))

        return Form(name, request.infer, result)

    yield compiled("graph, heads repeated" if c.group > 1 else "graph", c.group > 1)
    if stacked := stacked_heads(problem):
        yield compiled("graph, heads stacked", False, *stacked)


def jax(problem: Problem, threads: int) -> Iterator[Form]:
    """Compiled `jax.nn.dot_product_attention` on BLHD arrays, the same behind transposes, and plain products."""
    jax: Any = import_module("jax")
    jnp: Any = import_module("jax.numpy")

    c = problem.case
    if not room_for_scores(problem):
        raise CannotExpress("it lays out all scores, and they do not fit into memory")
    cpu = jax.devices("cpu")[0]
    causal = native_causal(problem)
    mask = problem.allowed if c.causal and not causal and not c.sees_all else problem.mask
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
        shape = (c.batch, c.kv_heads, c.group, c.queries, c.keys)
        rows = (c.batch, c.kv_heads, c.group * c.queries)
        scores = jnp.matmul(q.reshape(*rows, c.dim) * c.dim**-0.5, k.swapaxes(-1, -2)).reshape(c.batch, c.heads, c.queries, c.keys)
        scores = scores if bias is None else scores + bias
        seen = jnp.tril(jnp.ones((c.queries, c.keys), bool)) if causal else mask
        scores = scores if seen is None else jnp.where(seen, scores, -jnp.inf)
        weights = jax.nn.softmax(scores.reshape(shape), -1).reshape(*rows, c.keys)
        return jnp.matmul(weights, v).reshape(output_shape(problem))

    arrays = [problem.query, problem.key, problem.value]
    yield compiled("dot_product_attention", attend, [x.swapaxes(1, 2) for x in arrays], True)
    if c.layout == "bhld":
        yield compiled("dot_product_attention, BHLD", transposed, arrays, False)
        yield compiled("matmul, softmax, matmul", products, arrays, False)


# --------------------------------------------------------------------------------------------------------------------------- NumPy


def _limited(threads: int) -> Setting:
    """Hold the BLAS of NumPy to a number of threads; without threadpoolctl it takes what it finds, which is every core."""
    try:
        controller: Any = import_module("threadpoolctl").ThreadpoolController()
    except ModuleNotFoundError:
        if threads != (os.cpu_count() or 1):
            raise CannotExpress("threadpoolctl, which holds its BLAS to fewer threads, is not installed") from None
        return nullcontext
    return partial(controller.limit, limits=threads, user_api="blas")


def numpy(problem: Problem, threads: int) -> Iterator[Form]:
    """Matrix products and a softmax in place: all at once, row block by row block, and the blocks dealt out to threads."""
    c = problem.case
    scale = np.float32(c.dim**-0.5)
    kt, v = problem.key.swapaxes(-1, -2), problem.value
    by_group = (c.batch, c.kv_heads, c.group, c.queries)
    q = problem.query.reshape(*by_group, c.dim)
    extra = additive_mask(problem, causal_too=True)
    if extra is not None:
        extra = np.broadcast_to(extra, (c.batch, c.heads, c.queries, c.keys)).reshape(*by_group, c.keys)

    def attend(out: Floats, heads: tuple[Any, ...], rows: slice) -> None:
        last = min(c.keys, rows.stop + c.diagonal) if c.causal else c.keys
        block = q[(*heads, slice(None), rows)]
        if extra is None:  # the group's rows share their keys: one product for all of them
            scores = (block * scale).reshape(*block.shape[:-3], -1, c.dim) @ kt[heads]
        else:
            scores = (block * scale) @ kt[heads][..., None, :, :last]
            scores += extra[(*heads, slice(None), rows, slice(last))]
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        total = scores.sum(axis=-1, keepdims=True)
        result = scores @ (v[heads] if extra is None else v[heads][..., None, :last, :])
        result /= total
        out[(*heads, slice(None), rows)] = result.reshape(*block.shape[:-1], c.v_dim)

    def form(name: str, tasks: list[tuple[tuple[Any, ...], slice]], pool: ThreadPoolExecutor | None = None) -> Form:
        def call() -> Floats:
            out = np.empty((*by_group, c.v_dim), np.float32)
            if pool is None:
                for heads, rows in tasks:
                    attend(out, heads, rows)
            else:
                for done in [pool.submit(attend, out, heads, rows) for heads, rows in tasks]:
                    done.result()
            return out

        return Form(name, call, lambda y: y.reshape(output_shape(problem)), _limited(threads if pool is None else 1))

    if room_for_scores(problem):
        yield form("whole", [((slice(None), slice(None)), slice(0, c.queries))])
    if c.queries * c.keys > 64 * 64:
        # 256 rows: a block of scores stays near the L2 cache up to about 1,000 keys, and its products are still large.
        blocks = [(heads, rows) for heads, rows in product(np.ndindex(c.batch, c.kv_heads), row_blocks(c.queries, 256))]
        yield form("blocked", blocks)
        if threads > 1:
            yield form("blocked, in threads", blocks, ThreadPoolExecutor(threads))


RIVALS: dict[str, Rival] = {
    "torch": torch,
    "zentorch": zentorch,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "jax": jax,
    "numpy": numpy,
}
