# What a person types. `make` alone lists it.
PYTHON ?= python3
FAULT ?= slot_leak
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet install --no-compile --constraint constraints.txt
# Two at a time, each with a lab of its own: they mostly wait.
PYTEST := $(BIN)/pytest -q --numprocesses 2 --dist loadfile
# Nobody's environment may change what a test sees.
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export ANSIBLE_NOCOWS := 1
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $(PYTHON) is older than 3.11; give another: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: $(PYTHON) has no venv; on Debian: apt install python3-venv" >&2; exit 1; }
	@echo "making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv

.venv/demo: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing what the demo needs into .venv (once)"
	@$(PIP) --editable '.[controller,lab]'
	@touch $@

.venv/test: .venv/demo
	@echo "installing what the tests need into .venv (once)"
	@$(PIP) --editable '.[controller,lab,test,molecule]'
	@touch $@

demo: .venv/demo ## break an app and heal it (FAULT=slot_leak, postgres_down, app_down, sessions_terminated, healthy)
	@$(BIN)/python scripts/demo $(FAULT)

test: images lint unit integration molecule ## everything; needs root or podman for real hosts

test-fast: lint unit integration ## everything but the real hosts

lint: .venv/test ## ruff, mypy, yamllint, ansible-lint (production)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/yamllint --strict .
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/ansible-lint --offline --strict

unit: .venv/test ## pure tests
	@$(PYTEST) tests/unit

# What fails beside everything else is run once more, alone, and both results are printed.
integration: .venv/test ## real PostgreSQL, real app, real faults
	@$(PYTEST) tests/integration || { [ $$? = 1 ] && echo "== what failed, once more, alone" && \
	  CI= $(BIN)/pytest -q --last-failed --last-failed-no-failures none tests/integration; }

images: ## what real hosts are made of; says what is missing before anything else is tried
	@scripts/test-hosts || { echo "make: without real hosts: make test-fast" >&2; exit 1; }

molecule: .venv/test ## real systemd hosts
	@$(BIN)/python scripts/molecule hosts default incident

rollouts: .venv/test ## real systemd hosts under traffic: rollouts that work, break, are refused, are interrupted
	@$(BIN)/python scripts/molecule rollout

faults: .venv/test ## a round of faults in our app; in foreign ones as many as fit into SAMPLE s (600); needs root
	@$(BIN)/python scripts/incidents --sample $(or $(SAMPLE),600)

idle: .venv/test ## idle for MINUTES (31) on a path that forgets after CUT s (240), then 100 logins; needs root
	@$(BIN)/python scripts/idle $(or $(MINUTES),31) --cut $(or $(CUT),240)

bench: .venv/test ## side by side with psycopg2.pool and with the steps by hand; writes bench/results
	@$(BIN)/python bench/checkout.py
	@$(BIN)/python bench/diagnose.py

incidents: .venv/test ## every fault in every app, three rounds (ONLY=fault, SEED=n, ROUNDS=n; needs root)
	@$(BIN)/python scripts/incidents --pairs $(if $(ONLY),--only $(ONLY)) $(if $(SEED),--seed $(SEED)) \
	  --rounds $(or $(ROUNDS),3)

interruptions: .venv/test ## interrupt rollouts on real hosts at every point (about an hour)
	@INTERRUPTIONS=all $(BIN)/python scripts/molecule rollout

docs: .venv/demo ## write docs/causes.md from the table of causes
	@$(BIN)/python -c 'from runbook.report.causes_page import causes_page; print(causes_page(), end="")' > docs/causes.md

clean: ## remove what was installed and made here
	@rm -rf .venv .cache .lab build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

.PHONY: help demo test test-fast lint unit integration images molecule faults incidents docs clean rollouts interruptions idle bench
