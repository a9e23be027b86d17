"""`qkvc explain`: what the function says, asked for on the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qkvc import cli

from .test_explain import SIZES, explain

FAST = ["--peak", "100", "--bandwidth", "10", "--json"]


@pytest.mark.parametrize(
    ("arguments", "shapes", "options"),
    [
        ("2x6x150x40", ((2, 6, 150, 40),) * 3, {}),
        ("2x6x150x40 --kv 310 --kv-heads 2 --v-dim 24", SIZES, {}),
        ("1x4x90x8 --causal --layout blhd", ((1, 90, 4, 8),) * 3, {"causal": True, "layout": "blhd"}),
        ("2x1x9x8 --kv 30 --causal bottom-right --key-lengths 30,20", ((2, 1, 9, 8), (2, 1, 30, 8), (2, 1, 30, 8)),
         {"causal": "bottom-right", "key_lengths": [30, 20]}),
        ("1x1x9x8 --kv 30 --causal --q-offset 5", ((1, 1, 9, 8), (1, 1, 30, 8), (1, 1, 30, 8)), {"causal": True, "q_offset": 5}),
        ("1x1x9x8 --window=-1,2 --threads 1", ((1, 1, 9, 8),) * 3, {"window": (-1, 2), "num_threads": 1}),
        *[(f"1x1x9x8 --dtype {dtype}", ((1, 1, 9, 8),) * 3, {"dtype": dtype}) for dtype in ("float64", "float16", "bfloat16")],
        ("2x8x1x64 --kv 900 --kv-heads 2 --dtype bfloat16", ((2, 8, 1, 64), (2, 2, 900, 64), (2, 2, 900, 64)), {"dtype": "bfloat16"}),
        ("1x1x9x8 --precision bf16", ((1, 1, 9, 8),) * 3, {"precision": "bf16"}),
        ("1x2x9x8 --mask --bias 2x9x1", ((1, 2, 9, 8),) * 3, {"mask": (9, 9), "bias": (2, 9, 1)}),
        ("1x2x9x8 --alibi --softcap 30", ((1, 2, 9, 8),) * 3, {"alibi_slopes": [1.0], "softcap": 30.0}),
    ],
)  # fmt: skip
def test_the_command(
    arguments: str, shapes: tuple[tuple[int, ...], ...], options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["explain", *arguments.split(), *FAST]) == 0
    told, wanted = json.loads(capsys.readouterr().out), explain(*shapes, **options).as_dict()
    for measured in ("overhead", "seconds", "bound"):
        del told[measured], wanted[measured]
    assert told == wanted


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "1x12x1024x64", "--causal", *FAST[:-1]]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for words in ("qkvc.attention on 1x12x1024x64", "cut by positions", "100 GFLOP/s, 10 GB/s", "bound by arithmetic"):
        assert words in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("1x2x3", "four numbers"),
        ("1x3x4x5 --kv-heads 2", "a number of heads that the key's 2 divide"),
        ("1x3x4x5 --window 3", "window: expected a pair"),
        ("1x3x4x5 --window left", "--window: expected integers with ',' between them, got 'left'"),
        ("1x3x4x5 --mask 3xa", "--mask: expected integers with 'x' between them, got '3xa'"),
        ("1x3x4x5 --bias 3x3", "bias: expected an array that broadcasts to (1, 3, 4, 4)"),
        ("1x3x4x5 --key-lengths 9", "key_lengths: expected integers from 0 to 4"),
        ("1x3x4x5 --threads 0", "num_threads"),
        ("1x3x4x5 --dtype int8", "int8"),
        ("1x3x4x5 --peak 0", "peak: expected a number above 0"),
    ],
)
def test_misuse_of_the_command(arguments: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["explain", *arguments.split()])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("usage: qkvc explain")
    assert words in err
