# Every target makes .venv and installs what it needs on a fresh machine with Python 3.11 or newer.
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install demo test test-slow test-gpu chaos lint format bench clean

help:
	@echo "make demo       install everything and run the main job on the built-in models"
	@echo "make test       the tests (under ten minutes on two cores)"
	@echo "make test-slow  also the slow ones: builds the full zoo and searches it"
	@echo "make chaos      random kills on a real Ray cluster of two nodes, 50 schedules"
	@echo "make test-gpu   the tests that need a GPU"
	@echo "make lint       ruff and mypy --strict"
	@echo "make bench      all benchmarks, about an hour on two cores; each file in benchmarks/ runs alone too"

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "evomerge needs Python 3.11 or newer; found none"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

install: $(INSTALLED)

demo: install
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo.sh

# In two halves at once, which takes about as long as the longer one on two cores.
HALF := tests/evaluators tests/methods tests/optimizers tests/simulation
test: install
	@log=$$(mktemp) && { $(BIN)/python -m pytest $(HALF) >$$log 2>&1 & half=$$!; \
	$(BIN)/python -m pytest $(addprefix --ignore=,$(HALF)); rest=$$?; \
	wait $$half; status=$$?; echo "== $(HALF)"; cat $$log; rm $$log; exit $$((status + rest)); }

test-slow: install
	$(BIN)/python -m pytest -m slow

test-gpu: install
	$(BIN)/python -m pytest -m gpu

chaos: install
	$(BIN)/python -m pytest -m slow -s tests/chaos

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	@set -e; for f in $$(grep -l __main__ benchmarks/*.py); do echo "== $$f"; $(BIN)/python $$f; done

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
