# The README's commands. Each makes the virtual environment and installs what it needs, then does its job.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The versions in constraints.txt are those that were tested; pyproject.toml says what is required.
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt
# One thread for each of the two workers: more threads than cores slow the networks down many times.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations=10

.PHONY: help demo test test-all gpu lint format check clean

help:
	@echo "make demo      train a teacher and a CTM on real digits, compare them, write runs/demo/report.html"
	@echo "make test      the tests (six minutes on two fast cores), with the ten slowest at the end"
	@echo "make test-all  the tests and the slow ones: soaks, long trainings, the page in Chromium, replicas"
	@echo "make gpu       on one GPU: parity, precision, waiting, compilation and speed, in under eight minutes"
	@echo "make lint      ruff, format check, mypy"
	@echo "make format    bring the sources into form"
	@echo "make check     what CI runs: lint and test"

$(BIN)/activate:
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip

$(VENV)/.core: pyproject.toml constraints.txt $(BIN)/activate
	$(INSTALL) -e .
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt $(BIN)/activate
	$(INSTALL) -e ".[test,datasets,mnist5k,features,lpips,dinov2,diffusers,lora,onnx,schedulefree,trackio,wandb,serve,postgresql,robotics]"
	@touch $@ $(VENV)/.core

$(VENV)/.browser: pyproject.toml constraints.txt $(BIN)/activate
	$(INSTALL) -e ".[browser]"
	@touch $@ $(VENV)/.core

$(VENV)/.ray: pyproject.toml constraints.txt $(BIN)/activate
	$(INSTALL) -e ".[ray]"
	@touch $@ $(VENV)/.core

$(VENV)/.lint: pyproject.toml constraints.txt $(BIN)/activate
	$(INSTALL) -e ".[lint,serve]"
	@touch $@ $(VENV)/.core

demo: $(VENV)/.core
	$(BIN)/ctm demo

test: $(VENV)/.test
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.test $(VENV)/.browser $(VENV)/.ray
	$(PYTEST)

gpu: $(VENV)/.core
	$(BIN)/ctm bench gpu --out runs/gpu.json

lint: $(VENV)/.lint
	$(BIN)/ruff check src tests tools benchmarks examples
	$(BIN)/ruff format --check src tests tools benchmarks examples
	$(BIN)/mypy

format: $(VENV)/.lint
	$(BIN)/ruff check --fix src tests tools benchmarks examples
	$(BIN)/ruff format src tests tools benchmarks examples

check: lint test

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
