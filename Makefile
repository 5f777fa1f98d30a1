# Each target installs what it needs by itself. Newcomers need two: make demo, make test.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help install demo test check e2e bench proto wheel lock clean

help:  ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(READY)  ## Create .venv with the polyolo command in it

$(READY): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "polyolo needs Python 3.11 or newer; name one: make $(or $(MAKECMDGOALS),install) PYTHON=python3.11" >&2; exit 1; }
	@echo "installing into $(VENV) (once) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/dev.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: install  ## Two tenants, one door, real detections: the main job end to end
	@$(BIN)/polyolo demo

# gRPC's engine stays in a process that has used it: what uses it in the tests' own has one alone.
IN_PROCESS_GRPC := tests/integration/test_gateway_grpc.py

SIDE_BY_SIDE    := -n auto --dist loadfile

test: install  ## Every test, end to end ones included
	@$(BIN)/pytest $(SIDE_BY_SIDE) tests/layout tests/unit tests/contract
	@$(BIN)/pytest $(SIDE_BY_SIDE) tests/integration --ignore $(IN_PROCESS_GRPC)
	@$(BIN)/pytest $(IN_PROCESS_GRPC)
	@$(BIN)/pytest tests/e2e

check: install  ## Format, lint, types, import contracts, layout rules
	@$(BIN)/ruff format --check --quiet . || { echo 'run: $(BIN)/ruff format .' >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports >.import-linter.log 2>&1 || { cat .import-linter.log; exit 1; }
	@$(BIN)/pytest tests/layout

e2e: install  ## Only the end to end tests
	@$(BIN)/pytest tests/e2e

bench: install  ## Speed of one machine as ratios taken in one run
	@$(BIN)/python -m tests.bench.speed
	@$(BIN)/python -m tests.bench.speed --model yolov8n --connections 8 32
	@$(BIN)/python -m tests.bench.overload
	@$(BIN)/python -m tests.bench.swap
	@$(BIN)/python -m tests.bench.auth
	@$(BIN)/python -m tests.bench.sandbox
	@$(BIN)/python -m tests.bench.limits
	@$(BIN)/python -m tests.bench.wake
	@$(BIN)/python -m tests.bench.density

PROTO := polyolo/serving/inference

proto: install  ## Generate the protocol's messages anew, by the compiler of the locked grpcio's release
	@$(PYTHON) -m venv .venv-proto && .venv-proto/bin/pip install --quiet --disable-pip-version-check \
		grpcio-tools==$$($(BIN)/python -c 'import grpc; print(grpc.__version__)')
	@cd src && ../.venv-proto/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. $(PROTO).proto
	@sed -i '1s|.*|"""Messages of the Open Inference Protocol v2, generated from inference.proto by make proto."""|' src/$(PROTO)_pb2.py
	@rm -rf .venv-proto

wheel: install  ## Build the wheel into dist/
	@$(BIN)/python -m build --wheel --no-isolation --outdir dist . >/dev/null && ls dist

lock: install  ## Pin every dependency anew, with hashes
	@$(BIN)/pip install --quiet --disable-pip-version-check uv
	@lock() { $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
		--no-annotate --no-header --no-emit-package openvino-telemetry "$$@"; }; set -e; \
	lock pyproject.toml --extra serving -o requirements/serving.txt; \
	lock pyproject.toml --extra serving --extra openvino -o requirements/serving-openvino.txt; \
	lock pyproject.toml --extra all -o requirements/all.txt; \
	lock pyproject.toml --extra all --extra postgres --group dev -o requirements/dev.txt; \
	echo 'hatchling>=1.27' | lock - -c requirements/dev.txt -o requirements/build.txt

clean:  ## Remove what the targets made
	@rm -rf $(VENV) dist out .import-linter.log .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
