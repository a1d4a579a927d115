# `make demo` and `make test` work in a bare clone: the first of them makes .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUTPUT ?= build/demo

.DEFAULT_GOAL := help
.PHONY: help demo test lint types kernels sanitize gpu bench soak clean

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

# Two processes of one thread each: threads of several processes would wait for one another. Where a
# test asks for several they sleep while they wait, instead of taking the cores from those they wait for.
test: $(STAMP)  ## lint, type check and all tests that need no GPU
	$(MAKE) -j2 lint kernels
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive TORCHINDUCTOR_COMPILE_THREADS=1 \
		$(BIN)/python -m pytest tests -m 'not gpu' -n 2 --dist loadfile --no-loadscope-reorder

lint: $(STAMP) types  ## ruff and mypy
	$(BIN)/python -m ruff check .

# mypy does not follow setuptools' package-dir, so it reads an installed copy.
types: $(STAMP)  ## mypy alone
	rm -rf build/lib build/types
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target build/types .
	cp -r examples benchmarks build/types/
	cd build/types && ../../$(BIN)/python -m mypy --config-file ../../pyproject.toml \
		--cache-dir ../../.mypy_cache -p padst_fx -p examples -p benchmarks

kernels: $(STAMP)  ## build the C++ kernels now; without this their first use does
	$(BIN)/python -c 'from padst_fx.kernels.native.load import loaded; loaded()'

gpu: $(STAMP)  ## where CUDA is: the GPU tests, then tiles and timings of that GPU
	$(BIN)/python -m pytest tests -m gpu
	$(BIN)/python -m benchmarks.tune_tiles
	$(BIN)/python -m benchmarks.gpu --record-costs
	$(BIN)/python -m benchmarks.gpu_models

bench: $(STAMP)  ## all benchmarks; writes benchmarks/results and the cost model's measurements
	$(BIN)/python -m benchmarks --record-costs

soak: $(STAMP)  ## 20,000 steps with an update every 10: memory, graphs, counts; minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.soak

# Threads of OpenMP are opaque to the race detector, so that build starts its own.
SANITIZED := $(CXX) -std=c++17 -O1 -g -march=native -fno-math-errno -fno-sanitize-recover=all \
	-DPADST_STD_THREADS -I kernels tests/native/race_check.cpp $(wildcard kernels/*/cpu.cpp)

SANITIZED_LIBRARY := PADST_FX_CXXFLAGS="-fsanitize=address,undefined -O1 -g" \
	PADST_FX_CACHE=build/sanitized

# The library is built before the sanitizers are loaded into the process: its compiler would run under them.
sanitize: $(STAMP)  ## the C++ kernels under the thread, address and undefined-behaviour sanitizers
	mkdir -p build
	$(SANITIZED) -fsanitize=thread -o build/race_check
	build/race_check
	$(SANITIZED) -fsanitize=address,undefined -o build/memory_check
	build/memory_check
	$(SANITIZED_LIBRARY) $(BIN)/python -c \
		'from padst_fx.kernels.native import build, isa; build.library(isa.chosen())'
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 $(SANITIZED_LIBRARY) $(BIN)/python -m pytest tests/kernels \
		tests/ops/test_native_ops.py -k "native and not isa and not build"

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build *.egg-info
