"""Looking inside a model: what every layer's attention read, matched and brought back, and what becomes of it all after an intervention."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

import qkvc
from qkvc._coerce import as_array, as_count, as_listed, as_mask, as_per_head, bad, integers_within, shape_text

if TYPE_CHECKING:
    from os import PathLike
    from typing import Literal, Self

    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float32]
    Change = Callable[[Array], ArrayLike]
    Precision = Literal["bf16"] | None


class Edit(NamedTuple):
    """An intervention on the attention of one layer; what is None is left alone.

    They apply in the order query, key, value, mask, head_scale, replace.  Several edits of a layer add up: masks are intersected, scales
    multiplied, functions called one after the other.  No matrix of weights is made for any of them: masks and scales are options of
    `qkvc.attention`.

    Attributes
    ----------
    layer : int
        0 is the first.
    head_scale : array_like of float, shape (H,), optional
        What each head brings back is multiplied by it: 0 removes the head, 1 leaves it.
    mask : array_like of bool, shape (H, L, L), (1, L, L) or (L, L), optional
        Which keys (columns) each query (row) may attend to, among those that the model allows: False knocks the edge out, and the
        other weights of its row still sum to 1.
    replace : callable, optional
        Given what the heads bring back, (H, L, Dv), returns what W_O gets instead, of the same shape; it may write to what it is given.
    value : callable, optional
        Given the values, (H_kv, L, Dv), returns those that are attended to, likewise.
    query, key : callable, optional
        Given the queries, (H, L, D), or the keys, (H_kv, L, D), normed and rotated where the model does that, returns those that are
        matched, likewise.

    Examples
    --------
    >>> import numpy as np
    >>> from qkvc.models import Edit
    >>> without_head_3 = Edit(layer=1, head_scale=[1, 1, 1, 0])
    >>> zeroed_token_5 = Edit(layer=0, value=lambda v: v * (np.arange(v.shape[1]) != 5)[:, np.newaxis])
    """

    layer: int
    head_scale: ArrayLike | None = None
    mask: ArrayLike | None = None
    replace: Change | None = None
    value: Change | None = None
    query: Change | None = None
    key: Change | None = None


class Watch(NamedTuple):
    """What a model did with L tokens, float32; lists have an item for each layer.

    Attributes
    ----------
    tokens : list of str
    ids : ndarray of int64, shape (L,)
    inputs : list of ndarray, shape (L, E)
        What each layer's attention read: behind its norm where the model has one before attention.
    query : list of ndarray, shape (H, L, D)
    key : list of ndarray, shape (H_kv, L, D)
        As attention matched them, normed and rotated where the model does that.
    value : list of ndarray, shape (H_kv, L, Dv)
    heads : list of ndarray, shape (H, L, Dv)
        What each head brought back, and W_O got.
    attention : list of MultiHeadAttention
        The layers' own, with their weights.
    causal : bool
        Does a token see only itself and those before it?
    states : ndarray, shape (layers + 1, L, E)
        The hidden states, or residual stream: the embeddings, then what left each layer.
    output : ndarray, shape (L, E)
        The last of them, behind the model's final norm where it has one.
    masks : list of (ndarray of bool, shape (H or 1, L, L), or None)
        What the edits left of the edges.
    """

    tokens: list[str]
    ids: NDArray[np.int64]
    inputs: list[Array]
    query: list[Array]
    key: list[Array]
    value: list[Array]
    heads: list[Array]
    attention: list[qkvc.MultiHeadAttention]
    causal: bool
    states: Array
    output: Array
    masks: list[NDArray[np.bool_] | None]

    def weights(self, layer: int, heads: Sequence[int] | None = None) -> Array:
        """How much each query (row) of a layer took of each key (column), computed now: (H, L, L), or of the chosen heads.

        Rows sum to 1, or to 0 where nothing could be attended to.  They do not know of `head_scale`, `value` and `replace`.
        """
        layer = _layer(layer, len(self.query), "weights")
        weights: Array = qkvc.attention_weights(self.query[layer], self.key[layer], causal=self.causal, mask=self.masks[layer], heads=heads)
        return weights


def _layer(layer: Any, count: int, who: str) -> int:
    if (index := as_count("layer", layer, who, least=0)) >= count:
        raise ValueError(bad("layer", f"an integer from 0 to {count - 1}", str(index), who))
    return index


class Edited:
    """All edits of one layer, checked."""

    def __init__(self) -> None:
        self.scale: NDArray[np.float64] | None = None
        self.mask: NDArray[np.bool_] | None = None
        self.changes: dict[str, list[Change]] = {"query": [], "key": [], "value": [], "replace": []}

    def take(self, edit: Edit, heads: int, length: int) -> None:
        if edit.head_scale is not None:
            scale = as_per_head("head_scale", edit.head_scale, (heads,), False, "watch")
            self.scale = scale if self.scale is None else self.scale * scale
        if edit.mask is not None:
            mask = np.array(as_mask(edit.mask), ndmin=3)
            if mask.shape not in ((heads, length, length), (1, length, length)):
                raise ValueError(bad("mask", f"shape ({heads} or 1, {length}, {length})", shape_text(edit.mask), "watch"))
            self.mask = mask if self.mask is None else self.mask & mask
        for name, changes in self.changes.items():
            change = getattr(edit, name)
            if change is not None:
                if not callable(change):
                    raise TypeError(bad(name, "a function of an array", type(change).__name__, "watch"))
                changes.append(change)


def _changed(name: str, x: Array, its: Edited) -> Array:
    """What the functions make of (H, L, D), which nobody else reads: they may write to it."""
    for change in its.changes[name]:
        got = as_array(name, change(x), "watch")
        if got.shape != x.shape:
            raise ValueError(bad(name, f"a result of shape {x.shape}", shape_text(got), "watch"))
        if got.dtype.kind not in "fiu":
            raise TypeError(bad(name, "a result of real numbers", str(got.dtype), "watch"))
        x = got.astype(x.dtype)
    return x


class _Seen(NamedTuple):
    query: list[Array]
    key: list[Array]
    value: list[Array]
    heads: list[Array]


class Block(Protocol):
    """One layer of a model, cut where attention begins and ends."""

    attention: qkvc.MultiHeadAttention

    def reads(self, x: Array) -> Array:
        """What attention reads of the hidden states (..., L, E)."""

    def after(self, x: Array, attended: Array) -> Array:
        """The next hidden states, given these and what attention brought back."""


class Model(ABC):
    """What all models have in common: words, layers, a tokenizer, and that they can be watched.

    Attributes
    ----------
    layers : list
        Each has `attention`, a `qkvc.MultiHeadAttention`.
    words : ndarray, shape (vocabulary, E)
    causal : bool
        Does a token see only itself and those before it?
    max_tokens : int or None
        How many there are positions for.
    tokenizer : tokenizers.Tokenizer or None
    """

    causal: bool
    layers: Sequence[Block]
    words: Array
    max_tokens: int | None = None
    tokenizer: Any = None
    precision: Precision = None

    @abstractmethod
    def _embedded(self, ids: NDArray[np.int64]) -> Array:
        """The first hidden states of tokens (L,)."""

    def _finished(self, x: Array) -> Array:
        """The output, given the last hidden states."""
        return x

    @classmethod
    def from_directory(cls, path: str | PathLike[str]) -> Self:
        """Read a model from its files, as `qkvc.models.load` does; one of another kind is refused."""
        from qkvc.models.loading import read

        return read(path, cls)

    def _speak(self, tokenizer: Any) -> None:
        """Take a tokenizer, which neither pads nor cuts: MiniLM's file asks for 128 tokens whatever the sentence."""
        self.tokenizer = tokenizer
        if tokenizer is not None:
            tokenizer.no_padding()
            tokenizer.no_truncation()

    @property
    def num_layers(self) -> int:
        """How many layers there are."""
        return len(self.layers)

    @property
    def num_heads(self) -> int:
        """How many query heads each layer has."""
        return self.layers[0].attention.num_heads

    def tokens(self, text: str | Sequence[int]) -> tuple[list[str], NDArray[np.int64]]:
        """The tokens of a text, with those that the model adds around it: as text and as numbers.

        Parameters
        ----------
        text : str, or sequence of int
            Token numbers are taken as they are.

        Returns
        -------
        list of str, ndarray of int64
            Without a tokenizer a token is called by its number.

        Raises
        ------
        ValueError, TypeError
            No token or more than there are positions for, numbers that are none of the vocabulary, a text and no tokenizer.
        """
        if isinstance(text, str):
            if self.tokenizer is None:
                raise ValueError(bad("text", "token numbers, as the model came without a tokenizer (tokenizer.json)", "a str", "tokens"))
            try:
                text.encode()
            except UnicodeEncodeError as error:  # what a terminal's bytes become that are not UTF-8
                raise ValueError(bad("text", "letters", f"{text[error.start]!r}, half of one", "tokens")) from None
            (encoding,) = self.tokenizer.encode_batch([text])
            text = encoding.ids
        given = as_array("text", text, "tokens")
        ids = integers_within("text", given if given.size else given.astype(np.int64), 0, len(self.words) - 1, "tokens")
        most = self.max_tokens
        if ids.ndim != 1 or not ids.size or (most is not None and ids.size > most):
            got = f"{ids.size:,} of them" if ids.ndim == 1 else shape_text(ids)
            raise ValueError(bad("text", "1 token or more" if most is None else f"1 to {most:,} tokens", got, "tokens"))
        return [self._name(token) for token in ids.tolist()], ids

    def _name(self, token: int) -> str:
        if self.tokenizer is None:
            return str(token)
        # Where tokens are bytes, "é" is "Ã©" in the vocabulary, and only their decoding is text.
        if type(getattr(self.tokenizer, "decoder", None)).__name__ == "ByteLevel":
            return str(self.tokenizer.decode([token], skip_special_tokens=False))
        name = self.tokenizer.id_to_token(token)
        return str(token) if name is None else name.replace("\N{LOWER ONE EIGHTH BLOCK}", " ")  # SentencePiece's space

    def watch(self, text: str | Sequence[int], edits: Sequence[Edit] = ()) -> Watch:
        """Compute one text and keep what happened inside.

        Parameters
        ----------
        text : str, or sequence of int
            As of `tokens`.
        edits : sequence of Edit
            Interventions; the layers behind them see what they made of it.

        Returns
        -------
        Watch
            It holds 2 L (E + H D + H_kv D) numbers a layer, and no weights: `Watch.weights` computes those of a layer when asked.

        Raises
        ------
        ValueError, TypeError
            Of `tokens`; edits that do not fit the model or the text.
        """
        tokens, ids = self.tokens(text)
        edited = [Edited() for _ in self.layers]
        for edit in as_listed("edits", edits, "a sequence of Edit", "watch"):
            if not isinstance(edit, Edit):
                raise TypeError(bad("edits", "a sequence of Edit", f"a {type(edit).__name__} in it", "watch"))
            index = _layer(edit.layer, self.num_layers, "watch")
            edited[index].take(edit, self.layers[index].attention.num_heads, len(ids))
        states = [self._embedded(ids)]
        inputs, seen = [], _Seen([], [], [], [])
        for layer, its in zip(self.layers, edited, strict=True):
            inputs.append(layer.reads(states[-1]))
            parts = zip(("query", "key", "value"), layer.attention.project(inputs[-1]), strict=True)
            query, key, value = (_changed(name, part.swapaxes(-3, -2), its) for name, part in parts)
            options: dict[str, Any] = {"mask": its.mask, "head_scale": its.scale, "precision": self.precision}
            heads = _changed("replace", qkvc.attention(query, key, value, causal=self.causal, **options), its)
            for part, x in zip(seen, (query, key, value, heads), strict=True):
                part.append(x)
            states.append(layer.after(states[-1], layer.attention.output(heads)))
        attention, masks = [layer.attention for layer in self.layers], [its.mask for its in edited]
        return Watch(tokens, ids, inputs, *seen, attention, self.causal, np.stack(states), self._finished(states[-1]), masks)
