# `make quickstart` and `make test` are all the set-up there is.
PYTHON ?= python3
VENV ?= .venv
# Of pyproject.toml: dev,browser,s3 runs the tests that need a browser or boto3, too.
EXTRAS ?= dev
BIN := $(VENV)/bin

.PHONY: quickstart test install docs clean
.DEFAULT_GOAL := quickstart

quickstart: $(VENV)/.installed  ## run the quickstart study: about two minutes on two cores
	$(BIN)/python -m hpo.worker --study quickstart

test: $(VENV)/.installed  ## everything CI runs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

install: $(VENV)/.installed

docs: $(VENV)/.installed  ## docs/ as a site in build/site: make docs EXTRAS=dev,docs
	$(BIN)/python docs/make_reference.py
	$(BIN)/python -m mkdocs build --strict

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; write make PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf $(VENV) build quickstart-artifacts quickstart.db quickstart.db-shm quickstart.db-wal \
	  plain-quickstart-artifacts plain-quickstart.db plain-quickstart.db-shm plain-quickstart.db-wal
