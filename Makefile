# make demo   what it does, as a table and a picture
# make test   everything that must hold: format, lint, types, tests, the built wheel
# make bench  the full benchmarks (about ten minutes)
# make bench-stores  durable holds in SQLite and PostgreSQL (about four minutes)
# make bench-service holds over HTTP (about a minute)

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint types pytest faults wheel bench bench-stores bench-service clean

demo: $(VENV)/.demo
	$(BIN)/tbc replay --out out/replay.png

test: lint types pytest faults wheel

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

pytest: $(VENV)/.dev
	$(BIN)/python -m pytest -q --ignore tests/fault --ignore tests/integration/test_benchmarks.py

# What takes long by waiting: processes that are killed, servers that hang, benchmarks at their smallest.
faults: $(VENV)/.dev
	$(BIN)/python -m pytest -q tests/fault tests/integration/test_benchmarks.py

# The wheel, as a user gets it: unpacked elsewhere, with those tests beside it that would miss what is not in it.
# Properties, faults and machines are about the same code: they run in the tree. Benchmarks are not part of a wheel.
wheel: $(VENV)/.dev
	rm -rf build/wheel && mkdir -p build/wheel/site
	$(BIN)/python -m build --wheel --outdir build/wheel . > build/wheel/log.txt 2>&1 || (cat build/wheel/log.txt; exit 1)
	$(BIN)/pip install --quiet --no-deps --target build/wheel/site build/wheel/*.whl
	cp -r tests benchmarks docs examples papers README.md CHANGELOG.md LICENSE pyproject.toml \
		Dockerfile compose.yaml build/wheel/
	cd build/wheel && TBC_EXPECT_AT=$(CURDIR)/build/wheel/site PYTHONPATH=$(CURDIR)/build/wheel/site \
		$(abspath $(BIN))/python -m pytest -q tests/unit tests/integration --ignore tests/integration/test_benchmarks.py

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

bench-stores: $(VENV)/.dev
	$(BIN)/python -m benchmarks stores --out benchmarks/results/local/stores.json

bench-service: $(VENV)/.dev
	$(BIN)/python -m benchmarks service --out benchmarks/results/local/service.json

clean:
	rm -rf $(VENV) build dist out

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e ".[cli,plot]"
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@
