"""qkvc.plot draws what it was given: weights, whatever the tokens are, in both languages, and without a trace elsewhere."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from math import ceil
from typing import Any

import numpy as np
import pytest

import qkvc.plot
from qkvc.plot import _text, head_grid, heatmap, rollout
from qkvc.plot._words import CHINESE

from .drawings import FIGURES, axes_of, bars, check_legible
from .support import ROOT, run_child

pytest.importorskip("matplotlib", reason="qkvc.plot draws with matplotlib")

WEIGHTS = np.array([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]], dtype=np.float32)
SQUARE = WEIGHTS[:, :2]


def labels(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


# ------------------------------------------------------------------------------------------------------------------- every function


def test_every_function_is_drawn_here() -> None:
    assert sorted(FIGURES) == qkvc.plot.__all__


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", FIGURES)
def test_everything_can_be_read(name: str, language: str) -> None:
    drawn = FIGURES[name](title="A title of so many words that it takes several lines " * 2, language=language)
    figure = axes_of(drawn).figure
    said = " ".join(check_legible(figure))
    assert all(low <= 0 < high for low, high in bars(figure)) or name == "trajectories"  # whose colours are steps
    assert bool(re.search("[\u4e00-\u9fff]", said)) is (language == "zh")


@pytest.mark.parametrize("name", FIGURES)
def test_into_what_is_given(name: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    if name == "head_grid":
        left, right = figure.subfigures(1, 2)
        assert all(ax.figure is right for ax in FIGURES[name](figure=right))
        assert not left.axes
        with pytest.raises(TypeError, match="head_grid: figure: expected a matplotlib Figure or SubFigure or None, got Axes"):
            FIGURES[name](figure=figure.subplots())
    else:
        left, right = figure.subplots(1, 2)
        assert FIGURES[name](ax=right) is right
        assert not left.has_data()
        with pytest.raises(TypeError, match=f"{name}: ax: expected matplotlib Axes or None, got Figure"):
            FIGURES[name](ax=figure)


@pytest.mark.parametrize("name", FIGURES)
def test_another_language(name: str) -> None:
    with pytest.raises(ValueError, match=f'{name}: language: expected "en" or "zh", got \'fr\''):
        FIGURES[name](language="fr")


def test_every_caption_is_used() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "qkvc" / "plot").glob("*.py") if path.stem != "_words")
    assert [caption for caption in CHINESE if not re.search(f"[\"']{re.escape(caption)}[\"']", source)] == []


def test_nothing_is_left_behind() -> None:
    """No pyplot, no other settings, no window, in a process of its own."""
    run_child(
        f"""
        import io, sys
        sys.path.insert(0, {str(ROOT)!r})
        import matplotlib
        before = matplotlib.rcParams.copy()  # dict() would choose a backend, and import pyplot
        from tests.drawings import FIGURES, axes_of
        for name, draw in FIGURES.items():
            page = io.BytesIO()
            axes_of(draw(language="zh")).figure.savefig(page, dpi=30)
            assert page.getvalue().startswith(b"\\x89PNG"), name
        assert "matplotlib.pyplot" not in sys.modules
        assert matplotlib.rcParams.copy() == before
        """,
        DISPLAY="",
    )


# ------------------------------------------------------------------------------------------------------------------------- heat map


def test_heatmap() -> None:
    ax = heatmap(WEIGHTS, ["q0", "q1"], ["k0", "k1", "k2"], title="a head", mark=(0, 2))
    (image,) = ax.images
    np.testing.assert_array_equal(image.get_array(), WEIGHTS)
    assert image.get_clim() == (0.0, pytest.approx(0.7))
    assert (labels(ax.xaxis), labels(ax.yaxis)) == (["k0", "k1", "k2"], ["q0", "q1"])
    assert ax.get_title() == "a head"
    (frame,) = ax.patches
    assert (frame.get_x(), frame.get_y(), frame.get_width(), frame.get_height()) == (1.5, -0.5, 1, 1)
    _, bar = ax.figure.axes
    assert bar.get_ylabel() == "attention weight"
    assert heatmap(SQUARE, ["a", "b"], label="scores").figure.axes[1].get_ylabel() == "scores"


def test_heatmap_into_a_file(tmp_path: Any) -> None:
    figure: Any = heatmap(SQUARE, ["[CLS]", "$x$"]).figure
    figure.savefig(tmp_path / "head.png")
    assert (tmp_path / "head.png").read_bytes().startswith(b"\x89PNG")


def test_logarithmic_colours_begin_at_zero() -> None:
    ax = heatmap([[0.0, 0.001], [0.01, 0.989]], ["a", "b"], log=True)
    (image,) = ax.images
    shades = image.norm(image.get_array()).ravel()
    assert image.get_clim() == (0, 0.989)
    assert shades[0] == 0
    assert shades[3] == 1
    assert shades[1] > 0.2  # where a linear scale would have 0.001
    assert shades[2] - shades[1] == pytest.approx(np.log10(10) * (shades[3] - shades[2]) / np.log10(98.9))  # decades are alike
    assert "log" in ax.figure.axes[1].get_ylabel()
    check_legible(ax.figure)


def test_signed_numbers_diverge_from_zero_and_nan_is_grey() -> None:
    (image,) = heatmap([[-3.0, 1.0], [np.nan, 0.0]], ["a", "b"]).images
    assert image.get_clim() == (-3, 3)
    low, high, unknown, zero = image.cmap(image.norm(image.get_array())).reshape(4, 4)[:, :3]
    assert zero.min() > 0.95  # white
    assert low[2] > low[0]  # blue
    assert high[0] > high[2]  # red
    assert np.ptp(unknown) == 0
    assert 0.8 < unknown[0] < 0.95
    assert heatmap(np.zeros((2, 2)), ["a", "b"]).images[0].get_clim() == (0, 1)


@pytest.mark.parametrize(("queries", "keys"), [(10_000, 3), (703, 1501), (40, 1), (1, 300)])
def test_many_tokens(queries: int, keys: int) -> None:
    """Labels become fewer, not illegible; cells take the largest of several, so that no weight is lost."""
    weights = np.zeros((queries, keys), dtype=np.float32)
    row, column = queries - 1, keys // 2
    weights[row, column] = 0.5
    ax = heatmap(weights, [f"token{n}" for n in range(queries)], [f"key{n}" for n in range(keys)])
    check_legible(ax.figure)
    (image,) = ax.images
    cells = np.asarray(image.get_array())
    every = ceil(queries / 512), ceil(keys / 512)
    assert cells.shape == (ceil(queries / every[0]), ceil(keys / every[1]))
    assert np.argwhere(cells).tolist() == [[row // every[0], column // every[1]]]
    left, right, bottom, top = image.get_extent()
    # A label stands where its token is.
    assert ((right - left) / cells.shape[1], (bottom - top) / cells.shape[0]) == every[::-1]
    for axis, name in ((ax.yaxis, "token"), (ax.xaxis, "key")):
        assert labels(axis) == [f"{name}{place:.0f}" for place in axis.get_ticklocs()]
        assert axis.get_ticklabels()[0].get_fontsize() >= 6
    assert (f"{every[0]} × {every[1]}" in ax.get_xlabel()) is (max(every) > 1)
    assert len(ax.get_yticks()) < 150


HOSTILE = [
    "$x$",
    "\\frac{1}{2}",
    "$\\frac$",
    "a\nb\tc",
    "",
    " ",
    "\x00\x1b[0m",
    "\ud800",
    "😀👩\u200d👩",
    "שלום",
    "مرحبا",
    "\u202eabc",
    "<b>&",
    "_^{%",
]


def test_hostile_tokens(tmp_path: Any) -> None:
    tokens = [*HOSTILE, "x" * 5000]
    weights = np.eye(len(tokens))
    figure: Any = heatmap(weights, tokens, title="$\\frac{$ \n \x07").figure
    said = labels(figure.axes[0].yaxis)
    assert said[:6] == ["$x$", "\\frac{1}{2}", "$\\frac$", "a\\nb\\tc", "", "␣"]
    assert said[6:8] == ["\\x00\\x1b[0m", "\\ud800"]
    assert said[11] == "\\u202eabc"
    assert said[-1] == "x" * 23 + "…"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # matplotlib's, of emoji that no font has
        check_legible(figure)
        figure.savefig(tmp_path / "hostile.png")
        for name, draw in {
            "roles": lambda: qkvc.plot.roles([tokens]),
            "head_grid": lambda: head_grid(weights[None], tokens, names=["$\\frac$"], title="$\\frac$"),
            "similarity": lambda: qkvc.plot.similarity(weights, names=tokens),
            "sharpness": lambda: qkvc.plot.sharpness([1, 2], np.ones((2, len(tokens))), labels=tokens),
            "trajectories": lambda: qkvc.plot.trajectories(np.eye(2 * len(tokens))[None].repeat(2, 0)[:, : len(tokens)], tokens),
            "overview": lambda: qkvc.plot.overview([[1.0]], label="$\\frac$", title="$\\frac$"),
        }.items():
            axes_of(draw()).figure.savefig(tmp_path / f"{name}.png", dpi=30)


def test_no_mathematics(tmp_path: Any) -> None:
    """A dollar sign is a token here: its picture is wider than that of the x alone would be."""
    width = {token: heatmap([[1.0]], [token]).get_yticklabels()[0].get_window_extent().width for token in ("$x$", "x", "mxm")}
    assert width["x"] * 2 < width["$x$"] < width["mxm"] * 1.2


# --------------------------------------------------------------------------------------------------------------------- grid, rollout


def test_head_grid() -> None:
    weights = np.random.default_rng(0).dirichlet(np.ones(3), (5, 2))
    weights[3] *= 0.5
    axes = head_grid(weights, ["q0", "q1"], ["k0", "k1", "k2"], grid_columns=2, title="all of them")
    assert axes.shape == (5,)
    for head, ax in enumerate(axes):
        np.testing.assert_array_equal(ax.images[0].get_array(), weights[head])
        assert ax.images[0].get_clim() == (0, weights.max())  # shared, from 0
        assert ax.get_title() == f"head {head}"
    figure = axes[0].figure
    assert len(figure.axes) == 6  # the colours too; no empty place
    seen = check_legible(figure)
    assert [seen.count(name) for name in ("q0", "q1", "k0", "k1", "k2")] == [3, 3, 2, 2, 2]
    assert figure.get_suptitle() == "all of them"
    assert [ax.get_title() for ax in head_grid(weights[:2], ["a", "b"], ["c"] * 3, names=["x", "y"])] == ["x", "y"]


def test_rollout() -> None:
    layers = np.random.default_rng(0).dirichlet(np.ones(3), (4, 3))
    tokens = ["a", "b", "c"]
    ax = rollout(layers, tokens, query=2)
    np.testing.assert_array_equal(ax.images[0].get_array(), layers[:, 2])
    assert (labels(ax.yaxis), labels(ax.xaxis)) == (["0", "1", "2", "3"], tokens)
    np.testing.assert_allclose(rollout(layers, tokens).images[0].get_array(), layers.mean(1))
    ax = rollout(layers[-1], tokens)
    np.testing.assert_array_equal(ax.images[0].get_array(), layers[-1])
    assert labels(ax.yaxis) == tokens


# --------------------------------------------------------------------------------------------------------------------------- fonts


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As if nothing had been drawn in this process; `fresh(families)` makes those the only ones that are installed beside matplotlib's."""
    from matplotlib import font_manager

    own = [entry for entry in font_manager.fontManager.ttflist if entry.name not in _text.CJK_FONTS]
    dejavu = next(entry for entry in own if entry.name == "DejaVu Sans")

    def forget() -> None:
        for cached in (_text.cjk_family, _text._warn, _text._lacks):
            cached.cache_clear()

    def install(*families: str) -> None:
        forget()
        monkeypatch.setattr(font_manager, "findSystemFonts", list)
        monkeypatch.setattr(font_manager.fontManager, "ttflist", [*own, *(replace(dejavu, name=family, weight=500) for family in families)])

    yield install
    forget()


def test_one_warning_where_no_font_has_chinese(fresh: Any, tmp_path: Any) -> None:
    from matplotlib import font_manager

    fresh()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for n in range(3):
            figure: Any = heatmap(SQUARE, ["它", "动物"], title="它", language="zh").figure
            figure.savefig(tmp_path / f"{n}.png")
    own = [str(warning.message) for warning in caught if "qkvc.plot" in str(warning.message)]
    assert len(own) == 1
    assert all(family in own[0] for family in _text.CJK_FONTS)
    assert labels(figure.axes[0].yaxis) == ["它", "动物"]
    if any(entry.name == _text._BOXES for entry in font_manager.fontManager.ttflist):  # from matplotlib 3.11 on it says nothing itself
        assert len(caught) == 1


def test_no_warning_without_chinese(fresh: Any) -> None:
    fresh()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        heatmap(SQUARE, ["été", "Ünïcødé Привет"])


def test_the_first_font_of_the_list_is_taken(fresh: Any, caplog: pytest.LogCaptureFixture) -> None:
    fresh("SimHei", "Some Other", "WenQuanYi Zen Hei")
    ax = heatmap(SQUARE, ["它", "it"], ["a", "b"], title="Latin")
    assert ax.get_yticklabels()[0].get_fontfamily() == ["sans-serif", "WenQuanYi Zen Hei"]
    assert ax.get_xticklabels()[0].get_fontfamily() == ["sans-serif"]  # which needs none
    assert ax.title.get_fontfamily() == ["sans-serif"]
    ax.figure.draw_without_rendering()
    assert "font weight" not in caplog.text  # the only weight there is, is taken for the normal one


def test_a_font_that_came_after_matplotlib_looked(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import font_manager

    fresh()
    new = replace(font_manager.fontManager.ttflist[0], name="WenQuanYi Zen Hei")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: ["x/Arial.ttf", "x/wqy-bad.ttc", "x/wqy-zenhei.ttc"])

    def add(path: str) -> None:
        assert "wqy" in path
        if "bad" in path:
            raise RuntimeError("no font")
        font_manager.fontManager.ttflist.append(new)

    monkeypatch.setattr(font_manager.fontManager, "addfont", add)
    assert _text.cjk_family() == "WenQuanYi Zen Hei"


def test_which_fonts_lack_a_character() -> None:
    assert _text._lacks(("DejaVu Sans",), frozenset("它"))
    assert not _text._lacks(("DejaVu Sans",), frozenset("aé…"))


# -------------------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: heatmap(WEIGHTS, ["a", "b"]), ValueError, r"heatmap: weights: expected shape \(2, 2\) .* got \(2, 3\)"),
        (lambda: heatmap(WEIGHTS[0], ["a"]), ValueError, r"heatmap: weights: expected \(L_q, L_k\), none of them 0, got shape \(3,\)"),
        (lambda: heatmap(np.zeros((0, 0)), []), ValueError, r"heatmap: weights: expected \(L_q, L_k\), none of them 0, got shape \(0, 0\)"),
        (lambda: heatmap(SQUARE, ["a", 1]), TypeError, "heatmap: tokens: expected a sequence of str, got one with 1"),
        (lambda: heatmap(SQUARE, 2), TypeError, "heatmap: tokens: expected a sequence of str, got int"),
        (lambda: heatmap(SQUARE, ["a", "b"], [b"a", b"b"]), TypeError, "heatmap: key_tokens: .* got one with b'a'"),
        (lambda: heatmap(SQUARE * 1j, ["a", "b"]), TypeError, "heatmap: weights: expected float64, .* got complex"),
        (lambda: heatmap([["x", "y"]] * 2, ["a", "b"]), TypeError, "heatmap: weights: "),
        (lambda: heatmap(None, ["a", "b"]), TypeError, "heatmap: weights: expected an array, got None"),
        (
            lambda: heatmap(SQUARE, ["a", "b"], mark=(2, 0)),
            ValueError,
            r"heatmap: mark: expected a row and a column of \(2, 2\), got \(2, 0\)",
        ),
        (
            lambda: heatmap(-SQUARE, ["a", "b"], log=True),
            ValueError,
            "heatmap: weights: expected no number below 0 with log=True, got -0.7",
        ),
        (lambda: heatmap(SQUARE, ["a", "b"], log=1), TypeError, "heatmap: log: expected True or False, got int"),
        (lambda: heatmap(SQUARE, ["a", "b"], mark=5), ValueError, "heatmap: mark: expected a row and a column"),
        (lambda: heatmap(SQUARE, ["a", "b"], mark=(0.5, 0)), TypeError, "heatmap: mark: expected integers, got float64"),
        (lambda: rollout([[1], [1, 2]], ["a", "b"]), TypeError, "rollout: rollouts: expected an array"),
        (lambda: head_grid(SQUARE, ["a", "b"]), ValueError, r"head_grid: weights: expected \(H, L_q, L_k\), .* got shape \(2, 2\)"),
        (lambda: head_grid([SQUARE], ["a"]), ValueError, r"head_grid: weights: expected shape \(H, 1, 1\) .* got \(1, 2, 2\)"),
        (lambda: head_grid([SQUARE], ["a", "b"], names=[]), ValueError, "head_grid: names: expected 1, one a head, got 0"),
        (
            lambda: head_grid([SQUARE], ["a", "b"], grid_columns=0),
            ValueError,
            "head_grid: grid_columns: expected an integer of 1 or more, got 0",
        ),
        (lambda: rollout([SQUARE], ["a", "b"], query=2), ValueError, "rollout: query: expected a token, 0 to 1, got 2"),
        (lambda: rollout(SQUARE, ["a", "b"], query=0), ValueError, r"rollout: query: expected None with rollouts of shape \(L, L\), got 0"),
        (
            lambda: rollout([WEIGHTS], ["a", "b"]),
            ValueError,
            r"rollout: rollouts: expected \(layers, 2, 2\) or \(2, 2\) .* got \(1, 2, 3\)",
        ),
    ],
)
def test_misuse(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_given_axes_stay_empty_where_a_call_fails() -> None:
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    for how in ({"mark": (5, 5)}, {"language": "xx"}, {"key_tokens": ["a"]}):
        with pytest.raises(ValueError, match="heatmap"):
            heatmap(SQUARE, ["a", "b"], ax=ax, **how)
    assert not ax.has_data()
    assert len(ax.figure.axes) == 1
