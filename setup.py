"""The extensions over one C part.  Everything in src/ links into qkvc._kernels alone: one dispatcher, one thread pool."""

import os
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

ANNOTATE = os.environ.get("QKVC_ANNOTATE") == "1"  # Cython's HTML: `make annotate`
DEBUG = os.environ.get("QKVC_DEBUG") == "1"  # bounds checks on, optimiser off: `make debug`

cflags = [
    "-std=c11",
    "-O0" if DEBUG else "-O3",
    "-g0" if not DEBUG else "-g",
    "-ffp-contract=off",  # an FMA is one where it says v_fma, so that bits do not depend on the compiler
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-fstack-protector-strong",
    "-Wno-psabi",
]
ldflags = ["-Wl,-z,relro,-z,now,-z,noexecstack"]
headers = sorted(glob("src/*.h"))


def extension(name: str, sources: list[str]) -> Extension:
    return Extension(
        f"qkvc.{name}",
        [f"qkvc/{name}.pyx", *sources],
        include_dirs=["src"],
        depends=headers,
        extra_compile_args=cflags,
        extra_link_args=ldflags,
    )


setup(
    options={"build_ext": {"parallel": os.cpu_count()}},
    # Named one by one: setuptools takes any src/ for the package root.  The benchmarks ship as qkvc.bench, for `qkvc bench`.
    packages=[
        *("qkvc", "qkvc.analysis", "qkvc.commands", "qkvc.experiments", "qkvc.integrations", "qkvc.models", "qkvc.nn", "qkvc.plot"),
        "qkvc.bench",
    ],
    package_dir={"qkvc.bench": "bench"},
    package_data={"qkvc": ["py.typed", "*.pyi", "*.pxd", "page/*"]},
    ext_modules=cythonize(
        [
            # Memoryviews, compiled once: in each of six modules they were 100 KB of the wheel.
            Extension("qkvc._shared", ["qkvc/_shared.c"], extra_compile_args=cflags, extra_link_args=ldflags),
            extension("_kernels", sorted(glob("src/*.c"))),
            extension("_workers", []),
            extension("_cut", []),
            extension("_plan", []),
            extension("_tile", []),
            extension("_decode", []),
            extension("_attention", []),
            extension("_backtile", []),
            extension("_backward", []),
            extension("_inside", []),
            extension("_parts", []),
            extension("_describe", []),
            extension("_softmax", []),
            extension("_linear", []),
            extension("_layers", []),
            extension("_rotary", []),
            extension("_passes", []),
            extension("_rows", []),
        ],
        build_dir="build/debug" if DEBUG else "build",
        force=ANNOTATE,
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": DEBUG,
            "freethreading_compatible": True,
        },
        annotate=ANNOTATE,
        shared_utility_qualified_name="qkvc._shared",
    ),
)
