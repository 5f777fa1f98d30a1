# Each target installs what it needs by itself. Newcomers need two: make demo, make test.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help install demo test check e2e e2e-cluster images bench proto wheel lock clean

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
IN_PROCESS_GRPC := tests/integration/test_gateway_grpc.py tests/integration/test_kubernetes_scaler.py

SIDE_BY_SIDE    := -n auto --dist loadfile

test: install  ## Every test, end to end ones included
	@$(BIN)/pytest $(SIDE_BY_SIDE) tests/layout tests/unit tests/contract
	@$(BIN)/pytest $(SIDE_BY_SIDE) tests/integration $(addprefix --ignore ,$(IN_PROCESS_GRPC))
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

BUILD  ?= buildah bud --format docker
IMAGES ?= polyolo-{}:0.1.0
NEXT   ?= $(IMAGES)

e2e-cluster: install  ## The main job, scaling, isolation, upgrade and restore on KUBECONFIG's cluster
	@POLYOLO_IMAGES='$(IMAGES)' POLYOLO_NEXT_IMAGES='$(NEXT)' \
		$(BIN)/pytest -m cluster -rs tests/e2e/test_main_job.py tests/e2e/test_cluster*.py

images:  ## The three images of a cluster's platform (BUILD='docker build' for Docker)
	@for target in serving gateway control; do \
		$(BUILD) -f deploy/Dockerfile --target $$target -t "$$(echo '$(IMAGES)' | sed "s/{}/$$target/")" . || exit 1; done

bench: install  ## Speed of one machine as ratios taken in one run
	@$(BIN)/python -m tests.bench.speed
	@$(BIN)/python -m tests.bench.speed --model yolov8n --connections 8 32
	@$(BIN)/python -m tests.bench.overload
	@$(BIN)/python -m tests.bench.swap
	@$(BIN)/python -m tests.bench.neighbour
	@$(BIN)/python -m tests.bench.auth
	@$(BIN)/python -m tests.bench.sandbox
	@$(BIN)/python -m tests.bench.kubernetes
	@$(BIN)/python -m tests.bench.chaos --kills 20
	@$(BIN)/python -m tests.bench.limits
	@$(BIN)/python -m tests.bench.wake
	@$(BIN)/python -m tests.bench.density

PROTOS := polyolo/serving/inference polyolo/gateway/externalscaler

proto: install  ## Generate the protocols' messages anew, by the compiler of the locked grpcio's release
	@$(PYTHON) -m venv .venv-proto && .venv-proto/bin/pip install --quiet --disable-pip-version-check \
		grpcio-tools==$$($(BIN)/python -c 'import grpc; print(grpc.__version__)')
	@cd src && for proto in $(PROTOS); do \
		../.venv-proto/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. $$proto.proto && \
		sed -i "1s|.*|\"\"\"Messages generated from $$(basename $$proto).proto by make proto.\"\"\"|" $${proto}_pb2.py || exit 1; done
	@rm -rf .venv-proto

wheel: install  ## Build the wheel into dist/
	@$(BIN)/python -m build --wheel --no-isolation --outdir dist . >/dev/null && ls dist

lock: install  ## Pin every dependency anew, with hashes
	@$(BIN)/pip install --quiet --disable-pip-version-check uv
	@lock() { $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
		--no-annotate --no-header --no-emit-package openvino-telemetry "$$@"; }; set -e; \
	lock pyproject.toml --extra serving -o requirements/serving.txt; \
	lock pyproject.toml --extra serving --extra openvino -o requirements/serving-openvino.txt; \
	lock pyproject.toml --extra gateway --extra redis -o requirements/gateway.txt; \
	lock pyproject.toml --extra serving --extra postgres --extra s3 --extra kubernetes -o requirements/control.txt; \
	lock pyproject.toml --extra all -o requirements/all.txt; \
	lock pyproject.toml --extra all --extra postgres --extra kubernetes --group dev -o requirements/dev.txt; \
	echo 'hatchling>=1.27' | lock - -c requirements/dev.txt -o requirements/build.txt

clean:  ## Remove what the targets made
	@rm -rf $(VENV) dist out .import-linter.log .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
