"""What a run leaves behind: every sample, kept as JSON, and the statistics drawn from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import comb
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from .cases import Case, Goal

SCHEMA_VERSION = 1
PLAIN = "plain"  # the first subject at plain attention, no rival


@dataclass(frozen=True)
class Estimate:
    """A median, the quartiles around it, and an interval that holds the true median with probability `coverage`."""

    median: float
    quartiles: tuple[float, float]
    low: float
    high: float
    coverage: float


def estimate(samples: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Median with an interval by order statistics, which assumes nothing about how the samples are distributed.

    The interval from the k-th lowest to the k-th highest of n samples misses the median with probability 2·P(Bin(n, ½) < k).  Fewer than
    six samples cannot give 95 %: their whole range is returned, and `coverage` says what it is worth.
    """
    if not samples:
        raise ValueError("no samples")
    n, ordered = len(samples), sorted(samples)
    k, missed = 0, 1 / 2**n  # k samples cut off at each end; P(Bin(n, ½) <= k) so far
    while 2 * (missed + comb(n, k + 1) / 2**n) <= 1 - confidence:
        k += 1
        missed += comb(n, k) / 2**n
    quartiles = quantiles(ordered, n=4, method="inclusive") if n > 1 else [ordered[0]] * 3
    return Estimate(median(ordered), (quartiles[0], quartiles[2]), ordered[k], ordered[n - 1 - k], max(0.0, 1 - 2 * missed))


@dataclass
class Contestant:
    """One contestant on one case.

    `status` is "timed"; or "cannot" (it has no way to ask for this), "wrong" (its result is not the reference) or "failed" (it raised):
    then `why` says more and there are no samples.
    """

    name: str
    status: str
    why: str = ""
    form: str = ""
    error: float | None = None  # max |x − reference|
    rejected: list[str] = field(default_factory=list)  # forms that were tried and did not do, and why
    calls: int = 0  # per sample
    seconds: list[float] = field(default_factory=list)  # per call, one for each round
    flops: int = 0  # useful work, where it is not the case's

    @property
    def timed(self) -> bool:
        return self.status == "timed"

    @property
    def time(self) -> float:
        """Median seconds per call."""
        return median(self.seconds)


@dataclass
class CaseResult:
    """All samples of one case.  The first contestant is the subject, the other timed ones its rivals."""

    case: Case
    flops: int
    contestants: list[Contestant]
    peak: list[float] = field(default_factory=list)  # GFLOP/s of the FMA loop, one for each round
    read: list[float] = field(default_factory=list)  # GB/s from memory, one for each round
    single: list[float] = field(default_factory=list)  # the FMA loop on one thread, where there are more
    pairs: list[float] = field(default_factory=list)  # GFLOP/s of the same loop in pairs of bfloat16, where they may be multiplied

    def named(self, name: str) -> Contestant | None:
        return next((x for x in self.contestants if x.name == name), None)

    def best_rival(self, subjects: Sequence[str]) -> Contestant | None:
        """The timed rival with the lowest median time."""
        return min((x for x in self.contestants if x.timed and x.name not in (*subjects, PLAIN)), key=lambda x: x.time, default=None)

    def ratio(self, subject: Contestant, rival: Contestant) -> Estimate:
        """How many times faster than the rival, round by round."""
        return estimate([theirs / our for theirs, our in zip(rival.seconds, subject.seconds, strict=True)])

    def share(self, contestant: Contestant) -> float:
        """Median over the rounds of the share of what the machine gave then: of the roof that applies."""
        if self.case.roof == "read bandwidth":
            return median(self.case.bytes / 1e9 / s / read for s, read in zip(contestant.seconds, self.read, strict=True))
        work = self._flops(contestant) / 1e9 * (2 if self.case.dtype == "float64" else 1)  # the peak is float32's, or that of pairs
        return median(work / s / peak for s, peak in zip(contestant.seconds, self.pairs or self.peak, strict=True))

    def over_plain(self, contestant: Contestant, plain: Contestant) -> float:
        """Time for the useful work over that of plain attention, median over the rounds; reading a dense bias is not held against it."""
        work, extra = self.flops / self._flops(plain), self.case.bias_bytes / 1e9
        rounds = zip(contestant.seconds, plain.seconds, self.read, strict=True)
        return median((s - extra / read) / (p * work) for s, p, read in rounds)

    def _flops(self, contestant: Contestant) -> int:
        return contestant.flops or self.flops

    def rate(self, contestant: Contestant) -> float:
        """Median speed in the case's unit: µs per call, GB/s, GFLOP/s, sentences/s or tokens/s."""
        if self.case.unit == "µs":
            return contestant.time * 1e6
        if self.case.unit == "sentences/s":
            return self.case.batch / contestant.time
        if self.case.unit == "tokens/s":
            return self.case.batch * self.case.queries / contestant.time
        return (self.case.bytes if self.case.unit == "GB/s" else self._flops(contestant)) / 1e9 / contestant.time


@dataclass
class Result:
    """A run on one machine."""

    date: str
    machine: dict[str, str]
    versions: dict[str, str]
    kernels: str
    threads: int
    rounds: int
    subjects: list[str]  # qkvc, once for each kernel set that was asked for
    absent: dict[str, str]  # rivals that are not installed, and what importing them said
    cases: list[CaseResult] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION

    @property
    def rivals(self) -> list[str]:
        """Names of all that took part besides the subjects, in the order of the case that has most."""
        names = [x.name for result in sorted(self.cases, key=lambda x: -len(x.contestants)) for x in result.contestants]
        return [name for name in dict.fromkeys(names) if name not in self.subjects]

    def save(self, path: Path) -> None:
        """Write JSON, whole or not at all: a run is saved after every case."""
        draft = path.with_name(f"{path.name}.part")
        draft.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> Result:
        """Read what `save` wrote."""
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if data.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"{path}: schema_version is {data.get('schema_version')!r}, this program reads {SCHEMA_VERSION}")
        for result in data["cases"]:
            result["case"] = Case(**{**result["case"], "goal": Goal(**result["case"]["goal"])})
            result["contestants"] = [Contestant(**x) for x in result["contestants"]]
        return cls(**{**data, "cases": [CaseResult(**result) for result in data["cases"]]})
