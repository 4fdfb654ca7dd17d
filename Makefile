# statebelt: every command that the README names. pip and venv only; run twice, the second time is fast.

SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
COMPILED := pipeline/_chunks pipeline/broker/_resp pipeline/frontend/_spectra
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := $(shell sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)

# Where torch comes from, and torch alone: set it to an index of CPU-only wheels to save a few gigabytes.
TORCH_INDEX ?=
# What `make demo` plays: a recording, or a folder of them.
INPUT ?=
# What `make train`, `evaluate` and `export` work on; CELL, SET="name=value ...", RUN (a folder of runs/) and TINY=1 as needed.
TASK ?= digits
# Flags of `make bench`: --quick, --only NAME..., --known 10 1000 10000 100000, --turns N, --seconds S.
BENCH ?=

# Said before anything is made: a recipe's own check would come after minutes of installing.
ifeq ($(filter inspect,$(MAKECMDGOALS))$(FILE),inspect)
$(error say which recording: make inspect FILE=me.wav)
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint typecheck train evaluate export inspect report bench bench-check soak chaos takeover churn flood fuzz redis worker clean

help: ## show this list
	@echo "make TARGET, one of:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(VENV)/.runtime ## a virtual environment with the runtime alone (no torch, no librosa)

demo: setup ## see it work: words appear as they are spoken (INPUT=file or folder for your own)
	@$(BIN)/statebelt demo $(if $(INPUT),"$(INPUT)")

# Three at a time on two cores: a fifth of the time they wait, for leases and processes.
test: $(VENV)/.everything ## all tests but the slow ones, with coverage of pipeline
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 -m "not slow" --cov=pipeline --cov-report=term-missing:skip-covered --cov-fail-under=90

lint: $(VENV)/.everything typecheck ## ruff (rules and format), then mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(VENV)/.everything ## mypy, strict
	$(BIN)/mypy

train: $(VENV)/.everything ## train TASK=digits, CELL=lstm, SET="hidden=64 passes=9"; goes on where it was stopped
	$(BIN)/python -m training.train $(TASK) $(if $(CELL),--cell $(CELL)) $(foreach s,$(SET),--set $(s)) \
	    $(if $(RUN),--name $(RUN)) $(if $(TINY),--tiny)

evaluate: $(VENV)/.everything ## TASK's figures on who was left out, by forward and by step (digits: all folds; KEEP=1 for the report)
	$(BIN)/python -m training.evaluate $(TASK) $(if $(RUN),--run $(RUN)) $(if $(KEEP),--keep)

export: $(VENV)/.everything ## TASK's weights to pipeline/bundles/TASK.onnx, proven equal to torch
	$(BIN)/python -m training.export $(TASK) $(if $(RUN),--run $(RUN))

inspect: $(VENV)/.everything ## draw what a bundle's model remembers of FILE (BUNDLE=digits CHUNK_MS=100 UNITS=3,17 OUT=runs/inspect.png)
	@$(BIN)/python -m training.inspect "$(FILE)" \
	    $(if $(BUNDLE),--bundle "$(BUNDLE)") $(if $(CHUNK_MS),--chunk-ms $(CHUNK_MS)) $(if $(UNITS),--units $(UNITS)) \
	    $(if $(COLUMNS),--columns "$(COLUMNS)") \
	    $(if $(OUT),-o "$(OUT)")

report: $(VENV)/.everything ## runs/report.html: all figures and pictures on one page, a minute (long ones from training/metrics)
	OMP_NUM_THREADS=1 $(BIN)/python -m training.report

bench: $(VENV)/.bench ## all contenders side by side, nine minutes; JSON and plots to runs/bench (BENCH="--quick")
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench $(BENCH)

bench-check: $(VENV)/.bench ## a short run's ratios against tests/bench/reference.json; a loss over 15 % fails
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench --check

soak: $(VENV)/.everything ## 200 streams at real-time pace for five minutes
	$(BIN)/python -m tests.bench.soak

chaos: $(VENV)/.everything ## kill everything for twelve minutes, compare every byte (MINUTES=1 for a short one, SEED=n, PAIR=1: failovers)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) \
	    $(if $(WORKERS),--workers $(WORKERS)) $(if $(STREAMS),--streams $(STREAMS)) $(if $(ROW_EVERY),--row-every $(ROW_EVERY)) $(if $(PAIR),--pair)

takeover: $(VENV)/.everything ## how long a partition stands still when its owner dies, 100 and 100,000 streams (five minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.takeover --json runs/takeover.json

churn: $(VENV)/.everything ## a million chunks of 50,000 streams that come and go: memory plotted to runs/, no key left
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.churn

flood: $(VENV)/.everything ## 100,000 malformed entries among good streams
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.flood

fuzz: $(VENV)/.everything ## entries found by coverage, for a minute (SECONDS_LONG=n); what breaks is kept in runs/fuzz
	@mkdir -p runs/fuzz
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.guided -max_total_time=$(or $(SECONDS_LONG),60) -max_len=2000 \
	    -artifact_prefix=runs/fuzz/ runs/fuzz

redis: setup ## a server of your own in the foreground, data in .statebelt/redis
	@$(BIN)/statebelt redis

worker: setup ## a worker with the shipped bundle
	@$(BIN)/statebelt worker

clean: ## remove the virtual environment, caches and build output (not runs/, not .statebelt/)
	rm -rf $(VENV) $(COMPILED:=.*so) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	    { echo "statebelt needs Python 3.11 or later; got '$(PYTHON)'. Say which: make PYTHON=/path/to/python3.11"; exit 1; }
	@"$(PYTHON)" -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml $(COMPILED:=.c) | $(BIN)/python
	@echo "installing the runtime into $(VENV) ..."
	@rm -f $(COMPILED:=.*so)
	@$(PIP) install -qq -e .
	@ls $(COMPILED:=.*so) >/dev/null 2>&1 || echo "not all was compiled (that takes gcc 12 or clang, and Python's" \
	    "headers): it is a little slower, and where spectra are scipy's, the last bits of scores are others than where" \
	    "they were compiled"
	@touch $@

$(VENV)/.everything: pyproject.toml tests/adopt/wheels.txt $(VENV)/.runtime
	@echo "installing training and tests into $(VENV) (torch among them) ..."
	@$(PIP) install -qq $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") "$(TORCH)"
	@$(PIP) install -qq -e '.[training,test]'
	@$(PIP) install -qq --no-deps -r tests/adopt/wheels.txt
	@touch $@

$(VENV)/.bench: pyproject.toml $(VENV)/.everything
	@echo "installing who else is measured into $(VENV) ..."
	@$(PIP) install -qq -e '.[bench]' || echo "not all of it could be installed: its rows will be skipped, with the reason"
	@touch $@
