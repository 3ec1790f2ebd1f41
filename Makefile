# Two commands on a fresh machine: `make demo` and `make test`.  Both set up .venv first.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3.11
UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup
CONFIG ?= pipeline/configs/quickstart.yaml

# uv looks for wheels where pip was told to, so that a machine with its own torch build uses that one.
export UV_FIND_LINKS := $(PIP_FIND_LINKS)
# Nothing here phones home, and nothing is fetched from a hub at run time.
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export HF_HUB_OFFLINE := 1
export NO_ALBUMENTATIONS_UPDATE := 1
export WANDB_MODE := disabled

.PHONY: help setup demo serve test test-all check format bench chaos lock clean

help: ## Show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(STAMP) ## Create .venv with everything in it; does nothing when it is current

$(STAMP): pyproject.toml requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; say PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python --constraint requirements.lock --editable '.[data,train,serve,dev]'
	touch $@

demo: setup ## The whole path on the bundled sample: URLs in, served predictions out
	$(BIN)/hyperclip run $(CONFIG)

serve: setup ## Serve the champion of the demo, with its page, on loopback
	$(BIN)/hyperclip serve $(CONFIG)

test: setup ## Unit, distributed, golden and integration tests
	$(BIN)/python -m pytest

test-all: setup ## The same with the slow tests
	$(BIN)/python -m pytest -m ''

check: setup ## Format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## Every benchmark, one JSON line each; ARGS=--quick for a first look
	@$(call run_all,benchmarks)

chaos: setup ## Every fault injection, one JSON line each; ARGS=--quick for a first look
	@$(call run_all,chaos)

# one that misses its goal does not hide the others
define run_all
missed=; for file in tests/$(1)/[a-z]*.py; do \
  name=tests.$(1).$$(basename $$file .py); $(BIN)/python -m $$name $(ARGS) || missed="$$missed $$name"; \
done; test -z "$$missed" || { echo "missed:$$missed" >&2; exit 1; }
endef

# A local build tag (+cpu) would tie the lock to one machine; torch brings its own exact CUDA pins where it has them.
lock: ## Resolve the newest versions pyproject.toml admits
	test -x $(BIN)/uv || $(MAKE) setup
	$(BIN)/uv pip compile --upgrade --all-extras --no-annotate --no-header --python-version 3.11 pyproject.toml \
	  | sed -E 's/\+cpu$$//' > requirements.lock

clean: ## Remove what runs made (the demo's workspace), not .venv
	rm -rf runs
