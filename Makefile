# One file of commands. `make help` lists them; every target sets up .venv by itself.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.11
VENV ?= .venv
# Test processes: two suit a laptop; more is not faster below four cores.
JOBS ?= 2
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
AUDIT_ARGS ?=
SOAK_ROUNDS ?= 300
REPEAT_ARGS ?=
FUZZ_SCALE ?= 12
FUZZ_SEED ?= 1

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := api benchmarks core docker handbook migrations tests worker

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install demo demo-secure bench-utility bench-ablation bench-clipping bench-federation bench-synthesize bench-embed bench-secagg audit run test docs docs-serve fuzz access-table fault-matrix doctor-document soak test-repeat check lint types layers format lock lock-images clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'

$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 or call make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "$(PYTHON) is not Python 3.11; call make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@test -x $(BIN)/python || { echo "==> making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "==> installing the locked packages into $(VENV) (the first time takes some minutes)"
	$(BIN)/python -m pip install -r requirements.lock
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	@touch $(STAMP)

install: $(STAMP) ## Make .venv from the lock file

demo: $(STAMP) ## The whole job on real images, with real processes (about two minutes once installed)
	$(BIN)/python -m core.cli demo $(DEMO_ARGS)

demo-secure: $(STAMP) ## The same with secure sums: the coordinator sees no site's own update
	$(BIN)/python -m core.cli demo --secure $(DEMO_ARGS)

bench-utility: $(STAMP) ## The whole method against its sketch and baselines, on synthetic rows (BENCH_ARGS="--data FILE.npz")
	$(BIN)/python -m benchmarks.utility $(BENCH_ARGS)

bench-ablation: $(STAMP) ## What each part of the method is worth: one thing changed at a time (BENCH_ARGS="--data FILE.npz")
	$(BIN)/python -m benchmarks.ablation $(BENCH_ARGS)

bench-clipping: $(STAMP) ## Time and memory of clipped sums: ours, opacus, torch.func (about 15 minutes)
	$(BIN)/python -m benchmarks.clipping $(BENCH_ARGS)

bench-federation: $(STAMP) ## Ingest, 1,000 clients, overhead of a round, cost against size (about ten minutes)
	$(BIN)/python -m benchmarks.federation $(BENCH_ARGS)

bench-synthesize: $(STAMP) ## Rows a second beside the bare decoder, short answers, memory of 10^7 rows, four streams at once (some minutes)
	$(BIN)/python -m benchmarks.synthesis $(BENCH_ARGS)

bench-secagg: $(STAMP) ## Secure sums beside plain ones: time of a site and of the coordinator, bytes (some minutes)
	$(BIN)/python -m benchmarks.secagg $(BENCH_ARGS)
bench-embed: $(STAMP) ## Images a second of fedhypevae embed beside the bare network (about a minute)
	$(BIN)/python -m benchmarks.embedding $(BENCH_ARGS)

audit: $(STAMP) ## What an attacker proves about epsilon, beside what the ledger says (some minutes)
	$(BIN)/python -m benchmarks.audit $(AUDIT_ARGS)

run: $(STAMP) ## Services for development, until Ctrl-C (fedhypevae up): Postgres, Valkey, coordinator, workers
	$(BIN)/python -m core.cli up --foreground

test: check ## Everything that must hold: style, types, layers, all tests
	$(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

docs: $(STAMP) ## The documentation as a site, in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

docs-serve: $(STAMP) ## The same at http://127.0.0.1:8001, built again at every change
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve -a 127.0.0.1:8001

fuzz: $(STAMP) ## Schemathesis for FUZZ_SCALE (12) times as long as in the tests (about a quarter of an hour; FUZZ_SEED=N)
	FUZZ_SCALE=$(FUZZ_SCALE) FUZZ_SEED=$(FUZZ_SEED) $(BIN)/python -m pytest -s tests/api/test_schemathesis.py $(PYTEST_ARGS)

access-table: $(STAMP) ## Who may do what, by operation; writes docs/access.md
	$(BIN)/python -m api.access

fault-matrix: $(STAMP) ## Every fault at every moment, with real processes; writes docs/fault-matrix.md (some minutes)
	@rm -rf .cache/faults && mkdir -p .cache/faults
	FAULT_CELLS=all FAULT_OUTCOMES=$(CURDIR)/.cache/faults $(BIN)/python -m pytest -n $(JOBS) tests/faults/test_matrix.py $(PYTEST_ARGS)
	FAULT_OUTCOMES=$(CURDIR)/.cache/faults $(BIN)/python -m tests.faults.document

doctor-document: $(STAMP) ## What doctor says of broken set-ups; writes docs/doctor.md
	@rm -rf .cache/doctor && mkdir -p .cache/doctor
	DOCTOR_CASES=$(CURDIR)/.cache/doctor $(BIN)/python -m pytest -n $(JOBS) tests/doctor $(PYTEST_ARGS)
	DOCTOR_CASES=$(CURDIR)/.cache/doctor $(BIN)/python -m tests.doctor.document

soak: $(STAMP) ## SOAK_ROUNDS (300) rounds with 20 clients while processes are killed at random (below 15 minutes; SOAK_SEED=N to repeat)
	SOAK_ROUNDS=$(SOAK_ROUNDS) $(BIN)/python -m pytest tests/faults/test_soak.py $(PYTEST_ARGS)

test-repeat: $(STAMP) ## The federation and fault tests 20 times over, each time in another order (below 40 minutes; REPEAT_ARGS="--times 20")
	$(BIN)/python -m tests.faults.repeat $(REPEAT_ARGS)

check: lint types layers ## Style, types and layers only

lint: $(STAMP) ## ruff
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: $(STAMP) ## mypy --strict
	$(BIN)/mypy

layers: $(STAMP) ## import-linter
	$(BIN)/lint-imports

format: $(STAMP) ## Rewrite the sources in the house style
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

lock: $(STAMP) ## Write requirements.lock from the present .venv
	{ head -1 requirements.lock; \
	  $(BIN)/python -m pip freeze --all --exclude-editable | grep -Ev '^(pip|fedhypevae)( |==)' | sed 's/+cpu$$//'; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

lock-images: $(STAMP) ## Write the packages of each container image, out of requirements.lock
	$(BIN)/python docker/lock_images.py

clean: ## Remove .venv, caches and the demo's output
	rm -rf .venv .cache site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache demo-output *.egg-info
