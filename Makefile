# make demo | test | test-services | bench | lint | image-reward | clean. Each sets up what it needs in .venv; a second call does not reinstall.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test test-services bench lint image-reward clean setup
.DEFAULT_GOAL := demo

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no python3.11 here; name one with PYTHON=..." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python 3.11 or later is needed; name one with PYTHON=..., after 'make clean'" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/pahi run

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

# Servers and workers, started, killed and restarted; PostgreSQL is Debian's package `postgresql`. PAHI_TEST_RUNS=200
# queues as many runs at once instead of 20; PAHI_TEST_PATIENCE=3 waits three times as long on a busy machine.
test-services: $(STAMP)
	$(BIN)/python -m pytest tests/flows tests/generation -m "services or faults" $(ARGS)

bench: $(STAMP)
	@set -e; found=; for file in benchmarks/*.py; do \
	  [ -e "$$file" ] || continue; found=1; $(BIN)/python "$$file"; \
	done; [ -n "$$found" ] || echo "no benchmarks yet"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The published ImageReward package, as the reference that `pahi doctor --reference` compares ours with.
REFERENCE := .venv-image-reward

image-reward: $(REFERENCE)/.installed

$(REFERENCE)/.installed: constraints-image-reward.txt
	@test -n "$(PYTHON)" || { echo "error: no python3.11 here; name one with PYTHON=..." >&2; exit 2; }
	@test -x $(REFERENCE)/bin/python || $(PYTHON) -m venv $(REFERENCE)
	$(REFERENCE)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints-image-reward.txt image-reward transformers torchvision clip-anytorch open_clip_torch setuptools
	@touch $@

clean:
	rm -rf $(VENV) $(REFERENCE) .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find pahi flows tests -name __pycache__ -type d -prune -exec rm -rf {} +
