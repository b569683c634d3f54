# Two commands matter: `make demo` and `make test`. Each sets everything up first; a second run installs nothing.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

LOCK := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed-$(LOCK)
TORCH := 2.13.0
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: help demo test check bench chaos round-chaos machine image lock clean

help: ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

demo: $(STAMP) ## run the whole loop on this machine: chat, vote, learn, swap, roll back
	$(BIN)/heliotrope demo

test: check ## everything: check, then tests with Ray, vLLM and PostgreSQL
	$(BIN)/python -m pytest tests/chaos tests/integration tests/e2e

check: $(STAMP) ## lint, types, import rules, unit tests; no Ray, no vLLM
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 tests/unit tests/test_architecture.py

bench: $(STAMP) ## measure against peers in the same run
	$(BIN)/python -m tests.benchmarks

RUNS := 200
SEED := 1
chaos: $(STAMP) ## kill every process of the store's side at random moments, RUNS=200 times from SEED=1 on, and count votes
	$(BIN)/python -m tests.chaos --runs $(RUNS) --seed $(SEED)

KILLS := 100
round-chaos: $(STAMP) ## kill whoever takes part in rounds at random moments, KILLS=100 times, drawn from SEED=1
	$(BIN)/python -m tests.chaos --rounds --kills $(KILLS) --seed $(SEED)

STEPS := 10000
machine: $(STAMP) ## the store against its model in memory, STEPS=10000 steps
	STEPS=$(STEPS) $(BIN)/python -m pytest tests/unit/service/test_store_machine.py

image: $(STAMP) ## run the Dockerfile's steps without a container engine, as root on Debian bookworm; several GB
	$(BIN)/python -m tests.image

lock: $(STAMP) ## resolve the locks anew from pyproject.toml
	$(BIN)/pip install -qq uv
	for kind in cpu gpu; do $(BIN)/uv pip compile pyproject.toml --extra $$kind --extra s3 --extra dev --python-version 3.11 \
	  --only-binary :all: --no-header --extra-index-url $(TORCH_CPU_INDEX) --output-file requirements/$$kind.txt; done

clean: ## remove what was built here; the seedling's cache and state folders stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(STAMP): requirements/$(LOCK).txt pyproject.toml
	@python=$$(for p in python3.11 python3; do "$$p" -c 'import sys; assert sys.version_info[:2] == (3, 11)' \
	  >/dev/null 2>&1 && command -v "$$p" && break; done || true); \
	if [ -z "$$python" ]; then echo "Heliotrope needs Python 3.11, and none is on the PATH. Install it, then run make again." >&2; exit 1; fi; \
	test -x $(BIN)/python || "$$python" -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --upgrade "pip==26.3"
	@if [ $(LOCK) = cpu ]; then \
	  echo "installing torch $(TORCH)+cpu"; \
	  $(BIN)/pip install -qq --no-deps "torch==$(TORCH)+cpu" 2>/dev/null \
	  || $(BIN)/pip install -qq --no-deps --index-url $(TORCH_CPU_INDEX) "torch==$(TORCH)+cpu"; fi
	@echo "installing the locked dependencies (requirements/$(LOCK).txt)"
	@grep -v '^torch==.*+cpu' requirements/$(LOCK).txt > $(VENV)/lock.txt
	$(BIN)/pip install -qq --no-deps -r $(VENV)/lock.txt
	$(BIN)/pip install -qq --no-deps --no-build-isolation --editable .
	@touch $@
