"""The pages of docs/en do what they say, and those of docs/zh have the same blocks."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from qkvc.models.minilm import PACKAGE

pytest.importorskip("matplotlib", reason="the pages draw with matplotlib")
ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs" / "en").glob("*.md"))


def tool() -> Any:
    spec = importlib.util.spec_from_file_location("pages", ROOT / "tools" / "pages.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page: Path) -> None:
    if "MiniLM" in page.read_text(encoding="utf-8") and not importlib.util.find_spec(PACKAGE):
        pytest.skip(f"the page looks into the model of {PACKAGE}")
    assert tool().check(page, write=False) == []


def test_every_chinese_page_has_an_english_one() -> None:
    assert [page.name for page in sorted((ROOT / "docs" / "zh").glob("*.md"))] == [page.name for page in PAGES]


PAGE = """# A page

```python
print("two words", 1.25)
```

```text
{}
```
"""


@pytest.mark.parametrize(
    ("said", "right"),
    [("two words 1.25", True), ("two words 1.26", True), ("two words 1.27", False), ("two word 1.25", False), ("two words 1.2", False)],
)
def test_a_page_that_says_something_else(said: str, right: bool, tmp_path: Path) -> None:
    for language in ("en", "zh"):
        (tmp_path / language).mkdir()
        (tmp_path / language / "page.md").write_text(PAGE.format(said), encoding="utf-8")
    page = tmp_path / "en" / "page.md"
    assert (tool().check(page, write=False) == []) is right
    assert tool().check(page, write=True) == []
    assert tool().check(page, write=False) == (
        [] if right else [f"{tmp_path / 'zh' / 'page.md'}: its blocks or pictures are not those of {page}"]
    )


@pytest.mark.parametrize(
    ("got", "said", "same"),
    [
        ("30%", "31%", True),
        ("30%", "32%", False),
        ("30", "31", False),
        ("-1.5e-3", "-1.6e-3", True),
        ("1.5e-3", "1.5e-2", False),
        ("1,000.0", "999.9", True),
    ],
)
def test_numbers_that_agree(got: str, said: str, same: bool) -> None:
    assert tool().agree(f"it is {got} here", f"it is {said} here") is same


def test_a_page_that_fails_or_draws_nothing(tmp_path: Path) -> None:
    for language in ("en", "zh"):
        (tmp_path / language).mkdir()
        (tmp_path / language / "page.md").write_text("```python\n1 / 0\n```\n\n![p](../pictures/p.png)\n", encoding="utf-8")
        (tmp_path / language / "blank.md").write_text("![p](../pictures/p.png)\n", encoding="utf-8")
    (fault,) = tool().check(tmp_path / "en" / "page.md", write=False)
    assert "ZeroDivisionError" in fault
    assert 'page.md", line 2' in fault
    assert any("does not draw" in fault for fault in tool().check(tmp_path / "en" / "blank.md", write=False))


PUBLIC = ("qkvc", *(f"qkvc.{name}" for name in ("analysis", "experiments", "models", "nn", "plot", "report")))


def test_the_reference_lists_every_public_function_and_class_once() -> None:
    listed = re.findall(r"^   ([\w.]+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    modules = [(module, importlib.import_module(module)) for module in PUBLIC]
    public = [f"{name}.{member}" for name, module in modules for member in module.__all__ if callable(getattr(module, member))]
    elsewhere = ["qkvc.integrations.onnx.ops"]  # which imports onnx
    assert sorted(f"qkvc.{name}" for name in listed) == sorted([*public, *elsewhere])


def test_the_gallery_draws_with_every_function() -> None:
    text = (ROOT / "docs" / "en" / "gallery.md").read_text(encoding="utf-8")
    assert set(re.findall(r"plot\.(\w+)\(", text)) == set(importlib.import_module("qkvc.plot").__all__)


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(name: str) -> None:
    """Those of the site are Sphinx's to check."""
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
