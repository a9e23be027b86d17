"""Packages made to look absent."""

from __future__ import annotations

import sys

import pytest


def hide_packages(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Make importing these packages fail, as where they are not installed."""
    for name in list(sys.modules):
        if name.partition(".")[0] in packages:
            monkeypatch.delitem(sys.modules, name)
    for name in packages:
        # None is import's own word for "looked for and not there", and find_spec's too.
        monkeypatch.setitem(sys.modules, name, None)
