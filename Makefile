# README's two commands and what developers need. Everything is installed with pip into .venv, at the versions in
# constraints.txt; a stamp in .venv keeps a second call from installing again.

PYTHON ?= python3
MINUTES ?= 10
RUN ?= runs/demo
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test soak lint clean

help:
	@echo 'make demo [MINUTES=10]  install, train an energy of handwritten digits, draw samples, write a report'
	@echo 'make test               install with the development tools and run the tests'
	@echo 'make soak               the tests that take minutes each'
	@echo 'make lint               ruff and pyright'
	@echo 'make clean              remove caches; .venv and runs stay'

demo: .venv/.installed
	$(BIN)/thalweg train mnist --minutes $(MINUTES) -o $(RUN) --resume
	$(BIN)/thalweg sample $(RUN) -n 64 -o $(RUN)/samples.png
	@echo 'report: $(RUN)/report.html   samples: $(RUN)/samples.png'

# Two processes of one thread each: small operations gain nothing from a second thread, and the suite takes half the time.
test: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(PYTEST)

soak: .venv/.installed-dev
	$(BIN)/python -m pytest -m slow $(PYTEST)

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

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

.venv/.installed-dev: .venv/.installed
	$(PIP) -e '.[dev]'
	@touch $@
