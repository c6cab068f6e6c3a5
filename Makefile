# Needs Python 3.11 or newer with pip, and make. Everything is installed into .venv, nothing outside of this folder.
# Where packages come from is pip's own business (pip.conf, PIP_* variables): an index that offers CPU builds of torch
# spares a machine without a GPU some gigabytes of CUDA.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
INSTALL := $(RUN) pip install --constraint constraints.txt
OLDEST := 3, 11
# Tests run in two processes, which gives each one core of a small machine; a process takes over what the other has left.
SPREAD := --numprocesses 2 --dist worksteal

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
# Tests start dozens of processes, each of which would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.DELETE_ON_ERROR:
.PHONY: fuzz mutants help demo test test-long test-alone test-shared check format-check lint types format clean

help:
	@echo 'make demo     segment the sample volume, into c2f-demo/'
	@echo 'make test     run all tests, including the examples in docstrings'
	@echo 'make test-long    the tests that take long: many seeds, trainings, whole commands'
	@echo 'make test-alone   the tests that want the machine for themselves: kills, measurements'
	@echo 'make test-shared  the tests that need the data and models of ../shared'
	@echo 'make check    what CI runs: formatter, linter, types, tests'
	@echo 'make format   rewrite the code as the formatter and the linter want it'
	@echo 'make fuzz     read thousands of damaged image files, checkpoints and DICOM series'
	@echo 'make mutants  change lines at random, and list the changes that no test sees'
	@echo 'make clean    remove .venv and all caches'
	@echo 'Another Python: make demo PYTHON=python3.12'

demo: $(VENV)/.installed
	$(VENV)/bin/c2f-infer --demo --overwrite

test: $(VENV)/.installed-dev
	$(RUN) pytest $(SPREAD)

test-long: $(VENV)/.installed-dev
	$(RUN) pytest -m 'long and not alone' $(SPREAD)

# Kills at a certain time and measurements want the machine for themselves.
test-alone: $(VENV)/.installed-dev
	$(RUN) pytest -m alone

test-shared: $(VENV)/.installed-dev
	$(RUN) pytest -m 'shared and not long and not alone' $(SPREAD)

# Tests come last, so that their closing line is the last one.
check: format-check lint types test

format-check: $(VENV)/.installed-dev
	$(RUN) ruff format --check .

lint: $(VENV)/.installed-dev
	$(RUN) ruff check .

types: $(VENV)/.installed-dev
	$(RUN) mypy

format: $(VENV)/.installed-dev
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

# Damaged image files, 4,000 of each format, checkpoints and DICOM series; the tests read some of them, too.
fuzz: $(VENV)/.installed-dev
	PYTHONPATH=tests/support:. $(VENV)/bin/python tests/support/fuzz_images.py
	PYTHONPATH=tests/support:. $(VENV)/bin/python tests/support/fuzz_checkpoints.py
	PYTHONPATH=tests/support:. $(VENV)/bin/python tests/support/fuzz_dicom.py

# Changes lines at random and lists those changes that no test sees. The tool is no part of the pinned environment.
mutants: $(VENV)/.installed-dev
	test -d $(VENV)/mutmut || $(RUN) pip install --quiet --target $(VENV)/mutmut mutmut==3.8.1
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/$(VENV)/mutmut $(VENV)/bin/python tests/support/mutants.py $(MUTANTS)

clean:
	rm -rf $(VENV) mutants .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The two stamps rebuild the environment when what it is made from has changed, and at no other time. Only our own build
# goes without isolation, so that hatchling and editables are held to their pins too. Others' source distributions are
# built in isolation, by the build tools that they ask for, whatever an interpreter's venv brings.
$(VENV)/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo >&2 \
	  'There is no $(PYTHON) here. Install Python 3.11 or newer, or name one: make $(MAKECMDGOALS) PYTHON=FILE'; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= ($(OLDEST)) or sys.exit("coarse2fine needs Python 3.11 or newer, but \
	$(PYTHON) is " + sys.version.split()[0] + ". Name another: make $(MAKECMDGOALS) PYTHON=FILE")'
	$(PYTHON) -m venv --clear $(VENV)
	$(INSTALL) --quiet hatchling editables
	$(INSTALL) --quiet --no-build-isolation --no-deps --editable .
	$(INSTALL) coarse2fine
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) 'coarse2fine[dev,cluster,dicom,training]'
	@touch $@
