# A thin shell around `python -m mgca_lib.course`; everything works without make, too (see README.md).

PROFILE ?= demo
SEED ?= 42
SEEDS ?= 43 44
LAB ?=
VARIANTS ?=
BENCH ?=
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
BIN := .venv/bin
COURSE := $(BIN)/python -m mgca_lib.course
STAMP := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help setup course seeds grid bench test test-all lint smoke lab pair outputs clean

help: ## this list
	@echo "Usage: make TARGET [PROFILE=smoke|demo|full_width|paper] [SEED=42] [CORES=2]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(STAMP) ## install everything into .venv

course: $(STAMP) ## execute the whole course and print its table
	@$(COURSE) run --profile $(PROFILE) --seed $(SEED) --cores $(CORES)

seeds: $(STAMP) ## the course, with notebooks 03, 04, 06 to 08 and 13 repeated for SEEDS="43 44"
	@$(COURSE) run --profile $(PROFILE) --seed $(SEED) --cores $(CORES) --seeds $(SEEDS)

grid: $(STAMP) ## train and measure variants for SEEDS, one run each; VARIANTS="ita all" picks some
	@$(COURSE) grid --profile $(PROFILE) --seed $(SEED) --cores $(CORES) --seeds $(SEEDS) $(if $(VARIANTS),--variants $(VARIANTS))

bench: $(STAMP) ## all benchmarks that this computer can run; BENCH="losses probe" picks some
	@$(BIN)/python -m benchmarks $(BENCH)

test: lint ## linters, every notebook at smoke, tests and gates
	@$(MAKE) --no-print-directory _tests SELECT='-m "not slow"'

test-all: lint ## the same with the slow tests
	@$(MAKE) --no-print-directory _tests SELECT=

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/codespell

# The tests run even when a notebook failed: both lists of problems are wanted.
.PHONY: _tests
_tests:
	@status=0; \
	$(COURSE) run --profile smoke --cores $(CORES) || status=1; \
	$(COURSE) grid --profile smoke --cores $(CORES) --variants cta_grounded || status=1; \
	MGCA_SMOKE=required $(BIN)/python -m pytest $(SELECT) || status=1; \
	exit $$status

lab: $(STAMP) ## open JupyterLab on the course (as root, in a container: LAB=--allow-root)
	@$(BIN)/jupyter lab $(LAB) --ServerApp.ip=127.0.0.1 --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

pair: $(STAMP) ## rewrite notebooks/*.ipynb from notebooks/*.py, outputs kept
	@$(COURSE) pair

outputs: $(STAMP) ## put the outputs of the last demo run and grid into notebooks/; PROFILE=full_width: into notebooks/full_width
	@$(COURSE) outputs --profile $(PROFILE)

clean: ## delete data and outputs of smoke and demo
	@rm -rf data/smoke data/demo outputs/smoke outputs/demo

$(STAMP): requirements.lock pyproject.toml
	@python=; for name in "$(PYTHON)" python3 python3.13 python3.12 python3.11; do \
	    if [ -z "$$python" ] && "$$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; \
	    then python=$$name; fi; done; \
	if [ -z "$$python" ]; then \
	    echo "No Python 3.11 to 3.13 found (python3 is $$(python3 --version 2>/dev/null || echo missing)); install one, or name it: make setup PYTHON=/path/to/python3.12"; exit 1; fi; \
	"$$python" -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "Python's venv module is missing; on Debian or Ubuntu: sudo apt install python3-venv"; exit 1; }; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || "$$python" -m venv --clear .venv
	@echo "Installing the packages into .venv; this takes a few minutes."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)
