"""Fixtures of every test, and three habits: `full` tests run only when asked for, figures are printed at the end, CI allows no skip."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import Any

import hypothesis
import numpy as np
import pytest

import qkvc

# Derandomised, so that a failure on one machine is a failure on all; the machine may be busy, so no deadlines.
hypothesis.settings.register_profile(
    "qkvc", deadline=None, derandomize=True, print_blob=True, suppress_health_check=list(hypothesis.HealthCheck)
)
hypothesis.settings.load_profile("qkvc")


@pytest.fixture(params=qkvc.kernels())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every kernel set this CPU can run, in use for the time of the test."""
    with qkvc.use_kernels(request.param):
        yield request.param


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Seeded by the test's own name: the same numbers every time, others in every test."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Lines to print in the terminal summary, from whichever process runs the test."""
    lines: list[str] = []
    yield lines
    request.node.user_properties += [("figure", line) for line in lines]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    ended = terminalreporter.stats.get("", [])  # where the reports of a fixture's end are
    lines = [line for report in ended for name, line in getattr(report, "user_properties", ()) if name == "figure"]
    if lines:
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.line(line)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.markexpr:
        return
    left = {item for item in items if item.get_closest_marker("full") or _same_as_avx512(item) or _portable_but_one_in_four(item)}
    config.hook.pytest_deselected(items=[item for item in items if item in left])
    items[:] = [item for item in items if item not in left]


def _same_as_avx512(item: pytest.Item) -> bool:
    """Of dtypes other than bfloat16 this set has the very functions of AVX-512, which are tested as such; `make test-full` runs both."""
    params = dict(item.callspec.params) if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    if params.pop("isa", None) != "avx512bf16":
        return False
    said = str(list(params.values()))
    return "float" in said and "bfloat16" not in said


def _portable_but_one_in_four(item: pytest.Item) -> bool:
    """Portable kernels are the same text, which tests/c/ runs wholly: of thousands of slow tests one in four; `make test-full` runs all."""
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return params.get("isa") == "portable" and len(qkvc.kernels()) > 1 and zlib.crc32(item.nodeid.encode()) % 4 > 0


def _no_skip(report: Any) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("QKVC_NO_SKIP") == "1":
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"QKVC_NO_SKIP=1, and this was skipped: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Any:
    report = yield
    _no_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Any:
    report = yield
    _no_skip(report)
    return report
