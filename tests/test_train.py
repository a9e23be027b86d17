"""`qkvc train`: it learns, and neither a kill nor a full disk nor nonsense costs more than the steps since the last checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qkvc
from qkvc.cli import main
from qkvc.models import LanguageModel
from qkvc.nn import AdamW, DamagedCheckpoint, load_checkpoint, warmed_cosine
from qkvc.train import Run, Settings, Text, own_text

from .support import assert_refused, assert_same_bits, run_child

pytest.importorskip("safetensors", reason="safetensors is not installed")

SMALL = Settings(steps=12, batch=4, length=24, layers=2, width=16, heads=2, every=4)
SENTENCES = ("Neither a kill nor a full disk costs more than a few steps. " * 40).encode()


def run_of(directory: Path, settings: Settings = SMALL, data: bytes = SENTENCES) -> Run:
    return Run(settings, Text(data, settings.length), directory)


class Stop(Exception):
    pass


def stop_at(step: int) -> Callable[[Run], None]:
    def report(run: Run) -> None:
        if run.step == step:
            raise Stop

    return report


def assert_same_run(directory: Path, other: Path) -> None:
    """The same last checkpoint, to the bit: weights, means, losses."""
    (tensors, about), (expected, told) = (load_checkpoint(sorted(where.glob("step-*"))[-1]) for where in (directory, other))
    assert about == told
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        assert_same_bits(tensors[name], array, name)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has disturbed."""
    directory = tmp_path_factory.mktemp("straight")
    run_of(directory).go(lambda run: None)
    return directory


def test_it_learns(tmp_path: Path) -> None:
    settings = Settings(steps=60, batch=8, length=64, layers=2, width=64, heads=4, lr=5e-3, every=30)
    run = run_of(tmp_path, settings, own_text()[:100_000])
    entropy = run.text.unigram()
    run.go(lambda run: None)
    assert abs(run.losses[0] - np.log(256)) < 0.7
    assert np.mean(run.losses[-5:]) < 0.9 * entropy
    assert run.points[-1].loss < 0.95 * entropy
    assert run.points[0].loss > run.points[1].loss
    text = run.sample(b"The ", 50)
    assert text.startswith("The ")
    assert text == run.sample(b"The ", 50)
    tensors, about = load_checkpoint(run.checkpoints()[-1])
    assert about["losses"] == run.losses
    assert sum(array.size for name, array in tensors.items() if name.startswith("model.")) == run.model.num_parameters()


def test_the_curve_is_torchs(tmp_path: Path) -> None:
    """The same model, batches and optimiser by torch's autograd, in float64 so that nothing but the formulas counts."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    f, s = torch.nn.functional, replace(SMALL, steps=10)
    run = run_of(tmp_path, s)
    run.model = LanguageModel(256, s.width, layers=s.layers, heads=s.heads, rng=s.seed, dtype="float64")
    run.optimiser = AdamW(run.model.parameters(), weight_decay=s.weight_decay, clip=s.clip)
    weights = {name: torch.tensor(x, requires_grad=True) for name, x in run.model.state().items()}
    groups = [{"params": [x for x in weights.values() if x.ndim > 1], "weight_decay": s.weight_decay}]
    groups += [{"params": [x for x in weights.values() if x.ndim == 1], "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    cos, sin = (torch.tensor(np.tile(x, 2)) for x in qkvc.RopeConfig().tables(np.arange(s.length), s.width // s.heads, "float64"))

    def placed(x: Any, name: str) -> Any:
        x = f.linear(x, weights[name]).unflatten(-1, (s.heads, -1)).transpose(1, 2)
        low, high = x.chunk(2, -1)
        return x if name.endswith("v_weight") else x * cos + torch.cat((-high, low), -1) * sin

    def loss_of(ids: Any, targets: Any) -> Any:
        x = weights["embedding.weight"][ids]
        for block in (f"blocks.{index}" for index in range(s.layers)):
            y = f.rms_norm(x, (s.width,), weights[f"{block}.norm_1.weight"], 1e-6)
            heads = f.scaled_dot_product_attention(*(placed(y, f"{block}.attention.{part}_weight") for part in "qkv"), is_causal=True)
            x = x + f.linear(heads.transpose(1, 2).flatten(2), weights[f"{block}.attention.out_weight"])
            y = f.rms_norm(x, (s.width,), weights[f"{block}.norm_2.weight"], 1e-6)
            gate, up = (f.linear(y, weights[f"{block}.feed_forward.{part}.weight"]) for part in ("gate", "up"))
            x = x + f.linear(f.silu(gate) * up, weights[f"{block}.feed_forward.down.weight"])
        scores = f.linear(f.rms_norm(x, (s.width,), weights["norm.weight"], 1e-6), weights["head.weight"])
        return f.cross_entropy(scores.flatten(0, 1), targets.flatten())

    theirs = []
    for step in range(s.steps):
        for group in optimiser.param_groups:
            group["lr"] = warmed_cosine(step, s.steps, lr=s.lr, warmup=s.steps // 20)
        loss = loss_of(*map(torch.from_numpy, run.text.batch(s.batch, s.seed, step)))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), s.clip)
        optimiser.step()
        theirs.append(loss.item())
    run.go(lambda run: None)
    assert theirs[-1] < theirs[0]
    np.testing.assert_allclose(run.losses, theirs, rtol=1e-7)  # torch adds 1e-6 to the gradient's length before it divides


def test_stopped_and_gone_on(straight: Path, tmp_path: Path) -> None:
    for step in (1, 6, 8):
        with pytest.raises(Stop):
            run_of(tmp_path).go(stop_at(step))
    last = run_of(tmp_path)
    assert last.step == 8
    last.go(lambda run: None)
    assert_same_run(tmp_path, straight)
    assert len(last.checkpoints()) == 2
    done = run_of(tmp_path)
    done.go(lambda run: pytest.fail("there is nothing left to do"))
    assert done.points == last.points


def test_dropout_goes_on_too(tmp_path: Path) -> None:
    """What a step drops hangs on the seed and the step alone; a validation drops nothing."""
    s = replace(SMALL, dropout=0.3)
    run = run_of(tmp_path / "straight", s)
    run.go(lambda run: None)
    with pytest.raises(Stop):
        run_of(tmp_path / "stopped", s).go(stop_at(6))
    again = run_of(tmp_path / "stopped", s)
    assert again.step == 4
    again.go(lambda run: None)
    assert_same_run(tmp_path / "stopped", tmp_path / "straight")
    assert run.validate() == again.validate() == run.points[-1].loss
    whole = run_of(tmp_path / "whole", SMALL)
    whole.go(lambda run: None)
    assert run.losses[0] != whole.losses[0]


def test_threads_change_no_bit(straight: Path, tmp_path: Path) -> None:
    before = qkvc.get_num_threads()
    try:
        for threads in (1, 2):
            qkvc.set_num_threads(threads)
            run_of(tmp_path / str(threads), replace(SMALL, batch=16, length=128)).go(lambda run: None)
    finally:
        qkvc.set_num_threads(before)
    assert_same_run(tmp_path / "1", tmp_path / "2")


def test_killed(straight: Path, tmp_path: Path) -> None:
    """kill -9 whenever it likes, again and again, until the run is through."""
    (tmp_path / "text").write_bytes(SENTENCES)
    names = {name.replace("_", "-"): value for name, value in vars(SMALL).items()}
    options = [f"--{name}={value}" for name, value in names.items()]
    command = [sys.executable, "-m", "qkvc", "train", str(tmp_path / "text"), "--out", str(tmp_path / "out"), "--sample", "5", *options]
    rng, killed, delay = np.random.default_rng(2), 0, 0.7
    for _ in range(40):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            _, told = child.communicate(timeout=delay * rng.uniform(0.5, 1.5))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.communicate()
            killed, delay = killed + 1, 1.3 * delay
            continue
        assert child.returncode == 0, told
        break
    else:
        pytest.fail("forty times were not enough")
    assert killed
    assert_same_run(tmp_path / "out", straight)
    assert sorted(file.name for file in (tmp_path / "out").iterdir() if file.name.startswith(".")) == []


def test_a_full_disk(straight: Path, tmp_path: Path) -> None:
    """No file may grow beyond 1000 bytes from step 5 on: the write of step 8 fails, that of step 4 is what is left."""
    run_child(
        f"""
        import resource
        from pathlib import Path
        from tests.test_train import SMALL, run_of
        def report(run):
            if run.step == 5:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            run_of(Path({str(tmp_path)!r})).go(report)
        except OSError as error:
            assert "File too large" in str(error), error
            assert "step 8" in str(error), error
            assert "step-00000004.safetensors" in str(error), error
        else:
            raise SystemExit("nothing failed")
        """,
        PYTHONPATH=os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["step-00000000.safetensors", "step-00000004.safetensors"]
    run_of(tmp_path).go(lambda run: None)
    assert_same_run(tmp_path, straight)


def test_divergence(tmp_path: Path) -> None:
    run = run_of(tmp_path, replace(SMALL, lr=1e25, clip=1e9))
    with pytest.raises(FloatingPointError, match=r"expected .*finite.*smaller lr.*step-0000000\d\.safetensors"):
        run.go(lambda run: None)
    for path in run.checkpoints():
        tensors, _ = load_checkpoint(path)
        assert all(np.isfinite(array).all() for array in tensors.values())


def test_a_damaged_checkpoint(straight: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path)
    with pytest.raises(Stop):
        run.go(stop_at(9))
    last = run.checkpoints()[-1]
    data = bytearray(last.read_bytes())
    data[-100] ^= 1
    last.write_bytes(data)
    with pytest.raises(DamagedCheckpoint, match=r"step-00000008.*checksum.*goes on from .*step-00000004"):
        run_of(tmp_path)
    assert last.read_bytes() == data, "nothing is thrown away unasked"
    last.unlink()
    again = run_of(tmp_path)
    assert again.step == 4
    again.go(lambda run: None)
    assert_same_run(tmp_path, straight)


def test_other_settings_or_texts_are_refused(straight: Path) -> None:
    assert_refused(lambda: run_of(straight, replace(SMALL, lr=0.5)), ValueError, "train: lr:", "0.002", "0.5")
    assert_refused(lambda: run_of(straight, replace(SMALL, width=32)), ValueError, "train: width:", "16", "32")
    assert_refused(lambda: run_of(straight, data=SENTENCES * 2), ValueError, "train: text:", "another directory")


def test_texts() -> None:
    assert_refused(lambda: Text(b"", 8), ValueError, "train: text:", "at least 100 bytes", "got 0")
    assert_refused(lambda: Text(b"x" * 99, 8), ValueError, "train: text:", "99")
    assert_refused(lambda: Text("é".encode("latin-1") * 200, 8), ValueError, "train: text:", "UTF-8", "0xe9 at 0")
    text = Text(bytes(range(97, 123)) * 20, 8)
    ids, targets = text.batch(5, 1, 2)
    np.testing.assert_array_equal(ids[:, 1:], targets[:, :-1])
    np.testing.assert_array_equal(text.batch(5, 1, 2)[0], ids)
    assert not np.array_equal(text.batch(5, 1, 3)[0], ids)
    shares = np.full(26, 18 / (468 + 256)), np.full(26, 2 / 52)
    assert text.unigram() == pytest.approx(-np.log(shares[0]).mean(), rel=0.02)
    assert len(own_text()) > 100_000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "0"], ["train: steps:", "got 0"]),
        (["--lr", "nan"], ["train: lr:", "nan"]),
        (["--dropout", "1"], ["train: dropout:", "below 1", "1.0"]),
        (["--width", "30", "--heads", "4"], ["num_heads", "30"]),
        (["--seed", "-1"], ["train: seed:", "got -1"]),
        (["--sample", "-1"], ["train: sample:", "got -1"]),
        (["--prompt", ""], ["train: prompt:", "got ''"]),
        (["--prompt", "\udcff"], ["train: prompt:", "UTF-8", "udcff"]),
    ],
)
def test_misuse(arguments: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "--out", str(tmp_path / "out"), *arguments])
    assert caught.value.code == 2
    assert not (tmp_path / "out").exists(), "refused before the first step"
    told = capsys.readouterr().err
    assert all(word in told for word in words), told


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_bytes(SENTENCES)
    small = ["--steps=4", "--batch=2", "--length=16", "--layers=1", "--width=8", "--heads=2", "--every=2", "--sample=20"]
    assert main(["train", "text", "--out", "out", *small]) == 0
    told = capsys.readouterr().out
    assert "step      4:" in told
    assert "held back" in told
    assert {"loss.png", "model.safetensors", "config.json", "step-00000004.safetensors"} <= {file.name for file in Path("out").iterdir()}
    with import_module("safetensors").safe_open("out/model.safetensors", "np") as model:
        assert model.metadata() == {"format": "pt"}
    for arguments, word in ((["missing"], "missing"), (["out/loss.png"], "UTF-8")):
        try:
            code: Any = main(["train", *arguments, "--out", "other", *small])
        except SystemExit as misused:
            code = misused.code
        assert code in (1, 2)
        assert word in capsys.readouterr().err
