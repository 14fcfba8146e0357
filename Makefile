# Everything from a bare machine: `make forecast` needs Python 3.11 or later and nothing else.
#
#   make forecast ARGS="--tiny"     what follows ARGS= goes to the command
#   make test ARGS="tests/data"     … or to pytest
#   make test JOBS=8                with more than two processes; JOBS=0 is pytest's own, for a debugger
#   make forecast TORCH_INDEX=https://download.pytorch.org/whl/cu126     a CUDA build of torch
#   make forecast TORCH_INDEX=      torch from whatever index pip is set to
#
# Installing leaves a stamp in .venv, so that a second call is instant; `make distclean` before another build of
# torch.

PYTHON ?= python3
ARGS ?=
JOBS ?= 2
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# On Linux the ordinary index serves torch with gigabytes of CUDA. The default is therefore to ask the index of
# CPU builds first, briefly, and to go on without it where it cannot be reached. An index that the caller names
# is binding instead.
ifeq ($(origin TORCH_INDEX),file)
TORCH_FLAGS := --timeout 5 --retries 0 2>/dev/null || echo "No index of CPU builds here: torch comes from the index that pip is set to."
endif

.DELETE_ON_ERROR:
.PHONY: help install forecast test lint types contracts check format clean distclean

help:
	@echo "make forecast   install, then forecast with the defaults (ARGS=... for more)"
	@echo "make test       install what tests need, then run all of them (ARGS=... for some)"
	@echo "make check      lint, types and import contracts"
	@echo "make format     rewrite the sources in the house format"
	@echo "make clean      remove caches and builds; distclean removes .venv too"

$(VENV)/python.stamp:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or later is needed; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/torch.stamp: $(VENV)/python.stamp pyproject.toml
ifneq ($(strip $(TORCH_INDEX)),)
	@requirement=$$($(BIN)/python -c 'import tomllib; \
	  extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	  print(next(entry for entry in extras["train"] if entry.startswith("torch")))') && \
	echo "Installing $$requirement from $(TORCH_INDEX)" && \
	{ $(PIP) install --no-deps --index-url $(TORCH_INDEX) "$$requirement" $(TORCH_FLAGS); }
endif
	@touch $@

$(VENV)/train.stamp: $(VENV)/torch.stamp
	$(PIP) install --quiet --editable '.[train]'
	@touch $@

# mup and nngeometry are compared against in tests only. Their requirements name torchvision, which is not wanted.
$(VENV)/test.stamp: $(VENV)/train.stamp
	$(PIP) install --quiet --editable '.[test]'
	$(PIP) install --quiet --no-deps mup nngeometry
	@touch $@

install: $(VENV)/train.stamp

forecast: $(VENV)/train.stamp
	$(BIN)/allometry forecast $(ARGS)

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile $(ARGS)

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test.stamp
	$(BIN)/mypy

contracts: $(VENV)/test.stamp
	$(BIN)/lint-imports

check: lint types contracts

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
