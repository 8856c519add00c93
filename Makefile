# README's two commands and what developers need. Everything is installed with pip into .venv, at the versions in
# constraints.txt; a stamp in .venv keeps a second call from installing again.

PYTHON ?= python3
MINUTES ?= 10
RUN ?= runs/demo
WORKERS ?= -n 2 --dist loadfile --no-loadscope-reorder
BIN := .venv/bin
PIP := $(BIN)/python -m pip install $(if $(CI),-q) --no-compile --disable-pip-version-check -c constraints.txt
OLDEST := tests/contract tests/core tests/anomaly/test_sklearn.py tests/anomaly/test_kinds.py tests/anomaly/test_pyod.py \
	tests/data/test_hub.py tests/evaluate/test_report.py::test_a_model_without_a_constant_has_no_likelihood \
	tests/evaluate/test_diagnostics.py::test_rows_follow_the_quantities
LATE := layers or generators or capabilities or declared or yaml or kill or failure or truncation or full_disk or selective or any_tree

.DEFAULT_GOAL := help
.PHONY: help demo test test-oldest soak extras mutants lint docs wheel licences release-bundles clean

help:
	@echo 'make demo [MINUTES=10]  install, train an energy of handwritten digits, draw samples, write a report'
	@echo 'make test               install with the development tools and run the tests'
	@echo 'make test-oldest        some of the tests, with the oldest versions that pyproject.toml allows'
	@echo 'make soak               the tests that take minutes each'
	@echo 'make extras             install the extras, and run the tests of them that take minutes'
	@echo 'make mutants            plant faults in the package one by one; the tests must reject 95 % of them'
	@echo 'make lint               ruff and pyright'
	@echo 'make docs               the documentation site, in build/site'
	@echo 'make wheel              wheel and sdist in dist; the same bytes from the same commit'
	@echo 'make licences           THIRD_PARTY.md, the licences of the packages in constraints.txt'
	@echo 'make release-bundles    trained bundles of digits, in build/release; takes an hour'
	@echo 'make clean              remove caches; .venv and runs stay'

demo: .venv/.installed
	$(BIN)/thalweg train mnist --minutes $(MINUTES) -o $(RUN) --resume
	$(BIN)/thalweg sample $(RUN) -n 64 -o $(RUN)/samples.png
	@echo 'report: $(RUN)/report.html   samples: $(RUN)/samples.png'

# Two processes of one thread each: small operations gain nothing from a second thread. A file's tests share what its
# fixtures train, so a file goes to one process; tests/conftest.py puts the long files first.
test: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) $(PYTEST)

# The oldest versions lie in a folder of their own and are found first; the rest, torch above all, comes from .venv. So do
# packages whose oldest version is the one of constraints.txt: 350 MB of Ray and ONNX are not installed twice.
test-oldest: .venv/.oldest
	OMP_NUM_THREADS=1 THALWEG_OLDEST=1 PYTHONPATH=$(CURDIR)/.venv/oldest $(BIN)/python -m pytest $(WORKERS) $(OLDEST) -k 'not ($(LATE))'

soak: .venv/.installed-dev
	$(BIN)/python -m pytest -m slow $(PYTEST)

extras: .venv/.installed-extras
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 -m extras $(PYTEST)

mutants: .venv/.installed-dev
	$(BIN)/python benchmarks/mutants.py

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: .venv/.installed-docs
	OMP_NUM_THREADS=1 $(BIN)/python docs/site/build.py

# hatchling gives every file in an archive the time of the commit, and orders them by name.
wheel: .venv/.installed-release
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build --no-isolation
	cd dist && sha256sum *

licences: .venv/.installed-dev .venv/.installed-docs .venv/.installed-release
	$(BIN)/python scripts/licences.py > THIRD_PARTY.md

release-bundles: .venv/.installed
	$(BIN)/python scripts/release_bundles.py -o build/release

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch first and alone: its pin decides which of its own dependencies come along.
.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) torch
	$(PIP) -e .
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) torch
	$(PIP) -e '.[dev]'
	@touch .venv/.installed $@

.venv/.installed-extras: .venv/.installed-dev
	$(PIP) -e '.[dev,cluster]'
	@touch $@

.venv/.installed-docs: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) torch
	$(PIP) -e '.[docs]'
	@touch $@

.venv/.installed-release: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) torch
	$(PIP) -e '.[release]'
	@touch $@

.venv/.oldest: constraints-oldest.txt constraints.txt .venv/.installed-dev
	rm -rf .venv/oldest
	grep -vxFf constraints.txt constraints-oldest.txt > .venv/oldest.txt
	$(BIN)/python -m pip install -q --no-deps --no-compile --target .venv/oldest -r .venv/oldest.txt
	@touch $@
