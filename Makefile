# All targets work on a machine that has only Python >= 3.11, make and access to the package index.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LOCALSTACK := .venv-localstack
INFRA := .venv-infra
MINISTACK := .venv-ministack
RELEASE := .venv-release
UV := uv==0.13.9

# Before Python 3.14, measuring coverage doubles the time of a test. So only these are measured.
COVERING := tests/bundles tests/cli tests/http tests/s3 tests/telemetry

# Let Python cache compiled modules: the tests start many Python processes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test coverage store stack soak bench install-test release-check lint format clean lock localstack infra-tools ministack release-tools stores test-stores
.PHONY: kubernetes-tools test-kubernetes docker-test

run: $(VENV)/dev-ready  ## the service with an embedded S3 store, in memory
	@$(BIN)/python -m service serve --dev

test: $(VENV)/test-ready store lint  ## the linters, the type checker and the tests
	$(BIN)/python -m pytest --numprocesses 4 --dist loadgroup

coverage: $(VENV)/test-ready  ## measure how much of the service the tests of its modules cover
	STORES=moto $(BIN)/python -m pytest --numprocesses 4 --dist loadgroup $(COVERING) -k 'not moto_metadata' --cov

store:  # if AWS_ENDPOINT_URL_S3 is set, check that this store answers, before anything else runs
	@$(if $(AWS_ENDPOINT_URL_S3),$(BIN)/python -m tests.support.stores)

stack: $(VENV)/test-ready $(LOCALSTACK)/ready  ## localstack.yml without Docker: two replicas behind nginx
	@$(BIN)/python -m tests.infra.stack

soak: $(VENV)/test-ready  ## the tests that take minutes
	$(BIN)/python -m pytest -m soak -s --timeout=900
	$(MAKE) test-stores
	@! docker version >/dev/null 2>&1 || echo 'A container engine is running: try `make docker-test`.'

test-stores: $(VENV)/test-ready  ## the tests of every store, on those that `make stores` builds
	STORES=minio,versitygw,seaweedfs,garage \
		$(BIN)/python -m pytest -m 'every_store and not soak' --numprocesses 4 --dist loadgroup

test-kubernetes: $(VENV)/test-ready  ## the tests that need what `make kubernetes-tools` builds
	$(BIN)/python -m pytest -m 'soak or not soak' tests/infra/kubernetes

bench: $(VENV)/test-ready $(MINISTACK)/ready  ## compare the throughput with S3 itself, with a plot
	$(BIN)/python -m tests.bench --save tests/bench

install-test: $(VENV)/test-ready  ## install with each Python on this machine and other pips
	@$(BIN)/python -m tests.infra.install

release-check: $(VENV)/test-ready $(RELEASE)/ready  ## build the packages of a release, and check them
	@$(BIN)/python -m tests.infra.install.release

docker-test: $(VENV)/test-ready  ## the image and localstack.yml, in a container engine
	$(BIN)/python -m pytest tests/infra/containers -m docker -s --timeout=1800

lint: $(VENV)/test-ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/test-ready
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

localstack: $(LOCALSTACK)/ready  ## LocalStack's S3 for the tests, without Docker

ministack: $(MINISTACK)/ready  ## MiniStack, the S3 store that the benchmark uses

infra-tools: $(INFRA)/ready  ## linters for the CloudFormation and Kubernetes files

release-tools: $(RELEASE)/ready  ## what `make release-check` builds and checks packages with

clean:
	rm -rf $(VENV) $(LOCALSTACK) $(INFRA) $(MINISTACK) $(RELEASE) .stores .tools .engine .coverage* .*_cache .hypothesis build dist

# --- Installation -------------------------------------------------------------------------------
# Every lock in requirements/ lists all packages with their hashes, so pip installs them without
# resolving anything. The result depends neither on the date nor on the version of pip: a resolver
# can reject a complete lock, or prefer a newer release. `pip check` then compares what is installed
# with what the packages ask for.
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r

define install_lock  # $(1): the virtual environment, $(2): its lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is required: make PYTHON=python3.13 …' >&2; exit 1; }
	@# Keep a usable environment that was not made here, with its own pip. If its creation or removal
	@# was interrupted, its Python can be the system's, where nothing may be installed.
	@test ! -e $(1)/ready && test ! -e $(1)/dev-ready && $(1)/bin/python -c 'import os, pip, sys; \
		sys.exit(sys.version_info < (3, 11) or not os.path.samefile(sys.prefix, "$(1)"))' \
		2>/dev/null || $(PYTHON) -m venv --clear $(1)
	@echo 'Installing $(2) into $(1) …'
	@$(1)/bin/python $(PIP_INSTALL) $(2)
endef

define check_installed  # $(1): the virtual environment
	@output=$$($(1)/bin/python -m pip check --disable-pip-version-check) || \
		{ echo "$$output" >&2; exit 1; }
endef

# A change of either lock makes a new environment, so that packages that are no longer listed go.
$(VENV)/dev-ready: requirements/dev.txt requirements/test.txt pyproject.toml
	$(call install_lock,$(VENV),requirements/dev.txt)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		--editable .
	$(call check_installed,$(VENV))
	@touch $@

$(VENV)/test-ready: $(VENV)/dev-ready
	@echo 'Installing requirements/test.txt into $(VENV) …'
	@$(BIN)/python $(PIP_INSTALL) requirements/test.txt
	$(call check_installed,$(VENV))
	@touch $@

# Each of these has an environment separate from the service's. The first three pin their own
# botocore, and the last builds packages with nothing but its lock.
$(LOCALSTACK)/ready: requirements/localstack.txt
$(INFRA)/ready: requirements/infra-tools.txt
$(MINISTACK)/ready: requirements/ministack.txt
$(RELEASE)/ready: requirements/release-tools.txt
$(LOCALSTACK)/ready $(INFRA)/ready $(MINISTACK)/ready $(RELEASE)/ready:
	$(call install_lock,$(@D),$<)
	$(call check_installed,$(@D))
	@touch $@

# --- Programs that are built from source --------------------------------------------------------
# Go and cargo compare what they download with the checksums that are published for each version.
-include requirements/stores.mk requirements/tools.mk

# Some of these modules have replacements in their go.mod, which `go install` refuses.
define build_with_go  # $(PACKAGE): the program, $(MODULE): its module and version
	@echo 'Building $(MODULE) …'
	@rm -rf $@-build && mkdir -p $@-build
	@cd $@-build && { go mod init build && $(EDIT) go get $(MODULE) && \
		go build -mod=mod -trimpath $(FLAGS) -o program $(PACKAGE); } >log 2>&1 || { cat log >&2; exit 1; }
	@mv $@-build/program $@ && rm -rf $@-build
endef

stores: .stores/minio .stores/versitygw .stores/weed .stores/garage  ## S3 servers, in 15 minutes

.stores/minio: PACKAGE := github.com/minio/minio
.stores/minio: MODULE := $(MINIO)
.stores/versitygw: PACKAGE := github.com/versity/versitygw/cmd/versitygw
.stores/versitygw: MODULE := $(VERSITYGW)
.stores/weed: PACKAGE := github.com/seaweedfs/seaweedfs/weed
.stores/weed: MODULE := $(SEAWEEDFS)

.stores/minio .stores/versitygw .stores/weed: requirements/stores.mk
	$(build_with_go)

.stores/garage: requirements/stores.mk
	@echo 'Building $(GARAGE) …'
	@cargo install --quiet --locked --root $@-build $(GARAGE)
	@mv $@-build/bin/garage $@ && rm -rf $@-build

kubernetes-tools: .tools/helm .tools/helm3 .tools/kustomize .tools/etcd .tools/kube-apiserver  ## in 15 minutes

.tools/helm: PACKAGE := helm.sh/helm/v4/cmd/helm
.tools/helm: MODULE := $(HELM)
.tools/helm3: PACKAGE := helm.sh/helm/v3/cmd/helm
.tools/helm3: MODULE := $(HELM_3)
# `helm template` takes this for the version of the cluster. Without the flag, it is 1.20.
.tools/helm3: FLAGS = -ldflags '-X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=35'
.tools/kustomize: PACKAGE := sigs.k8s.io/kustomize/kustomize/v5
.tools/kustomize: MODULE := $(KUSTOMIZE)
.tools/etcd: PACKAGE := go.etcd.io/etcd/server/v3
.tools/etcd: MODULE := $(ETCD)
.tools/kube-apiserver: PACKAGE := k8s.io/kubernetes/cmd/kube-apiserver
.tools/kube-apiserver: MODULE := $(KUBERNETES)
.tools/kube-apiserver: VERSION = $(lastword $(subst @, ,$(KUBERNETES)))
# Helm asks the server for its version.
.tools/kube-apiserver: FLAGS = -ldflags '-X k8s.io/component-base/version.gitVersion=$(VERSION)'
# Its go.mod replaces modules by folders of its repository. They are also published, as v0.x for v1.x.
.tools/kube-apiserver: EDIT = sed -n 's|^\t\(k8s.io/.*\) => \./.*|-replace=\1=\1@$(VERSION:v1%=v0%)|p' \
	$$(go list -m -f '{{.GoMod}}' $(MODULE)) | xargs go mod edit &&

.tools/helm .tools/helm3 .tools/kustomize .tools/etcd .tools/kube-apiserver: requirements/tools.mk
	$(build_with_go)

# --- Locks --------------------------------------------------------------------------------------
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-strip-extras \
	--generate-hashes --no-annotate --no-header --no-emit-index-url
AS_TESTED := --constraint requirements/test.txt

lock: $(VENV)/dev-ready  ## pin the newest versions that pyproject.toml permits
	$(BIN)/pip install --quiet --disable-pip-version-check $(UV)
	$(COMPILE) --upgrade --extra test --output-file requirements/test.txt pyproject.toml
	$(COMPILE) --upgrade $(AS_TESTED) --output-file requirements/service.txt pyproject.toml
	$(COMPILE) --upgrade $(AS_TESTED) --extra dev --output-file requirements/dev.txt pyproject.toml
	$(COMPILE) --upgrade $(AS_TESTED) --extra otel --output-file requirements/otel.txt pyproject.toml
	$(COMPILE) --upgrade $(AS_TESTED) --output-file examples/requirements.txt examples/requirements.in
	$(COMPILE) --upgrade --output-file requirements/infra-tools.txt requirements/direct/infra-tools.in
	$(COMPILE) --output-file requirements/ministack.txt requirements/direct/ministack.in
	$(COMPILE) --upgrade $(AS_TESTED) --output-file requirements/release-tools.txt \
		requirements/direct/release-tools.in
	$(COMPILE) --exclude-newer 2025-10-10 --output-file requirements/localstack.txt \
		requirements/direct/localstack.in
