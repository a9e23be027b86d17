"""Attention over parts of the keys, and the parts merged: to the bit where they are blocks, to rounding where they are results."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np

from qkvc._coerce import as_per_head, as_real, bad, check_layout
from qkvc._kernels import undisturbed
from qkvc._parts import merge_arrays, part_arrays
from qkvc.functional import AttentionOutput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from qkvc.functional import Causal, Layout, Window

WHO = "merge_attention"


class AttentionParts(NamedTuple):
    """What `attention_parts` returns: for every block of 128 keys, the first axis, its softmax and values before any division.

    Any of the blocks may be cut out, stored or sent, as long as all three arrays keep their order.

    Attributes
    ----------
    maximum : ndarray, shape (blocks, ..., H_q, L_q), or (blocks, L_q)
        m, the block's largest score in units of log2; -inf where a query may attend to nothing in it.
    total : ndarray, shape of maximum
        The sum of 2**(score - m); 0 where a query may attend to nothing in the block, -0.0 where all that it may attend to scored -inf.
    sums : ndarray, shape (blocks, ..., H_q, L_q, Dv), in layout "blhd" (blocks, ..., L_q, H_q, Dv), or (blocks, L_q, Dv)
        The sum of 2**(score - m) times the key's value.
    """

    maximum: NDArray[Any]
    total: NDArray[Any]
    sums: NDArray[Any]


def attention_parts(
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
    softcap: float | None = None,
    scale: float | None = None,
    layout: Layout = "bhld",
    precision: Literal["bf16"] | None = None,
    num_threads: int | None = None,
) -> AttentionParts:
    """Attention over some of the keys, as `merge_attention` wants it to give the bits of one call over all of them.

    Parameters, errors and sources are those of `attention`, without what belongs to the whole: `sinks` and `head_scale` are given to
    `merge_attention`.

    Key and value are rows ``first`` to ``last`` of the whole, where ``first`` is a multiple of 128 and ``last`` too, or the end: these are
    the blocks that one call would go through.  Arguments count from ``first``: of `mask` and `bias` the columns ``first:last``, as
    `q_offset` the position less ``first`` (it may be negative), as `key_lengths` ``clip(lengths - first, 0, last - first)``.

    Returns
    -------
    AttentionParts
        Of float64 for float64 operands, else of float32.

    Notes
    -----
    Bits do not depend on threads, batch, heads, neighbours, layout or strides, nor on which blocks are computed together
    (docs/arithmetic.md, clause 3).  Results take ``itemsize * (Dv + 2) * ceil(L_k / 128)`` bytes for each query of each head: for one
    query 0.4 % of the bytes of K and V, and half of what L_q x L_k scores would take, where D = Dv = 64.  Scratch is that of `attention`.

    Examples
    --------
    >>> import numpy as np, qkvc
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 300, 8), np.float32)  # 2 heads, 300 queries and keys
    >>> late = qkvc.attention_parts(q, k[:, 256:], v[:, 256:], causal=True, q_offset=-256)
    >>> early = qkvc.attention_parts(q, k[:, :256], v[:, :256], causal=True, q_offset=0)
    >>> bool((qkvc.merge_attention([early, late]).out == qkvc.attention(q, k, v, causal=True)).all())
    True
    """
    arrays = part_arrays(
        query,
        key,
        value,
        mask,
        bias,
        causal,
        q_offset,
        window,
        key_lengths,
        alibi_slopes,
        softcap,
        scale,
        layout,
        precision,
        num_threads,
    )
    return AttentionParts(*arrays)


@overload
def merge_attention(
    outs: AttentionParts | Sequence[AttentionParts],
    lses: None = None,
    *,
    sinks: ArrayLike | None = None,
    head_scale: ArrayLike | None = None,
    layout: Layout = "bhld",
    num_threads: int | None = None,
) -> AttentionOutput: ...
@overload
def merge_attention(outs: Sequence[ArrayLike], lses: Sequence[ArrayLike], *, layout: Layout = "bhld") -> AttentionOutput: ...
def merge_attention(
    outs: Any,
    lses: Sequence[ArrayLike] | None = None,
    *,
    sinks: ArrayLike | None = None,
    head_scale: ArrayLike | None = None,
    layout: Layout = "bhld",
    num_threads: int | None = None,
) -> AttentionOutput:
    """Attention over all keys, from attention over parts of them.

    Parameters
    ----------
    outs : sequence of AttentionParts, or of array_like of float, each (..., H, L, Dv), in layout "blhd" (..., L, H, Dv), or (L, Dv)
        What `attention_parts` returned, in ascending order of the keys; or what `attention_with_lse` returned as `out`, in any order.
    lses : sequence of array_like of float, each (..., H, L) in every layout, or (L,), optional
        What `attention_with_lse` returned as `lse`, one beside each of such `outs`; none beside AttentionParts.
    sinks, head_scale : array_like of float, broadcast to (..., H), optional
        As of `attention`, of the whole; beside AttentionParts only.  (Of the calls that gave outs and lses, one at most takes `sinks`.)
    layout : {"bhld", "blhd"}, default "bhld"
        That of the parts, and of the result.
    num_threads : int, optional
        As of `attention`, beside AttentionParts.

    Returns
    -------
    AttentionOutput
        As from one call over all keys, in the parts' common dtype.

    Raises
    ------
    ValueError
        No parts, unlike numbers of `outs` and `lses`, shapes that do not belong together, or an option that is not for outs and lses.
    TypeError
        Parts that are not float32 or float64, or neither AttentionParts nor beside lses.
    MemoryError
        No memory for the result or the scratch, which is under 1 MB per thread for Dv up to 640.

    Notes
    -----
    AttentionParts of whole blocks give the bits of `attention_with_lse` over all keys, on the same kernel set or on others of its class
    (docs/arithmetic.md).  Where operands have 16 bits, parts are float32, and the result's `out`, rounded by `astype`, has the bits.  Keys
    that were cut elsewhere than at multiples of 128 are merged all the same; the result then agrees with one call's to rounding.

    Of outs and lses, ``lse = ln sum_i exp(lse_i)`` and ``out = sum_i exp(lse_i - lse) out_i``, in float64 and rounded once.  They have
    been divided and rounded before, so the result agrees with the whole to rounding, not to the bit; parts of lse -inf change no bit.

    References
    ----------
    Dao et al., "FlashAttention" (2022), section 3.1, for the rule; Hong et al., "FlashDecoding++" (2023), for its use.
    """
    check_layout(layout, WHO)
    for name, given in (("outs", outs), ("lses", () if lses is None else lses)):
        if not isinstance(given, Iterable):
            raise TypeError(bad(name, "a sequence of parts", type(given).__name__, WHO))
    if lses is None:
        return _merge_blocks([outs] if isinstance(outs, AttentionParts) else list(outs), sinks, head_scale, layout, num_threads)
    for name, option in (("sinks", sinks), ("head_scale", head_scale), ("num_threads", num_threads)):
        if option is not None:
            raise ValueError(bad(name, "None beside lses", repr(option)[:40], WHO))
    return undisturbed(_merge_results, outs, lses, layout)


def _merge_blocks(parts: list[Any], sinks: Any, head_scale: Any, layout: Layout, num_threads: int | None) -> AttentionOutput:
    if not parts:
        raise ValueError(bad("outs", "at least one part", "none", WHO))
    arrays = []
    for i, part in enumerate(parts):
        if not isinstance(part, AttentionParts):
            raise TypeError(bad(f"outs[{i}]", "AttentionParts, or arrays with lses beside them", type(part).__name__, WHO))
        arrays.append([as_real(f"outs[{i}].{name}", x, WHO) for name, x in zip(part._fields, part, strict=True)])
    dtype = np.result_type(*(x for part in arrays for x in part))
    shape = arrays[0][2].shape[1:]
    if len(shape) < 2:
        raise ValueError(bad("outs[0].sums", "an array (blocks, ..., heads, length, dim)", f"shape {arrays[0][2].shape}", WHO))
    *batch, heads, length = (1, shape[0]) if len(shape) == 2 else shape[:-1] if layout == "bhld" else (*shape[:-3], shape[-2], shape[-3])
    rows = shape[:1] if len(shape) == 2 else (*batch, heads, length)
    for i, part in enumerate(arrays):
        blocks = part[0].shape[:1]
        for name, x, wanted in zip(AttentionParts._fields, part, (rows, rows, shape), strict=True):
            if x.shape != (*blocks, *wanted):
                raise ValueError(bad(f"outs[{i}].{name}", f"shape {(*blocks, *wanted)}", f"shape {x.shape}", WHO))
    batch_and_heads = (*batch, heads)
    sinks = None if sinks is None else as_per_head("sinks", sinks, batch_and_heads, True, WHO)
    head_scale = None if head_scale is None else as_per_head("head_scale", head_scale, batch_and_heads, False, WHO)
    plain = [[np.ascontiguousarray(x, dtype) for x in part] for part in arrays]
    out, lse = merge_arrays(plain, shape, (*batch,), heads, length, layout == "blhd", sinks, head_scale, num_threads)
    return AttentionOutput(out, lse.reshape(rows))


def _merge_results(outs: Sequence[ArrayLike], lses: Sequence[ArrayLike], layout: Layout) -> AttentionOutput:
    parts = [as_real(f"outs[{i}]", x, WHO) for i, x in enumerate(outs)]
    sums = [as_real(f"lses[{i}]", x, WHO) for i, x in enumerate(lses)]
    if not parts or len(parts) != len(sums):
        raise ValueError(bad("outs", "at least one part, and as many as in lses", f"{len(parts)}, and {len(sums)} in lses", WHO))
    dtype = np.result_type(*parts, *sums)
    flat = parts[0].ndim == 2
    if parts[0].ndim < 2:
        raise ValueError(bad("outs[0]", "an array (..., heads, length, dim) of 2 axes or more", f"shape {parts[0].shape}", WHO))
    rows = parts[0].shape[:-1]
    rows = rows if flat or layout == "bhld" else (*rows[:-2], rows[-1], rows[-2])
    for i, (part, total) in enumerate(zip(parts, sums, strict=True)):
        if part.shape != parts[0].shape:
            raise ValueError(bad(f"outs[{i}]", f"shape {parts[0].shape}, as of outs[0]", f"shape {part.shape}", WHO))
        if total.shape != rows:
            raise ValueError(bad(f"lses[{i}]", f"shape {rows}", f"shape {total.shape}", WHO))
    each = np.stack(sums).astype(np.float64)
    largest = each.max(axis=0)
    shares = np.exp(each - np.where(np.isinf(largest), 0, largest))
    total = shares.sum(axis=0)
    lse = np.where(np.isinf(largest), largest, largest + np.log(total))
    shares /= np.where(total == 0, 1, total)
    shares = shares if flat or layout == "bhld" else np.swapaxes(shares, -1, -2)
    out = np.zeros(parts[0].shape)
    for part, share in zip(parts, shares, strict=True):
        out += np.where(share[..., np.newaxis] == 0, 0, share[..., np.newaxis] * part)
    return AttentionOutput(out.astype(dtype), lse.astype(dtype))


__all__ = ["AttentionParts", "attention_parts", "merge_attention"]
