"""How a multi-head layer learns: its forward with a trace, and the way back along it."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qkvc._coerce import Seed, bad, shape_text
from qkvc._linear import project
from qkvc._rotary import turn
from qkvc._rows import norm_grad
from qkvc.functional import attention, attention_with_lse
from qkvc.gradients import attention_backward

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qkvc.multihead import MultiHeadAttention

    Array = NDArray[Any]

QKV = ("q", "k", "v")


class Trace(NamedTuple):
    """What `MultiHeadAttention.forward` remembers."""

    inputs: list[Array]
    projected: list[Array]  # (..., L, H, D) and (..., S, H_kv, D) twice, at their positions
    heads: Array  # (..., L, H, D)
    lse: Array
    positions: tuple[Any, Any]
    options: dict[str, Any]
    num_threads: int | None


class MultiHeadGrads(NamedTuple):
    """Gradients of a multi-head layer."""

    query: Array
    key: Array | None
    value: Array | None
    weights: dict[str, Array]


def forward(
    m: MultiHeadAttention,
    inputs: list[Array],
    plus: Array | None,
    positions: Any,
    key_positions: Any,
    num_threads: int | None,
    options: dict[str, Any],
) -> tuple[Array, Trace]:
    """The result, and the trace of it."""
    if m.extra_key is not None:
        raise ValueError(bad("extra_kv", "False, as an extra key has no gradient", "True", "MultiHeadAttention.forward"))
    projected = m._placed(inputs, positions, key_positions, num_threads, m._checked(options, attention))
    options |= {"rng": (seed := Seed(options.get("rng")))}
    heads, lse = attention_with_lse(*projected, layout="blhd", num_threads=num_threads, **options)
    options["rng"] = seed.value() if options.get("dropout_p") else None
    trace = Trace(inputs, projected, heads, lse, (positions, key_positions), options, num_threads)
    return m._output(heads, None, num_threads, plus), trace


def backward(m: MultiHeadAttention, grad: Array, trace: Trace) -> MultiHeadGrads:
    """Through W_O, attention, rotation, norms and the projections, in that order."""
    if not isinstance(trace, Trace) or trace.heads.shape[-2:] != (m.num_heads, m.head_dim):
        raise TypeError(bad("trace", "that of this layer's forward", type(trace).__name__, "MultiHeadAttention.backward"))
    wanted = (*trace.heads.shape[:-2], m.embed_dim)
    if grad.shape != wanted:
        raise ValueError(bad("grad_out", f"shape {wanted}, that of the result", shape_text(grad), "MultiHeadAttention.backward"))
    weights: dict[str, Array] = {}
    threads, concatenated = trace.num_threads, _side_by_side(trace.heads)
    _learn(m, weights, "out", grad, concatenated, threads)
    grad_heads = project(grad, m.out_weight.T, None, None, threads).reshape(trace.heads.shape)
    operands = (grad_heads, *trace.projected, trace.heads, trace.lse)
    grads = attention_backward(*operands, layout="blhd", num_threads=threads, **trace.options)
    of_inputs: dict[int, Array] = {}
    of_heads = _unplaced(m, [grad for grad in grads[:3] if grad is not None], trace, weights)
    flat = [_side_by_side(grad) for grad in of_heads]
    for first, last in m._runs(trace.inputs):
        x, dy = trace.inputs[first], flat[first] if last == first + 1 else np.concatenate(flat[first:last], -1)
        _learn_run(m, weights, first, last, dy, x, threads)
        weight, _ = m._rows(first, last)
        of_inputs[id(x)] = project(dy, weight.T, None, None, threads, plus=of_inputs.get(id(x)))
    query, *rest = (of_inputs.pop(id(x), None) for x in trace.inputs)
    assert query is not None
    return MultiHeadGrads(query, rest[0], rest[1], weights)


def _side_by_side(heads: Array) -> Array:
    """(..., H, D) as (..., H D), of no tokens too, where -1 would have no meaning."""
    return heads.reshape(*heads.shape[:-2], heads.shape[-2] * heads.shape[-1])


def weight_grad(dy: Array, x: Array, plus: Array | None = None, threads: int | None = None) -> Array:
    """``dy.T @ x``, added to `plus`: the gradient of a projection's weight, (N, E), from (tokens, N) and (tokens, E).

    The same bits whichever is the weight of that product; it is the narrower one, read again for each tile of the other, and turned before
    (2048 tokens, 1024 -> 384: 93 GFLOP/s a core for 69).
    """
    out = np.empty((dy.shape[1], x.shape[1]), dy.dtype)
    if dy.shape[1] < x.shape[1]:
        project(x.T, dy.T, None, out.T, threads, plus=None if plus is None else plus.T)
    else:
        project(dy.T, x.T, None, out, threads, plus=plus)
    return out


def bias_grad(dy: Array, plus: Array | None = None, threads: int | None = None) -> Array:
    """The sum of dy's rows, added to `plus`: their product with ones, which take the memory of one."""
    ones = np.broadcast_to(np.ones(1, dy.dtype), (1, len(dy)))
    return project(dy.T, ones, None, None, threads, plus=None if plus is None else plus[:, np.newaxis])[:, 0]


def _learn_run(m: MultiHeadAttention, weights: dict[str, Array], first: int, last: int, grad: Array, x: Array, threads: int | None) -> None:
    """The same for neighbours among Q, K and V that project one array, side by side in `grad`: one product, unless some are frozen.

    Six heads of 64, 2048 tokens, one core, with the copy: 0.98 to 0.99 of the time of all of `backward`.
    """
    cuts = list(accumulate(m._heads[part] * m.head_dim for part in range(first, last)))[:-1]
    names = [f"{QKV[part]}_weight" for part in range(first, last)]
    if last > first + 1 and not m.frozen.intersection(names):
        dy, tokens = (array.reshape(-1, array.shape[-1]) for array in (grad, x))
        weights |= dict(zip(names, np.split(weight_grad(dy, tokens, threads=threads), cuts), strict=True))
    for part, dy in zip(range(first, last), np.split(grad, cuts, -1), strict=True):
        _learn(m, weights, QKV[part], dy, x, threads)


def _learn(m: MultiHeadAttention, weights: dict[str, Array], part: str, grad: Array, x: Array, threads: int | None) -> None:
    """Gradients of a projection's weight and bias, sums over all tokens."""
    dy, tokens = (array.reshape(-1, array.shape[-1]) for array in (grad, x))
    if (name := f"{part}_weight") not in m.frozen and name not in weights:
        weights[name] = weight_grad(dy, tokens, threads=threads)
    if getattr(m, name := f"{part}_bias") is not None and name not in m.frozen:
        weights[name] = bias_grad(dy, threads=threads)


def _unplaced(m: MultiHeadAttention, grads: list[Array], trace: Trace, weights: dict[str, Array]) -> list[Array]:
    """Gradients of what the projections gave, before norm and rotation."""
    if m.rope is not None:
        tables = m._tables(m.rope, trace.inputs, *trace.positions, trace.options)
        for part, table in enumerate(tables):
            back = table * np.array([[1], [-1]], table.dtype)  # by the same angles, the other way
            turn(grads[part], back, m.rope.interleaved, num_threads=trace.num_threads)
    grads = [_summed(grad, x.shape[:-1]) for grad, x in zip(grads, trace.inputs, strict=True)]
    if m.q_norm is None or m.k_norm is None or m.qk_norm is None:
        return grads
    before = m._project(trace.inputs, trace.num_threads)  # again: keeping it would cost as much memory as keeping the result
    for part, norm in enumerate((m.q_norm, m.k_norm)):
        x, grad = (np.ascontiguousarray(array.reshape(-1, m.head_dim)) for array in (before[part], grads[part]))
        dx, dweight, _ = norm_grad(x, grad, norm, m.qk_norm, False, None, trace.num_threads)
        grads[part] = dx.reshape(grads[part].shape)
        if (name := f"{QKV[part]}_norm") not in m.frozen:
            weights[name] = dweight
    return grads


def _summed(grad: Array, tokens: tuple[int, ...]) -> Array:
    """Over leading axes that a larger batch of positions has added."""
    if grad.shape[:-2] == tokens:
        return grad
    extra = grad.ndim - 2 - len(tokens)
    grad = grad.sum(axis=tuple(range(extra)))
    summed: Array = grad.sum(axis=tuple(i for i, n in enumerate(tokens) if n != grad.shape[i]), keepdims=True)
    return summed
