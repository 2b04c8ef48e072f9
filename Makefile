# Every target sets up what it needs: Python 3.11 or later with its venv module is all that must be there.
#   make demo            digest a sample of real system logs
#   make test            lint, types, architecture and tests
#   make format          let ruff format the code and mend what it safely can
# PYTHON names the interpreter, VENV the folder of the virtual environment.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint unit format clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -5

setup: $(READY)

# A changed list of dependencies updates the environment; the stamp is written last, so a failed set-up is done again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Pipeline Engine needs Python 3.11 or later; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)." >&2; \
	  echo "Name another interpreter: make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python3.13" >&2; exit 1; }
	@echo "Setting up $(VENV) (once, a minute or so) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $(READY)

demo: $(READY)
	@$(BIN)/pipeline-engine run examples/log-digest.yaml --source log:system.log=examples/data/system.log

test: lint unit

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/deptry daemon sdk

# Text is opened with its encoding named, so that no locale changes what the daemon reads: -X warn_default_encoding.
unit: $(READY)
	$(BIN)/python -X warn_default_encoding -m pytest -q -p no:cacheprovider $(PYTEST_ARGS)

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-* build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
