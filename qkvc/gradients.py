"""The gradient of attention: names, defaults and docstrings.  What is computed is decided in _plan.pyx and done in _backward.pyx."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from qkvc._backward import backward_arrays, folded
from qkvc._coerce import Seed, as_per_head, bad
from qkvc._kernels import undisturbed
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
_USUAL = NEEDS[:3]


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
    dropout_p: float = 0.0,
    rng: int | None = None,
    layout: Layout = "bhld",
    precision: Literal["bf16"] | None = None,
    grad_lse: ArrayLike | None = None,
    needs: Collection[str] = _USUAL,
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
    rng : int, optional
        The seed that it was given, if `dropout_p` is not 0: the same weights are dropped again.
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
    Memory beside the results: parts of dK and dV take ``itemsize * (D + Dv) * L_k`` bytes each, D and Dv rounded up to whole vectors.  With
    ``rows = L_q * H_q / H_kv`` there are ``min(8, max(1, rows // 512))`` of them for each thread, or for each key head of the whole batch
    where these are fewer than four a thread; and from 4608 rows on, one more for each thread.  Scratch is under 2 MB a thread for D and Dv
    up to 640.  A bias's gradient is summed in float64; broadcast operands have theirs in full before they are summed.  Up to 64 MB that
    earlier gradients took, each under 11 MB, are kept for later ones when nobody has them any more.

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
    wanted = _wanted(needs, bias=bias, sinks=sinks)
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
        dropout_p,
        rng,
        layout,
        precision,
        grad_lse,
        wanted,
        num_threads,
    )
    return AttentionGrads(*arrays[:4], *_per_head(wanted, sinks, *arrays[4:]))


def attention_varlen_backward(
    grad_out: ArrayLike,
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    out: ArrayLike,
    lse: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike,
    *,
    causal: Causal = False,
    q_offset: ArrayLike | None = None,
    window: Window | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    head_scale: ArrayLike | None = None,
    dropout_p: float = 0.0,
    rng: int | None = None,
    layout: Layout = "blhd",
    precision: Literal["bf16"] | None = None,
    grad_lse: ArrayLike | None = None,
    needs: Collection[str] = _USUAL,
    num_threads: int | None = None,
) -> AttentionGrads:
    """The gradient of `attention_varlen`, from what `attention_varlen_with_lse` returned.

    Parameters, errors and sources are those of `attention_varlen` and `attention_backward`; memory follows the longest sequence.

    Returns
    -------
    AttentionGrads
        Of each sequence the bits of `attention_backward` of it alone; ``head_importance`` has the shape (sequences, H_q), ``bias`` is None.
    """
    wanted = _wanted(needs, bias=None, sinks=sinks)
    arrays = backward_arrays(
        grad_out,
        query,
        key,
        value,
        out,
        lse,
        None,
        None,
        causal,
        q_offset,
        window,
        None,
        alibi_slopes,
        sinks,
        softcap,
        scale,
        head_scale,
        dropout_p,
        rng,
        layout,
        precision,
        grad_lse,
        wanted,
        num_threads,
        (cu_seqlens_q, cu_seqlens_k),
    )
    return AttentionGrads(*arrays[:4], *_per_head(wanted, sinks, *arrays[4:]))


def _wanted(needs: Collection[str], **operands: Any) -> frozenset[str]:
    if needs is _USUAL:  # the checks take a tenth of the smallest call
        return frozenset(_USUAL)
    names = None if isinstance(needs, str) or not isinstance(needs, Iterable) else list(needs)
    if names is None or not all(isinstance(name, str) for name in names):
        raise TypeError(bad("needs", "a collection of names", repr(needs)[:40], WHO))
    wanted = frozenset(names)
    if not wanted <= set(NEEDS):
        raise ValueError(bad("needs", f"some of {', '.join(NEEDS)}", ", ".join(sorted(wanted - set(NEEDS))), WHO))
    for name, operand in operands.items():
        if name in wanted and operand is None:
            raise ValueError(bad("needs", "names of what the call has", f"{name!r}, and no {name}", WHO))
    return wanted


def _per_head(wanted: frozenset[str], *given: Any) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    """The gradient of the sinks, and head_importance."""
    return (None, None) if wanted.isdisjoint(("sinks", "head_importance")) else undisturbed(_sums, wanted, *given)


def _sums(
    wanted: frozenset[str],
    sinks: Any,
    dots: NDArray[Any],
    lse: NDArray[Any],
    grad_lse: NDArray[Any] | None,
    lengths: NDArray[Any] | None,
) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    """Sums over queries of what the sweep found for each.

    A sink takes exp(sink - lse) of a query and brings nothing: minus that, times delta.
    """
    dots, lse = np.atleast_2d(dots), np.atleast_2d(lse)
    importance = np.abs(_over_queries(dots, lengths)) if "head_importance" in wanted else None
    if "sinks" not in wanted:
        return None, importance
    shape = dots.shape[:-1] if lengths is None else (lengths.size, dots.shape[0])
    sink = as_per_head("sinks", sinks, shape, True, WHO).reshape(shape)
    sink = sink[..., np.newaxis] if lengths is None else np.repeat(sink.T, lengths, axis=1)
    share = np.exp(sink - np.where(np.isneginf(sink), 0, lse))
    delta = dots if grad_lse is None else dots - np.atleast_2d(grad_lse)
    lost = _over_queries(share * np.where(share > 0, delta, 0), lengths)
    return folded(0 - lost, np.shape(sinks), dots.dtype), importance


def _over_queries(x: NDArray[Any], lengths: NDArray[Any] | None) -> NDArray[Any]:
    """Sums over the last axis, of a ragged batch for each sequence, which then is the first axis."""
    if lengths is None:
        return np.asarray(x.sum(-1))
    parts = np.split(x, np.cumsum(lengths)[:-1], axis=-1)
    return np.stack([part.sum(-1) for part in parts]) if lengths.size else np.zeros((0, len(x)), x.dtype)


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
    dropout_p: float = 0.0,
    rng: np.random.Generator | int | None = None,
    layout: Layout = "bhld",
    precision: Literal["bf16"] | None = None,
    needs: Collection[str] = _USUAL,
    num_threads: int | None = None,
) -> tuple[NDArray[Any], Callable[[ArrayLike], AttentionGrads]]:
    """`attention`, and the function that takes the loss's derivative back through it, as `jax.vjp` gives it.

    Parameters, errors and sources are those of `attention` and `attention_backward`.  The arrays are kept, not copied, and so is `out`:
    whoever changes one of them in place before calling `vjp` gets another gradient.

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
        "dropout_p": dropout_p,
        "rng": (seed := Seed(rng)),
        "layout": layout,
        "precision": precision,
        "num_threads": num_threads,
    }
    wanted = _wanted(needs, bias=bias, sinks=sinks)
    out, lse = attention_with_lse(query, key, value, **options)
    options["rng"] = seed.value() if dropout_p else None

    def vjp(grad_out: ArrayLike) -> AttentionGrads:
        return attention_backward(grad_out, query, key, value, out, lse, **options, needs=wanted)

    return out, vjp


__all__ = ["AttentionGrads", "attention_backward", "attention_varlen_backward", "attention_vjp"]
