# One environment (.venv), one word for everything. `make` alone lists the targets.
PYTHON ?= python3.11
BIN := .venv/bin
# Processes for all tests; one of them takes those that start Ray, and mostly waits (tests/conftest.py).
TEST_PROCESSES ?= 3
# The environment in .venv is for CPUs.
GPU_PYTHON ?= python3

# No telemetry from anything that runs here.
export VLLM_NO_USAGE_STATS := 1
export DO_NOT_TRACK := 1
export RAY_USAGE_STATS_ENABLED := 0
export HF_HUB_DISABLE_TELEMETRY := 1
# `make env` compiles the environment; with this variable in the shell, edited modules would be compiled by each process.
unexport PYTHONDONTWRITEBYTECODE
# The tokenizer's threads and the forks of data loading do not mix.
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help env demo test test-quick test-slow test-gpu test-network chaos lint format bench docs wheel clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env:  ## the environment in .venv (about two minutes; at once where it is up to date)
	@$(PYTHON) docker/build_env.py

demo: export HF_HUB_OFFLINE := 1
demo: env  ## train on the built-in birds with Ray and vLLM and print the table (about eight minutes on two cores)
	@$(BIN)/saga-dist demo

test: export HF_HUB_OFFLINE := 1
test: env  ## the test suite (20 to 27 minutes on two cores)
	@$(BIN)/python -m pytest -n $(TEST_PROCESSES) --durations=20

test-quick: export HF_HUB_OFFLINE := 1
test-quick: env  ## the tests without Ray, vLLM and whole trainings (three to six minutes on two cores)
	@$(BIN)/python -m pytest -n 2 \
		-m "not cluster and not vllm and not integration and not slow and not gpu and not netns"

test-slow: export HF_HUB_OFFLINE := 1
test-slow: env  ## the tests that take more than a minute each
	@$(BIN)/python -m pytest --durations=0 -m "slow and not gpu" --timeout=3600

test-gpu: export HF_HUB_OFFLINE := 1
test-gpu:  ## the tests that need a CUDA device, with a Python that has torch for CUDA (GPU_PYTHON=python3)
	@$(GPU_PYTHON) -m pytest -n 0 --durations=0 -m gpu

test-network: env  ## hosts that are apart: links are cut and slowed, nodes taken away (root; about three minutes)
	@$(BIN)/python -m pytest -n 0 --durations=0 --log-cli-level=INFO -m netns

chaos: env  ## two hundred training runs with seeded faults, then ten minutes with a kill in each (about an hour and a half)
	@$(BIN)/python tests/runtime/ray/chaos.py --runs 200
	@$(BIN)/python tests/runtime/ray/soak.py --minutes 10

lint: env  ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: env  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: export HF_HUB_OFFLINE := 1
bench: env  ## what this machine can do: tokens a second of each part
	@$(BIN)/saga-dist bench

docs: export NO_MKDOCS_2_WARNING := 1
docs: env  ## the documentation site, in build/site (`saga-dist docs` opens it)
	$(BIN)/mkdocs build --quiet

wheel: docs  ## the wheel with the built documentation, in dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean:  ## remove the environment and every cache (run directories stay)
	rm -rf .venv .venv.lock .cache .pytest_cache .mypy_cache .ruff_cache build dist
	find saga_dist tests docker -name __pycache__ -type d -prune -exec rm -rf {} +
