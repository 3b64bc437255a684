# Everything here works on a machine that has Python >= 3.11, make and the package index.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LOCALSTACK := .venv-localstack
INFRA := .venv-infra
MINISTACK := .venv-ministack
UV := uv==0.13.9
TOOLS := 'cfn-lint>=1.58,<2' 'checkov>=3.3,<4' 'kubernetes-validate>=1.34,<2'

# Compiled modules are worth keeping: the tests start many processes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test stack soak bench lint format clean lock localstack infra-tools ministack

run: $(VENV)/ready  ## the service with an S3 of its own, in memory
	@$(BIN)/python -m service serve --dev

test: $(VENV)/ready lint  ## what CI runs
	$(BIN)/coverage erase
	$(BIN)/python -m pytest --numprocesses 4 --dist loadgroup --cov --cov-report=
	$(BIN)/coverage report

stack: $(VENV)/ready $(LOCALSTACK)/ready  ## localstack.yml without Docker: two replicas behind nginx
	@$(BIN)/python -m tests.stack

soak: $(VENV)/ready  ## what takes too long for every change
	$(BIN)/python -m pytest -m soak -s --timeout=900

bench: $(VENV)/ready $(MINISTACK)/ready  ## how near it comes to S3 itself, and a picture of it
	$(BIN)/python -m tests.bench --save tests/bench

lint: $(VENV)/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/ready
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

localstack: $(LOCALSTACK)/ready  ## an S3 for the tests, without Docker

ministack: $(MINISTACK)/ready  ## the S3 that costs least, for the benchmark

infra-tools: $(INFRA)/ready  ## what looks over CloudFormation's and Kubernetes' files

lock: $(VENV)/ready  ## pin what pyproject.toml allows, newest first
	$(BIN)/pip install --quiet $(UV)
	$(COMPILE) --output-file infra/requirements.lock pyproject.toml
	$(COMPILE) --extra test --output-file tests/requirements.lock pyproject.toml
	printf '%s\n' $(TOOLS) | $(COMPILE) --output-file infra/tools.lock -

clean:
	rm -rf $(VENV) $(LOCALSTACK) $(INFRA) $(MINISTACK) .coverage* .*_cache .hypothesis build dist

COMPILE := $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	--generate-hashes --no-annotate --no-header --no-emit-index-url

$(VENV)/ready: tests/requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed: make PYTHON=python3.13 …' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r tests/requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(LOCALSTACK)/ready: tests/localstack.lock
	$(PYTHON) -m venv $(LOCALSTACK)
	$(LOCALSTACK)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# It pins a botocore of its own.
$(MINISTACK)/ready: tests/ministack.lock
	$(PYTHON) -m venv $(MINISTACK)
	$(MINISTACK)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# checkov pins botocore and more, so it shares no environment with the service.
$(INFRA)/ready: infra/tools.lock
	$(PYTHON) -m venv $(INFRA)
	$(INFRA)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@
