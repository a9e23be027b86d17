"""The benchmarks: their statistics, their honesty about wrong and absent rivals, their table and picture.  No test asserts a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from math import comb
from pathlib import Path

import numpy as np
import pytest

import qkvc
from qkvc.bench import report
from qkvc.bench.cases import CASES, QUICK, Case, Goal, select
from qkvc.bench.forms import Form
from qkvc.bench.measure import Effort, measure, prepare, rotated
from qkvc.bench.problems import CannotExpress, Problem
from qkvc.bench.results import CaseResult, Contestant, Result, estimate
from qkvc.bench.run import main
from qkvc.bench.works import RIVALS, WORKS, ours

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
BUILT_ON_IT = (
    Case(2, 4, 9, 8, work="module"),
    Case(2, 4, 9, 8, kv_heads=2, causal="top-left", work="qwen3"),
    Case(1, 3, 40, 8, work="stats"),
    Case(5, 4, 20, 8, work="varlen"),
    Case(5, 4, 20, 8, kv_heads=2, causal="top-left", work="varlen"),
    Case(5, 4, 1, 8, kv_heads=2, keys=70, work="varlen"),
    Case(3, 12, 8, 32, work="model"),
    Case(2, 2, 9, 8, causal="top-left", work="training"),
)


def contestant(name: str, *seconds: float, error: float = 1e-7) -> Contestant:
    return Contestant(name, "timed", form="sdpa", error=error, calls=1, seconds=list(seconds))


@pytest.fixture
def made_up() -> Result:
    """Three cases of 6 rounds: a win, a loss beside a wrong rival, and one that only we can do."""
    peak, read = [100.0] * 6, [50.0] * 6
    win = CaseResult(
        Case(1, 1, 1000, 64, goal=Goal(ratio=1.5, peak=0.8, torch_time=0.6)),
        256_000_000,
        [contestant("qkvc", 4, 4, 4, 4, 4, 4), contestant("torch", 5, 6, 7, 8, 9, 10), contestant("jax", 9, 9, 9, 9, 9, 9)],
        peak,
        read,
    )
    loss = CaseResult(
        Case(1, 8, 1, 64, keys=4096),
        8_388_608,
        [contestant("qkvc", *[2.0] * 6), contestant("torch", *[1.0] * 6), Contestant("jax", "wrong", "sdpa: off by 1.0e+00", error=1.0)],
        peak,
        read,
    )
    alone = CaseResult(
        Case(1, 1, 3, 4),
        144,
        [contestant("qkvc", *[1e-6] * 6), Contestant("torch", "cannot", "it may not"), Contestant("jax", "failed", "no")],
    )
    versions = {"qkvc": "0.1.0", "torch": "2.13.0"}
    machine = {"cpu": "A CPU", "cores": "2 CPUs"}
    absent = {"openvino": "No module named 'openvino'"}
    return Result("2026-01-01", machine, versions, "avx2", 2, 6, ["qkvc"], absent, [win, loss, alone])


# ------------------------------------------------------------------------------------------------------------------------ statistics


@pytest.mark.parametrize("n", [6, 7, 8, 9, 11, 25, 100])
def test_interval_is_the_narrowest_that_holds_the_median_often_enough(n: int) -> None:
    found = estimate(range(n))
    cut = int(found.low)  # samples below the interval
    assert (found.low, found.high) == (cut, n - 1 - cut)
    tails = [2 * sum(comb(n, i) for i in range(k + 1)) / 2**n for k in (cut, cut + 1)]
    assert tails[0] <= 0.05 < tails[1]
    assert found.coverage == pytest.approx(1 - tails[0])
    assert found.median == np.median(range(n))
    assert found.quartiles == (np.quantile(range(n), 0.25), np.quantile(range(n), 0.75))


def test_interval_holds_the_true_median_as_often_as_it_says(rng: np.random.Generator) -> None:
    intervals = [estimate(list(rng.exponential(size=11))) for _ in range(2000)]
    held = np.mean([x.low <= np.log(2) <= x.high for x in intervals])  # the median of the exponential distribution
    assert held == pytest.approx(intervals[0].coverage, abs=0.02)
    assert held > 0.95


def test_few_samples_give_their_range_and_say_what_it_is_worth() -> None:
    found = estimate([3.0, 1.0, 2.0])
    assert (found.low, found.median, found.high, found.coverage) == (1.0, 2.0, 3.0, 0.75)
    assert estimate([1.0]).coverage == 0
    with pytest.raises(ValueError, match="no samples"):
        estimate([])


def test_ratio_is_taken_round_by_round(made_up: Result) -> None:
    win = made_up.cases[0]
    ratio = win.ratio(win.contestants[0], win.contestants[1])
    assert (ratio.median, ratio.low, ratio.high) == (7.5 / 4, 5 / 4, 10 / 4)


def test_best_rival_has_the_lowest_median_and_is_no_subject(made_up: Result) -> None:
    assert made_up.cases[0].best_rival(["qkvc"]) is made_up.cases[0].contestants[1]
    assert made_up.cases[0].best_rival(["qkvc", "torch"]) is made_up.cases[0].contestants[2]
    assert made_up.cases[2].best_rival(["qkvc"]) is None


def test_share_is_of_arithmetic_or_of_bandwidth(made_up: Result) -> None:
    win, loss, _ = made_up.cases
    assert win.share(win.contestants[0]) == pytest.approx(0.256 / 4 / 100)
    assert loss.share(loss.contestants[0]) == pytest.approx(loss.case.bytes / 1e9 / 2 / 50)


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
        ({"dtype": "float16"}, "float32, float64"),
    ],
)
def test_impossible_cases_are_refused(wrong: dict[str, int | str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Case(1, 4, 9, 8, **wrong)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------------------- measuring


ENTRIES = [(name, case) for case in (*FORMS, *BUILT_ON_IT) for name in ("qkvc", *WORKS[case.work].rivals)]


@pytest.mark.parametrize(("name", "case"), ENTRIES, ids=[f"{name}-{case.name}" for name, case in ENTRIES])
def test_every_form_of_every_rival_is_right_or_refuses(name: str, case: Case) -> None:
    work = WORKS[case.work]
    try:
        found, form = prepare(name, {"qkvc": ours, **work.rivals}[name], work.problem(case), EFFORT)
    except ImportError as error:
        pytest.skip(f"{name} or what it needs is not installed: {error}")
    if name in ("qkvc", "torch", "numpy"):  # these know every option
        assert found.rejected == []
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


# -------------------------------------------------------------------------------------------------------------------- table, picture


def test_table_shows_losses_wrong_results_and_who_is_absent(made_up: Result) -> None:
    lines = report.markdown(made_up).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:5]]
    assert cells[0] == ["case", "qkvc (of peak)", "best rival", "times faster [95 %]", "torch", "jax", "error", "rival's"]
    assert cells[2] == ["1x1x1000x64", "0.06 (0%)", "torch", "1.88 [1.25, 2.50]", "0.03", "0.03", "1.0e-07", "1.0e-07"]
    assert cells[3][2:6] == ["torch", "0.50 [0.50, 0.50]", "0.02 GB/s", "wrong"]
    assert cells[4] == ["1x1x3x4", "1.00 µs", "-", "-", "cannot", "failed", "1.0e-07", "-"]
    text = "\n".join(lines)
    for note in (
        "openvino: not installed",
        "off by 1.0e+00",
        "it may not",
        "2 threads, avx2 kernels, 6 interleaved rounds",
        "FMA peak 100",
    ):
        assert note in text
    assert len({len(line) for line in lines[:5]}) == 1  # padded, to be read as it stands


def test_busy_machine_is_noted(made_up: Result) -> None:
    assert "busy" not in report.markdown(made_up)
    made_up.cases[0].peak[3] = 60.0
    made_up.cases[0].single = [95.0] * 6
    text = report.markdown(made_up)
    assert "varied by more than 30 %" in text
    assert "2 threads did only 1.05 times the FMAs of one" in text


def test_promises_are_compared_with_what_came_out(made_up: Result) -> None:
    kept = {line.split(";")[1].strip(): kept for line, kept in report.goals(made_up)[:4]}
    assert kept == {"never slower": True, "promised 1.50": True, "promised 80%": False, "promised 0.60": True}
    assert report.goals(made_up)[4][1] is False  # the loss: the whole interval lies below 1
    made_up.cases[0].contestants[0].status = "wrong"
    assert report.goals(made_up)[0][1] is False


def test_time_beside_plain_attention_is_for_the_same_work() -> None:
    case = Case(1, 2, 1000, 8, mask="bias", goal=Goal(plain=1.3))  # 8 MB of bias: 2 ms at 4 GB/s
    ours, plain = contestant("qkvc", 0.008, 0.010, 0.012), contestant("plain", 0.002, 0.002, 0.002)
    plain.flops = 16_000_000
    result = CaseResult(case, 64_000_000, [ours, contestant("torch", 1, 1, 1), plain], [100.0] * 3, [4.0] * 3)
    assert result.over_plain(ours, plain) == pytest.approx((10 - 2) / (2 * 4))
    run = Result("2026-01-01", {"cpu": "A CPU"}, {}, "avx2", 2, 3, ["qkvc"], {}, [result])
    assert report.goals(run)[-1] == ("1x2x1000x8 bias: 1.00 of plain attention's time for as much work; promised 1.30", True)
    plain.seconds = [0.001] * 3
    assert report.goals(run)[-1][1] is False
    text = report.markdown(run)
    assert "| plain |" in text.replace("  ", "")
    assert "plain: qkvc without the option" in text


def test_shares_and_rates_are_of_the_dtype_and_of_sentences() -> None:
    double = CaseResult(Case(1, 1, 1000, 64, dtype="float64"), 10**9, [contestant("qkvc", 0.02)], [100.0], [50.0])
    assert double.share(double.contestants[0]) == pytest.approx(1.0)  # half as many numbers fit into a vector
    model = CaseResult(Case(8, 12, 40, 32, work="model"), 10**9, [contestant("qkvc", 0.02)], [100.0], [50.0])
    assert model.rate(model.contestants[0]) == pytest.approx(400)
    run = Result("2026-01-01", {"cpu": "A CPU"}, {}, "avx2", 2, 1, ["qkvc"], {}, [model])
    assert "| MiniLM 8 sentences |   400 /s (50%) |" in report.markdown(run)


def test_table_goes_between_the_markers(made_up: Result, tmp_path: Path) -> None:
    saved, readme, picture = tmp_path / "result.json", tmp_path / "README.md", tmp_path / "roofline.png"
    made_up.save(saved)
    assert Result.load(saved) == made_up
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", encoding="utf-8")
    assert main(["report", str(saved), "--readme", str(readme), "--picture", str(picture)]) == 0
    text = readme.read_text(encoding="utf-8")
    assert text == f"before\n{report.BEGIN}\n{report.markdown(made_up)}{report.END}\nafter\n"
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("text", ["no markers", f"{report.END}{report.BEGIN}", f"{report.BEGIN}{report.BEGIN}{report.END}"])
def test_readme_without_its_markers_is_left_alone(made_up: Result, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    saved, readme = tmp_path / "result.json", tmp_path / "README.md"
    made_up.save(saved)
    readme.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        main(["report", str(saved), "--readme", str(readme)])
    assert stop.value.code == 1
    assert "once each" in capsys.readouterr().err
    assert readme.read_text(encoding="utf-8") == text


def test_result_of_another_schema_is_refused(made_up: Result, tmp_path: Path) -> None:
    made_up.schema_version = 0
    made_up.save(tmp_path / "old.json")
    with pytest.raises(ValueError, match="schema_version is 0"):
        Result.load(tmp_path / "old.json")


def test_nothing_to_draw_is_said(made_up: Result, tmp_path: Path) -> None:
    from qkvc.bench.picture import draw

    made_up.cases = made_up.cases[2:]
    with pytest.raises(ValueError, match="no case to draw"):
        draw(made_up, tmp_path / "nothing.png")


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
