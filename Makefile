# Everything sets itself up: a Debian with Python 3.10 to 3.13, make, git and a C++ compiler will do.
#   make demo       compile a pretrained text recogniser, run it in a new process, compare it
#   make test       the test suite                make test-slow   the tests that take minutes
#   make test-gpu   the tests of CUDA programs, on this machine's GPU in place of an emulated one
#   make lint       ruff and mypy                 make bench       latency beside other engines
#   make conformance   the ONNX backend suite, beside ONNX Runtime
#   make fuzz       damaged models, beside ONNX Runtime
# PYTHON=python3.12 picks an interpreter, ARGS="…" is handed on to the command.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow test-gpu lint format bench conformance fuzz setup cross-tools opencl \
	openssl clean

demo: setup
	@$(BIN)/python benchmarks/demo.py $(ARGS)

test: setup cross-tools opencl openssl
	@$(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist worksteal $(ARGS)

test-slow: setup cross-tools opencl openssl
	@$(BIN)/python -m pytest -m slow $(ARGS)

test-gpu: setup
	@GRAPHOPT_TEST_GPU=1 $(BIN)/python -m pytest -rs tests/codegen/cuda $(ARGS)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/mypy benchmarks/*.py

format: setup
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup
	@$(BIN)/python benchmarks/compare.py $(ARGS)

conformance: setup
	@$(BIN)/python benchmarks/conformance.py $(ARGS)

fuzz: setup
	@$(BIN)/python benchmarks/fuzz.py $(ARGS)

setup: $(READY)

# The stamp is written last, so that an interrupted set-up starts again.
$(READY): pyproject.toml tests/requirements-models.txt benchmarks/requirements-peers.txt \
	    | $(BIN)/python
	@echo "Installing graphopt and what its tests need into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@$(BIN)/python -m pip install --quiet --no-deps --requirement tests/requirements-models.txt \
	    --requirement benchmarks/requirements-peers.txt
	@touch $@

# Debian keeps ensurepip in a package of its own, without which venv makes half an environment.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	    echo "graphopt needs Python 3.10 to 3.13; name one: make PYTHON=python3.11 ..." >&2; \
	    exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        echo "Installing python3-venv ..."; \
	        apt-get update -qq; \
	        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null; \
	    fi; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "Python's venv module is incomplete: sudo apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)

# For the tests that cross-compile; without these tools they say why they are skipped.
cross-tools:
	@command -v qemu-aarch64 >/dev/null && command -v aarch64-linux-gnu-g++ >/dev/null && \
	    command -v riscv64-linux-gnu-g++ >/dev/null && command -v cmake >/dev/null || { \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        echo "Installing cross compilers for aarch64 and riscv64, qemu-user and cmake ..."; \
	        apt-get update -qq; \
	        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	            g++-aarch64-linux-gnu libc6-dev-arm64-cross g++-riscv64-linux-gnu \
	            libc6-dev-riscv64-cross qemu-user cmake >/dev/null; \
	    fi; } || echo "Could not install the cross compilers: their tests are skipped." >&2

# PoCL makes an OpenCL device of the processor; without one the tests for OpenCL say why they are
# skipped.
opencl:
	@ls /etc/OpenCL/vendors/*.icd >/dev/null 2>&1 || { \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        echo "Installing pocl-opencl-icd ..."; \
	        apt-get update -qq; \
	        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	            pocl-opencl-icd ocl-icd-libopencl1 >/dev/null; \
	    else false; fi; } || { \
	        echo "There is no OpenCL driver, so the tests for OpenCL are skipped. PoCL makes a device"; \
	        echo "of the processor: sudo apt-get install pocl-opencl-icd ocl-icd-libopencl1"; } >&2

# For the tests of graphopt.hpp with signed and encrypted files; without it they say why they are
# skipped.
openssl:
	@test -e /usr/include/openssl/evp.h || { \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        echo "Installing libssl-dev ..."; \
	        apt-get update -qq; \
	        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	            libssl-dev >/dev/null; \
	    else \
	        echo "The tests of graphopt.hpp with OpenSSL are skipped; for them:" \
	            "sudo apt-get install libssl-dev" >&2; \
	    fi; } || echo "Could not install libssl-dev: the tests with OpenSSL are skipped." >&2

clean:
	rm -rf $(VENV) out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
