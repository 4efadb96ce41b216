# make demo   the main job on real data         make test       the tests, a few minutes
# make lint   types and style                   make test-all   the slow ones too
# make test-cuda   the tests that need a GPU
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test test-all test-cuda lint docs clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,export,gbdt,report,tune]"
	touch $@

demo: install
	rm -rf runs/demo
	$(BIN)/finerank demo --out runs/demo

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-cuda: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cuda

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	for page in docs/make_*.py; do $(BIN)/python $$page; done

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
