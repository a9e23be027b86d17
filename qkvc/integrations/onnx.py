"""ONNX's Attention and RotaryEmbedding, computed by qkvc: ``ReferenceEvaluator(model, new_ops=qkvc.integrations.onnx.ops())``.

One class serves opsets 23, 24 and 25: each only adds to the one before, 24 `nonpad_kv_seqlen` and 25 the windows, and the evaluator knows
the classes of `new_ops` by name, not by version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto
from onnx.reference.op_run import OpRun

from qkvc._coerce import as_integers, bad
from qkvc.functional import attention, concat_heads, split_heads
from qkvc.inside import STAGES, attention_scores
from qkvc.rotary import rotate

if TYPE_CHECKING:
    from numpy.typing import NDArray

PRECISIONS = (None, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


def ops() -> list[type[OpRun]]:
    """The classes for `new_ops` of ONNX's reference evaluator.

    Returns
    -------
    list of type
        `Attention` and `RotaryEmbedding`, both of ONNX's own domain.

    Examples
    --------
    >>> from onnx.reference import ReferenceEvaluator
    >>> from qkvc.integrations.onnx import ops
    >>> evaluator = ReferenceEvaluator("model.onnx", new_ops=ops())  # doctest: +SKIP
    """
    return [Attention, RotaryEmbedding]


class Attention(OpRun):
    """`Attention` of opsets 23, 24 and 25."""

    def _run(
        self,
        query: NDArray[Any],
        key: NDArray[Any],
        value: NDArray[Any],
        attn_mask: NDArray[Any] | None = None,
        past_key: NDArray[Any] | None = None,
        past_value: NDArray[Any] | None = None,
        nonpad_kv_seqlen: NDArray[np.int64] | None = None,
        *,
        is_causal: int = 0,
        kv_num_heads: int | None = None,
        left_window_size: int = -1,
        q_num_heads: int | None = None,
        qk_matmul_output_mode: int = 0,
        right_window_size: int = -1,
        scale: float | None = None,
        softcap: float = 0.0,
        softmax_precision: int | None = None,
    ) -> tuple[NDArray[Any], ...]:
        """What the operator computes, from its inputs in their order and its attributes.

        Parameters
        ----------
        query, key, value : ndarray, shapes (B, H_q, L, D), (B, H_kv, S, D), (B, H_kv, S, Dv), or (B, L, H_q * D) and so on
            bfloat16, float16, float32 or float64.
        attn_mask : ndarray, broadcasts to (B, H_q, L, P + S), optional
            bool: True where a query may attend; numbers: added to the scores. A last axis that is too short, and one of 1 is, goes on with
            what masks: the operator's text lets an axis of 1 broadcast, its function body and ONNX's evaluator do this.
        past_key, past_value : ndarray, shapes (B, H_kv, P, D), (B, H_kv, P, Dv), optional
            What precedes `key` and `value`; both or none.
        nonpad_kv_seqlen : ndarray of int, shape (B,), optional
            How many keys each batch item has; excludes `past_key`.
        is_causal, left_window_size, right_window_size : int
            As `causal` and `window` of `qkvc.attention`, with row 0 at position P, or `nonpad_kv_seqlen` - L, or 0.
        q_num_heads, kv_num_heads : int, optional
            H_q and H_kv of three axes. Beside four they must be true; ONNX's evaluator refuses them in opset 25 and ignores them before.
        qk_matmul_output_mode : int, default 0
            Index into `qkvc.inside.STAGES`.
        scale, softcap : float
            As of `qkvc.attention`, 0 for no softcap.
        softmax_precision : int, optional
            DOUBLE computes in float64. Less than float32 would only lose digits: it is accepted and not done.

        Returns
        -------
        y, present_key, present_value : ndarray
            y in the dtype of the query; key and value with what preceded them, in four axes.
        qk_matmul_output : ndarray, shape (B, H_q, L, P + S)
            If the node names it. Mode 0 is before softcap, as text and function body have it; ONNX's evaluator returns it after.

        Raises
        ------
        ValueError, TypeError
            Shapes or attributes that do not fit together, here or from `qkvc.attention`.

        Notes
        -----
        A query that may attend to nothing gives zeros, in y and in mode 3: there ONNX and qkvc agree. NaN in a masked key or value goes
        no further, and mode 2 shows -inf for that key; ONNX's evaluator and function body add -inf to it and return NaN.
        """
        if softmax_precision not in PRECISIONS:
            raise ValueError(bad("softmax_precision", "1, 10, 11 or 16, or none", str(softmax_precision), "Attention"))
        if qk_matmul_output_mode not in range(len(STAGES)):
            raise ValueError(bad("qk_matmul_output_mode", "0 to 3", str(qk_matmul_output_mode), "Attention"))
        rank, given = query.ndim, query.dtype
        query = _heads("query", query, q_num_heads, rank)
        key = _preceded("past_key", past_key, _heads("key", key, kv_num_heads, rank))
        value = _preceded("past_value", past_value, _heads("value", value, kv_num_heads, rank))
        if (past_key is None) != (past_value is None):
            raise ValueError(bad("past_value", "past_key and past_value, or none of them", "one", "Attention"))
        offset: Any = 0 if past_key is None else past_key.shape[2]
        if nonpad_kv_seqlen is not None:
            if past_key is not None:
                raise ValueError(bad("nonpad_kv_seqlen", "none beside past_key", "both", "Attention"))
            nonpad_kv_seqlen = as_integers("nonpad_kv_seqlen", nonpad_kv_seqlen, query.shape[:1], 0, key.shape[2])
            offset = nonpad_kv_seqlen - query.shape[2]
        window = None if left_window_size == right_window_size == -1 else (left_window_size, right_window_size)
        options: dict[str, Any] = {
            "causal": bool(is_causal),
            "q_offset": offset if is_causal or window else None,
            "window": window,
            "key_lengths": nonpad_kv_seqlen,
            "softcap": softcap or None,
            "scale": scale,
        }
        if attn_mask is not None:
            options["mask" if attn_mask.dtype == np.bool_ else "bias"] = _continued(attn_mask, key.shape[2])
        q = query.astype(np.float64) if softmax_precision == TensorProto.DOUBLE else query  # and beside it, everything
        y = attention(q, key, value, **options).astype(given, copy=False)
        outputs = (y if rank == 4 else concat_heads(y), key, value)
        if not any(self.output[3:]):  # the one that is a matrix of queries by keys
            return outputs
        scores = attention_scores(q, key, stage=STAGES[qk_matmul_output_mode], **options)
        return *outputs, scores.astype(given, copy=False)


class RotaryEmbedding(OpRun):
    """`RotaryEmbedding` of opset 23."""

    def _run(
        self,
        x: NDArray[Any],
        cos_cache: NDArray[Any],
        sin_cache: NDArray[Any],
        position_ids: NDArray[np.int64] | None = None,
        *,
        interleaved: int = 0,
        num_heads: int | None = None,
        rotary_embedding_dim: int = 0,
    ) -> tuple[NDArray[Any]]:
        """Pairs of columns turned by the angles of their positions.

        Parameters
        ----------
        x : ndarray, shape (B, H, L, D), or (B, L, H * D) with `num_heads`
            bfloat16, float16 or float32.
        cos_cache, sin_cache : ndarray, shape (positions, R / 2) with `position_ids`, (B, L, R / 2) without
        position_ids : ndarray of int, shape (B, L), optional
        interleaved : int, default 0
            Column 2i is turned with 2i + 1, else i with i + R / 2.
        rotary_embedding_dim : int, default 0
            R, the first columns; the others stay. 0 for all.

        Returns
        -------
        tuple of one ndarray, shape and dtype of `x`
            Computed in float32 and rounded once.

        Raises
        ------
        ValueError
            Shapes that do not fit together, or positions that the caches do not have.
        """
        heads = _heads("x", x, num_heads, x.ndim, "RotaryEmbedding")
        batch, _, length, width = heads.shape
        turned = rotary_embedding_dim or width
        if turned % 2 or not 0 < turned <= width:
            raise ValueError(bad("rotary_embedding_dim", f"an even number up to {width}", str(turned), "RotaryEmbedding"))
        cos, sin = (_of_positions(n, c, position_ids, (batch, length, turned // 2)) for n, c in (("cos", cos_cache), ("sin", sin_cache)))
        out = rotate(heads, cos, sin, interleaved=bool(interleaved))
        return (out if x.ndim == 4 else concat_heads(out),)


def _heads(name: str, x: NDArray[Any], count: int | None, rank: int, who: str = "Attention") -> NDArray[Any]:
    """x as (batch, heads, length, dim), a view."""
    if rank not in (3, 4) or x.ndim != rank:
        raise ValueError(bad(name, f"{rank if rank in (3, 4) else '3 or 4'} axes", f"shape {x.shape}", who))
    if rank == 4 and count not in (None, 0, x.shape[1]):
        raise ValueError(bad(name, f"{count} heads, as its attribute says", f"shape {x.shape}", who))
    if rank == 4:
        return x
    if not count or x.shape[2] % count:
        raise ValueError(bad(name, "a last axis that the number of its heads divides", f"shape {x.shape} and {count} heads", who))
    return split_heads(x, count)


def _preceded(name: str, past: NDArray[Any] | None, x: NDArray[Any]) -> NDArray[Any]:
    if past is None:
        return x
    if past.ndim != 4 or past.shape[:2] != x.shape[:2] or past.shape[3] != x.shape[3]:
        raise ValueError(bad(name, f"shape {x.shape} of what follows it, but for axis 2", f"shape {past.shape}", "Attention"))
    return np.concatenate((past, x), axis=2)


def _continued(mask: NDArray[Any], keys: int) -> NDArray[Any]:
    """A mask with a number for every key."""
    short = keys - mask.shape[-1] if mask.ndim else 0
    if short <= 0:
        return mask
    if mask.dtype.kind in "iu":  # of a type that ONNX admits and has no meaning for: its evaluator adds them
        mask = mask.astype(np.float64)
    beyond = np.full((*mask.shape[:-1], short), False if mask.dtype == np.bool_ else -np.inf, mask.dtype)
    return np.concatenate((mask, beyond), axis=-1)


def _of_positions(name: str, cache: NDArray[Any], positions: NDArray[np.int64] | None, shape: tuple[int, ...]) -> NDArray[Any]:
    """Cosines or sines for (batch, length, pairs)."""
    if positions is not None:
        if positions.shape != shape[:2]:
            raise ValueError(bad("position_ids", f"shape {shape[:2]}", f"shape {positions.shape}", "RotaryEmbedding"))
        wrong = positions[(positions < 0) | (positions >= len(cache))]  # NumPy would take -1 for the last
        if wrong.size:
            raise ValueError(bad("position_ids", f"0 to {len(cache) - 1}", str(wrong[0]), "RotaryEmbedding"))
        cache = cache[positions]
    if cache.shape != shape:
        raise ValueError(bad(f"{name}_cache", f"shape {shape} of what the positions choose", f"shape {cache.shape}", "RotaryEmbedding"))
    return cache
