# Two commands do all the set-up on a fresh machine (python3.11, make, gcc):
#   make demo   runs the whole journey on the embedded world
#   make test   passes the tests
# `make help` lists the rest.

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
BASE   := $(VENV)/.base-installed
DEV    := $(VENV)/.dev-installed
HOME_DIR ?= var/demo
ONLY   ?=
export HF_HUB_OFFLINE ?= 1
export DO_NOT_TRACK = 1
export PREFECT_SERVER_ANALYTICS_ENABLED = false

.DEFAULT_GOAL := help
.PHONY: help demo ui test test-all chaos bench lint format weights test-groundingdino clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-20s %s\n", $$1, $$2}'

$(BASE): pyproject.toml constraints.txt
	@echo "[1/2] creating $(VENV) and installing the pinned packages (1 to 2 minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -qq -e . -c constraints.txt
	@touch $@

$(DEV): $(BASE)
	@echo "[2/2] installing the development packages"
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -qq -e '.[dev]' -c constraints.txt
	@touch $@

demo: $(BASE) ## the whole journey on the embedded world: scenes, mine, pack, train, assess (about 10 minutes)
	@$(BIN)/python -m demo scenes --out $(HOME_DIR)/scenes
	@$(BIN)/hyco journey --home $(HOME_DIR) --recipe demo \
	    --source $(HOME_DIR)/scenes/train --assess-source $(HOME_DIR)/scenes/heldout \
	    --taxonomy $(HOME_DIR)/scenes/taxonomy.json --grounder transformers:demo/weights/grounder

ui: $(BASE) ## the Prefect UI with the runs of the demo in it (HOME_DIR=var/demo)
	@$(BIN)/hyco ui --home $(HOME_DIR)

test: $(DEV) ## the tests (under 12 minutes on 2 cores)
	@$(BIN)/python -m pytest

test-all: $(DEV) ## every test but the service ones: slow and chaos too
	@$(BIN)/python -m pytest -m 'not bench and not services'

chaos: $(DEV) ## kill -9 in the middle of mining, packing and training
	@$(BIN)/python -m pytest -m chaos

bench: $(DEV) ## speed and memory beside a peer, equality first; ONLY=name runs one
	@$(BIN)/python -m tests.perf $(ONLY)

GDINO := .venv-groundingdino

$(GDINO)/.installed: tests/groundingdino/requirements.txt
	@test -x $(GDINO)/bin/python || $(PYTHON) -m venv $(GDINO)
	@$(GDINO)/bin/python -m pip install --disable-pip-version-check --progress-bar off -qq -r $<
	@touch $@

test-groundingdino: $(GDINO)/.installed ## the groundingdino-py backend, in an environment of its own
	@$(GDINO)/bin/python -m pytest tests/groundingdino --noconftest -q

lint: $(DEV) ## ruff and pyright
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

format: $(DEV) ## let ruff rewrite
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

weights: $(DEV) ## train the embedded grounder again (demo/weights/grounder)
	@$(BIN)/python -m demo.train_grounder --out demo/weights/grounder

clean: ## remove what the other targets made, but not .venv
	rm -rf var build dist .pytest_cache .ruff_cache
