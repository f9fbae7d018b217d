# Two commands: `make run` (raw logs → live index) and `make test`. Both set themselves up.
PYTHON ?= python3.11
VENV ?= .venv
PARAMS ?= params.yaml
BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export OMP_WAIT_POLICY ?= PASSIVE

# Any of: podman build, docker build, buildah build.
BUILD_IMAGE ?= podman build
REGISTRY ?= localhost
COMMIT := $(shell git rev-parse HEAD 2>/dev/null)
TAG ?= $(shell git rev-parse --short HEAD 2>/dev/null)
# DVC's plugin for an object store, such as dvc-s3, which brings fsspec's too; empty: all lies in folders.
DVC_PLUGIN ?=
BUILD_BASE = $(BUILD_IMAGE) --build-arg COMMIT=$(COMMIT) --build-arg VERSION=$(TAG) --build-arg DVC_PLUGIN=$(DVC_PLUGIN) \
	-f components/Dockerfile
COMPONENTS := $(patsubst components/%/component.yaml,%,$(wildcard components/*/component.yaml))

.PHONY: help run setup test test-library test-scheduler test-pods test-slow lint format bench airflow committed images pipeline-image clean
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
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[pipeline,dev,airflow]'
	touch $@

run: setup ## Raw logs → live index on the embedded default, then three example searches
	dvc repro
	mrse status
	mrse search --examples --html reports/search.html

# The tests under a scheduler and on a cluster wait more than they work, so they run beside the others.
SCHEDULER := tests/e2e/test_airflow.py tests/e2e/test_browser.py
PODS := tests/e2e/test_kubernetes.py
TOGETHER := --jobs=3 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

test: $(VENV)/.dev ## The tests that CI runs, with coverage
	$(MAKE) $(TOGETHER) test-library test-scheduler test-pods

test-library: $(VENV)/.dev
	pytest -m 'not slow' --cov --cov-report=term --cov-fail-under=85 $(addprefix --ignore=,$(SCHEDULER) $(PODS)) tests

test-scheduler: $(VENV)/.dev
	pytest -m 'not slow' $(SCHEDULER)

test-pods: $(VENV)/.dev
	pytest -m 'not slow' $(PODS)

test-slow: $(VENV)/.dev ## The longer proofs
	pytest -m slow tests

lint: $(VENV)/.dev ## ruff (format and rules) and mypy --strict
	ruff format --check .
	ruff check .
	mypy

format: $(VENV)/.dev ## Format and fix what ruff can fix
	ruff format .
	ruff check --fix .

$(VENV)/.airflow: $(VENV)/.pipeline
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[pipeline,airflow]'
	touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[pipeline,dev,airflow,bench]'
	touch $@

bench: $(VENV)/.bench ## Ratios against peers and limits (minutes); benchmarks.gate and .replay ask for a finished run
	for script in profiles validation features training embedding; do python -m benchmarks.$$script || exit 1; done
	python -m benchmarks.index --items 10000 --rounds 1

# Not `airflow standalone`: its log servers listen on every address. Logs are read from the same folder here.
# The level is left alone: under a higher one the tasks' logs would lack what the stages say.
airflow: export AIRFLOW_HOME := $(CURDIR)/.mrse/airflow
airflow: export AIRFLOW__CORE__DAGS_FOLDER := $(CURDIR)/dags
airflow: export AIRFLOW__CORE__LOAD_EXAMPLES := False
airflow: export AIRFLOW__API__HOST := 127.0.0.1
airflow: export AIRFLOW__API__PORT ?= 8080
airflow: export AIRFLOW__CORE__EXECUTION_API_SERVER_URL = http://127.0.0.1:$(AIRFLOW__API__PORT)/execution/
airflow: $(VENV)/.airflow ## Airflow with the DAGs, on this machine alone; prints the login, Ctrl-C ends it
	airflow db migrate
	airflow pools import dags/pools.json
	@trap 'trap "" TERM; kill 0' EXIT; trap exit INT; trap 'exit 1' TERM; \
	daemon() { airflow "$$@" >$$AIRFLOW_HOME/$$1.log 2>&1; \
		echo "make airflow: $$1 has ended, and so the others do; why: $$AIRFLOW_HOME/$$1.log" >&2; kill $$$$; }; \
	daemon dag-processor & daemon triggerer --skip-serve-logs & daemon scheduler --skip-serve-logs & daemon api-server & \
	login=$$AIRFLOW_HOME/simple_auth_manager_passwords.json.generated; \
	until [ -s $$login ] && python -c "import socket; socket.create_connection(('127.0.0.1', $$AIRFLOW__API__PORT))" 2>/dev/null; \
		do sleep 1; done; \
	echo "http://127.0.0.1:$$AIRFLOW__API__PORT  user and password: $$(cat $$login)"; \
	wait

committed:
	@test -z "$$(git status --porcelain)" || { echo "commit first: images say of which commit they are" >&2; exit 1; }

images: committed ## The components' images, tagged with the commit
	$(BUILD_BASE) --target build -t $(REGISTRY)/mrse-base:$(TAG)-build .
	$(BUILD_BASE) --target runtime -t $(REGISTRY)/mrse-base:$(TAG) .
	for stage in $(COMPONENTS); do \
		image=$(REGISTRY)/mrse-$$(echo $$stage | tr _ -):$(TAG); \
		$(BUILD_IMAGE) --build-arg BASE=$(REGISTRY)/mrse-base --build-arg TAG=$(TAG) -t $$image \
			-f components/$$stage/Dockerfile . || exit 1; \
	done

pipeline-image: committed ## One image that can run every stage, tagged with the commit
	$(BUILD_BASE) --target pipeline -t $(REGISTRY)/mrse-pipeline:$(TAG) .

clean: ## Remove what runs made: data, models, reports, caches and the local Milvus and MLflow
	rm -rf data models reports .mrse dvc.lock dvc_plots .dvc/cache .dvc/tmp
