"""The gradient of attention: names, defaults and docstrings.  What is computed is decided in _plan.pyx and done in _backward.pyx."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from qkvc._backward import backward_arrays, folded
from qkvc._coerce import as_per_head, bad
from qkvc.functional import attention_with_lse

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from numpy.typing import ArrayLike, NDArray

    from qkvc.functional import Causal, Layout, Window

WHO = "attention_backward"


class AttentionGrads(NamedTuple):
    """What `attention_backward` returns: of each operand that was asked for the derivative of the loss, in its shape; else None."""

    query: NDArray[Any] | None
    key: NDArray[Any] | None
    value: NDArray[Any] | None
    bias: NDArray[Any] | None
    sinks: NDArray[Any] | None
    head_importance: NDArray[Any] | None


NEEDS = AttentionGrads._fields


def attention_backward(
    grad_out: ArrayLike,
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    out: ArrayLike,
    lse: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    causal: Causal = False,
    q_offset: ArrayLike | None = None,
    window: Window | None = None,
    key_lengths: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    head_scale: ArrayLike | None = None,
    layout: Layout = "bhld",
    precision: Literal["bf16"] | None = None,
    grad_lse: ArrayLike | None = None,
    needs: Collection[str] = ("query", "key", "value"),
    num_threads: int | None = None,
) -> AttentionGrads:
    """The gradient of `attention`, from its results and without ever holding the L_q x L_k matrix.

    Operands and options are those of the forward call; errors too.

    Parameters
    ----------
    grad_out : array_like, shape of out
        The derivative of the loss with respect to `out`, in any of the dtypes that `attention` takes, any strides.
    query, key, value : array_like
        As of `attention`.
    out, lse : array_like
        What `attention_with_lse` returned.
    grad_lse : array_like, shape of lse, optional
        The derivative with respect to `lse`, where the loss uses it.
    needs : collection of str, default ("query", "key", "value")
        Which fields of the result to compute.
    num_threads : int, optional
        As of `attention`.

    Returns
    -------
    query, key, value : ndarray of the operand's dtype and shape
        Summed over the axes along which the operand was broadcast, and rounded once.  (Integers and bools count as float64.)
    bias : ndarray of the dtype of lse, shape of bias
        Summed over the axes along which it was broadcast, in float64.
    sinks : ndarray of the dtype of lse, shape of sinks
    head_importance : ndarray of the dtype of lse, shape (..., H_q)
        abs(sum over queries of grad_out * out): how much the loss would change if the head were scaled (Michel et al. 2019).
    Fields that were not asked for are None.  What is masked has a gradient of zero, whatever it holds, and so has a query that may attend
    to nothing.

    Raises
    ------
    ValueError
        A shape of grad_out, out, lse or grad_lse that is not the forward's, a field that does not exist or has no operand, and as from
        `attention`.
    TypeError
        As from `attention`.

    Notes
    -----
    Memory beside the results: ``itemsize * (D + Dv) * L_k`` bytes (D and Dv rounded up to whole vectors), ``2 + min(8, L_q * H_q / H_kv //
    512)`` times for each thread, or, where key heads of the whole batch are fewer than four for each thread, one more than that for each of
    these heads instead; and under 2 MB a thread for D and Dv up to 640.

    Bits do not depend on threads, batch, heads, neighbours, layout or strides (docs/arithmetic.md, clause 10).

    References
    ----------
    Dao, "FlashAttention-2" (2023), algorithm 2.  Michel, Levy & Neubig, "Are Sixteen Heads Really Better than One?" (2019).

    Examples
    --------
    >>> import numpy as np, qkvc
    >>> q, k, v, g = np.random.default_rng(0).standard_normal((4, 2, 300, 8), np.float32)
    >>> out, lse = qkvc.attention_with_lse(q, k, v, causal=True)
    >>> qkvc.attention_backward(g, q, k, v, out, lse, causal=True).key.shape
    (2, 300, 8)
    """
    wanted = frozenset(needs)
    if not wanted <= set(NEEDS):
        raise ValueError(bad("needs", f"some of {', '.join(NEEDS)}", ", ".join(sorted(map(str, wanted - set(NEEDS)))), WHO))
    for name, operand in (("bias", bias), ("sinks", sinks)):
        if name in wanted and operand is None:
            raise ValueError(bad("needs", f"no {name} where there is none", f"{name}", WHO))
    arrays = backward_arrays(
        grad_out,
        query,
        key,
        value,
        out,
        lse,
        mask,
        bias,
        causal,
        q_offset,
        window,
        key_lengths,
        alibi_slopes,
        sinks,
        softcap,
        scale,
        head_scale,
        layout,
        precision,
        grad_lse,
        wanted,
        num_threads,
    )
    dots, own_lse, own_grad_lse = arrays[4:]
    heads = dots if dots.ndim > 1 else dots[np.newaxis]
    return AttentionGrads(
        *arrays[:4],
        _of_sinks(sinks, heads, own_lse.reshape(heads.shape), own_grad_lse) if "sinks" in wanted else None,
        np.abs(heads.sum(-1)) if "head_importance" in wanted else None,
    )


def _of_sinks(sinks: Any, dots: NDArray[Any], lse: NDArray[Any], grad_lse: NDArray[Any] | None) -> NDArray[Any]:
    """A sink takes exp(sink - lse) of each query, and what it takes brings nothing: minus that times delta, summed."""
    full = as_per_head("sinks", sinks, dots.shape[:-1], True).reshape(dots.shape[:-1])[..., np.newaxis]
    taken = np.exp(full - np.where(np.isneginf(full), 0, lse))
    delta = dots if grad_lse is None else dots - grad_lse.reshape(dots.shape)
    return folded(-(taken * np.where(taken > 0, delta, 0)).sum(-1), np.shape(sinks)).astype(dots.dtype)


def attention_vjp(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    causal: Causal = False,
    q_offset: ArrayLike | None = None,
    window: Window | None = None,
    key_lengths: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    head_scale: ArrayLike | None = None,
    layout: Layout = "bhld",
    precision: Literal["bf16"] | None = None,
    needs: Collection[str] = ("query", "key", "value"),
    num_threads: int | None = None,
) -> tuple[NDArray[Any], Callable[[ArrayLike], AttentionGrads]]:
    """`attention`, and the function that takes the loss's derivative back through it, as `jax.vjp` gives it.

    Parameters, errors and sources are those of `attention` and `attention_backward`.  The arrays are kept, not copied: whoever changes them
    in between gets another gradient.

    Returns
    -------
    out : ndarray
        As from `attention`.
    vjp : callable
        ``vjp(grad_out)`` is the AttentionGrads of `attention_backward`; it may be called any number of times.

    Examples
    --------
    >>> import numpy as np, qkvc
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 5, 8))
    >>> out, vjp = qkvc.attention_vjp(q, k, v)
    >>> vjp(np.ones_like(out)).value.sum().round(12)              # every query hands out weights that sum to 1, to 8 columns
    np.float64(80.0)
    """
    options: dict[str, Any] = {
        "mask": mask,
        "bias": bias,
        "causal": causal,
        "q_offset": q_offset,
        "window": window,
        "key_lengths": key_lengths,
        "alibi_slopes": alibi_slopes,
        "sinks": sinks,
        "softcap": softcap,
        "scale": scale,
        "head_scale": head_scale,
        "layout": layout,
        "precision": precision,
        "num_threads": num_threads,
    }
    out, lse = attention_with_lse(query, key, value, **options)

    def vjp(grad_out: ArrayLike) -> AttentionGrads:
        return attention_backward(grad_out, query, key, value, out, lse, **options, needs=needs)

    return out, vjp


__all__ = ["AttentionGrads", "attention_backward", "attention_vjp"]
