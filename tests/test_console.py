"""The tables of qkvc._console, with rich and without."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from qkvc import _console

from .hidden import hide_packages

ROWS = [["[CLS] is no markup", "b", "1.0"], ["x", "[bold]y[/bold]", "-12.25"]]


def test_plain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    hide_packages(monkeypatch, "rich")
    _console.table("Title", ["first", "second", "number"], ROWS, text_columns=2)
    assert capsys.readouterr().out.splitlines() == [
        "",
        "Title",
        "first               second          number",
        "------------------  --------------  ------",
        "[CLS] is no markup  b                  1.0",
        "x                   [bold]y[/bold]  -12.25",
    ]


def test_rich_shows_the_same_cells(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich", reason="rich draws this table")
    _console.table("Title", ["first", "second", "number"], ROWS, text_columns=2)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    cells = [re.split(r"\s{2,}", line) for line in lines]
    assert ["Title"] in cells
    for row in (["first", "second", "number"], *ROWS):
        assert row in cells


@pytest.mark.parametrize("no_color", [False, True])
def test_no_color(no_color: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich", reason="only rich has colours")
    for name in ("NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    _console.heading("A part")
    out = capsys.readouterr().out
    assert "A part" in out
    assert bool(re.search(r"\x1b\[(\d+;)*[349][0-7]", out)) is not no_color


@pytest.mark.parametrize("show", [_console.heading, _console.say])
def test_lines_reach_the_standard_output(show: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    show("some text")
    captured = capsys.readouterr()
    assert "some text" in captured.out
    assert not captured.err


def test_complaints_reach_the_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    _console.complain("some text")
    assert capsys.readouterr() == ("", "qkvc: some text\n")
