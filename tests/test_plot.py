"""qkvc.plot draws what it was given."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from qkvc.plot import heatmap

pytest.importorskip("matplotlib", reason="qkvc.plot draws with matplotlib")

WEIGHTS = np.array([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]], dtype=np.float32)


def labels(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


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


def test_heatmap_is_a_picture_without_pyplot(tmp_path: Any) -> None:
    before = "matplotlib.pyplot" in sys.modules
    figure: Any = heatmap(WEIGHTS[:, :2], ["[CLS]", "$x$"]).figure  # a dollar sign is a token here, not mathematics
    figure.savefig(tmp_path / "head.png")
    assert (tmp_path / "head.png").read_bytes().startswith(b"\x89PNG")
    assert ("matplotlib.pyplot" in sys.modules) is before


def test_heatmap_into_given_axes() -> None:
    from matplotlib.figure import Figure

    _, right = Figure().subplots(1, 2)
    assert heatmap(WEIGHTS[:, :2], ["a", "b"], ax=right) is right


def test_heatmap_with_the_wrong_labels() -> None:
    with pytest.raises(ValueError, match=r"heatmap: weights: expected shape \(2, 2\) .* got \(2, 3\)"):
        heatmap(WEIGHTS, ["a", "b"])
