# `make parity` and `make test` do everything, the set-up included.
#
#   PYTHON=python3.12               another interpreter (3.11 or later)
#   PIP_ARGS="--index-url ..."      arguments for pip, a CPU-only index of torch say
#   PYTEST_ARGS="-k attention"      arguments for pytest

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup parity test test-slow test-peers lint docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(INSTALLED) ## make .venv with the pinned versions

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'Python 3.11 or later is needed: make PYTHON=python3.12'; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt $(PIP_ARGS) \
	  --editable '.[torch,check,train,plot,dev]'
	@touch $@

parity: $(INSTALLED) ## prove the two packages the same, on the data that ships
	$(BIN)/parity all --out runs/parity

# Small products are several times slower on several threads of a busy machine.
test test-slow test-peers: export OPENBLAS_NUM_THREADS = 1
test test-slow test-peers: export OMP_NUM_THREADS = 1

test: $(INSTALLED) ## run the tests that need no network and little time
	$(BIN)/python -m pytest -n 2 -m "not slow and not peers" $(PYTEST_ARGS)

test-slow: $(INSTALLED) ## run the slow tests
	$(BIN)/python -m pytest -n 2 -m slow $(PYTEST_ARGS)

test-peers: $(INSTALLED) ## compare with timm, transformers and jax
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt $(PIP_ARGS) --editable '.[peers]'
	$(BIN)/python -m pytest -m peers $(PYTEST_ARGS)

lint: $(INSTALLED) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED) ## rebuild the pages and pictures that show the sources
	$(BIN)/python scripts/build_docs.py

clean: ## remove what these targets made
	rm -rf $(VENV) runs build dist *.egg-info
