"""qkvc.demo: its numbers, and that it runs to the end with whatever is installed."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import qkvc
from qkvc import demo
from qkvc.models import MiniLM, minilm

from .hidden import hide_packages
from .support import run_child

MODEL_PACKAGES = (minilm.PACKAGE, "safetensors", "tokenizers")


class Bench:
    """Stands for the benchmark, whose own tests run it."""

    def __init__(self, code: int = 0) -> None:
        self.code, self.calls = code, list[list[str]]()

    def __call__(self, arguments: Sequence[str]) -> int:
        self.calls.append(list(arguments))
        return self.code


@pytest.fixture(scope="module")
def model() -> MiniLM:
    try:
        return MiniLM.from_package()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


def test_three_steps(isa: str) -> None:
    steps = demo.three_steps(demo.QUERY, demo.EMBEDDINGS, demo.EMBEDDINGS)
    np.testing.assert_allclose(steps.scores, [0, 1, 1], rtol=0, atol=3e-7)
    np.testing.assert_allclose(steps.weights, [0.1553624, 0.4223188, 0.4223188], rtol=0, atol=1e-7)
    np.testing.assert_allclose(steps.context, [0.5776812, 0.8446376, 0.1553624, 0.4223188], rtol=0, atol=1e-7)
    assert 0 <= steps.error <= 3e-7


def test_exercise() -> None:
    steps = demo.three_steps(demo.EMBEDDINGS[0], demo.EMBEDDINGS, demo.EMBEDDINGS)
    exponentials = np.exp([2.0, 0.0, 1.0])
    np.testing.assert_allclose(steps.weights, exponentials / exponentials.sum(), rtol=0, atol=1e-7)
    np.testing.assert_allclose(steps.context, exponentials / exponentials.sum() @ demo.EMBEDDINGS, rtol=0, atol=3e-7)


@pytest.mark.parametrize("absent", [MODEL_PACKAGES, *((name,) for name in MODEL_PACKAGES), (*MODEL_PACKAGES, "rich", "matplotlib")])
def test_without_the_model(
    absent: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide_packages(monkeypatch, *absent)
    bench = Bench()
    assert demo.run([], tmp_path / "head.png", bench) == 0
    out, err = capsys.readouterr()
    for number in ("0.1553624", "0.4223188", "0.6652409"):
        assert number in out
    assert "is not installed" in out
    assert minilm.HOW_TO_GET in " ".join(out.split())
    assert bench.calls == [["--quick"]]
    assert not err
    assert not list(tmp_path.iterdir())


def test_with_numpy_alone() -> None:
    """In a process of its own, where an import of any other package is an error."""
    run_child("""
        import sys

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                allowed = sys.stdlib_module_names | {"numpy", "qkvc"}
                # the editable install's own finder is no dependency
                if name.partition(".")[0] not in allowed and not name.startswith("__editable__"):
                    raise ModuleNotFoundError(f"{name}: refused", name=name)

        sys.meta_path.insert(0, Refuse())
        from qkvc.cli import main
        assert main(["demo", "--no-bench"]) == 0
        assert main(["info"]) == 0
        loaded = {name.partition(".")[0] for name in sys.modules}
        assert "numpy" in loaded and not loaded & {"rich", "matplotlib", "scipy", "torch", "tokenizers", "safetensors"}
    """)


def test_with_the_model(model: MiniLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the picture is drawn with matplotlib")
    picture, texts = tmp_path / "head.png", ["A dog.", "A puppy.", "The tax law."]
    assert demo.run(texts, picture, None) == 0
    out, err = capsys.readouterr()
    assert not err
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert str(picture) in out.replace("\n", "")

    vectors = model.encode(texts)
    assert vectors[0] @ vectors[1] > max(vectors[0] @ vectors[2], vectors[1] @ vectors[2])
    assert re.search(rf"A dog\.\s+A puppy\.\s+{vectors[0] @ vectors[1]:.3f}", out)
    assert re.search(r"\d+ tokens/s", out)

    tokens, maps = model.attention_maps(demo.PRONOUN_SENTENCE)
    looks = maps[:, :, tokens.index("it"), tokens.index("animal")]
    layer, head, share = (int(n) for n in re.search(r"in layer (\d+), head (\d+): (\d+)\.\d %", out).groups())  # type: ignore[union-attr]
    assert looks[layer, head] == looks.max()
    assert re.search(rf"^\W*{layer}\W.*\*{100 * looks.max():.0f}\b", out, re.MULTILINE)  # its row of the table has that number too
    assert share == int(100 * looks.max())
    # A trained model's head, not chance: an even spread would give it 6 %.
    assert looks.max() > 0.5


def test_one_text_is_compared_with_the_built_in_ones(model: MiniLM, capsys: pytest.CaptureFixture[str]) -> None:
    demo.show_similarities(model, ["My horse."])
    out = capsys.readouterr().out
    assert f"nearest {len(demo.SENTENCES)} of {len(demo.SENTENCES)} pairs" in out
    assert out.count("My horse.") == len(demo.SENTENCES)


def test_without_matplotlib(model: MiniLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    hide_packages(monkeypatch, "matplotlib")
    monkeypatch.delitem(sys.modules, "qkvc.plot", raising=False)
    demo.show_attention(model, tmp_path / "head.png")
    assert re.search("no picture: .*matplotlib", capsys.readouterr().out)
    assert not list(tmp_path.iterdir())


def test_a_wrong_number_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    hide_packages(monkeypatch, *MODEL_PACKAGES)
    right = qkvc.attention
    monkeypatch.setattr(qkvc, "attention", lambda *args, **options: right(*args, **options) * np.float32(1 + 1e-5))
    assert demo.run([], tmp_path / "head.png", None) == 1
    assert "differ from float64" in capsys.readouterr().err


def test_a_failed_benchmark_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_packages(monkeypatch, *MODEL_PACKAGES)
    assert demo.run([], tmp_path / "head.png", Bench(3)) == 1


def test_a_changed_model_file_fails(
    model: MiniLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(minilm.SHA256, "tokenizer.json", "0" * 64)
    bench = Bench()
    assert demo.run([], tmp_path / "head.png", bench) == 1
    assert "tokenizer.json: expected sha256 000" in capsys.readouterr().err
    assert bench.calls
