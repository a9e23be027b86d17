"""Rules of the house that a reader relies on, checked on the files themselves."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from importlib.metadata import requires, version
from pathlib import Path

import pytest

import qkvc

from .support import ROOT

PYTHON = sorted((ROOT / "qkvc").rglob("*.py"))
CYTHON = sorted((ROOT / "qkvc").rglob("*.p[yx][xd]")) + sorted((ROOT / "qkvc").rglob("*.pxd"))
C = sorted((ROOT / "src").glob("*.[ch]"))
TESTS = sorted((ROOT / "tests").glob("*.py"))
BENCH = sorted((ROOT / "bench").glob("*.py"))

BUDGET = 500  # lines of a file: who needs more has two files


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_lists_below_are_not_empty() -> None:
    for files, least in ((PYTHON, 5), (CYTHON, 3), (C, 8), (TESTS, 12)):
        assert len(files) >= least


@pytest.mark.parametrize("path", [*PYTHON, *CYTHON, *C, *TESTS, *BENCH], ids=name)
def test_small_files(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= BUDGET, f"{lines} lines"


@pytest.mark.parametrize("path", sorted((ROOT / "src").glob("vec_*.h")), ids=name)
def test_an_instruction_set_is_a_small_vocabulary(path: Path) -> None:
    assert path.read_text().count("\n") <= 121


@pytest.mark.parametrize("path", C, ids=name)
def test_c_knows_nothing_of_python(path: Path) -> None:
    text = path.read_text()
    assert "Python.h" not in text
    assert "numpy" not in re.findall(r"#\s*include\s*[<\"]([^>\"]*)", text)


@pytest.mark.parametrize("path", [p for p in C if not re.search(r"vec_|fpenv|target|dispatch", p.name)], ids=name)
def test_only_the_vocabularies_name_registers(path: Path) -> None:
    assert not re.findall(r"\b_mm\d*_\w+|\b__m\d+\w*|immintrin", path.read_text())


def test_no_flag_that_breaks_the_arithmetic() -> None:
    """-ffast-math deletes the rounding in exp2 without a warning; -march=native makes a wheel that dies elsewhere."""
    build = [ROOT / "setup.py", ROOT / "pyproject.toml", ROOT / "Makefile", *C]
    for path in build:
        if path.exists():
            code = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith(("#", "//", "*", "/*")))
            for flag in ("fast-math", "-Ofast", "-funsafe", "march=native", "fopenmp", "associative-math", "finite-math"):
                assert flag not in code, f"{name(path)}: {flag}"
    assert "-ffp-contract=off" in (ROOT / "setup.py").read_text()


def test_one_version() -> None:
    declared = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert qkvc.__version__ == version("qkvc") == declared
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", declared)
    changelog = ROOT / "CHANGELOG.md"
    assert declared in changelog.read_text() or "Unreleased" in changelog.read_text()


def test_numpy_is_the_only_dependency() -> None:
    needed = [line for line in requires("qkvc") or [] if "extra ==" not in line]
    assert [re.match(r"[\w-]+", line)[0].lower() for line in needed] == ["numpy"]


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_only_extras_import_more_than_numpy(path: Path) -> None:
    """At module level only the standard library, NumPy and qkvc; what an extra brings is imported where it is used.

    A module of `integrations` is for those who have the other side of it.
    """
    allowed = {"numpy", "qkvc", *sys.stdlib_module_names, *({"onnx", "threadpoolctl"} if path.parent.name == "integrations" else ())}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [node.module or ""]
        else:
            continue
        assert {module.split(".")[0] for module in modules} <= allowed, f"line {node.lineno}"


STUBS = sorted((ROOT / "qkvc").rglob("*.pyi"))


@pytest.mark.parametrize("path", STUBS, ids=name)
def test_stubs_name_what_is_there(path: Path) -> None:
    """Every name of a stub exists in the compiled module, and every public function of the module is in the stub."""
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    stubbed = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert stubbed, "an empty stub"
    missing = {n for n in stubbed if not hasattr(module, n)}
    assert not missing
    public = {
        n for n, x in vars(module).items() if not n.startswith("_") and callable(x) and getattr(x, "__module__", None) == module.__name__
    }
    assert not {n for n in public if not inspect.isclass(vars(module)[n])} - stubbed


def test_every_compiled_module_that_python_calls_has_a_stub() -> None:
    imported = set()
    for path in PYTHON:
        imported |= set(re.findall(r"(?:from qkvc(?:\.(_\w+))? import)", path.read_text()))
    compiled = {path.stem for path in CYTHON if path.suffix == ".pyx"}
    assert (imported & compiled) <= {path.stem for path in STUBS}


def test_public_names() -> None:
    """__all__ is sorted, complete and documented, with types on every argument."""
    assert list(qkvc.__all__) == sorted(qkvc.__all__)
    for n in qkvc.__all__:
        member = getattr(qkvc, n)
        assert inspect.getdoc(member), n
        if inspect.isfunction(member):
            hints = inspect.signature(member)
            assert all(p.annotation is not p.empty for p in hints.parameters.values()), n
            assert hints.return_annotation is not hints.empty, n
    public = {n for n, x in vars(qkvc).items() if not n.startswith("_") and not inspect.ismodule(x)}
    assert public == set(qkvc.__all__)


# Which test holds which source: the file of the same name, or the one named here.
HELD_BY = {
    "functional": "attention", "_attention": "attention", "_tile": "attention", "_plan": "bad_input", "_coerce": "bad_input",
    "_kernels": "kernels", "_softmax": "softmax", "_linear": "linear", "_workers": "memory", "_inside": "inside", "config": "kernels",
    "_cpu": "concurrency", "_console": "cli", "__main__": "cli", "_forms": "forms", "_weights": "multihead",
    "__init__": "repository", "models/__init__": "models", "models/minilm": "models", "models/llama": "generation",
    "_decode": "decode", "_backward": "backward", "_backtile": "backward", "gradients": "backward", "_parts": "parts", "_cut": "varlen",
    "_layers": "layers", "_rotary": "rotary", "_describe": "explain", "explanation": "explain", "integrations/__init__": "concurrency",
    "integrations/threadpools": "concurrency", "integrations/onnx": "integrations_onnx",
    "_learning": "nn", "_passes": "nn", "_rows": "nn", "models/language": "nn",
    "models/bert": "models", "models/tensors": "models", "models/watch": "watch", "models/gpt2": "loading", "models/loading": "loading",
    "models/decoder": "generation", "models/sizes": "sizes", "commands/__init__": "cli", "commands/params": "sizes",
    **{f"nn/{part}": "nn" for part in ("__init__", "attention", "block", "embedding", "feed_forward")},
    **{f"nn/{part}": "nn" for part in ("layer", "linear", "loss", "memory", "norm")},
    **{f"experiments/{part}": "experiments" for part in ("__init__", "copying", "freezing", "meaning")},
    **{f"experiments/{part}": "experiments" for part in ("model", "offsets", "saturation", "training", "words")},
    **{f"analysis/{part}": "analysis_heads" for part in ("__init__", "_mass", "heads")},
    **{f"analysis/{part}": "analysis_layers" for part in ("circuits", "importance", "pruning", "values")},
    **{f"analysis/{part}": "analysis_models" for part in ("_given", "ablation", "duplicates", "interventions", "relations")},
    **{f"analysis/{part}": "analysis_outputs" for part in ("diagnosis", "probes", "subspaces")},
    **{f"analysis/{part}": "analysis_patterns" for part in ("patterns", "roles")},
    **{f"analysis/{part}": "analysis_similarity" for part in ("clusters", "similarity")},
    **{f"analysis/{part}": "analysis_flow" for part in ("flow", "rank", "scaling")},
    **{f"plot/{part}": "plot" for part in ("__init__", "_canvas", "_text", "_words", "weights")},
    **{f"plot/{part}": "plot_figures" for part in ("block", "heads", "scaling", "shapes", "speed", "training")},
    "nn/optimiser": "optimiser", "nn/checkpoint": "optimiser", "_files": "optimiser", "commands/look": "look",
}  # fmt: skip


def test_every_source_file_has_its_test() -> None:
    for path in PYTHON + [p for p in CYTHON if p.suffix == ".pyx"]:
        stem = str(path.relative_to(ROOT / "qkvc").with_suffix(""))
        test = ROOT / "tests" / f"test_{HELD_BY.get(stem, stem)}.py"
        assert test.exists(), f"{stem}: no {test.name}"


LAYERS = ("_kernels", "_plan", "_attention", "functional", "__init__")  # each may import from the left only


def test_imports_go_downwards() -> None:
    for upper, stem in enumerate(LAYERS):
        for suffix in (".py", ".pyx"):
            path = ROOT / "qkvc" / (stem + suffix)
            if path.exists():
                used = re.findall(r"^\s*(?:from|cimport|import)\s+qkvc\.(\w+)", path.read_text(), re.MULTILINE)
                above = set(used) & set(LAYERS[upper + 1 :])
                assert not above, f"{path.name} imports {above}"


def test_tests_say_why_they_skip() -> None:
    for path in TESTS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr == "importorskip":
                    assert any(k.arg == "reason" for k in node.keywords), f"{path.name}:{node.lineno}"
                elif node.func.attr == "skip":
                    assert node.args or node.keywords, f"{path.name}:{node.lineno}"


def test_no_private_places_in_the_texts() -> None:
    """No absolute path of a developer's machine in anything that is committed."""
    kinds = ("*.md", "*.py", "*.pyx", "*.pxd", "*.c", "*.h", "*.toml", "Makefile")
    for path in (
        p for kind in kinds for folder in ("", "qkvc/**/", "src/", "tests/", "bench/", "docs/**/") for p in ROOT.glob(folder + kind)
    ):
        if path != Path(__file__):
            found = re.findall(r"(?<![\w.])/(?:home|root|work|tmp|Users)/\w+", path.read_text())
            assert not found, f"{name(path)}: {found}"
