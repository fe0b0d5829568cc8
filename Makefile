# Everything installs into .venv, pinned by constraints.txt. `make demo` and `make test` need nothing but
# Python 3.11 or newer and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/pip install --quiet --constraint constraints.txt

.PHONY: help demo ui test check bench crash constraints up clean

help:
	@echo "make demo    load a year of real flights into a partitioned warehouse, under a real Airflow"
	@echo "make ui      the same, and leave Airflow running for a look"
	@echo "make test    all tests"
	@echo "make check   ruff, mypy --strict, import rules"
	@echo "make crash   every point of the crash matrix, and many more orders of writers, runs and retries"
	@echo "make bench   side by side with psql COPY | psql COPY, with statements by hand, and with others' tools"
	@echo "make up      the same by docker compose"

demo: $(VENV)/.demo
	$(BIN)/python -m demo run

ui: $(VENV)/.demo
	$(BIN)/python -m demo ui

test: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/unit/test_architecture.py

crash: $(VENV)/.test
	ETL_EVERY_SERVER=1 $(BIN)/python -m pytest tests/integration/postgres --numprocesses auto --dist loadfile
	ETL_CRASH=all $(BIN)/python -m pytest tests/crash
	ETL_EXAMPLES=200 $(BIN)/python -m pytest tests/integration/postgres/test_interleavings.py

bench: $(VENV)/.demo
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.publication
	$(BIN)/python -m benchmarks.audit

up: $(VENV)/.demo
	$(BIN)/python -m demo compose-env
	docker compose up --build

# One universal resolution from the oldest Python; markers where one version does not fit all.
constraints:
	$(PYTHON) -m venv $(VENV)/resolver
	$(VENV)/resolver/bin/pip install --quiet uv
	$(VENV)/resolver/bin/uv pip compile --quiet --universal --python-version 3.11 --upgrade \
		--extra demo --extra test --no-annotate --no-header pyproject.toml -o constraints.txt

clean:
	rm -rf $(VENV) .demo

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/pip pyproject.toml constraints.txt
	@echo "installing into $(VENV) (one to three minutes)"
	@$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	@echo "installing what the tests need"
	@$(PIP) --editable '.[demo,test]'
	@touch $@
