# Every target does its own set-up: it creates .venv, installs greencc into it and fetches what it needs from the
# package index. Nothing needs root. PYTHON names the interpreter to start from (3.10 or newer).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TESTS ?=
TARGET ?= cpu

.DELETE_ON_ERROR:
.PHONY: help demo test check lint conditions bench bench-check node-suite vulkan clean

help:
	@echo "make demo        compile a sentence encoder for this machine, embed sentences, compare with ONNX Runtime"
	@echo "make test        run the tests (TESTS=path narrows them)"
	@echo "make check       what CI runs: ruff, mypy, the tests"
	@echo "make conditions  take every legality condition away in turn; a test must fail each time"
	@echo "make bench       time real models against ONNX Runtime and OpenVINO"
	@echo "make bench-check the same, and fail where a ratio is worse than the stored one for this kind of CPU"
	@echo "make node-suite  run the ONNX operator test suite and print a table (TARGET=vulkan: on a GPU)"
	@echo "make vulkan      compile the runtime for Vulkan devices (needs a C++ compiler and Vulkan's headers)"
	@echo "make clean       remove .venv and build outputs"

demo: $(VENV)/.installed-demo
	$(BIN)/python examples/demo.py

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(TESTS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

conditions: $(VENV)/.installed-dev
	$(BIN)/python tests/disable_conditions.py

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.run

bench-check: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.run --check

node-suite: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.node_suite --target $(TARGET)

vulkan: $(VENV)/.installed-vulkan
	$(BIN)/greencc devices --build-vulkan

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "greencc needs Python 3.10 or newer: make PYTHON=python3.11 ..." >&2; exit 1; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null \
		|| { echo "greencc links its code with a C++ compiler: apt install g++ (or your system's package)" >&2; exit 1; }
	@# Debian's python3 has venv but not the pip that it would put into one, unless python3-venv is installed.
	$(PYTHON) -m venv $(VENV) 2>/dev/null \
		|| { $(PYTHON) -m venv --clear --without-pip $(VENV) \
			&& $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; } \
		|| { echo "can't create $(VENV): apt install python3-venv python3-pip" >&2; exit 1; }
	@touch $@

$(VENV)/.installed-%: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
