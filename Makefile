# Needs Python 3.11 or newer (on Debian: python3 and python3-venv), git and make; everything else goes into .venv.
PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup test lint format demo full-size shelf hostile safety mutations bench bench-quick clean

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(INSTALLED)  ## Make .venv with everything that is needed

# torch goes first and alone, so that a CPU build from a local index is kept and not traded for PyPI's.
$(INSTALLED): pyproject.toml constraints.txt requirements-oracles.txt
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Python 3.11 or newer with venv is needed, e.g. make PYTHON=python3.12 (Debian: apt install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-oracles.txt
	@touch $@

# One torch thread a worker: two workers with two threads each on two cores take twice as long.
test: lint  ## Run linters, type checks and the whole test suite
	HYPOTHESIS_PROFILE=ci OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS)

lint: setup  ## Run ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: setup  ## Format the code and fix what ruff can fix
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

demo: setup  ## Convert a small Phi-2 to Tenny and back, and show it
	$(BIN)/python examples/demo.py

full-size: setup  ## Convert a random model of Phi-2's real size, and prove memory, bytes and logits (18 GB of disk, 14 GB of memory)
	$(BIN)/python benchmarks/full_size.py

bench: setup  ## Measure against cp and other converters, and write docs/benchmarks.md (20 GB of disk, 16 GB of memory)
	$(BIN)/python -m benchmarks

bench-quick: setup  ## A small subset of it, in under three minutes; prints only
	$(BIN)/python -m benchmarks --quick

shelf: setup  ## Measure how closely both sides of each shipped spec agree, and write the table of docs/specs.md
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.shelf

hostile: setup  ## Run the hostile corpus, each input in a process of its own, and print how all ended
	$(BIN)/python -m tests.hostile

safety: setup  ## Attack everything: hostile inputs, kills, full disks, I/O errors, power cuts, fuzzing (an hour; as root)
	$(BIN)/python -m tests.safety

mutations: setup  ## Prove the verifier: every wrong conversion that it must catch, and write docs/mutations.md
	$(BIN)/python -m tests.mutations

clean:  ## Remove caches and outputs; .venv stays
	rm -rf build dist *.egg-info .demo .full-size .bench .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
