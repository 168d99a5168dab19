# Everything goes through $(PY). `make test PY=python` uses a Python you have set up yourself and makes no .venv.
.DEFAULT_GOAL := help
.PHONY: help venv demo test test-all check bench clean
PYTHON ?= python3
PIP := -m pip install -qq --disable-pip-version-check --constraint constraints.txt

# Tests run side by side, each on a core of its own.
WORKERS ?= 2

ifdef PY
READY :=
else
PY := .venv/bin/python
READY := .venv/.ready
endif

# The tree at hand is what runs, also where $(PY) has another hf_stages installed.
export PYTHONPATH := $(CURDIR)
# OpenMP threads that spin while they wait make a small model's step ten times slower and more on busy cores.
demo test test-all check: export OMP_WAIT_POLICY = PASSIVE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

venv: $(READY) ## set up .venv (once; the others do it by themselves)

# C sources too: the kernels' library is compiled as the package is installed.
.venv/.ready: setup.cfg setup.py pyproject.toml constraints.txt $(wildcard hf_stages/packing/kernels/csrc/*)
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) $(PIP) torch
	$(PY) $(PIP) --editable '.[dev]'
	touch $@

demo: $(READY) ## train two stages on the CPU, cut the run, resume it (a minute on idle cores)
	$(PY) examples/demo.py

test: $(READY) ## the tests, without the slow ones
	$(PY) -m pytest -n $(WORKERS) --dist worksteal

test-all: $(READY) ## all the tests
	$(PY) -m pytest -m '' -n $(WORKERS) --dist worksteal

check: $(READY) ## lint, format, types, doctests, examples in the docs, architecture
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy hf_stages
	$(PY) -m pytest --doctest-modules hf_stages tests/test_docs.py tests/test_architecture.py

bench: $(READY) ## the benchmarks, one after another; each prints one JSON line last
	@set -e; for script in $(sort $(wildcard benchmarks/[a-z]*.py)); do case $$script in *common*) continue;; esac; echo "== $$script"; $(PY) -m benchmarks.$$(basename $$script .py); done

clean: ## remove caches and outputs (keeps .venv)
	rm -rf build dist demo-out out .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
