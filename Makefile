# Needs python3 (3.11 or newer) and make. Everything else is installed into $(VENV), once.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp

# Modules are compiled when they are installed; our own are when they are first imported. An environment that forbids that
# makes every process slower.
unexport PYTHONDONTWRITEBYTECODE
# Another environment that happens to be active is not ours.
unexport VIRTUAL_ENV
unexport PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: help env demo test soak lint audit format bench constraints clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

env: $(STAMP) ## make the environment in .venv (the other targets do it by themselves)
	@:

$(STAMP): pyproject.toml constraints.txt tools/bootstrap.sh
	@PYTHON='$(PYTHON)' sh tools/bootstrap.sh '$(VENV)'

demo: $(STAMP) ## the study ablations/filter.yaml: a fair answer in a few minutes
	@$(BIN)/simlap ablate ablations/filter.yaml

test: export OMP_NUM_THREADS = 1
test: $(STAMP) ## all tests: the fast ones, then the slow ones
	@status=0; \
	$(BIN)/python -m pytest -m 'not slow' -n 2 --dist loadfile || status=$$?; \
	if grep -rqs --include='test_*.py' 'mark\.slow' tests; then $(BIN)/python -m pytest -m slow -n 2 --dist loadfile --no-loadscope-reorder || status=$$?; fi; \
	exit $$status

soak: export OMP_NUM_THREADS = 1
soak: $(STAMP) ## a study under fifty kills, one on two hosts under twenty faults, a tracking server that goes away, then the recipes on real images, over two hours on two cores; results in docs/results
	@status=0; \
	$(BIN)/python -m tools.soak_kills || status=$$?; \
	$(BIN)/python -m tools.soak_hosts || status=$$?; \
	$(BIN)/python -m tools.soak_outage || status=$$?; \
	$(BIN)/python tools/soak.py || status=$$?; \
	exit $$status

lint: $(STAMP) ## style, types, architecture, tree
	@sh tools/lint.sh '$(BIN)'

audit: $(STAMP) ## known vulnerabilities of what is installed; skipped, and said so, where the service cannot be reached
	@$(BIN)/python tools/audit.py '$(BIN)/uv'

format: $(STAMP) ## let ruff format and repair what it can
	@$(BIN)/ruff check --fix-only --quiet . && $(BIN)/ruff format .

bench: $(STAMP) ## what loss, augmentation, step, data and scheduling cost, against plain forms
	@for file in benchmarks/[a-z]*.py; do $(BIN)/python "$$file" || exit; done

constraints: $(STAMP) ## renew constraints.txt to the newest versions that pyproject.toml allows
	@sh tools/constraints.sh '$(BIN)'

clean: ## remove the environment and caches (never runs/ or mlflow.db)
	rm -rf $(VENV) .venv-ci .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	find simlap tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
