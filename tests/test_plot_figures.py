"""qkvc.plot draws what it was given: heads, scaling, shapes, ways and speeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qkvc import MultiHeadAttention
from qkvc.nn import FeedForward, LayerNorm, RMSNorm, SelfAttention, TransformerBlock
from qkvc.plot import (
    concat,
    entropy,
    output_projection,
    overview,
    roles,
    roofline,
    score_variance,
    sharpness,
    similarity,
    split,
    trajectories,
    transformer_block,
)
from qkvc.plot._canvas import COLOURS
from qkvc.plot._text import place_labels

from .drawings import check_legible

pytest.importorskip("matplotlib", reason="qkvc.plot draws with matplotlib")
rng = np.random.default_rng(0)


def labels(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def said(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.texts]


# --------------------------------------------------------------------------------------------------------------------------- heads


def test_overview() -> None:
    values = np.array([[0.0, 0.25, -0.001], [1.0, np.nan, -0.5]])
    ax = overview(values, label="change")
    np.testing.assert_array_equal(ax.images[0].get_array(), values)
    assert ax.images[0].get_clim() == (-1, 1)
    assert said(ax) == ["0.00", "0.25", "0.00", "1.00", "–", "−0.50"]
    assert (labels(ax.xaxis), labels(ax.yaxis)) == (["0", "1", "2"], ["0", "1"])
    assert ax.figure.axes[1].get_ylabel() == "change"
    assert said(overview(values, label="", annotate=False)) == []
    assert said(overview([[0.5]], label="", number_format=".0%")) == ["50%"]
    assert said(overview([[0.001, 0.5, -0.5, -0.001]], label="", number_format="+.2f")) == ["0.00", "+0.50", "−0.50", "0.00"]
    assert overview(np.abs(values), label="").images[0].get_clim() == (0, 1)


def test_numbers_can_be_read_on_their_colours() -> None:
    ax = overview([[0.0, 0.5, 1.0]], label="")
    image = ax.images[0]
    for text, x in zip(ax.texts, (0.0, 0.5, 1.0), strict=True):
        light = image.cmap(image.norm(x))[:3] @ np.array([0.2126, 0.7152, 0.0722])
        assert text.get_color() == ("black" if light > 0.5 else "white")


def test_a_large_model_has_no_room_for_numbers() -> None:
    from matplotlib.figure import Figure

    check_legible(overview(np.ones((24, 16)), label="GPT-2 medium").figure)
    assert said(overview(np.ones((48, 25)), label="", ax=Figure(figsize=(3, 3)).add_subplot())) == []


def test_similarity() -> None:
    matrix = np.array([[1.0, 0.1, 0.9, 0.2], [0.1, 1.0, 0.2, 0.8], [0.9, 0.2, 1.0, 0.1], [0.2, 0.8, 0.1, 1.0]])
    ax = similarity(matrix, heads=2)
    np.testing.assert_array_equal(ax.images[0].get_array(), matrix)
    assert labels(ax.xaxis) == labels(ax.yaxis) == ["0.0", "0.1", "1.0", "1.1"]
    ax = similarity(matrix, names=["a", "b", "c", "d"], cluster=True)
    order = ["abcd".index(name) for name in labels(ax.yaxis)]
    assert labels(ax.xaxis) == labels(ax.yaxis)
    np.testing.assert_array_equal(ax.images[0].get_array(), matrix[np.ix_(order, order)])
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset({0, 2}), frozenset({1, 3})}  # a beside c, b beside d
    assert similarity(-matrix).images[0].get_clim() == (-1, 1)
    check_legible(similarity(np.eye(72), heads=12).figure)
    ax = similarity(np.eye(2), names=["a", "b"], axis="token")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("token", "token")


def test_roles() -> None:
    ax = roles([["b", None, "a"], ["b", "b", "a"]])
    drawn = [tuple(patch.get_xy()) for patch in ax.patches]
    assert drawn == [(head - 0.5, layer - 0.5) for layer in range(2) for head in range(3)]
    legend = {text.get_text(): patch.get_facecolor() for text, patch in zip(*map(list, parts(ax)), strict=True)}
    assert list(legend) == ["b (3)", "a (2)", "no role (1)"]
    faces = [patch.get_facecolor() for patch in ax.patches]
    assert faces == [legend[name] for name in ("b (3)", "no role (1)", "a (2)", "b (3)", "b (3)", "a (2)")]
    assert len(set(faces)) == 3
    # An order of one's own keeps the colours over pictures.
    assert roles([["a"]], order=["b", "a"]).patches[0].get_facecolor() != roles([["a"]]).patches[0].get_facecolor()


def parts(ax: Any) -> tuple[Any, Any]:
    return ax.get_legend().get_texts(), ax.get_legend().get_patches()


def test_more_roles_than_colours() -> None:
    names = [f"role {n}" for n in range(28)]
    ax = roles([names])
    looks = {(patch.get_facecolor(), patch.get_hatch()) for patch in ax.patches}
    assert len(looks) == 28
    check_legible(ax.figure)
    with pytest.raises(ValueError, match="roles: names: expected at most 28 roles, got 29"):
        roles([[*names, "one more"]])


def test_entropy() -> None:
    values = np.array([[0.5, 1.0, 0.7], [1.2, 0.1, 0.8]])
    ax = entropy(values, keys=8, extremes=1, title="x")
    dots, line = ax.lines
    assert line.get_ydata()[0] == pytest.approx(np.log(8))
    np.testing.assert_array_equal(dots.get_ydata(), values.ravel())
    assert [round(x) for x in dots.get_xdata()] == [0, 0, 0, 1, 1, 1]
    assert sorted(dots.get_xdata()) == list(dots.get_xdata())
    np.testing.assert_allclose([segment[0, 1] for segment in ax.collections[0].get_segments()], values.mean(1))
    assert said(ax) == ["1.1", "1.0"]  # the lowest, the highest
    assert ax.get_ylim()[0] <= 0
    check_legible(ax.figure)
    check_legible(entropy(rng.uniform(0, 3, (24, 16)), extremes=3).figure)
    assert said(entropy([[0.0]])) == []


# -------------------------------------------------------------------------------------------------------------------------- scaling


def test_score_variance() -> None:
    dims, before, after = np.array([64, 4, 16]), [60.0, 4.1, 16.5], [0.94, 1.02, 1.03]
    ax = score_variance(dims, before, after)
    identity, one, unscaled, scaled = ax.lines
    np.testing.assert_array_equal(identity.get_xdata(), identity.get_ydata())
    assert list(identity.get_xdata()) == [4, 64]
    assert set(one.get_ydata()) == {1}
    for line, values in ((unscaled, before), (scaled, after)):
        np.testing.assert_array_equal(line.get_xydata(), np.stack([dims, values], 1))
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert labels(ax.xaxis) == ["4", "16", "64"]
    texts, _ = parts(ax)
    assert [text.get_text() for text in texts] == ["y = d_k", "before scaling", "after scaling by 1/√d_k"]
    check_legible(score_variance(np.arange(1, 200), np.arange(1, 200), np.ones(199)).figure)


def test_sharpness() -> None:
    scales, scores = np.array([10.0, 0.1, 1.0]), np.array([1.0, 0.0])
    weights = np.exp(scales[:, None] * scores) / np.exp(scales[:, None] * scores).sum(-1, keepdims=True)
    ax = sharpness(scales, weights, labels=["high", "$low$"])
    for key, line in enumerate(ax.lines[:2]):
        np.testing.assert_array_equal(line.get_xydata(), np.stack([scales, weights[:, key]], 1)[[1, 2, 0]])  # from left to right
    assert set(ax.lines[2].get_ydata()) == {0.5}
    assert ax.get_ylim()[0] == 0
    texts, _ = parts(ax)
    assert [text.get_text() for text in texts] == ["high", "$low$", "uniform: 1/2"]
    check_legible(sharpness([1, 10], np.full((2, 40), 1 / 40)).figure)


# --------------------------------------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize(("batch", "heads", "drawn"), [(1, 1, (1, 1)), (4, 4, (4, 4)), (2, 9, (2, 8)), (40, 96, (8, 8))])
def test_split(batch: int, heads: int, drawn: tuple[int, int]) -> None:
    ax = split(batch, heads, 16, 128)
    corners = np.array([patch.get_xy() for patch in ax.patches]).reshape(*drawn, 2)
    assert (np.diff(corners[..., 0], axis=1) > ax.patches[0].get_width()).all()  # apart, head by head and item by item
    assert (np.diff(corners[..., 1], axis=0) > ax.patches[0].get_height()).all()
    colours = [patch.get_facecolor() for patch in ax.patches[: drawn[1]]]
    assert len(set(colours)) == drawn[1]
    assert [patch.get_facecolor() for patch in ax.patches[-drawn[1] :]] == colours  # a head has its colour in every item
    words = said(ax)
    assert words.count("16 × 128") == min(batch, 7 if batch > 8 else 8) * min(heads, 7 if heads > 8 else 8)
    assert {f"head {heads - 1}", f"item {batch - 1}"} <= set(words)
    check_legible(ax.figure)


@pytest.mark.parametrize(("heads", "drawn"), [(1, 1), (4, 4), (8, 8), (9, 8), (96, 8)])
def test_concat(heads: int, drawn: int) -> None:
    ax = concat(heads, 16, 128)
    blocks, beside = ax.patches[:drawn], ax.patches[drawn:]
    assert [patch.get_facecolor() for patch in blocks] == [patch.get_facecolor() for patch in beside]  # who is who
    edges = [patch.get_x() for patch in beside]
    np.testing.assert_allclose(np.diff(edges), beside[0].get_width())  # no gap, no overlap
    assert len({patch.get_y() for patch in beside}) == 1
    assert {patch.get_height() for patch in ax.patches} == {beside[0].get_height()}
    words = said(ax)
    assert words.count("L = 16") == 2
    assert "D = 128" in words
    assert f"H · D = {heads * 128}" in words
    assert f"head {heads - 1}" in words
    assert ("…" in words) is (heads > drawn)
    check_legible(ax.figure)


def written(ax: Any, colour: Any) -> dict[str, int]:
    """The arrays in boxes of a colour: their names with their shapes, and the counts below them."""
    from matplotlib.colors import to_rgba

    boxes = [patch.get_window_extent() for patch in ax.patches if patch.get_facecolor() == to_rgba(colour)]
    texts = [text for text in ax.texts if any(box.contains(*text.get_transform().transform(text.get_position())) for box in boxes)]
    texts = [text for text in texts if text.get_text()]  # arrows are empty ones
    lines = [text.get_text().split("\n") for text in texts]
    assert len(lines) == len(boxes)
    return {name: int(count.replace(",", "")) for name, count in lines}


def test_transformer_block() -> None:
    norms = LayerNorm(64), LayerNorm(64)
    block = TransformerBlock(SelfAttention(MultiHeadAttention(64, 4)), FeedForward(64), norms)
    ax = transformer_block(block)
    ax.figure.draw_without_rendering()
    blue = written(ax, COLOURS[0])
    squares = {f"W_{part}  64 × 64": 64 * 65 for part in "QKVO"}
    assert blue == {"norm  64": 128} | squares | {"W_up  256 × 64": 256 * 65, "W_down  64 × 256": 64 * 257}
    assert sum(blue.values()) + 128 == block.num_parameters()  # the second norm has the name of the first
    said = [text.get_text() for text in ax.get_legend().get_texts()]
    assert said == [f"learned: {block.num_parameters():,}", "nothing to learn"]
    assert "4 heads: softmax(Q Kᵀ / √16) V, concat" in [text.get_text() for text in ax.texts]
    check_legible(ax.figure)


def test_a_block_of_which_some_is_frozen() -> None:
    attention = MultiHeadAttention(64, 4, num_kv_heads=2, extra_kv=True, qk_norm=1e-6, qkv_bias=False, out_bias=False)
    block = TransformerBlock(SelfAttention(attention), FeedForward(64, 96, activation="swiglu", bias=False), (RMSNorm(64), RMSNorm(64)))
    attention.freeze("v")
    block.norm_2.weight.frozen = True
    ax = transformer_block(block)
    ax.figure.draw_without_rendering()
    assert written(ax, "0.65") == {"W_V  32 × 64": 2048 + 32, "norm  64": 64}
    gated = {"W_gate  96 × 64": 6144, "W_up  96 × 64": 6144, "W_down  64 × 96": 6144}
    grouped = {"W_Q  64 × 64": 4096 + 16, "W_K  32 × 64": 2048 + 32 + 16, "W_O  64 × 64": 4096}  # with the norms of queries and keys
    assert written(ax, COLOURS[0]) == {"norm  64": 64} | grouped | gated
    learned = block.num_parameters() - 2048 - 64
    said = [text.get_text() for text in ax.get_legend().get_texts()]
    assert said == [f"learned: {learned:,}", "frozen: 2,112", "nothing to learn"]


def test_output_projection() -> None:
    weight = rng.standard_normal((6, 12))
    weight[0, 0] = 50.0
    ax = output_projection(weight, 3)
    np.testing.assert_array_equal(ax.images[0].get_array(), weight)
    low, high = ax.images[0].get_clim()
    assert low == -high
    assert high < 50
    assert ax.images[0].cmap.name == "RdBu_r"
    assert [line.get_xdata()[0] for line in ax.lines] == [3.5, 7.5]
    assert labels(ax.xaxis) == ["0", "1", "2"]
    assert list(ax.get_xticks()) == [1.5, 5.5, 9.5]
    assert output_projection(np.zeros((2, 2)), 1).images[0].get_clim() == (-1, 1)


def test_a_large_output_projection() -> None:
    weight = np.zeros((1030, 1024), dtype=np.float32)
    weight[700, 1] = -2
    weight[700, 0] = 1
    ax = output_projection(weight, 32)
    cells = np.asarray(ax.images[0].get_array())
    assert cells.shape == (344, 512)
    assert cells[233, 0] == -2  # the farthest from 0, with its sign
    assert np.count_nonzero(cells) == 1
    assert "3 × 2" in ax.get_xlabel()
    check_legible(ax.figure)


# ---------------------------------------------------------------------------------------------------------------------------- ways


def test_trajectories() -> None:
    plane = rng.standard_normal((7, 4, 2)) * [3, 1]
    turned, _ = np.linalg.qr(rng.standard_normal((9, 9)))
    points = np.concatenate([plane, np.zeros((7, 4, 7))], -1) @ turned + 5  # a plane somewhere in nine dimensions
    steps = np.arange(7) * 100
    ax = trajectories(points, ["a", "b", "c", "d"], steps=steps, groups=["x", "y", "x", "y"])
    ways = [np.concatenate([[line[0] for line in way.get_segments()], way.get_segments()[-1][-1:]]) for way in ax.collections[:4]]
    # Distances are those of the space, and it says that nothing is lost.
    apart = np.linalg.norm(points[:, :, None, None] - points, axis=-1)
    drawn = np.stack(ways, 1)
    np.testing.assert_allclose(np.linalg.norm(drawn[:, :, None, None] - drawn, axis=-1), apart, atol=1e-12)
    shares = [float(label.split("(")[1].split(" %")[0]) for label in (ax.get_xlabel(), ax.get_ylabel())]
    assert sum(shares) == pytest.approx(100, abs=1)
    assert shares[0] > shares[1]
    np.testing.assert_array_equal(ax.collections[0].get_array(), steps[1:])
    assert ax.collections[0].get_clim() == (0, 600)
    assert [text for text in said(ax) if text] == ["a", "b", "c", "d"]
    ends = {tuple(point) for line in ax.lines[1:] for point in line.get_xydata()}
    assert ends == {tuple(way[-1]) for way in ways}
    texts, _ = parts(ax)
    assert [text.get_text() for text in texts] == ["x", "y"]
    check_legible(ax.figure)
    box = ax.get_window_extent()
    across, down = (np.ptp(limits) for limits in (ax.get_xlim(), ax.get_ylim()))
    assert across / box.width == pytest.approx(down / box.height, rel=0.02)  # one unit is one unit


def test_trajectories_that_stand_still_or_move_along_a_line() -> None:
    check_legible(trajectories(np.ones((2, 1, 2)), ["a"]).figure)
    ax = trajectories(np.arange(6.0).reshape(3, 1, 2), ["a"])
    assert ax.get_xlabel() == "component 1 (100 % of the variance)"


def test_labels_stay_inside_and_apart() -> None:
    from matplotlib.figure import Figure

    ax = Figure(figsize=(4, 3), layout="constrained").add_subplot()
    ax.set(xlim=(0, 1), ylim=(0, 1))
    points = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.5, 0.5], [0.5, 0.5]])
    place_labels(ax, points, ["a corner"] * 4 + ["a word", "another"], points)
    for text in ax.texts:
        box = text.get_window_extent()
        assert ax.bbox.contains(box.x0, box.y0)
        assert ax.bbox.contains(box.x1, box.y1)
    check_legible(ax.figure)


# --------------------------------------------------------------------------------------------------------------------------- speed


def test_roofline() -> None:
    ax = roofline([1.0, 50.0], [8.0, 90.0], peak=100, bandwidth=10, rivals=[np.nan, 60.0], labels=("we", "they"))
    roof, theirs, ours = ax.lines
    x, y = roof.get_xydata().T
    np.testing.assert_allclose(y, np.minimum(100, 10 * x))
    assert x[0] <= 0.5
    assert x[-1] >= 100
    np.testing.assert_array_equal(ours.get_xydata(), [[1, 8], [50, 90]])
    np.testing.assert_array_equal(theirs.get_xydata(), [[1, np.nan], [50, 60]])
    assert ours.get_color() == COLOURS[0]
    texts, _ = parts(ax)
    assert [text.get_text() for text in texts] == ["they", "we"]
    assert said(ax) == ["FMA peak 100 GFLOP/s", "read 10 GB/s"]
    assert roofline([1], [8], peak=100, bandwidth=10, legend=False).get_legend() is None


# -------------------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: overview([1.0], label=""), ValueError, r"overview: values: expected \(layers, heads\), none of them 0, got shape \(1,\)"),
        (lambda: overview([["x"]], label=""), TypeError, "overview: values: expected float64"),
        (lambda: overview([[1]], label="", number_format="%d"), ValueError, "overview: number_format: expected a format .* got '%d'"),
        (lambda: overview([[1]], label="", annotate="no"), TypeError, "overview: annotate: expected True or False, got str"),
        (lambda: roles(5), TypeError, "roles: names: expected a sequence of layers, .* got int"),
        (lambda: roles([None]), TypeError, "roles: names: expected a sequence of layers, .* got NoneType"),
        (lambda: sharpness([1.0], [[np.nan, 1.0]]), ValueError, "sharpness: weights: expected finite numbers"),
        (lambda: similarity(np.ones((2, 3))), ValueError, r"similarity: matrix: expected a square, got \(2, 3\)"),
        (lambda: similarity(np.eye(4), heads=3), ValueError, "similarity: heads: expected a divisor of the 4 heads of the matrix, got 3"),
        (lambda: similarity(np.eye(4), heads=2, names=list("abcd")), ValueError, "similarity: heads: expected None beside names, got 2"),
        (lambda: similarity(np.eye(4), names=["a"]), ValueError, "similarity: names: expected 4, one a head, got 1"),
        (lambda: similarity([[np.nan]], cluster=True), ValueError, "similarity: matrix: expected finite numbers with cluster=True"),
        (lambda: roles([]), ValueError, r"roles: names: expected layers x heads, got layers of \[\] heads"),
        (lambda: roles([["a"], ["a", "b"]]), ValueError, r"roles: names: expected layers x heads, got layers of \[1, 2\] heads"),
        (lambda: roles([[1]]), TypeError, "roles: names: expected a sequence of str, got one with 1"),
        (lambda: roles([["a"]], order=["b"]), ValueError, r"roles: order: expected all roles that occur, got none of \['a'\]"),
        (lambda: entropy([[np.inf]]), ValueError, "entropy: values: expected finite numbers, got NaN or infinity"),
        (lambda: entropy([[1.0]], keys=0), ValueError, "entropy: keys: expected an integer of 1 or more, got 0"),
        (lambda: entropy([[1.0]], extremes=-1), ValueError, "entropy: extremes: expected an integer of 0 or more, got -1"),
        (lambda: score_variance([1, 2], [1], [1, 1]), ValueError, "score_variance: before: expected 2 numbers, as many as dims, got 1"),
        (lambda: score_variance([1, 2], [1, 0], [1, 1]), ValueError, "score_variance: before: expected finite numbers above 0, got 0"),
        (
            lambda: score_variance([1, 2], [1, 2], [1, np.nan]),
            ValueError,
            "score_variance: after: expected finite numbers above 0, got nan",
        ),
        (lambda: sharpness([1], [[0.5], [0.5]]), ValueError, r"sharpness: weights: expected 1 rows, one a scale, got shape \(2, 1\)"),
        (lambda: sharpness([0], [[1]]), ValueError, "sharpness: scales: expected finite numbers above 0, got 0"),
        (lambda: sharpness([1], [[1]], labels=[]), ValueError, "sharpness: labels: expected 1, one a key, got 0"),
        (lambda: concat(0, 1, 1), ValueError, "concat: num_heads: expected an integer of 1 or more, got 0"),
        (lambda: concat(1, 1.5, 1), TypeError, "concat: length: expected an integer of 1 or more, got float"),
        (lambda: split(0, 1, 1, 1), ValueError, "split: batch: expected an integer of 1 or more, got 0"),
        (lambda: split(1, 1, 1, "2"), TypeError, "split: head_dim: expected an integer of 1 or more, got str"),
        (lambda: transformer_block(FeedForward(4)), TypeError, "transformer_block: block: expected a qkvc.nn.Trans.*, got FeedForward"),  # type: ignore[arg-type]
        (
            lambda: output_projection(np.ones((2, 5)), 2),
            ValueError,
            "output_projection: num_heads: expected a divisor of the 5 columns .* 2",
        ),
        (lambda: output_projection([[np.nan]], 1), ValueError, "output_projection: weight: expected finite numbers, got NaN or infinity"),
        (
            lambda: trajectories(np.ones((1, 1, 2)), ["a"]),
            ValueError,
            r"trajectories: positions: expected at least two times .* \(1, 1, 2\)",
        ),
        (lambda: trajectories(np.ones((2, 1, 2)), []), ValueError, r"trajectories: labels: expected 1 .* got 0"),
        (lambda: trajectories(np.ones((2, 1, 2)), ["a"], groups=[]), ValueError, r"trajectories: groups: expected 1 .* got 0"),
        (lambda: trajectories(np.ones((2, 1, 2)), ["a"], steps=[1]), ValueError, r"trajectories: steps: expected 2 .* got 1"),
        (lambda: trajectories(np.full((2, 1, 2), np.inf), ["a"]), ValueError, "trajectories: positions: expected finite numbers"),
        (lambda: trajectories(np.ones((2, 1, 2)), ["a"], steps=[0, np.nan]), ValueError, "trajectories: steps: expected finite numbers"),
        (
            lambda: roofline([1, 2], [1], peak=1, bandwidth=1),
            ValueError,
            "roofline: speed: expected 2 numbers, as many as intensity, got 1",
        ),
        (lambda: roofline([1], [0], peak=1, bandwidth=1), ValueError, "roofline: speed: expected finite numbers above 0, got 0"),
        (lambda: roofline([1], [1], peak=0, bandwidth=1), ValueError, "roofline: peak: expected a number above 0, got 0"),
        (lambda: roofline([1], [1], peak=1, bandwidth="x"), TypeError, "roofline: bandwidth: expected a finite number, got str"),
        (
            lambda: roofline([1], [1], peak=1, bandwidth=1, rivals=[-1]),
            ValueError,
            "roofline: rivals: expected finite numbers above 0, got -1",
        ),
        (lambda: roofline([1], [1], peak=1, bandwidth=1, labels=["a"]), ValueError, "roofline: labels: expected two: .* got 1"),
    ],
)
def test_misuse(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
