# Every target works on a machine that has only make and a Python of 3.11 to 3.14 with venv: it makes .venv and installs
# the versions of constraints.txt, and does so again when pyproject.toml or constraints.txt changes.
#   make PYTHON=python3.13 test         another interpreter
#   make test ARGS="-k switch"          arguments for pytest, in place of its two processes

.DEFAULT_GOAL := help
.PHONY: help demo gallery test check format lint types floors pages docs bench clean
.DELETE_ON_ERROR:

PYTHON ?=
ARGS ?= -q -n 2 --dist loadfile
BIN := .venv/bin
STAMP := .venv/installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
export PIP_NO_INPUT := 1

# An environment that another folder made, or whose interpreter is gone, is made again: its scripts point elsewhere.
ifneq ($(shell $(BIN)/python -c "" 2>/dev/null && cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

help:
	@echo "make demo      certify a real model: the wrong way first, then the evaluation contract"
	@echo "make gallery   typical broken models, each found with its line and its fix"
	@echo "make test      the tests, the examples in the docstrings, and the code in README and docs"
	@echo "make check     format, lint, types, floors, then the tests"
	@echo "make bench     what the switch costs, as ratios; kept under benchmarks/results/"
	@echo "make format    rewrite the sources in the house format"
	@echo "make clean     remove .venv, build/ and the caches"

demo: $(STAMP)
	@$(BIN)/python examples/demo.py

gallery: $(STAMP)
	@$(BIN)/python examples/broken/gallery.py

bench: $(STAMP)
	@$(BIN)/python benchmarks/switch.py --keep

test: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(ARGS)

check: $(STAMP)
	@echo "format"; $(BIN)/python -m ruff format --check --quiet . || { echo "  fix: make format"; exit 1; }
	@$(MAKE) --no-print-directory lint types floors
	@echo "pages, docs, tests"; $(MAKE) --no-print-directory test

format: $(STAMP)
	@$(BIN)/python -m ruff format .
	@$(BIN)/python -m ruff check --fix-only --quiet .

lint: $(STAMP)
	@echo "lint"; $(BIN)/python -m ruff check --quiet .

types: $(STAMP)
	@echo "types"; $(BIN)/python -m mypy --no-error-summary

floors: $(STAMP)
	@echo "floors"; said=$$($(BIN)/lint-imports --no-cache 2>&1) || { echo "$$said"; exit 1; }

pages: $(STAMP)
	@$(BIN)/python -m pytest tests/contracts $(ARGS)

docs: $(STAMP)
	@$(BIN)/python -m pytest README.md docs tests/meta $(ARGS)

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests examples benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	suits='import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'; \
	if ! { [ -x $(BIN)/python ] && [ "$$(cat $@ 2>/dev/null)" = "$(CURDIR)" ] && $(BIN)/python -c ""; } 2>/dev/null; then \
	  found=; \
	  for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python); do \
	    if $$python -c "$$suits" >/dev/null 2>&1; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "evalmode needs Python 3.11 to 3.14 with venv; found: $$($(or $(PYTHON),python3) --version 2>&1 | head -n 1)" >&2; \
	    echo "  fix: install one (Debian, Ubuntu: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python3.13" >&2; \
	    exit 1; \
	  fi; \
	  $$found -m venv --clear .venv; \
	fi; \
	rm -f $@; \
	echo "installing into .venv (about a minute)" >&2; \
	$(BIN)/python -m pip install -qq -c constraints.txt hatchling editables; \
	$(BIN)/python -m pip install -qq -c constraints.txt --no-build-isolation -e '.[dev]'; \
	printf '%s' "$(CURDIR)" > $@
