"""The console script: its commands, its exit codes, and which stream says what."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import qkvc
from qkvc import cli, demo, experiments
from qkvc.experiments.training import Table
from qkvc.models import minilm

from .support import run_child


def run(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qkvc", *arguments]
    env = {**os.environ, "PYTHONUNBUFFERED": ""}  # buffered as for a user, whatever the surroundings say
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60, check=False, env=env)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "command"),
        (["dance"], "dance"),
        (["info", "--yaml"], "--yaml"),
        (["info", "more"], "more"),
        (["explain"], "BxHxLxD"),
        (["explain", "1x2x3"], "four numbers"),
        (["demo", "--text"], "--text"),
        (["experiment", "seats", "alchemy"], "got 'alchemy'"),
        (["experiment", "--seed", "x"], "--seed"),
        (["experiment", "--seed", "-1"], "--seed: expected an integer of 0 or more, got -1"),
        (["demo", "--picture"], "--picture"),
        (["demo", "a sentence without its option"], "a sentence"),
        (["--no-such-option"], "command"),
    ],
)
def test_misuse(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("usage: qkvc")
    assert words in err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for command in ("info", "demo", "explain", "experiment", "look", "bench"):
        assert re.search(rf"^    {command}\b", out, re.MULTILINE)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"qkvc {qkvc.__version__}\n"


def test_info_json(isa: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == qkvc.show_config("dicts")
    assert told["kernels"]["in use"] == isa


def test_info(isa: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    told = {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert f"qkvc {qkvc.__version__}" in told
    assert f"kernels: in use {isa}" in told
    assert f"kernels: available {', '.join(qkvc.kernels())}" in told


def test_demo_options(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(demo, "run", lambda *arguments: calls.append(arguments) or 0)
    assert cli.main(["demo"]) == 0
    assert cli.main(["demo", "--text", "one", "two", "--text", "three", "--picture", "p.png", "--no-bench"]) == 0
    assert calls == [([], Path("qkvc-demo.png"), cli.run_bench), (["one", "two", "three"], Path("p.png"), None)]


def test_demo_failure_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "run", lambda *arguments: 1)
    assert cli.main(["demo"]) == 1


def test_experiments_are_run_in_order(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in cli.EXPERIMENTS:
        shown = Table(f"about {name}", ["what"], [["a cell as wide as the title"]])
        outcome = types.SimpleNamespace(tables=lambda shown=shown: [shown])
        monkeypatch.setattr(experiments, name, lambda seed, name=name, outcome=outcome: calls.append((name, seed)) or outcome)
    calls: list[tuple[str, int]] = []
    assert cli.main(["experiment", "seats", "meaning", "--seed", "3"]) == 0
    assert calls == [("seats", 3), ("meaning", 3)]
    out = capsys.readouterr().out
    assert out.index("about seats") < out.index("about meaning")
    calls.clear()
    assert cli.main(["experiment"]) == 0
    assert calls == [(name, 0) for name in cli.EXPERIMENTS]
    assert {name for name in experiments.__all__ if name.islower()} == set(cli.EXPERIMENTS)


@pytest.mark.parametrize("arguments", [[], ["--quick"], ["--help"], ["--cases", "small*", "--threads", "2"]])
def test_bench_gets_everything_that_follows(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    module, calls = types.ModuleType("qkvc.bench.run"), list[list[str]]()
    module.main = lambda rest: calls.append(rest) or 5  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "qkvc.bench.run", module)
    assert cli.main(["bench", *arguments]) == 5
    assert calls == [arguments]


def test_the_benchmark_is_there() -> None:
    done = run("bench", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--quick" in done.stdout


def test_an_impossible_picture_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demo, "run", lambda texts, picture, bench: picture.write_bytes(b""))
    assert cli.main(["demo", "--picture", str(tmp_path / "no such directory" / "p.png")]) == 1
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("qkvc: ")
    assert "no such directory" in err


def test_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", interrupted)
    assert cli.main(["demo"]) == 130


def test_a_closed_pipe_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run("info", "--json", stdout=writer)  # of which nothing is written before the flush at the end
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_terminal_without_unicode() -> None:
    out = run_child(
        f"""
        import sys
        sys.modules["{minilm.PACKAGE}"] = None  # the first part has the signs in question, and the model takes seconds
        from qkvc.cli import main
        assert main(["demo", "--no-bench"]) == 0
        """,
        PYTHONIOENCODING="ascii",
    )
    assert "query ? key" in out
    assert "0.4223188" in out
