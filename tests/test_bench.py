"""The benchmarks: their cases, their honesty about wrong and absent rivals, the program.  No test asserts a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import qkvc
from qkvc.bench.cases import CASES, QUICK, Case, Goal, select
from qkvc.bench.forms import Form
from qkvc.bench.measure import Effort, measure, prepare, rotated
from qkvc.bench.problems import CannotExpress, Problem
from qkvc.bench.results import CaseResult, Contestant, Result
from qkvc.bench.run import main
from qkvc.bench.works import RIVALS, WORKS, ours, rivals_of

TINY = Case(2, 4, 9, 8, kv_heads=2, keys=11)
EFFORT = Effort(threads=1, rounds=2, seconds=1e-4)
BUFFER = np.ones(1 << 16, np.float32)
OPTIONS = (
    Case(2, 4, 70, 8, kv_heads=2, causal="top-left"),
    Case(1, 4, 3, 8, kv_heads=2, keys=70, causal="bottom-right"),
    Case(1, 2, 300, 8, keys=70, causal="top-left"),
    Case(2, 2, 9, 8, keys=70, mask="padding", causal="bottom-right"),
    Case(1, 2, 300, 8, mask="window"),
    Case(1, 4, 9, 8, kv_heads=2, mask="bias"),
    Case(2, 4, 9, 8, kv_heads=2, layout="blhd"),
    Case(1, 2, 1, 8, keys=70, v_dim=5),
    TINY,
    Case(1, 4, 48, 8, window=16),
    Case(2, 2, 9, 8, kv_heads=1, window=4, option="softcap"),
    Case(1, 3, 9, 8, option="softcap"),
    Case(2, 4, 9, 8, kv_heads=2, option="alibi"),
    Case(1, 4, 9, 8, kv_heads=2, option="sinks"),
    Case(1, 2, 70, 8, mask="random", causal="top-left"),
)
DOUBLE = Case(1, 2, 150, 8, causal="top-left", dtype="float64")
# Enough to reach every form; each costs JAX three compilations.
FORMS = (*OPTIONS[:4], *OPTIONS[5:7], *OPTIONS[9:10], *OPTIONS[11:], DOUBLE)
HALF = (
    Case(2, 4, 70, 8, kv_heads=2, causal="top-left", dtype="bfloat16"),
    Case(1, 4, 1, 8, kv_heads=2, keys=70, dtype="bfloat16"),
    Case(1, 4, 48, 8, window=16, dtype="bfloat16"),
    Case(2, 4, 9, 8, kv_heads=2, mask="bias", dtype="float16"),
    Case(2, 4, 70, 8, kv_heads=2, causal="top-left", option="bf16"),
)
STEPS = tuple(Case(2, 4, 1, 8, kv_heads=2, keys=30, dtype=dtype, work="step") for dtype in ("float32", "bfloat16", "int8"))
BUILT_ON_IT = (
    *STEPS,
    Case(2, 4, 9, 8, work="module"),
    Case(2, 4, 9, 8, kv_heads=2, causal="top-left", work="qwen3"),
    Case(1, 3, 40, 8, work="stats"),
    Case(5, 4, 20, 8, work="varlen"),
    Case(5, 4, 20, 8, kv_heads=2, causal="top-left", work="varlen"),
    Case(5, 4, 1, 8, kv_heads=2, keys=70, work="varlen"),
    Case(3, 12, 8, 32, work="model"),
    Case(2, 2, 9, 8, causal="top-left", work="training"),
    Case(2, 4, 40, 8, work="backward"),
    Case(1, 4, 40, 8, kv_heads=2, keys=70, v_dim=5, causal="bottom-right", work="backward"),
    Case(2, 4, 40, 8, kv_heads=2, causal="top-left", work="backward"),
    Case(2, 4, 40, 8, work="dropout"),
    Case(1, 4, 40, 8, kv_heads=2, causal="top-left", work="dropout"),
)


# ----------------------------------------------------------------------------------------------------------------------------- cases


def test_names_are_unique_and_find_their_case() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.name for case in select(quick=True)} == set(QUICK)
    assert [case.name for case in select(["1x1x3x4"])] == ["1x1x3x4"]
    assert {case.kind for case in select(["decode", "small"])} == {"decode", "small"}
    assert select(["8x12*64"]) == tuple(case for case in CASES if case.name.startswith("8x12") and case.name.endswith("64"))


@pytest.mark.parametrize("case", OPTIONS, ids=lambda case: case.name)
def test_flops_count_the_pairs_that_may_meet(case: Case) -> None:
    problem = Problem(case)
    allowed = np.broadcast_to(problem.allowed, (case.batch, case.heads, case.queries, case.keys))
    pairs = sum(bool(allowed[index]) for index in np.ndindex(allowed.shape))
    assert problem.flops == 2 * (case.dim + case.v_dim) * pairs


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kv_heads": 3}, "shared out"),
        ({"keys": 5, "causal": "bottom-right"}, "as many keys"),
        ({"causal": "left"}, "top-left"),
        ({"keys": -1}, "at least 1"),
        ({"keys": 5, "window": 3}, "as many keys"),
        ({"option": "dropout"}, "softcap, alibi"),
        ({"mask": "lower"}, "padding, window"),
        ({"dtype": "int8"}, "float32, float64"),
    ],
)
def test_impossible_cases_are_refused(wrong: dict[str, int | str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Case(1, 4, 9, 8, **wrong)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------------------- measuring


ENTRIES = [(name, case) for case in (*FORMS, *HALF, *BUILT_ON_IT) for name in ("qkvc", *rivals_of(case))]


@pytest.mark.parametrize(("name", "case"), ENTRIES, ids=[f"{name}-{case.name}" for name, case in ENTRIES])
def test_every_form_of_every_rival_is_right_or_refuses(name: str, case: Case) -> None:
    try:
        found, form = prepare(name, {"qkvc": ours, **rivals_of(case)}[name], WORKS[case.work].problem(case), EFFORT)
    except ImportError as error:
        pytest.skip(f"{name} or what it needs is not installed: {error}")
    if name in ("qkvc", "torch") or (name == "numpy" and case.dtype in ("float32", "float64")):
        assert found.rejected == []  # these know every option
    if case.dtype == "float32" or name not in ("onnxruntime", "openvino"):  # these take doubles and compute in float32
        assert not any("off by" in why or "not finite" in why for why in found.rejected)
    assert found.timed == (form is not None)
    assert not found.timed or found.error is not None


def wrong(problem: Problem, threads: int) -> Iterator[Form]:
    """Attention without its scale: plausible, and wrong."""
    x = problem
    yield Form("unscaled", lambda: qkvc.attention(x.query, x.key, x.value, scale=1.0))
    yield Form("not a number", lambda: np.full_like(x.reference, np.nan))
    yield Form("one row", lambda: x.reference[..., :1, :])


def mixed(problem: Problem, threads: int) -> Iterator[Form]:
    """A wrong form, one that raises, then the right one: it is the one to be timed."""
    yield from wrong(problem, threads)
    yield Form("broken", lambda: 1 // 0)
    yield Form("right", lambda: problem.reference, setting=nullcontext)


def narrow(problem: Problem, threads: int) -> Iterator[Form]:
    """float64 in, float64 out, float32 inside."""
    arrays = [x.astype(np.float32) for x in (problem.query, problem.key, problem.value)]
    yield Form("narrow", lambda: qkvc.attention(*arrays, causal=True).astype(np.float64))


def mute(problem: Problem, threads: int) -> Iterator[Form]:
    raise CannotExpress("it knows no such thing")
    yield


def missing(problem: Problem, threads: int) -> Iterator[Form]:
    raise ImportError("No module named 'missing'")
    yield


def test_wrong_absent_and_mute_rivals_are_told_apart() -> None:
    absent: dict[str, str] = {}
    entrants = {"qkvc": ours, "wrong": wrong, "mixed": mixed, "mute": mute, "missing": missing}
    result = measure(TINY, entrants, EFFORT, absent, BUFFER)
    assert {x.name: x.status for x in result.contestants} == {"qkvc": "timed", "wrong": "wrong", "mixed": "timed", "mute": "cannot"}
    assert absent == {"missing": "No module named 'missing'"}
    found = {x.name: x for x in result.contestants}
    assert found["wrong"].seconds == []
    assert "unscaled: off by" in found["wrong"].rejected[0]
    assert "not finite" in found["wrong"].rejected[1]
    assert "shape (2, 4, 1, 8)" in found["wrong"].rejected[2]
    assert found["mixed"].form == "right"
    assert len(found["mixed"].rejected) == 4
    assert found["mute"].why == "it knows no such thing"
    assert result.best_rival(["qkvc"]) is found["mixed"]


def test_float64_is_measured_against_more_digits_than_it_has() -> None:
    problem = Problem(DOUBLE)
    assert problem.reference.dtype == np.longdouble
    assert problem.reference.shape == (1, 2, 75, 8)  # every other row: long double has no BLAS
    right, _ = prepare("numpy", RIVALS["numpy"], problem, EFFORT)
    assert right.error is not None
    assert 0 < right.error < 1e-14
    found, form = prepare("narrow", narrow, problem, EFFORT)
    assert (found.status, form) == ("wrong", None)


def test_work_and_speed_of_learning_are_counted_as_they_say() -> None:
    back, both = (WORKS[work].problem(Case(2, 4, 9, 8, kv_heads=2, v_dim=5, work=work)) for work in ("backward", "dropout"))
    pairs = 2 * 4 * 9 * 9
    assert (back.flops, both.flops) == (2 * (3 * 8 + 2 * 5) * pairs, 2 * (4 * 8 + 3 * 5) * pairs)
    case = next(case for case in CASES if case.work == "training")
    timed = CaseResult(case, 1, [Contestant("qkvc", "timed", seconds=[0.5])], peak=[4e-9], read=[1.0])
    assert timed.rate(timed.contestants[0]) == 2 * 8 * 256
    assert timed.share(timed.contestants[0]) == pytest.approx(0.5)  # of the FMA peak


def test_gradients_and_dropout_that_are_wrong_are_found() -> None:
    back, both = (WORKS[work].problem(Case(1, 2, 40, 8, work=work)) for work in ("backward", "dropout"))
    (right,), (dropped,) = WORKS["backward"].ours(back, 1), WORKS["dropout"].ours(both, 1)

    def off(problem: Problem, threads: int) -> Iterator[Form]:
        yield replace(right, call=lambda: [x * 1.001 for x in right.call()[:3]])

    def not_as_asked(problem: Problem, threads: int) -> Iterator[Form]:
        yield replace(dropped, result=both.result)  # judged as if nothing had been dropped
        for rate in (0.0, 0.2):
            attend = partial(qkvc.attention, both.query, both.key, dropout_p=rate, rng=1)
            yield replace(dropped, result=partial(both.beside, attend))

    assert prepare("x", off, back, EFFORT)[0].status == "wrong"
    whole, none, double = prepare("x", not_as_asked, both, EFFORT)[0].rejected
    assert "off by" in whole
    assert "0.0% of the weights" in none
    assert "weights are dropped instead of 10%" in double


def test_window_whose_mask_would_be_vast_is_for_those_who_have_windows() -> None:
    case = Case(1, 1, 16384, 8, window=128)
    problem = Problem(case)
    with pytest.raises(CannotExpress, match="16384 x 16384"):
        assert problem.allowed.any()
    assert problem.flops == 32 * (129 * 16384 - 128 * 129 // 2)
    assert [form.name for form in RIVALS["numpy"](problem, 1)] == ["blocked"]


def test_plain_attention_takes_part_where_it_is_the_measure() -> None:
    case = Case(1, 2, 64, 8, window=8, goal=Goal(plain=1.3))
    result = measure(case, {"qkvc": ours, "numpy": RIVALS["numpy"]}, EFFORT, {}, BUFFER)
    assert [(x.name, x.status) for x in result.contestants] == [("qkvc", "timed"), ("numpy", "timed"), ("plain", "timed")]
    assert result.contestants[2].flops == Problem(Case(1, 2, 23, 8)).flops  # 540 pairs, about 23 x 23
    assert result.best_rival(["qkvc"]) is result.contestants[1]


def test_rounds_start_with_another_contestant_each_time() -> None:
    turns = [lambda: None, lambda: None, lambda: None]
    assert [list(rotated(turns, i)).index(turns[0]) for i in range(4)] == [0, 2, 1, 0]


# ----------------------------------------------------------------------------------------------------------------------- the program


def test_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved, picture = tmp_path / "result.json", tmp_path / "roofline.png"
    before = qkvc.get_num_threads()
    shape = ["--shape", "1x4x200x32", "--kv", "300", "--kv-heads", "2", "--causal"]
    how = ["--rivals", "numpy", "--rounds", "2", "--threads", "1", "--isa", ",".join(qkvc.kernels())]
    assert main([*shape, *how, "--json", str(saved), "--picture", str(picture)]) == 0
    assert qkvc.get_num_threads() == before
    assert picture.read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr()
    assert "1x4/2x200/300x32 top-left" in shown.out
    assert "[1/1]" in shown.err
    result = json.loads(saved.read_text(encoding="utf-8"))
    assert result["schema_version"] == 1
    assert result["subjects"] == [f"qkvc {isa}" for isa in qkvc.kernels()]
    (case,) = result["cases"]
    assert [x["status"] for x in case["contestants"]] == ["timed"] * (len(qkvc.kernels()) + 1)
    assert all(len(x["seconds"]) == 2 and min(x["seconds"]) > 0 for x in case["contestants"])
    assert len(case["peak"]) == len(case["read"]) == 2


def test_case_that_needs_what_is_absent_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(package: str) -> Path:
        raise ModuleNotFoundError(f"MiniLM: {package} is not installed")

    monkeypatch.setattr("qkvc.models.minilm.installed", missing)
    assert main(["--cases", "MiniLM 1 sentence", "1x1x3x4", "--rivals", "none", "--rounds", "1", "--threads", "1"]) == 0
    shown = capsys.readouterr().out
    assert "| 1x1x3x4 " in shown
    assert "| MiniLM" not in shown
    assert "MiniLM 1 sentence: not installed" in shown


def test_wrong_subject_fails_the_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("qkvc.bench.run.ours", wrong)
    assert main(["--shape", "1x1x4x4", "--rivals", "none", "--rounds", "1", "--threads", "1"]) == 1
    assert "unscaled: off by" in capsys.readouterr().out


def test_interrupted_run_shows_and_keeps_what_it_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(problem: Problem, threads: int) -> Iterator[Form]:
        if problem.case.name == "4x12x1x64":
            raise KeyboardInterrupt
        yield from ours(problem, threads)

    monkeypatch.setattr("qkvc.bench.run.ours", interrupt)
    saved = tmp_path / "result.json"
    code = main(["--cases", "1x1x3x4", "4x12x1x64", "--rivals", "none", "--rounds", "1", "--threads", "1", "--json", str(saved)])
    assert code == 130
    assert [case.case.name for case in Result.load(saved).cases] == ["1x1x3x4"]
    assert "1x1x3x4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "1x2x3"], "four numbers"),
        (["--shape", "1x2xax4"], "four numbers"),
        (["--shape", "1x4x9x8", "--kv-heads", "3"], "shared out"),
        (["--causal"], "describe a --shape"),
        (["--window", "8"], "describe a --shape"),
        (["--dtype", "float64", "--quick"], "describe a --shape"),
        (["--cases", "nothing-like-it"], "nothing is called"),
        (["--rivals", "torhc", "--quick"], "torhc"),
        (["--isa", "mmx", "--quick"], "mmx"),
        (["--isa", "", "--quick"], "no kernel set"),
        (["--threads", "0", "--quick"], "at least 1"),
        (["--threads", "1000000", "--quick"], "would measure the scheduler"),
        (["--rounds", "0", "--quick"], "at least 1"),
        (["curve", "1x4x9"], "four numbers"),
        (["curve", "1x4x9x8", "--rounds", "0"], "at least 1"),
        (["curve", "1x4x9x8", "--kv", "3", "--kv-heads", "4"], "bottom-right"),
    ],
)
def test_misuse_is_named_before_anything_is_measured(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_paths_that_cannot_be_written_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = tmp_path / "missing"
    tiny = ["--shape", "1x1x4x4", "--rivals", "none", "--rounds", "1", "--threads", "1"]
    with pytest.raises(SystemExit) as stop:
        main([*tiny, "--json", str(nowhere / "x.json")])
    assert stop.value.code == 2
    assert main([*tiny, "--picture", str(tmp_path / "x.png")]) == 1  # a case of µs alone leaves nothing to draw
    told = capsys.readouterr()
    assert "missing" in told.err
    assert "no case to draw" in told.err
    assert "1x1x4x4" in told.out


def test_list_names_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert all(case.name in shown for case in CASES)
