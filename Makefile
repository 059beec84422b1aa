# Every target sets the project up first: `make demo` and `make test` are all that a fresh checkout needs.
# Another interpreter for the environment (3.10 or newer): make PYTHON=python3.12 test

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
INSTALLED := .venv/.installed
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long test-mmdet lint format build clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## the environment in .venv (every other target does this first)

# torch first and pinned: everything after it then builds on the versions that the figures were measured with
$(INSTALLED): pyproject.toml constraints.txt
	@echo "setting up .venv: several minutes the first time, most of them for downloading torch"
	@test -x $(BIN)/pip || $(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python %d.%d is too old, 3.10 or newer is needed: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(PIP) "pip>=23.1"
	$(PIP) -c constraints.txt torch torchvision
	$(PIP) -c constraints.txt -e ".[train,dev]"
	$(PIP) --no-deps "mmengine>=0.10.7"  # its dependency opencv-python would overwrite the headless one
	@touch $@

demo: $(INSTALLED) ## make a small data set, train a detector on it, score it and draw its detections
	$(BIN)/python tools/make_shapes.py datasets/shapes
	$(BIN)/python tools/train_det.py configs/demo_shapes.yaml --overwrite

test: $(INSTALLED) ## the tests; some of them: make test ARGS="tests/heads -k nms"
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

test-long: $(INSTALLED) ## the proofs that take many minutes; `make test` skips them
	$(BIN)/python -m pytest -m long $(ARGS)

# mmcv 2.1 is built from its source, with C++17, which torch 2.14 no longer accepts
.venv-mmdet/.installed:
	$(PYTHON) -m venv .venv-mmdet
	.venv-mmdet/bin/pip install -q torch==2.9.1 torchvision==0.24.1
	.venv-mmdet/bin/pip install -q "setuptools<80" wheel ninja psutil opencv-python-headless
	MMCV_WITH_OPS=1 FORCE_CUDA=0 .venv-mmdet/bin/pip install -q --no-build-isolation --no-binary mmcv mmcv==2.1.0
	.venv-mmdet/bin/pip install -q mmengine==0.10.7 mmdet==3.3.0 pytest pytest-timeout
	@touch $@

test-mmdet: .venv-mmdet/.installed ## the tests that need mmdetection, in an environment of their own (ten minutes to build)
	.venv-mmdet/bin/python -m pytest tests/resnet_backbone/hosts -k "mmdet"

lint: $(INSTALLED) ## style, formatting, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED) ## fix what `make lint` can fix by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: $(INSTALLED) ## the wheel and the source archive, in dist/
	rm -rf dist
	$(BIN)/python -m build

clean: ## remove caches and builds; .venv, datasets and runs stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
