# Two commands do everything: `make demo` and `make test`. Both set up first, once.
PYTHON ?= python3
VENV ?= .venv
RANKS ?= 2
# nproc alone would return OMP_NUM_THREADS where that is set.
CORES = env -u OMP_NUM_THREADS nproc
# Processes that share the tests; each needs 1 to 3 GB. 0: all tests in one process. More than there
# are cores, because slow tests often wait for processes that start or end.
WORKERS ?= $(shell n=$$(( $$($(CORES)) * 3 / 2 )); echo $$(( n < 8 ? n : 8 )))
RUN = $(VENV)/bin/torchrun --standalone --nproc-per-node $(RANKS) -m launcher
# The cores shared by the ranks, unless the user says otherwise; torchrun would set 1 and warn.
SHARE = $(shell n=$$(( $$($(CORES)) / $(RANKS) )); echo $$(( n > 0 ? n : 1 )))

.PHONY: help setup demo test test-fast check docs dist try-dist

help:
	@echo "make demo       set up, then train, calibrate and train quantized on the embedded data"
	@echo "make test       set up, then run all tests"
	@echo "make test-fast  the tests that take seconds"
	@echo "make check      ruff, ruff format, mypy"
	@echo "make docs       the site, from docs/ and the code, into site/"
	@echo "make dist       sdist and wheel of a release, checked, into dist/"
	@echo "make try-dist   the same, and the wheel with all dependencies in an empty environment"
	@echo "settings: PYTHON=$(PYTHON) VENV=$(VENV) RANKS=$(RANKS) WORKERS=$(WORKERS)"

setup:
	@$(PYTHON) setup/environment.py --venv $(VENV)

demo: export OMP_NUM_THREADS ?= $(SHARE)
demo: setup
	@echo "The demo makes a small data set, trains a detector on it in float, calibrates it to int8 and"
	@echo "trains it quantized, on $(RANKS) ranks: about 4 minutes on two cores. It can be stopped and repeated."
	$(VENV)/bin/python -m launcher data digits
	$(RUN) run configs/digits/ssd_resnet_fpn_160.py --resume
	@echo
	@echo "With a folder of your own labelled photographs:"
	@echo "  $(VENV)/bin/launcher init PHOTOS                # fits anchors, writes CONFIG"
	@echo "  $(VENV)/bin/launcher run CONFIG                 # this table for your data"
	@echo "  $(VENV)/bin/launcher export CONFIG --checkpoint runs/NAME/qat/qat.pth"

# Sums keep one order, on whatever machine.
test test-fast: export OMP_NUM_THREADS ?= 1
# Where no bytecode is written, each of the hundreds of processes compiles all modules again.
test test-fast: export PYTHONDONTWRITEBYTECODE =
# tests/slurm comes last and alone: a machine has one cluster, and its jobs need the cores.
test: setup
	$(VENV)/bin/python -m pytest -n $(WORKERS) --ignore tests/slurm
	$(VENV)/bin/python -m pytest tests/slurm

test-fast: setup
	$(VENV)/bin/python -m pytest -n $(WORKERS) -m "not slow"

check: setup
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy

# Without the theme's notice about other programs.
docs: export NO_MKDOCS_2_WARNING = 1
docs: setup
	$(VENV)/bin/python -m mkdocs build --strict

dist: setup
	$(VENV)/bin/python setup/distribution.py

try-dist: setup
	$(VENV)/bin/python setup/distribution.py --try
