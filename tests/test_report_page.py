"""A report in a browser: what it shows, what mouse, keys and switches do, and that it asks for nothing and complains of nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qkvc.inside import AttentionStats
from qkvc.report import report

from .browser import CHROMIUM, Browser
from .test_report import HOSTILE, softmaxed

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page with")

TOKENS = ["[CLS]", "the", "animal", "was", "tired", "[SEP]"]
QUERY, KEY = 4, 2  # who looks at whom in head 1 of layer 1
LONG = 10_000
NONE = "\N{EN DASH}"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def weights() -> NDArray[np.float32]:
    weights = softmaxed(np.random.default_rng(6), 2, 3, len(TOKENS), len(TOKENS))
    weights[1, 1, QUERY] = [0.04, 0.03, 0.8, 0.08, 0.03, 0.02]
    return weights


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, weights: NDArray[np.float32]) -> Path:
    return report(
        tmp_path_factory.mktemp("small") / "r.html",
        TOKENS,
        weights,
        title="A <b>title</b>",
        statistics={"entropy": [[0.5, 1.5, 1.0], [2.0, np.nan, 0.1]]},
        roles=[[None, "first", "first"], [("previous", 0.9), ("first", 0.7), None]],
        ablation={"change": [[0.1, 0.2, 0.3], [0.6, 0.5, 0.4]]},
    )


@pytest.fixture
def page(browser: Browser, small: Path) -> Iterator[Browser]:
    """The small report at head 1 of layer 1; whatever a test does with it, it must not ask or complain."""
    browser.surroundings()
    browser.open(small, "#layer-1-head-1")
    yield browser
    browser.settle()
    assert browser.requests == [f"{small.resolve().as_uri()}#layer-1-head-1".split("#")[0]]
    assert browser.complaints == []


def texts(page: Browser, selector: str) -> Any:
    return page.ask(f"[...document.querySelectorAll({selector!r})].filter(e => e.checkVisibility()).map(e => e.textContent)")


def drawn(page: Browser) -> dict[tuple[int, int], dict[str, float]]:
    """The lines between tokens, by query and key."""
    lines = page.ask("""[...document.querySelectorAll("#lines path")].map(e => ({
        query: +e.dataset.query, key: +e.dataset.key, weight: +e.dataset.weight,
        width: +e.getAttribute("stroke-width"), opacity: +e.getAttribute("stroke-opacity")}))""")
    return {(line.pop("query"), line.pop("key")): line for line in lines}


def test_it_shows_every_head_and_the_chosen_one(page: Browser) -> None:
    assert texts(page, "h1") == ["A <b>title</b>"]
    assert page.ask("document.querySelectorAll('.cell').length") == 6
    assert texts(page, "#head-heading") == ["Layer 1, head 1"]
    assert texts(page, "#rows .query bdi") == texts(page, "#rows .key bdi") == TOKENS
    assert texts(page, "#facts li") == ["rolefirst 0.700", f"entropy{NONE}", "change0.500"]
    page.until("[...document.querySelectorAll('.cell canvas')].every(c => c.width > 1)")
    assert texts(page, "#sizes") == ["2 layers \N{MULTIPLICATION SIGN} 3 heads \N{MULTIPLICATION SIGN} 6 tokens"]


def test_pictures_have_the_colours_of_the_weights(page: Browser, weights: NDArray[np.float32]) -> None:
    """In daylight darker is more; a thumbnail's cells order as the weights do."""
    page.until("[...document.querySelectorAll('.cell canvas')].every(c => c.width > 1)")
    side, shades = page.ask("""(c => [c.width, [...c.getContext("2d").getImageData(0, 0, c.width, c.width).data]])
        (document.querySelectorAll(".cell canvas")[4])""")
    middles = [int((n + 0.5) * side / len(TOKENS)) for n in range(len(TOKENS))]
    picture = np.reshape(shades, (side, side, 4))[np.ix_(middles, middles)][..., 0]
    flat = weights[1, 1].ravel()
    order = np.argsort(flat, kind="stable")
    red = picture.ravel()[order]
    assert (np.diff(red) <= 1).all()
    assert red[0] > 230 > 20 > red[-1]


def test_pointing_at_a_query_shows_where_it_looks(page: Browser, weights: NDArray[np.float32]) -> None:
    page.point(f"#rows .query[data-index='{QUERY}']")
    lines = drawn(page)
    assert set(lines) == {(QUERY, key) for key in range(len(TOKENS))}
    for (query, key), line in lines.items():
        assert line["weight"] == pytest.approx(weights[1, 1, query, key], abs=0.8 / 509)
    heaviest, *others = sorted(lines.values(), key=lambda line: -line["weight"])
    assert all(heaviest["width"] > line["width"] and heaviest["opacity"] > line["opacity"] for line in others)
    assert texts(page, f"#rows .key[data-index='{KEY}'] small") == ["80.0 %"]
    assert texts(page, "#strongest bdi")[0] == "animal"
    page.mouse(5, 5)  # and away
    assert (1, 1) not in {(query, QUERY) for query, _ in drawn(page)}
    assert texts(page, "#strongest li") == []


def test_pointing_at_a_key_shows_who_looks_at_it(page: Browser, weights: NDArray[np.float32]) -> None:
    page.point(f"#rows .key[data-index='{KEY}']")
    assert set(drawn(page)) == {(query, KEY) for query in range(len(TOKENS))}
    first = int(weights[1, 1, :, KEY].argmax())
    assert texts(page, "#strongest bdi")[0] == TOKENS[first]


def test_a_click_holds_and_escape_lets_go(page: Browser) -> None:
    page.point(f"#rows .query[data-index='{QUERY}']", click=True)
    page.point("#rows .query[data-index='0']")
    assert {query for query, _ in drawn(page)} == {QUERY}
    page.press("Escape")
    assert len({query for query, _ in drawn(page)}) > 1


def test_keys_walk_through_tokens_and_heads(page: Browser) -> None:
    page.ask("document.querySelector('#links').focus()")
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.press(key)
    assert {key for _, key in drawn(page)} == {1}
    page.ask("document.querySelectorAll('.cell')[4].focus()")
    page.press("ArrowUp")
    page.press("Enter")
    page.until("document.querySelector('#head-heading').textContent === 'Layer 0, head 1'")
    assert page.ask("location.hash") == "#layer-0-head-1"
    assert page.ask("[...document.querySelectorAll('.cell')].map(c => c.tabIndex)") == [-1, 0, -1, -1, -1, -1]


def test_the_heat_map_tells_the_weight_under_the_mouse(page: Browser) -> None:
    x, y, side, edge = page.ask("""(c => { c.scrollIntoView({block: "center"}); const b = c.getBoundingClientRect();
        return [b.x, b.y, b.width, +c.dataset.edge] })(document.querySelector("#map"))""")
    cell = (side - edge) / len(TOKENS)
    page.mouse(x + edge + (KEY + 0.5) * cell, y + edge + (QUERY + 0.5) * cell)
    (reading,) = texts(page, "#reading")
    assert reading.replace("\u2068", "").replace("\u2069", "") == "“tired” (4) → “animal” (2): 0.8000"


def test_marks_order_and_tables(page: Browser) -> None:
    assert texts(page, ".cell span") == [NONE, "first", "first", "previous", "first", NONE]
    assert texts(page, "#legend span") == ["first (3)", "previous (1)", "no rule holds (2)"]
    choose = "(s, v) => { s.value = v; s.dispatchEvent(new Event('change')) }"
    page.ask(f"({choose})(document.querySelector('#mark'), '0')")
    page.ask(f"({choose})(document.querySelector('#order'), 'mark')")
    assert texts(page, ".cell span") == ["2.000", "1.500", "1.000", "0.500", "0.100", NONE]
    assert texts(page, ".cell em")[:2] == ["L1 H0", "L0 H1"]
    assert texts(page, "#legend span") == ["0.0002.000"]
    page.point("#ablation th:last-child button", click=True)
    assert texts(page, "#ablation td:last-child") == ["0.600", "0.500", "0.400", "0.300", "0.200", "0.100"]
    page.point("#ablation th:last-child button", click=True)
    assert texts(page, "#ablation td:last-child")[0] == "0.100"
    page.point("#ablation tbody tr:first-child button", click=True)
    page.until("document.querySelector('#head-heading').textContent === 'Layer 0, head 0'")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_both_languages_fit_into_every_window(page: Browser, width: int, dark: bool) -> None:
    page.surroundings(width, dark=dark)
    light = page.ask("getComputedStyle(document.body).backgroundColor")
    assert (int(light[4:].split(",")[0]) < 100) == dark
    for language, heading in (("en", "All heads"), ("zh", "全部注意力头")):
        assert page.ask("document.documentElement.lang") == language
        assert texts(page, "#overview-heading") == [heading]
        assert page.ask("document.documentElement.scrollWidth") <= width
        assert "undefined" not in page.ask("document.body.innerText")
        page.point("#language", click=True)
    assert page.ask("document.documentElement.lang") == "en"


def test_hostile_tokens_are_text(browser: Browser, tmp_path: Path) -> None:
    n = len(HOSTILE)
    path = report(tmp_path / "r.html", HOSTILE, softmaxed(np.random.default_rng(0), 1, 1, n, n), title="</title><script>alert(1)</script>")
    browser.surroundings()
    browser.open(path)
    seen = texts(browser, "#rows .query bdi")
    assert seen[:6] == HOSTILE[:6]
    assert seen[6:] == ["a\\u2028b", "↵", "\\u202egnp", "\\ud800", "∅", "\\u0000", "${x}", "$data"]
    for index in range(n):
        browser.point(f"#rows .query[data-index='{index}']")
    assert browser.ask("document.scripts.length") == 2  # the data and the page's own; the layer has been unpacked
    assert texts(browser, "h1") == ["</title><script>alert(1)</script>"]
    assert browser.requests == [path.resolve().as_uri()]
    assert browser.complaints == []


def test_the_policy_forbids_requests(browser: Browser, small: Path) -> None:
    browser.surroundings()
    browser.open(small)
    assert browser.ask("fetch('data:text/plain,x').then(() => 'came', () => 'refused')") == "refused"
    assert any("Content Security Policy" in complaint for complaint in browser.complaints)


def test_ten_thousand_tokens(browser: Browser, tmp_path: Path) -> None:
    """As links, and only the rows in view exist."""
    rng = np.random.default_rng(1)
    keys = np.arange(LONG)[:, np.newaxis] - np.arange(4)
    weights = np.where(keys >= 0, [0.5, 0.2, 0.2, 0.1], 0)
    layer = AttentionStats(*[np.zeros(0)] * 5, np.maximum(keys, -1)[np.newaxis].repeat(12, 0), weights[np.newaxis].repeat(12, 0))
    browser.surroundings()
    browser.open(report(tmp_path / "r.html", [f"w{n}" for n in rng.integers(0, 99, LONG)], [layer] * 2))
    assert browser.ask("document.querySelectorAll('#rows .row').length") < 60
    browser.ask("document.querySelector('#links').scrollTop = 24 * 7000")
    browser.settle()
    browser.point("#rows .query[data-index='7005']")
    assert set(drawn(browser)) == {(7005, key) for key in range(7002, 7006)}
    browser.point("#rows .key[data-index='7005']")
    assert set(drawn(browser)) == {(query, 7005) for query in range(7005, 7009)}
    assert len(browser.requests) == 1
    assert browser.complaints == []


def test_a_request_and_a_complaint_would_be_seen(browser: Browser, tmp_path: Path) -> None:
    """What the other tests rely on."""
    path = tmp_path / "r.html"
    path.write_text("<p id='rows'><i></i></p><img src='missing.png'><script>console.log('hello'); missing()</script>")
    browser.open(path)
    browser.settle()
    assert any("missing.png" in url for url in browser.requests)
    assert any("hello" in text for text in browser.complaints)
    assert any("missing is not defined" in text for text in browser.complaints)
