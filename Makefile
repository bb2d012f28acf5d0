# Every task of the project. Each makes what it needs in .venv first, from the project's own
# files, and does nothing twice: a stamp remembers what pyproject.toml asked for.
#
#   make test ARGS="-k journal -x"     passes ARGS to pytest, to `perdure demo`, or to `perdure bench`
#   make test PYTHON=python3.12        uses that interpreter; .venv is made anew for it

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

bin := $(VENV)/bin
pip := $(bin)/python -m pip install -qq --disable-pip-version-check
made := $(VENV)/.made-by-$(notdir $(PYTHON))

.DEFAULT_GOAL := help
.PHONY: help demo test chaos powerloss property check lint types mypy pyright floors format cover wheel wheel-test bench clean

help:  ## what can be made
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.runtime  ## watch a workflow survive a crash
	@$(bin)/perdure demo $(ARGS)

test: $(VENV)/.test  ## the test suite
	@$(bin)/pytest -n auto --dist worksteal $(ARGS)

# PERDURE_CHAOS_SEED=n repeats a campaign; the suite runs the same tests with a few kills.
chaos: $(VENV)/.test  ## 200 kills at random instants in each mode, and 200 in the middle of each job
	@PERDURE_CHAOS_KILLS=$${PERDURE_CHAOS_KILLS:-200} $(bin)/pytest tests/durability/test_chaos.py \
	tests/durability/test_strikes.py -s -o faulthandler_timeout=1800 $(ARGS)

# PERDURE_POWERLOSS_SEED=n repeats a campaign; the suite runs the same tests with a few crashes.
powerloss: $(VENV)/.test  ## 400 power failures for each kind of work, and 200 in the middle of a recovery
	@PERDURE_POWERLOSS_CRASHES=$${PERDURE_POWERLOSS_CRASHES:-400} $(bin)/pytest \
	tests/durability/test_power_loss.py -o faulthandler_timeout=1800 $(ARGS)

# PERDURE_PROPERTY_SEED=n repeats a campaign; the suite runs the same tests with a few programs.
property: $(VENV)/.test  ## 1,000 generated programs, stopped and killed, beside what they must come to
	@PERDURE_PROPERTY_COUNT=$${PERDURE_PROPERTY_COUNT:-1000} $(bin)/pytest tests/durability/test_property.py \
	-s -o faulthandler_timeout=7200 $(ARGS)

check: lint types floors  ## lint, types and floors

lint: $(VENV)/.dev  ## ruff: rules and format
	$(bin)/ruff check
	$(bin)/ruff format --check

types: mypy pyright  ## mypy and pyright, both strict

mypy: $(VENV)/.dev
	$(bin)/mypy

pyright: $(VENV)/.dev
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(bin)/pyright --pythonpath $(bin)/python

floors: $(VENV)/.dev  ## imports point down only
	$(bin)/lint-imports --no-cache

format: $(VENV)/.dev  ## let ruff format the code and mend what it can
	$(bin)/ruff check --fix
	$(bin)/ruff format

# Not `coverage run -m pytest`: that puts this folder on sys.path, where the floors would import
# a second time under their bare names.
cover: $(VENV)/.dev  ## the test suite with its coverage
	$(bin)/coverage erase
	$(bin)/coverage run $(bin)/pytest $(ARGS)
	$(bin)/coverage combine --quiet
	$(bin)/coverage report
	$(bin)/coverage html --quiet

wheel: $(VENV)/.dev  ## sdist and wheel in dist/, with their contents checked
	rm -rf dist
	$(bin)/pyproject-build --outdir dist
	$(bin)/python tests/packaging/contents.py dist

wheel-test: wheel  ## the test suite against the wheel, installed elsewhere
	bash tests/packaging/try_dist.sh $(bin)/python dist/*.whl

bench: $(VENV)/.runtime  ## every benchmark, at full size
	@$(bin)/perdure bench --all $(ARGS)

clean:  ## remove .venv, builds, caches and reports
	rm -rf $(VENV) build dist htmlcov .coverage .coverage.* .hypothesis
	rm -rf .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

# -- the environment ---------------------------------------------------------------------------

# Where Python comes without ensurepip (some distributions split it off), its pip fills the
# environment from outside. pip 25.1 is the first that reads dependency groups.
$(made):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Perdure needs Python 3.11 or newer; \
	$(PYTHON) is %d.%d. Name one: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@echo "Making $(VENV) with $(PYTHON) ..."
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv --clear $(VENV); \
	else $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	$(PYTHON) -m pip --python $(bin)/python install -qq pip; fi
	@$(pip) 'pip>=25.1'
	@touch $@

$(VENV)/.runtime: $(made) pyproject.toml
	@echo "Installing Perdure (editable) ..."
	@$(pip) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.runtime
	@echo "Installing what the tests import ..."
	@$(pip) --group test
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	@echo "Installing the tools ..."
	@$(pip) --group dev
	@touch $@
