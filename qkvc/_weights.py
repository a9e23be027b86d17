"""What an attention layer learns: how the weights lie in memory, as what they can be seen, how they are counted, loaded and saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from math import sqrt
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from qkvc._coerce import as_above_zero, as_count, as_real_dtype, bad, shape_text
from qkvc._forms import QKV, read, write
from qkvc.rotary import RopeConfig

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import ArrayLike, DTypeLike, NDArray

    Array = NDArray[Any]
    FormName = Literal["torch", "bert", "gpt2", "llama", "qwen2", "qwen3"]

WHO = "MultiHeadAttention"


class Weights:
    """W_Q, W_K, W_V and W_O with their biases.  Only whole arrays are attributes, views are made when asked for, so that a copy or a pickle
    of the layer keeps what shares memory shared.
    """

    def _allocate(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int | None,
        head_dim: int | None,
        kdim: int | None,
        vdim: int | None,
        qkv_bias: bool,
        out_bias: bool,
        extra_kv: bool,
        rope: RopeConfig | None,
        qk_norm: float | None,
        dtype: DTypeLike,
    ) -> None:
        self.embed_dim, self.num_heads = as_count("embed_dim", embed_dim, WHO), as_count("num_heads", num_heads, WHO)
        self.num_kv_heads = self.num_heads if num_kv_heads is None else as_count("num_kv_heads", num_kv_heads, WHO)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(bad("num_kv_heads", f"a divisor of num_heads, {self.num_heads}", str(self.num_kv_heads), WHO))
        if head_dim is None and self.embed_dim % self.num_heads:
            raise ValueError(bad("embed_dim", f"a multiple of num_heads, {self.num_heads}, or head_dim too", str(self.embed_dim), WHO))
        self.head_dim = self.embed_dim // self.num_heads if head_dim is None else as_count("head_dim", head_dim, WHO)
        self.kdim = self.embed_dim if kdim is None else as_count("kdim", kdim, WHO)
        self.vdim = self.embed_dim if vdim is None else as_count("vdim", vdim, WHO)
        self.dtype = as_real_dtype(dtype, WHO)
        if rope is not None:
            if not isinstance(rope, RopeConfig):
                raise TypeError(bad("rope", "a RopeConfig", type(rope).__name__, WHO))
            if extra_kv:
                raise ValueError(bad("rope", "None, as an extra key stands at no position", repr(rope), WHO))
            rope.frequencies(self.head_dim)  # refuses a width that it cannot turn
        self.rope, self.qk_norm = rope, None if qk_norm is None else as_above_zero("qk_norm", qk_norm, WHO)

        def empty(*shape: int) -> Array:
            return np.empty(shape, self.dtype)

        rows, widths = [heads * self.head_dim for heads in self._heads], (self.embed_dim, self.kdim, self.vdim)
        shapes = [(sum(rows), self.embed_dim)] if len(set(widths)) == 1 else list(zip(rows, widths, strict=True))
        self._weights = [empty(*shape) for shape in shapes]
        self._biases = empty(sum(rows)) if qkv_bias else None
        self.out_weight = empty(self.embed_dim, rows[0])
        self.out_bias = empty(self.embed_dim) if out_bias else None
        self.q_norm, self.k_norm = (None if qk_norm is None else empty(self.head_dim) for _ in range(2))
        self.frozen: frozenset[str] = frozenset()
        self.extra_key = empty(self.num_kv_heads, self.head_dim) if extra_kv else None
        self.extra_value = empty(self.num_kv_heads, self.head_dim) if extra_kv else None

    def _initialise(self, rng: np.random.Generator | int | None) -> None:
        generator = np.random.default_rng(rng)
        for weight in self._weights:
            limit = sqrt(6 / sum(weight.shape))
            weight[...] = generator.uniform(-limit, limit, weight.shape)
        limit = 1 / sqrt(self.num_heads * self.head_dim)
        self.out_weight[...] = generator.uniform(-limit, limit, self.out_weight.shape)
        for bias in (self._biases, self.out_bias):
            if bias is not None:
                bias.fill(0)
        for norm in (self.q_norm, self.k_norm):
            if norm is not None:
                norm.fill(1)
        for extra in (self.extra_key, self.extra_value):
            if extra is not None:
                extra[...] = generator.normal(0, 1 / sqrt(extra.size), extra.shape)

    @property
    def _heads(self) -> tuple[int, int, int]:
        return self.num_heads, self.num_kv_heads, self.num_kv_heads

    def _rows(self, first: int, last: int) -> tuple[Array, Array | None]:
        """Weight and bias of neighbouring ones of Q, K and V, which are 0, 1 and 2."""
        start, stop = (sum(self._heads[:n]) * self.head_dim for n in (first, last))
        weight = self._weights[first] if len(self._weights) == 3 else self._weights[0][start:stop]
        return weight, None if self._biases is None else self._biases[start:stop]

    def _runs(self, inputs: list[Array]) -> Iterator[tuple[int, int]]:
        """Of Q, K and V those that one product can have: the first, and the one after the last."""
        for _, run in groupby(range(len(inputs)), lambda part: id(inputs[part]) if len(self._weights) == 1 else part):
            first, *_, last = *(members := list(run)), members[-1] + 1
            yield first, last

    q_weight = property(lambda self: self._rows(0, 1)[0])
    k_weight = property(lambda self: self._rows(1, 2)[0])
    v_weight = property(lambda self: self._rows(2, 3)[0])
    q_bias = property(lambda self: self._rows(0, 1)[1])
    k_bias = property(lambda self: self._rows(1, 2)[1])
    v_bias = property(lambda self: self._rows(2, 3)[1])

    def _per_head(self, part: int) -> Array:
        weight, _ = self._rows(part, part + 1)
        return weight.reshape(self._heads[part], self.head_dim, -1)

    @property
    def W_Q(self) -> Array:
        """What each head asks with, (H, D, E): ``x @ m.W_Q[h].T`` are its queries.  A view: writing to it changes the module."""
        return self._per_head(0)

    @property
    def W_K(self) -> Array:
        """(H_kv, D, kdim), a view."""
        return self._per_head(1)

    @property
    def W_V(self) -> Array:
        """(H_kv, D, vdim), a view."""
        return self._per_head(2)

    @property
    def W_O(self) -> Array:
        """What each head adds to the result, (H, E, D), a view: ``m.heads(x)[..., h, :, :] @ m.W_O[h].T`` is its contribution."""
        return self.out_weight.reshape(self.embed_dim, self.num_heads, self.head_dim).swapaxes(0, 1)

    def _parts(self) -> dict[str, Array]:
        names = [f"{part}_{kind}" for kind in ("weight", "bias") for part in QKV]
        names += ["out_weight", "out_bias", "q_norm", "k_norm", "extra_key", "extra_value"]
        return {name: part for name in names if (part := getattr(self, name)) is not None}

    def freeze(self, *parts: Literal["q", "k", "v", "o"]) -> None:
        """Let these parts of the layer learn nothing from now on, and all others learn: `backward` gives their weights, biases and norms no
        gradient.  ``m.freeze("v")`` keeps W_V, ``m.freeze()`` nothing.

        Raises
        ------
        ValueError
            Another name; then nothing has changed.

        Attributes
        ----------
        frozen : frozenset of str
            The names of the attributes that are kept: {"v_weight", "v_bias"}.
        """
        for part in parts:
            if part not in (*QKV, "o"):
                raise ValueError(bad("parts", 'some of "q", "k", "v" and "o"', repr(part), "freeze"))
        beginnings = tuple("out_" if part == "o" else f"{part}_" for part in parts)
        self.frozen = frozenset(name for name in self._parts() if name.startswith(beginnings))

    @overload
    def num_parameters(self) -> int: ...
    @overload
    def num_parameters(self, by: Literal["weight", "head"]) -> dict[str, int]: ...
    def num_parameters(self, by: Literal["weight", "head"] | None = None) -> int | dict[str, int]:
        """How many numbers are learned: 4 E (E + 1) in the usual case, whatever the number of heads.

        Parameters
        ----------
        by : {"weight", "head"}, optional
            "weight" tells the arrays apart, "head" the query heads (their rows of W_Q and columns of W_O), the key heads (rows of W_K and
            W_V) and what all share, the output's bias and the norms of queries and keys.

        Returns
        -------
        int, or dict of int, whose values add up to that
        """
        sizes = {name: part.size for name, part in self._parts().items()}
        if by is None:
            return sum(sizes.values())
        if by == "weight":
            return sizes
        if by != "head":
            raise ValueError(bad("by", 'None, "weight" or "head"', repr(by), "num_parameters"))
        shared = sum(sizes.pop(name, 0) for name in ("out_bias", "q_norm", "k_norm"))
        query = sum(size for name, size in sizes.items() if name in ("q_weight", "q_bias", "out_weight"))
        key = sum(sizes.values()) - query
        counts = {f"query head {h}": query // self.num_heads for h in range(self.num_heads)}
        counts |= {f"key head {h}": key // self.num_kv_heads for h in range(self.num_kv_heads)}
        return counts | {"all heads": shared}

    def _options(self) -> dict[str, Any]:
        """What the constructor was called with, beside `rng`."""
        sizes = ("embed_dim", "num_heads", "num_kv_heads", "head_dim", "kdim", "vdim", "rope", "qk_norm", "dtype")
        flags = {"qkv_bias": self._biases, "out_bias": self.out_bias, "extra_kv": self.extra_key}
        return {name: getattr(self, name) for name in sizes} | {name: x is not None for name, x in flags.items()}

    def astype(self, dtype: DTypeLike) -> Self:
        """A copy with weights of another dtype, "float32" or "float64"."""
        module = type(self).__new__(type(self))
        module._allocate(**(self._options() | {"dtype": dtype}))
        for name, part in self._parts().items():
            getattr(module, name)[...] = part
        return module

    @classmethod
    def from_state(
        cls,
        tensors: Mapping[str, ArrayLike] | str | PathLike[str],
        num_heads: int,
        *,
        form: FormName | None = None,
        prefix: str = "",
        rope: RopeConfig | None = None,
        qk_norm: float | None = None,
    ) -> Self:
        """Take the weights of one attention layer from a checkpoint; they are copied.

        Parameters
        ----------
        tensors : dict of array_like, or path of a safetensors file
            Arrays by name; a torch `state_dict` will do.  Of a file only this layer's tensors are read, by the
            package safetensors.
        num_heads : int
            Every other size follows from the shapes.
        form : {"torch", "bert", "gpt2", "llama", "qwen2", "qwen3"}, optional
            How the tensors are named and turned; found out by the names where it is not given.
        prefix : str, default ""
            What precedes each name, its last dot included: "encoder.layer.0." (bert), "h.0.attn." (gpt2), "model.layers.0.self_attn."
        rope, qk_norm
            As of `MultiHeadAttention`: what tensors do not tell but a model's `config.json` does, as "rope_theta", "rope_scaling" and
            "rms_norm_eps".  Where there are norms of queries and keys, `qk_norm` is 1e-6 by default.

        Returns
        -------
        MultiHeadAttention
            In the tensors' dtype; half precision becomes float32, exactly.

        Raises
        ------
        ValueError
            Names that are no form, a tensor too many or too few, shapes that do not fit together: it says what was found and expected.
        TypeError
            Tensors that are not of float64, float32, float16 or bfloat16.
        FileNotFoundError, ModuleNotFoundError
            No such file, or no safetensors to read it with.

        Notes
        -----
        =====  ======================================================================  ===========
        form   weights                                                                 biases
        =====  ======================================================================  ===========
        torch  `in_proj_weight`, or `q_proj_weight`, `k_` and `v_`; `out_proj.weight`  all or none
        bert   `attention.self.query`, `.key`, `.value`; `attention.output.dense`      all
        gpt2   `c_attn`, `c_proj`, stored (in, out)                                    all
        llama  `q_proj`, `k_proj`, `v_proj`, `o_proj`                                  none or all
        qwen2  the same                                                                q, k, v
        qwen3  the same, `q_norm`, `k_norm`                                            none or all
        =====  ======================================================================  ===========

        LLaMA and Qwen turn queries and keys by their positions: without `rope` the module does not.  torch's `add_zero_attn` leaves no
        trace in a state_dict and is not looked for.
        """
        parts = read(tensors, form, prefix, "from_state")
        rows, embed_dim = len(parts["q_weight"]), len(parts["out_weight"])
        heads = as_count("num_heads", num_heads, WHO)
        if not rows or rows % heads:
            raise ValueError(bad("num_heads", f"a divisor of the {rows} rows of the query weight", str(heads), "from_state"))
        module = cls.__new__(cls)
        module._allocate(
            embed_dim,
            heads,
            num_kv_heads=max(1, len(parts["k_weight"]) * heads // rows),
            head_dim=rows // heads,
            kdim=parts["k_weight"].shape[1],
            vdim=parts["v_weight"].shape[1],
            qkv_bias="q_bias" in parts,
            out_bias="out_bias" in parts,
            extra_kv="extra_key" in parts,
            rope=rope,
            qk_norm=1e-6 if qk_norm is None and "q_norm" in parts else qk_norm,
            dtype=np.result_type(*parts.values()),
        )
        if module.q_norm is not None and "q_norm" not in parts:
            raise ValueError(bad("qk_norm", "None, as there are no norms of queries and keys", repr(qk_norm), "from_state"))
        for name, part in module._parts().items():
            if part.size == parts[name].size and name.startswith("extra"):
                parts[name] = parts[name].reshape(part.shape)
            if part.shape != parts[name].shape:
                wanted = f"shape {part.shape} for width {embed_dim} and {heads} heads of {rows // heads}"
                raise ValueError(bad(f"tensors, {name}", wanted, shape_text(parts[name]), "from_state"))
            part[...] = parts[name]
        return module

    def state(self, form: FormName = "torch", *, prefix: str = "") -> dict[str, Array]:
        """The weights as a checkpoint names them; the inverse of `from_state`.

        Parameters
        ----------
        form, prefix
            As of `from_state`; "torch" is what `load_state_dict` of a torch.nn.MultiheadAttention takes, once they are tensors.

        Returns
        -------
        dict of ndarray
            Copies, C-contiguous: ``safetensors.numpy.save_file(m.state("llama"), path)`` writes a file.

        Raises
        ------
        ValueError
            A form that cannot hold this module: grouped heads, other biases, norms; `rope` fits those that turn, which do not tell it.
        """
        return write(self._parts(), self.rope is not None, form, prefix, "state")
