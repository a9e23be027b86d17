"""Ragged batches: sequences of any lengths, one behind another, without padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from qkvc._attention import attend_arrays
from qkvc.functional import AttentionOutput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from qkvc.functional import Causal, Layout, Window


def attention_varlen(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
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
    rng: np.random.Generator | int | None = None,
    layout: Layout = "blhd",
    precision: Literal["bf16"] | None = None,
    out: NDArray[Any] | None = None,
    num_threads: int | None = None,
) -> NDArray[Any]:
    """`attention` of many sequences at once, each on its own, whose rows follow each other without padding.

    Parameters
    ----------
    query : array_like, shape (total_q, H_q, D)
        The queries of all sequences.  Dtypes and strides are those of `attention`; (total_q, D) is one head.
    key : array_like, shape (total_k, H_kv, D)
    value : array_like, shape (total_k, H_kv, Dv)
    cu_seqlens_q : array_like of int, shape (sequences + 1,)
        Sequence ``i`` has the queries ``cu_seqlens_q[i]`` to ``cu_seqlens_q[i + 1] - 1``: ascending from 0 to total_q.  Sequences may be
        empty.  Both arrays are copied before they are checked, so nobody can change them in between.
    cu_seqlens_k : array_like of int, shape (sequences + 1,)
        The same of keys and values.
    causal : bool or {"top-left", "bottom-right"}, default False
        In each sequence, as in `attention`: True asks for as many queries as keys in every one.
    q_offset : array_like of int, broadcasts to (sequences,), optional
        Position of each sequence's first query among its keys.
    window : (int, int), optional
        In each sequence, as in `attention`.
    alibi_slopes, sinks, head_scale : array_like of float, broadcast to (sequences, H_q), optional
        As in `attention`.
    softcap, scale : float, optional
        As in `attention`.
    dropout_p, rng
        As in `attention`; sequence ``i`` is batch item ``i``, and its rows count from its first.
    layout : {"blhd", "bhld"}, default "blhd"
        "bhld" reads query, key and value and writes the result as (H, total, D).
    precision : {"bf16"}, optional
        As in `attention`.
    out : ndarray of the result's dtype, optional
        Where to write the result.  It may not share memory with an input.
    num_threads : int, optional
        Threads this call may use, the caller's included.  Default `get_num_threads()`.

    Returns
    -------
    ndarray, shape (total_q, H_q, Dv), in layout "bhld" (H_q, total_q, Dv); (total_q, Dv) where all inputs have two axes
        A query of a sequence without keys gets zeros.

    Raises
    ------
    ValueError, TypeError, MemoryError
        As from `attention`, and for index arrays that do not ascend from 0 to the number of rows, are not integers, or differ in length.

    Notes
    -----
    The bits are those of `attention` on each sequence alone.  Time is the sum of theirs: the sequences' tiles are one list of tasks, the
    heaviest first, and sequences of few queries, as in decoding, stand in it beside prompts.  There is no `mask` or `bias`, whose
    shape would be a rectangle.

    References
    ----------
    Names and index arrays are those of `flash_attn_varlen_func` (Dao, "FlashAttention-2", 2023).

    Examples
    --------
    >>> import numpy as np, qkvc
    >>> q = k = v = np.ones((7, 4, 8), np.float32)      # 7 tokens of 3 sequences, 4 heads
    >>> starts = [0, 2, 2, 7]                           # 2 tokens, none, 5
    >>> qkvc.attention_varlen(q, k, v, starts, starts, causal=True).shape
    (7, 4, 8)
    """
    return attend_arrays(
        query,
        key,
        value,
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
        out,
        num_threads,
        False,
        (cu_seqlens_q, cu_seqlens_k),
    )


def attention_varlen_with_lse(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
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
    rng: np.random.Generator | int | None = None,
    layout: Layout = "blhd",
    precision: Literal["bf16"] | None = None,
    out: NDArray[Any] | None = None,
    num_threads: int | None = None,
) -> AttentionOutput:
    """`attention_varlen`, and the logarithm of each query's sum of exp(scores).

    Parameters, errors and sources are those of `attention_varlen`.

    Returns
    -------
    out : ndarray
        As from `attention_varlen`.
    lse : ndarray of float32, or float64 for float64, shape (H_q, total_q) in both layouts, (total_q,) where all inputs have two axes
        Natural logarithm; ``-inf`` for a query of a sequence without keys.
    """
    arrays = attend_arrays(
        query,
        key,
        value,
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
        out,
        num_threads,
        True,
        (cu_seqlens_q, cu_seqlens_k),
    )
    return AttentionOutput(*arrays)
