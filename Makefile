# Two commands: `make run` (raw logs → live index) and `make test`. Both set themselves up.
PYTHON ?= python3.11
VENV ?= .venv
PARAMS ?= params.yaml
BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help run setup test test-slow lint format bench clean
.DEFAULT_GOAL := help

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.pipeline ## Make .venv with everything that the pipeline needs

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.pipeline: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[pipeline]'
	touch $@

$(VENV)/.dev: $(VENV)/.pipeline
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[pipeline,dev]'
	touch $@

run: setup ## Raw logs → live index on the embedded default, then three example searches
	dvc repro
	mrse status
	mrse search --examples --html reports/search.html

test: $(VENV)/.dev ## The tests that CI runs, with coverage
	pytest -m 'not slow' --cov --cov-report=term --cov-fail-under=85 tests

test-slow: $(VENV)/.dev ## The longer proofs
	pytest -m slow tests

lint: $(VENV)/.dev ## ruff (format and rules) and mypy --strict
	ruff format --check .
	ruff check .
	mypy

format: $(VENV)/.dev ## Format and fix what ruff can fix
	ruff format .
	ruff check --fix .

$(VENV)/.bench: $(VENV)/.dev
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[pipeline,dev,bench]'
	touch $@

bench: $(VENV)/.bench ## Ratios against peers and limits (minutes)
	for script in profiles validation features training embedding; do python -m benchmarks.$$script || exit 1; done

clean: ## Remove what runs made: data, models, reports, caches and the local Milvus and MLflow
	rm -rf data models reports .mrse dvc.lock dvc_plots .dvc/cache .dvc/tmp
