# Two commands on a fresh clone: `make demo` and `make test`. Both make their own .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread each way: the test machines are small, and reductions then add in one order.
TEST_ENV := OMP_NUM_THREADS=2 MPLBACKEND=Agg HF_HUB_OFFLINE=1

.PHONY: demo test test-slow lint bench clean

demo: $(VENV)/.demo
	$(BIN)/ntkwatch demo

test: lint
	$(TEST_ENV) $(BIN)/python -m pytest -m "not slow"

test-slow: $(VENV)/.test
	$(TEST_ENV) $(BIN)/python -m pytest -m slow

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.test
	$(BIN)/python benchmarks/engines.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo]"
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo,test]"
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
