# `make demo` and `make test` need Python 3.11 or newer, git and make; everything else they install themselves.
# Every virtual environment is made once and again when pyproject.toml changes; the package is installed
# editable, so the current source always runs. Of the thousands of modules Python compiles those that are imported.

PYTHON ?= python3
WORKERS ?= 2

PYTEST = .venv-test/bin/python -m pytest
# The pip that comes with Python 3.11 takes three times as long to find out what to install.
PIP = .venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-compile
EXTRAS_demo = demo
EXTRAS_test = test
EXTRAS_lint = lint,docs
EXTRAS_lowest = test
EXTRAS_newest = test
CONSTRAINTS_lowest = --constraint tests/lowest.txt
QUICK = not full and not examples and not notebooks
SHAPED = $(addprefix tests/linalg/test_,operators.py weighted_sum.py krylov.py summaries.py traces.py) \
  $(addprefix tests/network/test_,chain.py side.py coupling.py) tests/curvature/test_transformations.py tests/training/test_propagate.py
CORE = tests/linalg/test_spectrum.py tests/linalg/test_rank.py tests/network tests/curvature/test_identities.py

# Compiling is what tests spend their time on: workers, precisions, examples and the next run share their programs.
test shapes docs notebooks test-notebooks examples full: export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
test shapes docs notebooks test-notebooks examples full: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0
test shapes docs notebooks test-notebooks examples full: export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES ?= -1
# Where a line of source stands in a program is of no use here, and takes a thirtieth of the time.
test shapes docs notebooks test-notebooks examples full: export JAX_TRACEBACK_IN_LOCATIONS_LIMIT ?= 0
# As users compile; tests/conftest.py chooses quicker ways where nothing is said.
docs notebooks full: export JAX_DISABLE_MOST_OPTIMIZATIONS ?= 0
# Python's own compilation too: workers and the processes that tests start read what was compiled once.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test shapes lint format docs notebooks test-notebooks examples site full clean
.PRECIOUS: .venv-%/.installed

help:
	@echo 'make demo    train three small networks, analyze every block; results in runs/demo/'
	@echo 'make test    the test-suite in float32, some of it with annotations checked, then in float64'
	@echo 'make shapes  small tests with every annotation of a shape checked as they run'
	@echo 'make lint    style and types'
	@echo 'make format  rewrite the files as `make lint` wants them'
	@echo 'make docs    run the examples of README.md, docs/ and the docstrings'
	@echo 'make site    the documentation as pages with a search, in build/site/; its links, search and console checked'
	@echo 'make notebooks       build the notebooks from the scripts beside them'
	@echo 'make test-notebooks  execute the notebooks, and check that each is what its script makes'
	@echo 'make examples        the examples and the notebooks, compiled quickly but for the pages that one reads first'
	@echo 'make full    every test, the slow ones and the examples included; the core with the lowest and the newest versions'
	@echo 'make clean   remove the virtual environments, caches and results'

demo: .venv-demo/.installed
	.venv-demo/bin/localhessian demo --out runs/demo

test: .venv-test/.installed
	JAX_ENABLE_X64=0 $(PYTEST) -q -n $(WORKERS) --dist worksteal $(SHAPED:%=--ignore=%)
	$(MAKE) --no-print-directory shapes
	JAX_ENABLE_X64=1 $(PYTEST) -q -n $(WORKERS) --dist worksteal -m '$(QUICK) and (refuses or not once)'

shapes: .venv-test/.installed
	JAX_ENABLE_X64=0 $(PYTEST) -q -n $(WORKERS) --dist worksteal --jaxtyping-packages=localhessian,checked.check -m '$(QUICK) and not refuses' $(SHAPED)

lint: .venv-lint/.installed
	.venv-lint/bin/ruff check .
	.venv-lint/bin/ruff format --check .
	.venv-lint/bin/mypy

format: .venv-lint/.installed
	.venv-lint/bin/ruff check --fix .
	.venv-lint/bin/ruff format .

docs: .venv-test/.installed
	$(PYTEST) -q -n $(WORKERS) --dist worksteal -m examples tests/test_examples.py

notebooks: .venv-test/.installed
	.venv-test/bin/python notebooks/paired.py

test-notebooks: .venv-test/.installed
	$(PYTEST) -q -n $(WORKERS) --dist worksteal -m notebooks tests/test_notebooks.py

examples: .venv-test/.installed
	$(PYTEST) -q -n $(WORKERS) --dist worksteal -m 'examples or notebooks' tests/test_notebooks.py tests/test_examples.py

site: .venv-lint/.installed
	NO_MKDOCS_2_WARNING=1 .venv-lint/bin/mkdocs build
	.venv-lint/bin/python docs/checked.py build/site

full: .venv-test/.installed .venv-lowest/.installed .venv-newest/.installed
	JAX_ENABLE_X64=0 $(PYTEST) -q -n $(WORKERS) --dist worksteal -m ''
	JAX_ENABLE_X64=1 $(PYTEST) -q -n $(WORKERS) --dist worksteal -m 'not examples and not notebooks'
	.venv-lowest/bin/python -m pytest -q -n $(WORKERS) --dist worksteal $(CORE)
	.venv-newest/bin/python -m pytest -q -n $(WORKERS) --dist worksteal $(CORE)

.venv-%/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "localhessian needs Python 3.11 or newer, but \`$(PYTHON)\` is $$($(PYTHON) --version 2>&1)." \
	       'Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)' >&2; exit 1; }
	@echo 'Installing into .venv-$* (once; a minute or two) ...'
	@$(PYTHON) -m venv --clear .venv-$* || { \
	  echo 'This Python cannot make virtual environments: install its venv module (on Debian and Ubuntu the' \
	       'package python3-venv), or name another one: make PYTHON=python3.12 $(MAKECMDGOALS)' >&2; exit 1; }
	-@$(PIP) --upgrade pip
	@$(PIP) --editable '.[$(EXTRAS_$*)]' $(CONSTRAINTS_$*)
	@touch $@

clean:
	rm -rf .venv-demo .venv-test .venv-lint .venv-lowest .venv-newest runs build dist .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
