"""The layer around attention: W_Q, W_K, W_V, the heads, W_O."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from qkvc import _learning
from qkvc._coerce import FARTHEST, as_array, as_integers, as_positions, bad, check_out, shape_text
from qkvc._kernels import undisturbed
from qkvc._linear import project
from qkvc._rotary import turn
from qkvc._weights import WHO, Weights
from qkvc.cache import KVCache
from qkvc.functional import AttentionOutput, attention, attention_with_lse
from qkvc.inside import attention_weights
from qkvc.parts import merge_attention
from qkvc.rotary import turns

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from qkvc._learning import MultiHeadGrads, Trace
    from qkvc.rotary import RopeConfig

    Array = NDArray[Any]


def _rows_apart(leading: tuple[int, ...], width: int, dtype: np.dtype[Any]) -> Array:
    """Room for rows that are no multiple of 4096 bytes apart: those fall into few sets of L1, and attention would copy them for each tile
    of queries (1x577x1024/16: 3 % of the call)."""
    line = 64 // dtype.itemsize
    return np.empty((*leading, width + line if width % (64 * line) == 0 else width), dtype)[..., :width]


def _rows_at(batch: tuple[int, ...], length: int, keys: int, options: dict[str, Any]) -> Any:
    """The positions of the queries that `qkvc.attention` goes by, given these options; of the first, where the batch has them in common."""
    causal, name, back = options.get("causal"), "q_offset", 0
    if options.get(name) is None:
        if not isinstance(causal, str) or causal != "bottom-right":
            return 0
        name, back = "key_lengths", length
    if (given := options.get(name)) is None:
        return keys - length
    first = as_integers(name, given, batch if np.ndim(given) else (), -FARTHEST, FARTHEST)
    return first.reshape(*batch, 1) - back + np.arange(length) if np.ndim(given) else int(first[0]) - back


class MultiHeadAttention(Weights):
    """Multi-head attention, forward and backward: every head projects its own queries, keys and values, and W_O mixes what they bring back.

    Parameters
    ----------
    embed_dim : int
        E, the width of queries and of the result.
    num_heads : int
        H.
    num_kv_heads : int, optional
        H_kv, a divisor of `num_heads` (grouped-query attention); default `num_heads`.
    head_dim : int, optional
        D, the width of a head; default ``embed_dim / num_heads``.
    kdim, vdim : int, optional
        Widths of `key` and `value`; default `embed_dim`.
    qkv_bias, out_bias : bool, default True
        Do the projections into and out of the heads add a bias?
    extra_kv : bool, default False
        A learned key and value that every query may attend to, whatever the mask (`bias_k` and `bias_v` of torch).
    rope : RopeConfig, optional
        How queries and keys are turned by their positions (`qkvc.rope`) before attention.
    qk_norm : float, optional
        Each head's queries and keys are divided by the root of their mean square before they are turned, and multiplied by a learned
        weight that all heads share; this is added to the mean: 1e-6 in Qwen3.
    dtype : {"float32", "float64"}
        Of the weights, the inputs and the result.
    rng : numpy.random.Generator or int, optional
        Where the initial weights come from.

    Attributes
    ----------
    q_weight, k_weight, v_weight : ndarray, shapes (H * D, E), (H_kv * D, kdim), (H_kv * D, vdim)
        As in torch.nn.Linear, (out_features, in_features).  Views of one array where the widths are the same, so that self-attention
        is one projection.  Change them in place: ``m.q_weight[...] = w``.
    q_bias, k_bias, v_bias : ndarray, shapes (H * D,), (H_kv * D,), (H_kv * D,), or None
    out_weight : ndarray, shape (E, H * D)
    out_bias : ndarray, shape (E,), or None
    q_norm, k_norm : ndarray, shape (D,), or None
    extra_key, extra_value : ndarray, shape (H_kv, D), or None

    Raises
    ------
    ValueError, TypeError
        Sizes that do not fit together; the message names the argument, what came and what was wanted.

    Notes
    -----
    Initial weights are torch's (`MultiheadAttention._reset_parameters`): Xavier uniform (Glorot & Bengio, 2010) over the stacked input
    weights, or over each where their widths differ; U(-1/sqrt(n), 1/sqrt(n)) with n = H * D for the output weight (He et al., 2015, with
    the gain of torch.nn.Linear); zeros for the biases; N(0, 1 / (H_kv * D)) for the extra key and value; ones for the norms.

    Beside the result a call holds what is projected and what the heads bring back, 2 L H D + 2 S H_kv D numbers a batch item, and the
    scratch of `qkvc.attention`; with an extra key some L H D more, in float64; for a weight of adjacent rows 3.2 MB.  No L x S matrix.
    The cosines and sines of `rope`, (L + S) D numbers unless positions differ in the batch, stay for the next layer and call (`qkvc.rope`).

    References
    ----------
    Vaswani et al., "Attention Is All You Need" (2017), section 3.2.2.  Ainslie et al., "GQA" (2023), for `num_kv_heads`.  Su et
    al., "RoFormer" (2021), for `rope`.  Zhang & Sennrich, "Root Mean Square Layer Normalization" (2019), and the Qwen3 Technical Report
    (2025), for `qk_norm`.

    Examples
    --------
    >>> import numpy as np, qkvc
    >>> m = qkvc.MultiHeadAttention(512, 4, rng=0)
    >>> m
    MultiHeadAttention(embed_dim=512, num_heads=4)  # heads of 128, float32, 1,050,624 parameters
    >>> x = np.ones((4, 16, 512), np.float32)
    >>> m(x).shape, m.heads(x).shape, m.contributions(x).shape, m.weights(x).shape
    ((4, 16, 512), (4, 4, 16, 128), (4, 4, 16, 512), (4, 4, 16, 16))
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        kdim: int | None = None,
        vdim: int | None = None,
        qkv_bias: bool = True,
        out_bias: bool = True,
        extra_kv: bool = False,
        rope: RopeConfig | None = None,
        qk_norm: float | None = None,
        dtype: DTypeLike = "float32",
        rng: np.random.Generator | int | None = None,
    ) -> None:
        self._allocate(embed_dim, num_heads, num_kv_heads, head_dim, kdim, vdim, qkv_bias, out_bias, extra_kv, rope, qk_norm, dtype)
        self._initialise(rng)

    def __repr__(self) -> str:
        defaults: dict[str, Any] = {"num_kv_heads": self.num_heads, "head_dim": self.embed_dim / self.num_heads}
        defaults |= dict.fromkeys(("kdim", "vdim"), self.embed_dim) | {"qkv_bias": True, "out_bias": True, "extra_kv": False}
        defaults |= {"rope": None, "qk_norm": None}
        given = {name: value for name, value in self._options().items() if name in defaults and value != defaults[name]}
        arguments = {"embed_dim": self.embed_dim, "num_heads": self.num_heads} | given
        arguments |= {} if self.dtype == np.float32 else {"dtype": str(self.dtype)}
        inside = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        return f"{WHO}({inside})  # heads of {self.head_dim}, {self.dtype}, {self.num_parameters():,} parameters"

    def __call__(
        self,
        query: ArrayLike,
        key: ArrayLike | None = None,
        value: ArrayLike | None = None,
        *,
        positions: ArrayLike | None = None,
        key_positions: ArrayLike | None = None,
        cache: KVCache | None = None,
        out: Array | None = None,
        num_threads: int | None = None,
        **options: Any,
    ) -> Array:
        """What each token takes from the others.

        Parameters
        ----------
        query : array_like, shape (..., L, E)
            In the module's dtype, as are all three.  Leading axes are the batch and broadcast.
        key : array_like, shape (..., S, kdim), optional
            Default `query`: self-attention.
        value : array_like, shape (..., S, vdim), optional
            Default `key`.
        positions, key_positions : int or array_like of int, optional
            Where queries and keys stand for `rope`, as of `qkvc.rope`: the first token, or each, (..., L) and (..., S).  By default key j
            stands at j, and query i where `q_offset` or ``causal="bottom-right"`` puts it, else at i; in self-attention `positions` holds
            for the keys too.  Masks do not ask for them.
        cache : KVCache, optional
            Of self-attention: the tokens' keys, rotated, and values are appended, and each token attends to what was before it and itself,
            as ``causal=True`` has it for all of them at once.  `query` is (batch, L, E), `positions` follow its `lengths`, and options are
            those of `KVCache.attend`, `counts` among them.  A layer with an extra key takes none.
        out : ndarray, shape (..., L, E), optional
            Where to write the result.  It may not share memory with an input.
        num_threads : int, optional
            As of `qkvc.attention`.
        **options
            `mask`, `bias`, `causal`, `q_offset`, `window`, `key_lengths`, `alibi_slopes`, `sinks`, `softcap`, `scale`, `head_scale`,
            `dropout_p` and `rng`, as of `qkvc.attention`: a mask broadcasts to (..., H, L, S), and True in it means *may attend*, where
            torch.nn.MultiheadAttention means the opposite: ``mask=~attn_mask``, ``mask=~key_padding_mask[:, None, None, :]``.

        Returns
        -------
        ndarray, shape (..., L, E)
            A query that may attend to nothing gets the output's bias, where torch gives NaN.

        Raises
        ------
        ValueError, TypeError
            Arrays or options that do not fit; nothing has been written.
        """
        inputs = self._inputs(query, key, value)
        if out is not None:
            batch = np.broadcast_shapes(*(x.shape[:-2] for x in inputs))
            named = dict(zip(("query", "key", "value"), inputs, strict=True))
            check_out(out, (*batch, *inputs[0].shape[-2:]), named, WHO, self.dtype)
        heads = self._heads_of(inputs, positions, key_positions, cache, num_threads, options)
        return self._output(heads, out, num_threads)

    def forward(
        self,
        query: ArrayLike,
        key: ArrayLike | None = None,
        value: ArrayLike | None = None,
        *,
        plus: Array | None = None,
        positions: ArrayLike | None = None,
        key_positions: ArrayLike | None = None,
        num_threads: int | None = None,
        **options: Any,
    ) -> tuple[Array, Trace]:
        """A call that remembers what `backward` needs: the result, added to `plus`, (..., L, E), if given; and the trace of it.

        Other arguments as of a call.  The trace holds the inputs, what was projected, what the heads brought back and their lse.  A layer
        with an extra key has no gradient: ValueError.
        """
        inputs = self._inputs(query, key, value)
        return _learning.forward(self, inputs, plus, positions, key_positions, num_threads, options)

    def backward(self, grad_out: ArrayLike, trace: Trace) -> MultiHeadGrads:
        """Gradients, given that of the result.

        Parameters
        ----------
        grad_out : array_like, shape (..., L, E)
        trace : Trace
            Of the `forward` that gave the result; the weights must be as they were.

        Returns
        -------
        MultiHeadGrads(query, key, value, weights)
            Gradients of the inputs; of one that was given twice, or left out, the first has all and the others are None.  `weights` has an
            array for each of the attributes that are learned, but for those in `frozen`.
        """
        return _learning.backward(self, self._real("grad_out", grad_out), trace)

    def heads(
        self,
        query: ArrayLike,
        key: ArrayLike | None = None,
        value: ArrayLike | None = None,
        *,
        positions: ArrayLike | None = None,
        key_positions: ArrayLike | None = None,
        cache: KVCache | None = None,
        num_threads: int | None = None,
        **options: Any,
    ) -> Array:
        """What each head brings back, before W_O: (..., H, L, D).  Arguments as of a call; `concat_heads` of it is a view."""
        inputs = self._inputs(query, key, value)
        return self._heads_of(inputs, positions, key_positions, cache, num_threads, options).swapaxes(-3, -2)

    def contributions(
        self,
        query: ArrayLike,
        key: ArrayLike | None = None,
        value: ArrayLike | None = None,
        *,
        positions: ArrayLike | None = None,
        key_positions: ArrayLike | None = None,
        cache: KVCache | None = None,
        num_threads: int | None = None,
        **options: Any,
    ) -> Array:
        """What each head adds to the result, (..., H, L, E): their sum and the output's bias are what a call returns.

        Arguments as of a call.
        """
        where = {"positions": positions, "key_positions": key_positions}
        heads = self.heads(query, key, value, **where, cache=cache, num_threads=num_threads, **options)
        result = np.empty((*heads.shape[:-1], self.embed_dim), self.dtype)
        for h, weight in enumerate(self.W_O):
            project(heads[..., h, :, :], weight, None, result[..., h, :, :], num_threads)
        return result

    def weights(
        self,
        query: ArrayLike,
        key: ArrayLike | None = None,
        *,
        positions: ArrayLike | None = None,
        key_positions: ArrayLike | None = None,
        num_threads: int | None = None,
        **options: Any,
    ) -> Array:
        """How much each query of each head takes of each key: (..., H, L, S).

        Parameters
        ----------
        query, key, positions, key_positions
            As of a call.
        **options
            As of `qkvc.attention_weights`: those of a call without `head_scale`, and `heads` and `queries` to choose some of them.

        Returns
        -------
        ndarray, shape (..., H, L, S); with an extra key (..., H, L, S + 1), it being the last
        """
        options = self._checked(options, attention_weights)
        q, k = self._placed(self._inputs(query, key, parts=2), positions, key_positions, num_threads, options)
        weights = attention_weights(q, k, layout="blhd", num_threads=num_threads, **options)
        if self.extra_key is None:
            return weights
        heads, queries = (options.pop(name, slice(None)) for name in ("heads", "queries"))
        lses = [part.lse[..., heads, :][..., queries] for part in self._with_extra([q, k, k], num_threads, options)]
        return undisturbed(_shared, weights, *lses)

    def project(
        self,
        query: ArrayLike,
        key: ArrayLike | None = None,
        value: ArrayLike | None = None,
        *,
        positions: ArrayLike | None = None,
        key_positions: ArrayLike | None = None,
        num_threads: int | None = None,
    ) -> tuple[Array, Array, Array]:
        """Queries, keys and values of all heads, (..., L, H, D) and (..., S, H_kv, D) twice, for `qkvc.attention(..., layout="blhd")`.

        Arguments as of a call; queries and keys have been through their norm and stand at their positions.  Splitting the heads moves
        nothing: they are views of as few products as the inputs allow.
        """
        query, key, value = self._placed(self._inputs(query, key, value), positions, key_positions, num_threads, {})
        return query, key, value

    def output(self, heads: ArrayLike, *, num_threads: int | None = None) -> Array:
        """W_O and its bias on what the heads brought back: (..., H, L, D) to (..., L, E).

        ``m.output(m.heads(x))`` is ``m(x)``; what is done to the heads between is an experiment with them.
        """
        array = self._real("heads", heads)
        if array.ndim < 3 or (array.shape[-3], array.shape[-1]) != (self.num_heads, self.head_dim):
            raise ValueError(bad("heads", f"shape (..., {self.num_heads}, L, {self.head_dim})", shape_text(array), WHO))
        return self._output(array.swapaxes(-3, -2), None, num_threads)

    def _real(self, name: str, x: Any) -> Array:
        array = as_array(name, x, WHO)
        if array.dtype.newbyteorder("=") != self.dtype:
            raise TypeError(bad(name, f"{self.dtype}, as the weights are (see astype)", str(array.dtype), WHO))
        return array.astype(self.dtype, copy=False)

    def _inputs(self, query: Any, key: Any, value: Any = None, parts: int = 3) -> list[Array]:
        """The first `parts` of the three, checked; what was given twice is the same object twice."""
        if key is None and value is not None:
            raise TypeError(bad("key", "an array, as value is one", "None", WHO))
        arrays = [self._real("query", query)]
        arrays.append(arrays[0] if key is None or key is query else self._real("key", key))
        if parts == 3:
            arrays.append(arrays[1] if value is None or value is key else self._real("value", value))
        for name, array, width in zip(("query", "key", "value"), arrays, (self.embed_dim, self.kdim, self.vdim), strict=False):
            if array.ndim < 2 or array.shape[-1] != width:
                raise ValueError(bad(name, f"shape (..., length, {width})", shape_text(array), WHO))
        if arrays[1].shape[-2] != arrays[-1].shape[-2]:
            raise ValueError(bad("value", f"{arrays[1].shape[-2]} tokens, as key has", shape_text(arrays[-1]), WHO))
        try:
            np.broadcast_shapes(*{array.shape[:-2] for array in arrays})
        except ValueError:
            shapes = ", ".join(str(array.shape) for array in arrays)
            raise ValueError(bad("query, key and value", "batches that broadcast", f"shapes {shapes}", WHO)) from None
        return arrays

    def _project(self, inputs: list[Array], num_threads: int | None) -> list[Array]:
        """Their heads, (..., L, H, D): one product for neighbours that are the same array."""
        heads = []
        for first, last in self._runs(inputs):
            weight, bias = self._rows(first, last)
            product = project(inputs[first], weight, bias, _rows_apart(inputs[first].shape[:-1], len(weight), self.dtype), num_threads)
            counts = self._heads[first:last]
            split = product.reshape(*product.shape[:-1], sum(counts), self.head_dim)
            heads += [split[..., end - count : end, :] for count, end in zip(counts, accumulate(counts), strict=True)]
        return heads

    def _placed(
        self, inputs: list[Array], positions: Any, key_positions: Any, num_threads: int | None, options: dict[str, Any]
    ) -> list[Array]:
        """What attention wants: the heads' queries and keys through their norm and at their positions, and the values."""
        tables: list[Array | None] = [None, None]
        if self.rope is not None:
            tables[:] = self._tables(self.rope, inputs, positions, key_positions, options)
        elif positions is not None or key_positions is not None:
            name = "key_positions" if positions is None else "positions"
            raise TypeError(bad(name, "None, as there is no rope to ask for them", "an argument that nothing uses", WHO))
        projected = self._project(inputs, num_threads)
        for part, (norm, table) in enumerate(zip((self.q_norm, self.k_norm), tables, strict=True)):
            if norm is not None or table is not None:
                projected[part] = self._place(projected[part], norm, table, num_threads)
        return projected

    def _tables(
        self, rope: RopeConfig, inputs: list[Array], positions: Any, key_positions: Any, options: dict[str, Any]
    ) -> tuple[Array, Array]:
        """Cosines and sines of the queries and of the keys, (..., length, 1, 2, pairs)."""
        batch, (length, keys) = np.broadcast_shapes(*(x.shape[:-2] for x in inputs)), (x.shape[-2] for x in inputs[:2])
        if key_positions is None:
            if positions is not None and inputs[1] is not inputs[0]:
                raise TypeError(bad("key_positions", "integers, as positions are given and key is not query", "None", WHO))
            key_positions = 0 if positions is None else positions
        if positions is None:
            positions = _rows_at(batch, length, keys, options)

        def table(name: str, where: Any, count: int) -> Array:
            return turns(rope, self.head_dim, as_positions(name, where, batch, count, WHO), self.dtype)[..., np.newaxis, :, :]

        of_queries = table("positions", positions, length)
        together = key_positions is positions and keys == length
        return of_queries, of_queries if together else table("key_positions", key_positions, keys)

    def _place(self, heads: Array, norm: Array | None, table: Array | None, num_threads: int | None) -> Array:
        """Heads (..., L, H, D) that were just projected, where they are, unless their positions are of a larger batch."""
        if table is None:
            table = np.empty((1, 2, 0), self.dtype)
        elif table.ndim > 4:
            batch = np.broadcast_shapes(heads.shape[:-3], table.shape[:-4])
            heads = np.array(np.broadcast_to(heads, (*batch, *heads.shape[-3:])), order="C") if batch != heads.shape[:-3] else heads
        turn(heads, table, self.rope is not None and self.rope.interleaved, norm, self.qk_norm or 0, num_threads=num_threads)
        return heads

    def _checked(self, options: dict[str, Any], function: Any) -> dict[str, Any]:
        allowed = function.__kwdefaults__.keys() - {"layout", "out", "num_threads"}
        if unknown := options.keys() - allowed:
            raise TypeError(bad("options", f"some of {', '.join(sorted(allowed))}", ", ".join(sorted(unknown)), WHO))
        return options

    def _heads_of(
        self,
        inputs: list[Array],
        positions: Any,
        key_positions: Any,
        cache: KVCache | None,
        num_threads: int | None,
        options: dict[str, Any],
    ) -> Array:
        """What the heads bring back, (..., L, H, D)."""
        if cache is None:
            projected = self._placed(inputs, positions, key_positions, num_threads, self._checked(options, attention))
            return self._attend(projected, num_threads, options)
        counts = options.pop("counts", None)
        self._fits(cache, inputs, key_positions)
        if self.rope is not None and positions is None:
            lengths = cache.lengths
            even = (lengths == lengths[0]).all()
            positions = int(lengths[0]) if even else lengths[:, np.newaxis] + np.arange(inputs[0].shape[1])
        q, k, v = self._placed(inputs, positions, None, num_threads, self._checked(options, attention))
        heads = cache.attend(q, k, v, counts=counts, layout="blhd", num_threads=num_threads, **options)
        return heads.astype(self.dtype, copy=False)  # a cache of float64 computes in it

    def _fits(self, cache: Any, inputs: list[Array], key_positions: Any) -> None:
        if not isinstance(cache, KVCache):
            raise TypeError(bad("cache", "a qkvc.KVCache", type(cache).__name__, WHO))
        if self.extra_key is not None:
            raise TypeError(bad("cache", "None, as the extra key has no place in it", "a KVCache", WHO))
        if len({id(x) for x in inputs}) > 1 or key_positions is not None:
            name = "key" if key_positions is None else "key_positions"
            raise TypeError(bad(name, "None, as with a cache a layer attends to the tokens of query", "an argument that nothing uses", WHO))
        if (sizes := (cache.kv_heads, cache.head_dim, cache.v_head_dim)) != (self.num_kv_heads, self.head_dim, self.head_dim):
            raise ValueError(bad("cache", f"{self.num_kv_heads} heads of {self.head_dim}", f"{sizes[0]} of {sizes[1]} and {sizes[2]}", WHO))
        if inputs[0].shape[:-2] != (cache.batch,):
            wanted = f"shape ({cache.batch}, length, {self.embed_dim}), the batch being the cache's"
            raise ValueError(bad("query", wanted, shape_text(inputs[0]), WHO))

    def _attend(self, projected: list[Array], num_threads: int | None, options: dict[str, Any]) -> Array:
        """What the heads bring back, (..., L, H, D)."""
        if self.extra_key is None:
            return attention(*projected, layout="blhd", num_threads=num_threads, **options)
        parts = self._with_extra(projected, num_threads, options)
        return merge_attention([part.out for part in parts], [part.lse for part in parts], layout="blhd").out

    def _with_extra(
        self, projected: list[Array], num_threads: int | None, options: dict[str, Any]
    ) -> tuple[AttentionOutput, AttentionOutput]:
        """Attention to the keys, and to the extra key, which no position, mask or sink concerns."""
        if options.get("dropout_p"):
            raise ValueError(bad("dropout_p", "0 beside an extra key, which has no number of its own", str(options["dropout_p"]), WHO))
        whole = attention_with_lse(*projected, layout="blhd", num_threads=num_threads, **options)
        own = {name: options[name] for name in ("scale", "softcap", "head_scale") if name in options}
        extra = [x[np.newaxis] for x in (self.extra_key, self.extra_value) if x is not None]
        alone = attention_with_lse(projected[0], *extra, layout="blhd", num_threads=num_threads, **own)
        return whole, AttentionOutput(np.broadcast_to(alone.out, whole.out.shape), np.broadcast_to(alone.lse, whole.lse.shape))

    def _output(self, heads: Array, out: Array | None, num_threads: int | None, plus: Array | None = None) -> Array:
        concatenated = heads.reshape(*heads.shape[:-2], self.num_heads * self.head_dim)
        return project(concatenated, self.out_weight, self.out_bias, out, num_threads, plus=plus)


def _shared(weights: Array, whole: Array, extra: Array) -> Array:
    """Weights of the keys, and of an extra one behind them: each side has its share of the sum of exponentials."""
    total = np.logaddexp(whole, extra)[..., np.newaxis]
    return np.concatenate([np.exp(whole[..., np.newaxis] - total) * weights, np.exp(extra[..., np.newaxis] - total)], axis=-1)
