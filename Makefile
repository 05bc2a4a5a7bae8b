# Everything that is done with this repository, by name. `make` alone prints the list.

# The first Python 3.11 that works and can make environments; give another with PYTHON=/path/to/python3.11.
PYTHON ?= $(shell for p in python3.11 /usr/bin/python3.11 "$$HOME"/.pyenv/versions/3.11.*/bin/python; do \
	"$$p" -c 'import venv, ensurepip' 2>/dev/null && { echo "$$p"; break; }; done)

BIN := .venv/bin
TFLITE_BIN := .venv-tflite-runtime/bin
CLIENTS_BIN := .venv-clients/bin
# pip's notes about its own version and odd indexes would bury what matters
PIP := -m pip --disable-pip-version-check --quiet install
EDITABLE := --no-deps --no-build-isolation -e .

export EDGEKIT_CLIENTS_PYTHON := $(CURDIR)/$(CLIENTS_BIN)/python
export TF_CPP_MIN_LOG_LEVEL ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench conversion-table mutants soak wheel docs triton-answers locks clean require-python

help:  ## This list
	@awk -F ':.*## +' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/ready .venv-tflite-runtime/ready .venv-clients/ready  ## The three environments, made once (about 5 GB)

demo: setup  ## Train, convert, serve, watch, with real output (under 6 minutes after the downloads)
	$(BIN)/python examples/demo.py

test: setup  ## Every test but the soak ones, in both environments even where the first fails
	code=0; \
	EDGEKIT_MAY_LACK=tflite-runtime $(BIN)/python -m pytest -m "not soak" || code=1; \
	EDGEKIT_MAY_LACK=onnx,openvino,agent,grpc $(TFLITE_BIN)/python -m pytest -m "device and not convert and not soak" \
		-p no:cacheprovider || code=1; \
	exit $$code

check: setup  ## Lint, types, links, package list, documentation
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.11 .ci/*.py examples/*.py
	$(BIN)/python -m pytest -q tests/test_packaging.py tests/test_docs.py

bench: setup  ## Measurements, side by side; nothing here passes or fails
	set -e; for script in $(filter-out benchmarks/conversion_table.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python "$$script"; done

conversion-table: setup  ## docs/conversion-table.md: every model, format and precision (hours; goes on where it was stopped)
	$(BIN)/python benchmarks/conversion_table.py --write

mutants: setup  ## Mutation scores of the core modules (under 30 minutes; MODULES="edgekit/gate.py …")
	$(BIN)/python .ci/mutants.py $(MODULES)

soak: setup  ## The long suites in full, or TESTS="tests/test_x.py …" of them; writes docs/soak/<commit>.md
	$(BIN)/python .ci/soak.py $(TESTS)

wheel: setup  ## The sdist, and the wheel built from it, in dist/
	rm -rf dist build
	$(BIN)/python -m build --no-isolation --outdir dist .

docs: setup  ## docs/cli.md from the commands' own --help
	$(BIN)/python .ci/cli_reference.py

triton-answers: setup  ## Record the real Triton's answers anew, which the daemon is compared with
	$(BIN)/python .ci/triton_answers.py

locks:  ## Resolve every requirements-*.txt afresh (Python 3.10 to 3.13 needed)
	$(PYTHON) .ci/lock.py convert device tflite-runtime clients

clean:  ## Remove environments, builds and caches (downloads and trained models too)
	rm -rf .venv .venv-tflite-runtime .venv-clients .cache build dist demo-out mutants *.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage

require-python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 with venv is needed (Debian: apt-get install python3.11-venv);" \
		"or give one: make PYTHON=/path/to/python3.11" >&2; exit 2; }

.venv/ready: requirements-convert.txt pyproject.toml | require-python
	@echo "making .venv (a few minutes the first time) …"
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) -r requirements-convert.txt
	$(BIN)/python $(PIP) $(EDITABLE)
	@touch $@

.venv-tflite-runtime/ready: requirements-tflite-runtime.txt pyproject.toml | require-python
	@echo "making .venv-tflite-runtime …"
	$(PYTHON) -m venv .venv-tflite-runtime
	$(TFLITE_BIN)/python $(PIP) -r requirements-tflite-runtime.txt
	$(TFLITE_BIN)/python $(PIP) $(EDITABLE)
	@touch $@

.venv-clients/ready: requirements-clients.txt .ci/perf_analyzer.py | require-python
	@echo "making .venv-clients …"
	$(PYTHON) -m venv .venv-clients
	$(CLIENTS_BIN)/python $(PIP) -r requirements-clients.txt
	$(CLIENTS_BIN)/python .ci/perf_analyzer.py .venv-clients
	@touch $@
