# `make demo` and `make test` work in a bare clone: the first of them makes .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUTPUT ?= build/demo

.DEFAULT_GOAL := help
.PHONY: help demo test lint types gpu bench clean

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' $(MAKEFILE_LIST)

# torch first and alone: asked for with a looser requirement, pip may pick its CUDA build.
$(STAMP): constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install torch==2.13.0
	$(BIN)/python -m pip install -c constraints.txt pip setuptools wheel
	$(BIN)/python -m pip install -c constraints.txt --no-build-isolation -e '.[demo,test,lint]'
	touch $@

demo: $(STAMP)  ## train dense, RigL, Diag and Block on digits; writes build/demo
	$(BIN)/python -m examples.digits_vit $(OUTPUT)

# Two processes of one thread each: threads of several processes would wait for one another.
test: lint  ## lint, type check and all tests that need no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m 'not gpu' -n 2 --dist loadfile

lint: $(STAMP) types  ## ruff and mypy
	$(BIN)/python -m ruff check .

# mypy does not follow setuptools' package-dir, so it reads an installed copy.
types: $(STAMP)  ## mypy alone
	rm -rf build/lib build/types
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target build/types .
	cp -r examples benchmarks build/types/
	cd build/types && ../../$(BIN)/python -m mypy --config-file ../../pyproject.toml \
		--cache-dir ../../.mypy_cache -p padst_fx -p examples -p benchmarks

gpu: $(STAMP)  ## the tests that need a CUDA device
	$(BIN)/python -m pytest tests -m gpu

bench: $(STAMP)  ## measure kernels and memory; writes benchmarks/results
	$(BIN)/python -m benchmarks.kernels
	$(BIN)/python -m benchmarks.memory

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build *.egg-info
