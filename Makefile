# Two commands matter: `make serve` reads the daily, `make test` checks everything. Both set themselves up in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
HOST ?= 127.0.0.1
PORT ?= 8000
WORKERS ?= 2

.DEFAULT_GOAL := help
POSTGRES ?= # --required makes a machine without PostgreSQL an error
.PHONY: help serve test lint types tests tests-postgres format clean

help:
	@echo "make serve   set up (first time: a few minutes), then the site on http://$(HOST):$(PORT)"
	@echo "make test    set up, lint, types, tests"
	@echo "make format  format the code"
	@echo "make clean   remove the environment and caches"

$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with: make serve PYTHON=python3.12"; exit 1; }
	@echo "== making the environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=24"
	@touch $@

$(VENV)/installed: $(VENV)/created pyproject.toml constraints.txt
	@echo "== installing working-papers and what it needs (first time: some hundred megabytes)"
	@$(PIP) torch
	@$(PIP) --editable .
	@touch $@

$(VENV)/installed-for-tests: $(VENV)/installed
	@echo "== installing what the tests need"
	@$(PIP) --editable ".[dev,ray]"
	@touch $@

serve: $(VENV)/installed
	@$(BIN)/working-papers serve --host $(HOST) --port $(PORT)

lint: $(VENV)/installed-for-tests
	@echo "== ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/installed-for-tests
	@echo "== mypy"
	@$(BIN)/mypy

tests: $(VENV)/installed-for-tests
	@echo "== pytest"
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS)

tests-postgres: $(VENV)/installed-for-tests
	@echo "== pytest on PostgreSQL: every test that uses a database"
	@OMP_NUM_THREADS=1 $(BIN)/python tests/postgres.py $(POSTGRES) $(BIN)/pytest -n $(WORKERS) -m database

test: lint types tests tests-postgres

format: $(VENV)/installed-for-tests
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
