"""What a model takes from its checkpoint, and what it says where that is not there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import qkvc
from qkvc._coerce import as_count, as_flag, bad, shape_text
from qkvc._forms import real

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qkvc._weights import FormName

    Array = NDArray[np.float32]

_NOTHING = object()


class Config:
    """The values of a `config.json`, asked for by a model."""

    def __init__(self, values: Mapping[str, Any], who: str) -> None:
        self.values, self.who = values, who

    def get(self, name: str, default: Any = _NOTHING) -> Any:
        """A value; what is null counts as not there."""
        value = self.values.get(name)
        if value is None and default is _NOTHING:
            raise ValueError(bad(f"config: {name}", "a value", "none", self.who))
        return default if value is None else value

    def count(self, name: str, default: Any = _NOTHING) -> int:
        """A number of things, of which there is one at least."""
        return as_count(f"config: {name}", self.get(name, default), self.who)

    def flag(self, name: str, default: bool) -> bool:
        """A yes or no."""
        return as_flag(f"config: {name}", self.get(name, default), self.who)

    def only(self, name: str, *known: Any) -> Any:
        """A value that is one of these, of which the first is meant where there is none: what is not computed here is refused."""
        if (value := self.get(name, known[0])) not in known:
            raise ValueError(bad(f"config: {name}", " or ".join(map(repr, known)), repr(value), self.who))
        return value


class Tensors:
    """The tensors of a checkpoint whose names begin with `prefix`."""

    def __init__(self, given: Mapping[str, Any], who: str, prefix: str = "") -> None:
        self.given, self.who, self.prefix = given, who, prefix

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.given

    def under(self, prefix: str) -> Tensors:
        """Those of a part."""
        return Tensors(self.given, self.who, self.prefix + prefix)

    def take(self, name: str, *shape: int) -> Array:
        """One of them, in float32, which has to be of this shape."""
        full = self.prefix + name
        if full not in self.given:
            raise ValueError(bad("tensors", full, "none of this name", self.who))
        x = real(full, self.given[full], self.who)
        if x.shape != shape:
            raise ValueError(bad(full, f"shape {shape}", shape_text(x), self.who))
        return x.astype(np.float32, copy=False)

    def norm(self, name: str, width: int) -> tuple[Array, Array]:
        """A layer norm's weight and bias, which BERT's first checkpoints call gamma and beta."""
        if f"{name}.gamma" in self:
            return self.take(f"{name}.gamma", width), self.take(f"{name}.beta", width)
        return self.pair(name, width)

    def pair(self, name: str, *shape: int) -> tuple[Array, Array]:
        """A weight of this shape, and its bias, as wide as the weight's first axis."""
        return self.take(f"{name}.weight", *shape), self.take(f"{name}.bias", shape[0])

    def attention(
        self, width: int, heads: int, form: FormName | None, *, kv_heads: int | None = None, head_dim: int | None = None, **options: Any
    ) -> qkvc.MultiHeadAttention:
        """A layer of attention of these sizes; as many key heads as heads, together as wide as the model, unless told otherwise."""
        module = qkvc.MultiHeadAttention.from_state(self.given, heads, form=form, prefix=self.prefix, **options)
        sizes = {"width": width, "key heads": kv_heads or heads, "width of a head": head_dim or width // heads}
        found = module.embed_dim, module.num_kv_heads, module.head_dim
        for (what, wanted), got in zip(sizes.items(), found, strict=True):
            if wanted != got:
                raise ValueError(bad(f"{self.prefix}: {what}", str(wanted), str(got), self.who))
        return module if module.dtype == np.float32 else module.astype(np.float32)
