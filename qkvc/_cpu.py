"""How many CPUs this process may use."""

from __future__ import annotations

import os
from math import ceil
from pathlib import Path


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup")) -> float:
    """CPUs that the control group's quota pays for, infinite without one (version 2, then version 1)."""
    try:
        quota, period = (root / "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return float("inf")
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:  # "max" or -1: no quota
        return float("inf")
    return int(quota) / int(period)


def available_cpus() -> int:
    """CPUs of the affinity mask, at most the control group's quota, at least 1."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS or Windows
        cpus = os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(cpus, ceil(quota) if quota < cpus else cpus))
