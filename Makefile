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
# pip compiles nothing here (--no-compile); Python compiles what is used once, unless this variable forbids it.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo ui classification test test-all chaos bench scale training-study lint format weights test-services images sbom test-groundingdino test-operations ablation cones clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-20s %s\n", $$1, $$2}'

$(BASE): pyproject.toml constraints.txt
	@echo "[1/2] creating $(VENV) and installing the pinned packages (1 to 2 minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --no-compile -qq -e '.[demo]' -c constraints.txt
	@touch $@

$(DEV): $(BASE)
	@echo "[2/2] installing the development packages"
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --no-compile -qq -e '.[dev]' -c constraints.txt
	@touch $@

demo: $(BASE) ## the whole journey on the embedded world: scenes, mine, pack, train, assess (about 9 minutes)
	@$(BIN)/python -m hyco.demo scenes --out $(HOME_DIR)/scenes
	@$(BIN)/hyco journey --home $(HOME_DIR) --recipe demo \
	    --source $(HOME_DIR)/scenes/train --assess-source $(HOME_DIR)/scenes/heldout \
	    --taxonomy $(HOME_DIR)/scenes/taxonomy.json --grounder transformers:demo/weights/grounder

ui: $(BASE) ## the Prefect UI with the runs of the demo in it (HOME_DIR=var/demo)
	@$(BIN)/hyco ui --home $(HOME_DIR)

STUDY  ?= cpu
DATA   ?= data
CIFAR  ?= cifar10:$(DATA)/cifar10
TINY   ?= tiny_imagenet:$(DATA)/tiny_imagenet
STUDIES := var/classification

classification: $(BASE) ## the tables of docs/classification.md: nets x heads on CIFAR-10 (STUDY=cpu, heads, normal, full, long_tail)
	@$(BIN)/python -m hyco.demo scenes --out $(STUDIES)/scenes --train 50 --heldout 1000
	@$(BIN)/python -m hyco.pipeline.experiments.classification_study $(STUDY) --data $(CIFAR) --ood $(TINY) \
	    --ood scenes=captioned:$(STUDIES)/scenes/heldout --home $(STUDIES) --doc docs/classification.md

test: $(DEV) ## the tests, in two processes of one thread (under 12 minutes on 2 cores)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(DEV) ## every test but the service ones: slow and chaos too
	@$(BIN)/python -m pytest -m 'not bench and not services'

chaos: $(DEV) ## kill -9 in the middle of mining, packing and training; a thousand corruptions; the command line 200 times
	@$(BIN)/python -m pytest -m chaos -rP

test-operations: $(DEV) ## server, worker, hyco deploy: a dropped shard becomes a dataset version, a model and a decision
	@$(BIN)/python -m pytest -m slow tests/flows/test_retrain.py

bench: $(DEV) ## speed and memory beside a peer, equality first; ONLY=name runs one
	@$(BIN)/python -m tests.perf $(ONLY)

UNITS  ?= 100000
ENGINE ?= local

scale: $(DEV) ## where the time of a mining of 10^5 units goes; UNITS=3000 is short, ENGINE=ray:HOST:PORT a Ray cluster
	@$(BIN)/python -m hyco.pipeline.experiments.scale simulate --units $(UNITS) --engine $(ENGINE)

training-study: $(DEV) ## the tables of docs/hyperbolic_training.md: nets on digits beside HypLL (about 20 minutes)
	@$(BIN)/python -W ignore -m tests.perf.training_study

DOCKER := $(VENV)/.docker-installed

$(DOCKER): $(DEV)
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --no-compile -qq -e '.[dev,docker]' -c constraints.txt
	@touch $@

# The servers come from Debian's packages; installed here when they are absent and we may (root).
test-services: $(DOCKER) ## docker/ without an engine: its topology as processes, its steps in a clean Debian (about 20 minutes)
	@command -v redis-server debootstrap caddy >/dev/null && ls -d /usr/lib/postgresql/*/bin >/dev/null 2>&1 \
	    || apt-get install -y --no-install-recommends postgresql redis-server debootstrap caddy
	@$(BIN)/python -m pytest -m services tests/services

images: $(BASE) ## the images of docker/ by buildah, without an engine, and a small journey in one; IMAGES='server cpu' for these two
	@command -v buildah debootstrap >/dev/null || apt-get install -y --no-install-recommends buildah debootstrap
	@docker/build_images.sh $(IMAGES)

sbom: $(BASE) ## build/sbom.json: every package that is installed, as CycloneDX
	@test -x .venv-sbom/bin/cyclonedx-py || ($(PYTHON) -m venv .venv-sbom \
	    && .venv-sbom/bin/python -m pip install --disable-pip-version-check --progress-bar off -qq cyclonedx-bom==7.5.0)
	@mkdir -p build
	@.venv-sbom/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --of JSON -o build/sbom.json
	@echo "build/sbom.json written"

ABLATION ?=

ablation: $(BASE) ## CLIP, CLIP + boxes, MERU, hyperboloid + boxes, HyCoCLIP, PHyCLIP compared on the demo's world; ABLATION='--steps 240' as in docs/ablation.md
	@$(BIN)/python -m hyco.demo scenes --out $(HOME_DIR)/scenes
	@$(BIN)/hyco mine --home $(HOME_DIR) --source $(HOME_DIR)/scenes/train --grounder transformers:demo/weights/grounder
	@$(BIN)/hyco pack --home $(HOME_DIR) --source $(HOME_DIR)/scenes/train --grounder transformers:demo/weights/grounder \
	    --recipe demo --assess-source $(HOME_DIR)/scenes/heldout
	@$(BIN)/python -m hyco.pipeline.experiments.ablation --world demo --home $(HOME_DIR) $(ABLATION)

CONES ?=

cones: $(BASE) ## the goal of the entailment cones, docs/ablation.md: 6 trainings, 4 CPU minutes each; CONES='--phase search' for the arms
	@$(BIN)/python -m hyco.demo scenes --out $(HOME_DIR)/scenes
	@$(BIN)/python -m hyco.demo scenes --out $(HOME_DIR)/validation --train 1 --heldout 1500
	@$(BIN)/hyco mine --home $(HOME_DIR) --source $(HOME_DIR)/scenes/train --grounder transformers:demo/weights/grounder
	@$(BIN)/hyco pack --home $(HOME_DIR) --source $(HOME_DIR)/scenes/train --grounder transformers:demo/weights/grounder \
	    --recipe demo --assess-source $(HOME_DIR)/scenes/heldout
	@$(BIN)/python -m hyco.pipeline.experiments.cone_goal --home $(HOME_DIR) $(CONES)

GDINO := .venv-groundingdino

$(GDINO)/.installed: tests/groundingdino/requirements.txt
	@test -x $(GDINO)/bin/python || $(PYTHON) -m venv $(GDINO)
	@$(GDINO)/bin/python -m pip install --disable-pip-version-check --progress-bar off -qq -r $<
	@touch $@

test-groundingdino: $(GDINO)/.installed ## the groundingdino-py backend, in an environment of its own
	@$(GDINO)/bin/python -m pytest tests/groundingdino --noconftest -q -o addopts=  # jaxtyping is not there

lint: $(DEV) ## ruff and pyright
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

format: $(DEV) ## let ruff rewrite
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

weights: $(DEV) ## train the embedded grounder again (demo/weights/grounder)
	@$(BIN)/python -m hyco.demo.train_grounder --out demo/weights/grounder

# var itself is the default home of every command and may hold a champion.
clean: ## remove what the targets here made (var/demo, var/classification, build, caches); no other home, not .venv
	rm -rf var/demo $(STUDIES) build dist .pytest_cache .hypothesis .ruff_cache .venv-sbom $(GDINO)
