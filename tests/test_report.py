"""What a report keeps of the weights, that it is one closed file, and what it refuses; `test_report_page.py` opens it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import qkvc
from qkvc import report as module
from qkvc.inside import AttentionStats
from qkvc.report import keeps_matrix, report

from .support import assert_refused

HOSTILE = [
    "<script>alert(1)</script>",
    "</script>",
    "<!--",
    "\"'&amp;`",
    "שלום",
    "👩‍👩‍👧",
    "a\u2028b",
    "\n",
    "\u202egnp",
    "\ud800",
    "",
    "\0",
    "${x}",
    "$data",
]


class Elements(HTMLParser):
    """The start tags with their attributes, and the text of each script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("script", "style") and data.strip():
            self.texts.append((*self.tags[-1], data))


def softmaxed(rng: np.random.Generator, *shape: int, causal: bool = False) -> NDArray[np.float32]:
    scores = 2 * rng.standard_normal(shape)
    if causal:
        scores = np.where(np.tri(shape[-1], dtype=bool), scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return (p / p.sum(-1, keepdims=True)).astype(np.float32)


def opened(path: Path) -> tuple[dict[str, Any], list[bytes], Elements]:
    """The data of a page, what each layer unpacks to, and its elements."""
    elements = Elements(path.read_text("utf-8"))
    scripts = {attributes.get("id"): text for tag, attributes, text in elements.texts if tag == "script"}
    about = json.loads(scripts["data"] or "")
    return about, [zlib.decompress(base64.b64decode(scripts[f"layer-{n}"])) for n in range(about["layers"])], elements


def unpacked(about: dict[str, Any], content: bytes) -> NDArray[np.float64]:
    """The weights (H, L, L) that a page knows of a layer."""
    heads, length, links = about["heads"], len(about["tokens"]), about["links"]
    rows = heads * length
    unit = np.frombuffer(content, "<f4", rows).reshape(heads, length, 1).astype(np.float64) / 255
    weights = np.zeros((heads, length, length))
    if links:
        keys = np.frombuffer(content, "<u2", rows * links, 4 * rows).reshape(heads, length, links).astype(np.int64)
        levels = np.frombuffer(content, np.uint8, rows * links, (4 + 2 * links) * rows).reshape(keys.shape)
        for head, query, n in np.argwhere(levels > 0):
            weights[head, query, keys[head, query, n]] = levels[head, query, n]
    elif about["causal"]:
        weights[:, np.tri(length, dtype=bool)] = np.frombuffer(content, np.uint8, offset=4 * rows).reshape(heads, -1)
    else:
        weights[...] = np.frombuffer(content, np.uint8, offset=4 * rows).reshape(weights.shape)
    return weights * unit


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_weights_are_off_by_half_a_level_at_most(tmp_path: Path, rng: np.random.Generator, causal: bool, dtype: Any) -> None:
    weights = softmaxed(rng, 2, 3, 17, 17, causal=causal).astype(dtype)
    weights[1, 2, 5] = 0  # a query that may attend to nothing
    about, layers, _ = opened(report(tmp_path / "r.html", [f"w{n}" for n in range(17)], weights))
    assert (about["layers"], about["heads"], about["causal"], about["links"]) == (2, 3, causal, 0)
    for exact, content in zip(weights.astype(np.float64), layers, strict=True):
        bound = exact.max(-1, keepdims=True) / 510 * (1 + 1e-4)  # and the rounding of its largest to float32
        assert (np.abs(unpacked(about, content) - exact) <= bound).all()


def test_a_layer_may_come_alone(tmp_path: Path, rng: np.random.Generator) -> None:
    weights = softmaxed(rng, 2, 3, 5, 5)
    whole, parts = (report(tmp_path / name, list("abcde"), given) for name, given in (("whole", weights), ("parts", list(weights))))
    assert whole.read_bytes() == parts.read_bytes()


def test_too_much_for_a_page_becomes_links(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule of `keeps_matrix`, with a smaller budget."""
    monkeypatch.setattr(module, "BUDGET", 2 * 3 * 40 * 3 * 5)
    weights = softmaxed(rng, 2, 3, 40, 40)
    about, layers, _ = opened(report(tmp_path / "r.html", ["w"] * 40, weights))
    assert about["links"] == 5
    for exact, content in zip(weights, layers, strict=True):
        largest = exact >= np.sort(exact, axis=-1)[..., -5:-4]
        kept = unpacked(about, content)
        assert (kept[~largest] == 0).all()
        assert (np.abs(kept - exact) <= exact.max(-1, keepdims=True) / 509)[largest].all()
    monkeypatch.setattr(module, "BUDGET", 700)
    assert_refused(lambda: report(tmp_path / "s.html", ["w"] * 40, weights), ValueError, "tokens", "38 at most", "40")
    assert not (tmp_path / "s.html").exists()


def test_the_rule() -> None:
    assert keeps_matrix(12, 12, 512, causal=False)
    assert not keeps_matrix(12, 12, 740, causal=False)
    assert keeps_matrix(12, 12, 740, causal=True)
    assert not keeps_matrix(12, 12, 1024, causal=True)


def test_links_of_attention_stats(tmp_path: Path, rng: np.random.Generator) -> None:
    """No matrix anywhere: 1,000 tokens of two layers, against explicit weights of some queries."""
    query, key = rng.standard_normal((2, 2, 4, 1000, 16), dtype=np.float32)
    layers = [qkvc.attention_stats(query[n], key[n], causal=True, top_k=7) for n in range(2)]
    about, contents, _ = opened(report(tmp_path / "r.html", ["w"] * 1000, layers))
    assert (about["links"], about["causal"]) == (7, True)
    kept = unpacked(about, contents[1])[2, 999]
    scores = key[1, 2].astype(np.float64) @ query[1, 2, 999] / 4
    exact = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    assert set(np.flatnonzero(kept)) <= set(np.argsort(-exact)[:7])
    assert (np.abs(kept - exact)[kept > 0] <= exact.max() / 509).all()


def test_the_largest_page_is_under_60_mb(tmp_path: Path, rng: np.random.Generator) -> None:
    """12 x 12 x 512^2 levels that nothing compresses, and all else at its size."""
    row = rng.integers(1, 256, 512 * 512).astype(np.float32).reshape(512, 512)
    layer = np.broadcast_to(row / row.sum(-1, keepdims=True), (12, 512, 512))
    size = report(tmp_path / "r.html", ["token"] * 512, [layer]).stat().st_size
    # A twelfth of the layers: zlib does not find the heads equal, as they lie further apart than it looks back.
    assert 12 * size < 60e6
    assert 12 * size > 45e6


def test_one_closed_file(tmp_path: Path, rng: np.random.Generator) -> None:
    """Nothing outside is named, and the policy allows exactly the script and the style that are inside."""
    path = report(tmp_path / "r.html", list("abc"), softmaxed(rng, 1, 2, 3, 3))
    text = path.read_text("utf-8")
    _, _, elements = opened(path)
    assert set(re.findall(r"\b(?:https?|wss?|ftp)://[^\s\"'`)]*", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"\b(?:fetch|XMLHttpRequest|WebSocket|EventSource|sendBeacon|import)\b\s*\(", text)
    for tag, attributes in elements.tags:
        assert "src" not in attributes, tag
        assert tag != "link" or attributes["href"] == "data:,"
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
    (policy,) = [a["content"] or "" for tag, a in elements.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    for tag, attributes, content in elements.texts:
        if "type" not in attributes:
            digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            assert f"{tag}-src 'sha256-{digest}'" in policy


def test_hostile_tokens_stay_data(tmp_path: Path) -> None:
    n = len(HOSTILE)
    path = report(tmp_path / "r.html", HOSTILE, np.full((1, 1, n, n), 1 / n), title="</title><script>x</script>\0$data\ud800")
    about, _, elements = opened(path)
    assert about["tokens"] == HOSTILE
    assert [a.get("id") for tag, a in elements.tags if tag == "script"] == ["data", "layer-0", None]
    assert "</title><script>x" not in path.read_text("utf-8")


def test_statistics_roles_and_ablation(tmp_path: Path, rng: np.random.Generator) -> None:
    numbers = np.array([[1.23456789, np.nan], [np.inf, -2]])
    roles = [[None, "first"], [("previous", 0.5), ("previous", np.float32(0.25))]]
    weights = softmaxed(rng, 2, 2, 3, 3)
    path = report(
        tmp_path / "r.html", list("abc"), weights, statistics={"x<y": numbers}, roles=roles, ablation={"change": numbers}, language="zh"
    )
    about, _, elements = opened(path)
    assert about["statistics"] == [{"name": "x<y", "values": [[1.23457, None], [None, -2.0]]}]
    assert about["ablation"][0]["values"] == about["statistics"][0]["values"]
    assert about["roles"] == [
        [None, {"name": "first", "score": None}],
        [{"name": "previous", "score": 0.5}, {"name": "previous", "score": 0.25}],
    ]
    assert (about["language"], elements.tags[0]) == ("zh", ("html", {"lang": "zh"}))
    assert "<title>注意力</title>" in path.read_text("utf-8")


def test_weights_tell_their_statistics(tmp_path: Path) -> None:
    weights = np.array([[[[1, 0, 0], [0.5, 0.5, 0], [0, 0, 1]], np.tri(3) / [[1], [2], [3]]]])
    about, _, _ = opened(report(tmp_path / "r.html", list("abc"), weights))
    told = {of["name"]: of["values"][0] for of in about["statistics"]}
    assert told["entropy"] == pytest.approx([np.log(2) / 3, (np.log(2) + np.log(3)) / 3], rel=1e-5)
    assert told["normalised_entropy"] == pytest.approx([np.log(2) / (np.log(2) + np.log(3)), 1], rel=1e-5)
    assert told["confidence"] == pytest.approx([2.5 / 3, (1 + 1 / 2 + 1 / 3) / 3], rel=1e-5)
    assert told["distance"] == pytest.approx([0.5 / 3, 0.5], rel=1e-5)
    assert told["first_mass"] == pytest.approx([0.5, (1 + 1 / 2 + 1 / 3) / 3], rel=1e-5)


def test_both_languages_say_the_same_things() -> None:
    words = (Path(module.__file__).parent / "page" / "words.js").read_text("utf-8")
    english, chinese = (
        set(re.findall(r"\b(\w+):\s+\"", words[words.index(f"  {a}: {{") : words.index(b)]))
        for a, b in (("en", "  zh: {"), ("zh", "CHINESE"))
    )
    assert english == chinese
    assert len(english) > 30


GOOD = np.full((1, 2, 3, 3), 1 / 3)


def spoiled(value: float) -> NDArray[np.float64]:
    weights = GOOD.copy()
    weights[0, 1, 2, 0] = value
    return weights


STATS = AttentionStats(*[np.zeros((2, 3))] * 5, np.zeros((2, 3, 1), np.int64), np.ones((2, 3, 1)))


@pytest.mark.parametrize(
    ("change", "exception", "words"),
    [
        ({"tokens": "abc"}, TypeError, ["tokens", "one string"]),
        ({"tokens": ["a", "b", 3]}, TypeError, ["tokens", "strings", "int"]),
        ({"tokens": []}, ValueError, ["tokens", "1 to 65,536", "got 0"]),
        ({"tokens": ["a"] * 65537}, ValueError, ["tokens", "65,537"]),
        ({"tokens": ["a", "b"]}, ValueError, ["weights", "(H, 2, 2)", "(2, 3, 3)", "layer 0"]),
        ({"weights": GOOD[0]}, ValueError, ["weights", "(layers, H, 3, 3)", "(2, 3, 3)"]),
        ({"weights": GOOD[..., :2]}, ValueError, ["weights", "(H, 3, 3)", "(2, 3, 2)"]),
        ({"weights": GOOD[:0]}, ValueError, ["weights", "a layer"]),
        ({"weights": GOOD[:, :0]}, ValueError, ["weights", "a head"]),
        ({"weights": [GOOD[0], GOOD[0, :1]]}, ValueError, ["weights", "layer 0, 2", "1 in layer 1"]),
        ({"weights": None}, TypeError, ["weights", "None"]),
        ({"weights": GOOD.astype(complex)}, TypeError, ["weights", "complex"]),
        ({"weights": spoiled(np.nan)}, ValueError, ["weights", "finite", "layer 0, head 1"]),
        ({"weights": spoiled(-0.1)}, ValueError, ["weights", "0 or more", "-0.1", "layer 0, head 1"]),
        ({"weights": spoiled(0.5)}, ValueError, ["weights", "1 at most", "1.167", "layer 0, head 1, query 2"]),
        ({"weights": [STATS._replace(top_keys=None)]}, ValueError, ["weights", "top_k"]),
        ({"weights": [STATS._replace(top_keys=STATS.top_keys + 3)]}, ValueError, ["weights", "-1 to 2", "3"]),
        ({"weights": [STATS], "tokens": ["a", "b"]}, ValueError, ["weights", "(H, 2, k)"]),
        ({"statistics": [1]}, TypeError, ["statistics", "mapping", "list"]),
        ({"statistics": {"x": np.zeros(2)}}, ValueError, ["statistics['x']", "(1, 2)", "(2,)"]),
        ({"ablation": {"x": ["a", "b"]}}, TypeError, ["ablation['x']"]),
        ({"roles": [["first"]]}, ValueError, ["roles", "1 rows of 2"]),
        ({"roles": 5}, TypeError, ["roles", "1 rows of 2", "int"]),
        ({"roles": [None]}, TypeError, ["roles", "1 rows of 2", "NoneType"]),
        ({"roles": [["first", 3]]}, TypeError, ["roles", "3"]),
        ({"roles": [["first", ("x", np.nan)]]}, ValueError, ["roles", "finite"]),
        ({"language": "fr"}, ValueError, ["language", "'fr'"]),
        ({"language": ["en"]}, ValueError, ["language", "['en']"]),
        ({"tokens": 5}, TypeError, ["tokens", "strings", "int"]),
    ],
)
def test_misuse(tmp_path: Path, change: dict[str, Any], exception: type[Exception], words: list[str]) -> None:
    path = tmp_path / "r.html"
    path.write_text("what was there")
    arguments: dict[str, Any] = {"tokens": list("abc"), "weights": GOOD, **change}
    assert_refused(lambda: report(path, **arguments), exception, "report: ", *words)
    assert path.read_text() == "what was there"
    assert list(tmp_path.iterdir()) == [path]


def test_nowhere_to_write(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        report(tmp_path / "nowhere" / "r.html", list("abc"), GOOD)
