"""What a run of the benchmarks says: statistics, shares of the machine, promises, tables, pictures, the curve, losses beside torch's."""

from __future__ import annotations

from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qkvc
from qkvc.bench import curve, learn, report
from qkvc.bench.cases import Case, Goal
from qkvc.bench.results import CaseResult, Contestant, Result, estimate
from qkvc.bench.run import main
from qkvc.train import Settings, Text, own_text


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


# -------------------------------------------------------------------------------------------------------------------- table, picture


def test_table_shows_losses_wrong_results_and_who_is_absent(made_up: Result) -> None:
    lines = report.markdown(made_up).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:12]]
    assert cells[0] == ["**Attention**"]
    assert cells[2] == ["case", "qkvc (of roof)", "best rival", "times faster [95 %]", "torch", "jax", "error", "rival's"]
    assert cells[4] == ["1x1x1000x64", "0.06 (0%)", "torch", "1.88 [1.25, 2.50]", "0.03", "0.03", "1.0e-07", "1.0e-07"]
    assert cells[5] == ["1x1x3x4", "1.00 µs", "-", "-", "cannot", "failed", "1.0e-07", "-"]
    assert cells[7] == ["**One query and a cache**"]
    assert cells[11][2:6] == ["torch", "0.50 [0.50, 0.50]", "0.02 GB/s", "wrong"]
    text = "\n".join(lines)
    for note in (
        "openvino: not installed",
        "off by 1.0e+00",
        "it may not",
        "2 threads, avx2 kernels, 6 interleaved rounds",
        "FMA peak 100",
    ):
        assert note in text
    assert len({len(line) for line in lines[2:6]}) == 1  # padded, to be read as it stands


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


@pytest.mark.parametrize(("case", "roof"), [({"dtype": "bfloat16"}, 200.0), ({"option": "bf16"}, 200.0), ({"dtype": "float16"}, 100.0)])
def test_share_of_bfloat16_is_of_pairs(case: dict[str, Any], roof: float) -> None:
    half = CaseResult(Case(1, 1, 1000, 64, **case), 10**9, [contestant("qkvc", 0.02)], [100.0], [50.0])
    half.pairs = [200.0] if half.case.pairs else []
    assert half.share(half.contestants[0]) == pytest.approx(1 / 0.02 / roof)
    run = Result("2026-01-01", {"cpu": "A CPU"}, {}, "avx2", 2, 1, ["qkvc"], {}, [half])
    assert report.markdown(run).startswith("**16 bits**")
    assert ("in pairs of bfloat16 200 to 200 GFLOP/s" in report.markdown(run)) == half.case.pairs


def test_roof_of_a_step_is_reading_its_cache() -> None:
    for dtype, row in (("float32", 4 * 256), ("bfloat16", 2 * 256), ("int8", 256 + 8)):  # of int8 the unit of each row, too
        case = Case(1, 8, 1, 128, kv_heads=2, keys=1000, dtype=dtype, work="step", goal=Goal(peak=0.75))
        step = CaseResult(case, 10**6, [contestant("qkvc", 0.001)], [100.0], [50.0])
        assert case.bytes == (2 * 1000 + 8) * row
        assert step.share(step.contestants[0]) == pytest.approx(case.bytes / 1e9 / 0.001 / 50)
        run = Result("2026-01-01", {"cpu": "A CPU"}, {}, "avx2", 2, 1, ["qkvc"], {}, [step])
        assert " 1,000 /s (" in report.markdown(run)
        assert "of the read bandwidth; promised 75%" in report.goals(run)[-1][0]


def test_cases_without_rivals_are_a_grid_of_shares() -> None:
    cases = [
        CaseResult(Case(1, 8 * group, 1, 64, kv_heads=8, keys=10**5, alone=True), 10**9, [contestant("qkvc", 0.01)], [100.0], [50.0])
        for group in (4, 1)
    ]
    run = Result("2026-01-01", {"cpu": "A CPU"}, {}, "avx2", 2, 1, ["qkvc"], {}, cases)
    head, _, row = report.markdown(run).splitlines()[:3]
    assert [x.strip() for x in head.split("|")[1:-1]] == ["qkvc from memory", "group of 1", "group of 4"]
    assert [x.strip() for x in row.split("|")[1:-1]] == ["float32, 64 wide, 410 MB", "41.0 GB/s (82%)", "41.0 GB/s (82%)"]
    cases[0].contestants.append(contestant("torch", 0.02))  # asked for by name: it stands in the table of its part
    assert report.markdown(run).startswith("**One query and a cache**")


def test_curve_goes_from_one_query_to_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = Case(1, 4, 5, 8, kv_heads=2, keys=40, causal="bottom-right", dtype="bfloat16")
    points = curve.measure(case, threads=1, rounds=2, seconds=1e-4)
    assert [x.queries for x in points] == [1, 2, 3, 4, 5]
    assert all(0 < x.roof < x.seconds for x in points)
    points = [curve.Point(1, 2e-3, 1e-3), curve.Point(2, 3e-3, 1e-3)]
    assert curve.rows(points) == [["1", "2.00", "2,000", "1.00", "50%"], ["2", "3.00", "1,500", "1.50", "33%"]]
    picture = tmp_path / "curve.png"
    shape = ["curve", "1x4x2x8", "--kv-heads", "2", "--kv", "40", "--threads", "1", "--rounds", "1"]
    assert main([*shape, "--picture", str(picture)]) == 0
    assert "1x4/2x2/40x8 bottom-right" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")


TINY = [
    "--steps",
    "6",
    "--batch",
    "2",
    "--length",
    "16",
    "--layers",
    "2",
    "--width",
    "16",
    "--heads",
    "2",
    "--every",
    "4",
    "--threads",
    "1",
]


def test_losses_are_torchs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the same batches from the same weights; what is said of them is what came out."""
    pytest.importorskip("torch", reason="torch is not installed")
    settings = Settings(steps=12, batch=4, length=24, layers=2, width=16, heads=2)
    ours, theirs = learn.learn(settings, Text(own_text(), settings.length), threads=1)
    assert ours.losses[-1] < ours.losses[0] - 0.3
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=3e-6)
    assert ours.held_back == pytest.approx(theirs.held_back, rel=3e-6)
    assert len(ours.seconds) == len(theirs.seconds) == 12
    before, picture = qkvc.get_num_threads(), tmp_path / "learn.png"
    assert main(["learn", *TINY, "--picture", str(picture)]) == 0
    assert qkvc.get_num_threads() == before
    told = capsys.readouterr().out
    assert [line.split()[0] for line in told.splitlines() if " 1    " in line or "held back" in line] == ["1", "held"]
    assert "times faster on 1 thread\n" in told
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_losses_are_shown_side_by_side() -> None:
    ours, theirs = learn.Curve("qkvc", [3.0, 2.0, 1.5], [1.0, 2.0, 1.0], 1.0), learn.Curve("torch", [3.0, 2.5, 1.0], [2.0] * 3, 1.25)
    table = learn.rows(ours, theirs, every=2)
    assert [row[0] for row in table] == ["1", "2", "3", "held back"]
    assert [row[3] for row in table] == ["+0.0e+00", "-5.0e-01", "+5.0e-01", "-2.5e-01"]
    assert learn.speeds(ours, theirs, 100) == "qkvc 100 tokens/s, torch 50 tokens/s; 2.00 [1.00, 2.00] times faster"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--steps", "0"], "steps"), (["--threads", "0"], "threads"), (["--heads", "3"], "num_heads"), (["--length", "99999999"], "text")],
)
def test_learning_is_not_misused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["learn", *TINY, *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_table_goes_between_the_markers(made_up: Result, tmp_path: Path) -> None:
    saved, readme, picture = tmp_path / "result.json", tmp_path / "README.md", tmp_path / "roofline.png"
    made_up.save(saved)
    assert Result.load(saved) == made_up
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", encoding="utf-8")
    assert main(["report", str(saved), "--readme", str(readme), "--picture", str(picture)]) == 0
    text = readme.read_text(encoding="utf-8")
    assert text == f"before\n{report.BEGIN}\n{report.markdown(made_up)}{report.END}\nafter\n"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["report", str(saved), str(saved), "--readme", str(readme)]) == 0  # runs of two days, each with its notes
    assert readme.read_text(encoding="utf-8").count(report.markdown(made_up)) == 2


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
