"""One HTML file that shows what every head of a model does with a text."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qkvc._coerce import as_finite, as_listed, as_operand, bad, shape_text
from qkvc._files import write_whole
from qkvc.analysis.heads import HeadStatistics
from qkvc.inside import AttentionStats

__all__ = ["keeps_matrix", "report"]

Layer = tuple[NDArray[Any] | None, NDArray[Any]]  # weights (H, L, L), or of some keys: which, (H, L, k), and their weights

BUDGET = 40_000_000  # bytes of weights: 12 x 12 x 512^2 are 37.7 million, and 50.3 in base64 where nothing compresses
MOST_LINKS = 16  # of a query, where the matrix is too large: what one can still follow
LONGEST = 1 << 16  # tokens: a link names its key in 16 bits
ROUNDED = 0.01  # by which a row may exceed 1: bfloat16 has 8 bits
STATISTICS = ("entropy", "normalised_entropy", "confidence", "distance", "first_mass")  # of HeadStatistics, a number for each head
TITLES = {"en": "Attention", "zh": "注意力"}
SCRIPTS = ("words.js", "weights.js", "overview.js", "head.js", "page.js")


def keeps_matrix(layers: int, heads: int, tokens: int, *, causal: bool) -> bool:
    """Tell whether `report` keeps every weight, or only the largest of each query.

    All are kept where they fit into 40 MB at one byte each, of causal attention the half that is not 0: 12 x 12 heads of 512 tokens, or of
    740 if causal.  Beyond, so many links of each query as fit, 16 at most.

    Parameters
    ----------
    layers, heads, tokens : int
        The sizes of the model and of the text.
    causal : bool
        Is every weight to the right of the diagonal 0?

    Returns
    -------
    bool
    """
    return layers * heads * (tokens * (tokens + 1) // 2 if causal else tokens * tokens) <= BUDGET


def report(
    path: str | os.PathLike[str],
    tokens: Sequence[str],
    weights: ArrayLike | Sequence[ArrayLike | AttentionStats],
    *,
    title: str | None = None,
    statistics: Mapping[str, ArrayLike] | None = None,
    roles: Sequence[Sequence[Any]] | NDArray[np.object_] | None = None,
    ablation: Mapping[str, ArrayLike] | None = None,
    language: Literal["en", "zh"] = "en",
) -> Path:
    """Write a page that shows all heads of a model, each head's links between tokens, and tables.

    The page is one file, which asks nothing of the network and forbids itself to: it can be opened from a disk, mailed and kept.

    Parameters
    ----------
    path : path
        Where; a file that is there is replaced, when the new one is whole.
    tokens : sequence of str, length L
        The text.  Whatever a token contains is shown as text.
    weights : array_like, shape (layers, H, L, L), or sequence with an item for each layer
        How much each query (row) takes of each key (column).  An item is (H, L, L) or, for a text whose matrix nobody wants to hold, what
        `attention_stats(query, key, top_k=k)` says of query (H, L, D).
    title : str, optional
        "Attention" by default, in the language of the page.
    statistics : mapping of str to array_like, shape (layers, H), optional
        A number for each head by the name of what it is; NaN for none.  By default, of layers that came as weights, what
        `qkvc.analysis.HeadStatistics.from_weights` has: entropy, confidence, distance, the first token's share.
    roles : sequence of sequence or ndarray of object, shape (layers, H), optional
        Of each head None, a name, or a pair (name, score), as from `qkvc.analysis.head_roles`.
    ablation : mapping of str to array_like, shape (layers, H), optional
        What changes when a head is ablated, such as the change of `qkvc.analysis.ablate`; as `statistics`.
    language : {"en", "zh"}, default "en"
        The page begins with; it has a switch.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        Shapes that do not fit; a weight that is negative or NaN, a row of weights that sums to more than 1; too many tokens.
    TypeError
        Weights that are no real numbers, tokens that are no strings.
    OSError
        The file cannot be written; what was there is there still.

    Notes
    -----
    A weight becomes one of 256 levels between 0 and the largest of its query, so it is off by at most 1/510 of that.  Where all weights
    would take more than 40 MB (`keeps_matrix`), the k largest of each query are kept, k = 40 MB / (3 bytes x layers x H x L), 16 at most.
    What is kept is deflated, which the browser must know how to undo: Chromium from 80, Firefox from 113, Safari from 16.4.

    Examples
    --------
    >>> from qkvc.models import MiniLM
    >>> from qkvc.report import report
    >>> report("look.html", *MiniLM.from_package().attention_maps("The animal was too tired."))  # doctest: +SKIP
    """
    if language not in tuple(TITLES):
        raise ValueError(bad("language", '"en" or "zh"', repr(language), "report"))
    labels = _labels(tokens)
    given = _layers(weights, len(labels))
    count, heads = len(given), len(given[0][1])
    causal = not any(_looks_ahead(layer) for layer in given)
    if statistics is None:
        statistics = _told(given, causal)
    links = 0
    if any(keys is not None for keys, _ in given) or not keeps_matrix(count, heads, len(labels), causal=causal):
        links = _links_of_each(given, heads, len(labels))
        given = [_strongest(layer, links) for layer in given]
    about = {
        "language": language,
        "tokens": labels,
        "layers": count,
        "heads": heads,
        "causal": causal,
        "links": links,
        "statistics": _numbers("statistics", statistics, (count, heads)),
        "roles": _roles(roles, (count, heads)),
        "ablation": _numbers("ablation", ablation, (count, heads)),
    }
    heading = TITLES[language] if title is None else str(title)
    return write_whole(path, _page(heading, about, (_packed(layer, causal) for layer in given)))


# --- what was given --------------------------------------------------------------------------------------------------------------------


def _labels(tokens: Any) -> list[str]:
    if isinstance(tokens, str):
        raise TypeError(bad("tokens", "a sequence of strings", "one string", "report"))
    labels = as_listed("tokens", tokens, "a sequence of strings", "report")
    for token in labels:
        if not isinstance(token, str):
            raise TypeError(bad("tokens", "strings", f"a {type(token).__name__} among them", "report"))
    if not 1 <= len(labels) <= LONGEST:
        raise ValueError(bad("tokens", f"1 to {LONGEST:,}", f"{len(labels):,}", "report"))
    return [str(token) for token in labels]


def _layers(weights: Any, length: int) -> list[Layer]:
    """Keys, None where there is a weight for each, and weights, of all layers."""
    if not isinstance(weights, (list, tuple)) or isinstance(weights, AttentionStats):
        weights = as_operand("weights", weights, "report")
        if weights.ndim != 4:
            raise ValueError(bad("weights", f"shape (layers, H, {length}, {length})", shape_text(weights), "report"))
    if not len(weights):
        raise ValueError(bad("weights", "a layer or more", "none", "report"))
    layers = [
        _links(layer, index, length) if isinstance(layer, AttentionStats) else _matrix(layer, index, length)
        for index, layer in enumerate(weights)
    ]
    for index, (_, kept) in enumerate(layers):
        if not len(kept) or len(kept) != len(layers[0][1]):
            wanted = f"as many heads as in layer 0, {len(layers[0][1])}" if len(kept) else "a head or more"
            raise ValueError(bad("weights", wanted, f"{len(kept)} in layer {index}", "report"))
    return layers


def _matrix(given: Any, layer: int, length: int) -> Layer:
    weights = as_operand("weights", given, "report")
    if weights.ndim != 3 or weights.shape[1:] != (length, length):
        wanted = f"shape (H, {length}, {length}) of a layer, for {length} tokens"
        raise ValueError(bad("weights", wanted, f"{shape_text(weights)} in layer {layer}", "report"))
    _check(weights, layer)
    return None, weights


def _links(given: AttentionStats, layer: int, length: int) -> Layer:
    keys, weights = given.top_keys, given.top_weights
    if keys is None or weights is None:
        raise ValueError(bad("weights", "attention_stats with top_k", f"top_k=0 in layer {layer}", "report"))
    if keys.ndim != 3 or keys.shape != weights.shape or keys.shape[1] != length:
        wanted = f"top_keys and top_weights of shape (H, {length}, k), for {length} tokens"
        raise ValueError(bad("weights", wanted, f"{shape_text(keys)} and {shape_text(weights)} in layer {layer}", "report"))
    if keys.min() < -1 or keys.max() >= length:
        raise ValueError(bad("weights", f"top_keys from -1 to {length - 1}", f"{keys.min()} to {keys.max()} in layer {layer}", "report"))
    _check(weights, layer)
    return keys, weights


def _check(weights: NDArray[Any], layer: int) -> None:
    for head, rows in enumerate(weights):
        sums = rows.astype(np.float64).sum(-1)
        if not np.isfinite(sums).all():
            raise ValueError(bad("weights", "finite numbers", f"NaN or infinity in layer {layer}, head {head}", "report"))
        if (least := float(rows.min(initial=0))) < 0:
            raise ValueError(bad("weights", "numbers of 0 or more", f"{least:.3g} in layer {layer}, head {head}", "report"))
        if (most := float(sums[query := int(sums.argmax())])) > 1 + ROUNDED:
            where = f"{most:.4g} in layer {layer}, head {head}, query {query}"
            raise ValueError(bad("weights", "rows that sum to 1 at most", where, "report"))


def _told(layers: Sequence[Layer], causal: bool) -> dict[str, NDArray[np.float64]]:
    if any(keys is not None for keys, _ in layers):
        return {}
    found = [HeadStatistics.from_weights(weights, causal=causal) for _, weights in layers]
    return {name: np.stack([getattr(of, name) for of in found]) for name in STATISTICS}


def _looks_ahead(layer: Layer) -> bool:
    keys, weights = layer
    if keys is None:
        return any(np.triu(rows, 1).any() for rows in weights)
    return bool(weights[keys > np.arange(keys.shape[1])[:, np.newaxis]].any())


def _numbers(name: str, given: Mapping[str, ArrayLike] | None, shape: tuple[int, int]) -> list[dict[str, Any]]:
    """Each with six digits, None where it is not finite: JSON has no NaN."""
    if given is None:
        return []
    if not isinstance(given, Mapping):
        raise TypeError(bad(name, "a mapping of names to arrays", type(given).__name__, "report"))
    columns = []
    for key, numbers in given.items():
        array = as_operand(f"{name}[{key!r}]", numbers, "report").astype(np.float64)
        if array.shape != shape:
            raise ValueError(bad(f"{name}[{key!r}]", f"shape {shape}, a number for each head", shape_text(array), "report"))
        columns.append({"name": str(key), "values": [[_digits(x) for x in row] for row in array.tolist()]})
    return columns


def _digits(x: float) -> float | None:
    return float(f"{x:.6g}") if np.isfinite(x) else None


def _roles(given: Any, shape: tuple[int, int]) -> list[list[dict[str, Any] | None]] | None:
    if given is None:
        return None
    wanted = f"{shape[0]} rows of {shape[1]}, one for each head"
    rows = [as_listed("roles", row, wanted, "report") for row in as_listed("roles", given, wanted, "report")]
    if len(rows) != shape[0] or any(len(row) != shape[1] for row in rows):
        got = f"{len(rows)} rows of {', '.join(map(str, sorted({len(row) for row in rows})))}"
        raise ValueError(bad("roles", wanted, got, "report"))
    return [[_role(role) for role in row] for row in rows]


def _role(role: Any) -> dict[str, Any] | None:
    if role is None:
        return None
    name, score = (role, None) if isinstance(role, str) else role if isinstance(role, tuple) and len(role) == 2 else (None, None)
    if not isinstance(name, str):
        raise TypeError(bad("roles", "None, a name, or a pair (name, score) for each head", repr(role)[:40], "report"))
    return {"name": name, "score": None if score is None else _digits(as_finite("roles", score, "report"))}


# --- what is kept ----------------------------------------------------------------------------------------------------------------------


def _links_of_each(layers: Sequence[Layer], heads: int, length: int) -> int:
    """How many links of each query fit; each is a key in two bytes and a level in one."""
    fit = BUDGET // (3 * len(layers) * heads * length)
    if not fit:
        most = BUDGET // (3 * len(layers) * heads)
        raise ValueError(bad("tokens", f"{most:,} at most, with {len(layers)} layers of {heads} heads", f"{length:,}", "report"))
    return min(MOST_LINKS, fit, *(int(weights.shape[-1]) for _, weights in layers))


def _strongest(layer: Layer, count: int) -> Layer:
    """Keys and weights of each query's largest, in no order."""
    keys, weights = layer
    if keys is not None:  # attention_stats has them in order
        return keys[..., :count], weights[..., :count]
    chosen = np.empty((*weights.shape[:2], count), np.int64)
    for head, rows in enumerate(weights):  # head by head, as this takes eight bytes a weight
        chosen[head] = np.argpartition(rows, -count, axis=-1)[:, -count:]
    return chosen, np.take_along_axis(weights, chosen, -1)


def _packed(layer: Layer, causal: bool) -> bytes:
    """The largest weight of each query in float32; of links the keys in 16 bits; then levels, of a causal matrix its triangle."""
    keys, weights = layer
    largest = weights.max(-1).astype("<f4")
    unit = np.where(largest > 0, largest, 1).astype(np.float64) / 255
    parts = [largest.tobytes()]
    if keys is not None:
        parts.append(np.maximum(keys, 0).astype("<u2").tobytes())  # -1 has no weight
    triangle = np.tril_indices(weights.shape[1]) if keys is None and causal else ...
    for rows, its in zip(weights, unit, strict=True):
        parts.append(np.rint(rows / its[:, np.newaxis]).astype(np.uint8)[triangle].tobytes())
    return zlib.compress(b"".join(parts), 6)


def _page(title: str, about: Mapping[str, Any], layers: Iterable[bytes]) -> Iterator[bytes]:
    """The file, in pieces."""
    page = files("qkvc") / "page"
    script = "\n".join((page / name).read_text("utf-8") for name in SCRIPTS)
    style = (page / "page.css").read_text("utf-8")
    policy = (
        f"default-src 'none'; script-src {_source(script)}; style-src {_source(style)}; img-src data:; base-uri 'none'; form-action 'none'"
    )
    # Everything but ASCII is escaped, U+2028 and lone halves of surrogate pairs among it, and "<", which could end the element.
    data = json.dumps(about, allow_nan=False, separators=(",", ":")).replace("<", r"\u003c")
    fields = {"language": about["language"], "title": html.escape(title), "policy": policy, "style": style, "data": data, "script": script}
    before, after = (Template(half).substitute(fields) for half in (page / "page.html").read_text("utf-8").split("$layers"))
    yield before.encode("utf-8", "replace")
    for index, content in enumerate(layers):
        yield f'<script type="text/plain" id="layer-{index}">'.encode() + base64.b64encode(content) + b"</script>\n"
    yield after.encode("utf-8", "replace")


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
