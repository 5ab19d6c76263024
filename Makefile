# Two commands on a fresh clone: `make demo` and `make test`. Both make their own .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A fixed number of threads, so that sums are added in the same order from run to run. One, since on
# the tests' small tensors a second thread waits more than it works.
TEST_ENV := OMP_NUM_THREADS=1 MPLBACKEND=Agg HF_HUB_OFFLINE=1
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	--constraint constraints.txt --editable

# What `make data` fetches: Fashion-MNIST, and short texts. Nothing is installed.
DATA := dataset-fashion-mnist fortunes
DOWNLOAD := apt-get download -qq -o APT::Sandbox::User=root $(DATA)

.PHONY: demo data test test-slow test-lowest test-gpu lint bench peers clean

demo: $(VENV)/.demo
	$(BIN)/ntkwatch demo

# The annotated shapes are checked here alone: the slow tests time things.
test: lint
	$(TEST_ENV) $(BIN)/python -m pytest --typecheck -m "not slow"

# Without the data, the examples that train on it are skipped.
test-slow: $(VENV)/.test
	@$(MAKE) --no-print-directory data || echo "Going on without the data." >&2
	$(TEST_ENV) $(BIN)/python -m pytest -m slow

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Real data for the examples, unpacked from packages of Debian.
data: data/.unpacked

data/.unpacked:
	@command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || { echo "'make data' unpacks packages of Debian, and there is no apt-get or no dpkg-deb here. Give the examples data of your own instead: --data, explained in docs/examples.md." >&2; exit 1; }
	mkdir -p data
	cd data && { $(DOWNLOAD) 2>/dev/null || { apt-get update -qq && $(DOWNLOAD); }; }
	set -e; for package in data/*.deb; do dpkg-deb -x "$$package" data; rm "$$package"; done
	touch $@

# The fast tests with what the package needs at its oldest, and the newest tools that go with it:
# old packages warn of what newer ones beside them have changed, so warnings are no errors here.
test-lowest: .venv-lowest/.test
	$(TEST_ENV) .venv-lowest/bin/python -m pytest -m "not slow" -W default

.venv-lowest/.test: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints-lowest.txt --editable ".[demo,test]"
	touch $@

# On what GPU there is, into benchmarks/RESULTS-GPU.md; without one it says so and fails.
test-gpu: $(VENV)/.test
	PYTHONPATH=. $(BIN)/python benchmarks/gpu.py

# Writes benchmarks/RESULTS.md: half an hour on an idle machine, which it wants for itself.
bench: $(VENV)/.test peers
	PYTHONPATH=. OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench.py

# The other libraries, each kind in an environment of its own. One that cannot be installed is a
# line in the results, so neither failure stops the rest. The second wants $(PYTHON) to be 3.11.
peers:
	@$(MAKE) --no-print-directory .venv-peers/.installed || echo "The torch libraries could not be installed." >&2
	@$(MAKE) --no-print-directory .venv-jax/.installed || echo "neural-tangents could not be installed." >&2

.venv-peers/.installed: benchmarks/peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

.venv-jax/.installed: benchmarks/peers-jax.txt
	$(PYTHON) -m venv .venv-jax
	.venv-jax/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

# Each stamp is touched after its install, so one that was cut short runs again.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP_INSTALL) ".[demo]"
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP_INSTALL) ".[demo,test]"
	touch $@

# The check is written so that any Python, 2 included, can read it.
$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "ntkwatch needs Python 3.11 or later, and there is no '$(PYTHON)' here. Name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "ntkwatch needs Python 3.11 or later, and \"$(PYTHON)\" is %d.%d. Name a later one: make $(MAKECMDGOALS) PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

# `python -m venv` links python first and brings pip last: where it stopped between, finish it.
$(BIN)/pip: | $(BIN)/python
	@test -e $@ || $(BIN)/python -m ensurepip --default-pip

clean:
	rm -rf $(VENV) .venv-peers .venv-jax .venv-lowest .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
