# make demo and make test work on a fresh clone: each sets up what it needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
CXX_SOURCES := $(shell find csrc tests/unit tests/standin -name '*.h' -o -name '*.cpp')
NAME ?= growth
# Processes that run the Python tests.
WORKERS ?= 2
# The tests of a file run in one process, in order. tests/conftest.py says which files come first.
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
MACHINES := tests/model tests/kv_cache/test_kv_cache_model.py

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-python test-cuda test-cpp test-long test-fault test-calls test-vllm gpu lint format sanitize bench simulate-long clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

setup: build/.installed ## the environment in .venv, with the extension built

build/.environment: requirements-tested.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed"; exit 1; }
	@echo "Setting up .venv with $$($(PYTHON) --version) from the package index: torch, transformers and tools."
	@case "$$($(PYTHON) --version)" in *" 3.11."*) ;; *) \
	  echo "This is not Python 3.11, the tested one: pip will download PyPI's torch, with several GB of CUDA packages.";; esac
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-tested.txt
	@mkdir -p build && touch $@

build/.installed: build/.environment pyproject.toml CMakeLists.txt $(shell find csrc -type f)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --editable .
	@touch $@

demo: setup ## generate text with DynamicCache and with VmmCache
	$(BIN)/vmm demo

bench: setup ## make bench NAME=growth
	@$(BIN)/vmm bench $(NAME) --json

test: test-cpp test-python test-cuda ## all tests but the long ones

test-python: setup
	$(BIN)/python -m pytest $(PARALLEL) --durations 10 -m 'not long'

test-long: setup ## what takes minutes: packaging, and the state machines with many more examples
	$(BIN)/python -m pytest $(PARALLEL) -m long
	VMM_EXAMPLES=500 $(BIN)/python -m pytest $(PARALLEL) --timeout 1200 $(MACHINES) tests/kv_tensor/test_indexing.py
	VMM_EXAMPLES=500 VMM_TEST_DRIVER=cuda $(BIN)/python -m pytest $(PARALLEL) --timeout 1200 $(MACHINES)

test-cuda: setup ## pools, tensors and caches over the CUDA driver, on the stand-in libcuda
	VMM_TEST_DRIVER=cuda $(BIN)/python -m pytest $(PARALLEL) -m 'not long' \
	  tests/model tests/kv_cache tests/kv_tensor tests/integrations tests/unit/test_pool.py --ignore tests/kv_tensor/test_indexing.py

test-cpp: build/.environment
	tests/unit/run-cpp build/cpp ""

test-fault: setup ## every driver call of every scenario made to fail
	$(BIN)/python -m pytest tests/fault --capture=no

test-calls: setup ## how many calls to libcuda a step costs
	@$(BIN)/python -m pytest tests/kv_cache/test_kv_cache_calls.py -q --no-header >build/test-calls.log 2>&1 \
	  || { cat build/test-calls.log; exit 1; }
	@grep libcuda build/test-calls.log

build/vllm-site/.installed: build/.installed $(shell find vmm integrations benchmarks -name '*.py')
	@rm -rf build/vllm-site.new
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --target build/vllm-site.new .
	@rm -rf build/vllm-site && mv build/vllm-site.new build/vllm-site && touch $@

test-vllm: build/vllm-site/.installed ## the vLLM plugin under a real engine, in an environment that it makes: 3.4 GB
	tests/vllm/run --durations 10

simulate-long: setup ## random courses of the engine with fresh seeds: make simulate-long VMM_SECONDS=600
	VMM_SECONDS=$${VMM_SECONDS:-600} $(BIN)/python -m pytest tests/simulation/test_courses.py -k violated \
	  --timeout 0 --capture=no

gpu: ## everything that needs a GPU: checks, probes, benchmarks
	benchmarks/gpu/run.sh

lint: build/.environment ## ruff, mypy, clang-format, and names of test files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	@! find tests -path tests/vllm -prune -o -name 'test_*.py' -printf '%f\n' | sort | uniq -d | grep . \
	  || { echo "pytest wants another name for one of each pair of test files above"; exit 1; }

format: build/.environment ## rewrite the sources as lint wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

sanitize: build/.environment ## the C++ tests under ASan + UBSan, then TSan
	tests/unit/run-cpp build/asan address,undefined
	tests/unit/run-cpp build/tsan thread

clean: ## everything that was built; the environment stays
	rm -rf build
