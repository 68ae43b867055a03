# The whole developer surface. CI runs the same words.
PYTHON  ?= $(shell command -v python3.11 || command -v python3)
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
UPSTREAM ?=
# Where `make run` lets clients in, and operators.
LISTEN  ?= 127.0.0.1:8080
ADMIN   ?= 127.0.0.1:8081
# How many tests run at a time. They wait more than they work.
SIDE_BY_SIDE ?= 3

.PHONY: help run demo test test-containers faults check fmt bench model lock clean

help:            ## the words
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed: install python3, or say make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11: say make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

run: $(STAMP)    ## the gate on LISTEN=127.0.0.1:8080 before a sample service, or before UPSTREAM=http://host:port
	@$(BIN)/oncegate $(if $(UPSTREAM),run --upstream $(UPSTREAM),demo --serve) --listen $(LISTEN) --admin $(ADMIN)

demo: $(STAMP)   ## ten seconds that show what it does
	@$(BIN)/oncegate demo

test: $(STAMP)   ## the whole suite, against real servers
	@$(BIN)/python -m pytest --numprocesses $(SIDE_BY_SIDE) --dist worksteal

LONG = ONCEGATE_FAULTS=long $(BIN)/python -m pytest -v -o faulthandler_timeout=1800
faults: $(STAMP) ## the promise while processes, networks and stores break: the long form, with every defect (half an hour)
	@$(LONG) --numprocesses 2 --dist worksteal tests/faults tests/stores/test_replicated.py tests/stores/test_compact.py \
		tests/edge/test_fuzz.py tests/e2e/test_clients.py tests/e2e/test_recipes.py
	@$(LONG) tests/e2e/test_floods.py  # by itself: a thousand flooders take what there is

test-containers: $(STAMP) ## the image, compose and the pods, on a container engine (minutes; fails without one)
	@ONCEGATE_CONTAINERS=run $(BIN)/python -m pytest -v -o faulthandler_timeout=1800 tests/containers

check: $(STAMP)  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(STAMP)    ## format, and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## CPU per request, and the ratio to nginx where nginx and wrk are installed
	@$(BIN)/python -m loadtest.bench

model: $(STAMP)  ## search the record protocol's model, with every rule and without each (needs spin and gcc)
	@$(BIN)/python docs/model/check.py

lock: $(STAMP)   ## pin the versions anew (pyproject.toml has the floors)
	$(BIN)/uv pip compile --quiet --universal --upgrade --no-header --no-annotate --extra jwt --extra otel --group dev -o requirements.lock pyproject.toml

clean:           ## forget the environment
	rm -rf $(VENV)
