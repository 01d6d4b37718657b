# Two commands do everything: `make demo` and `make test`. Each first makes .venv with the pinned versions.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-long lint bench docs clean

demo: .venv/installed
	$(BIN)/flatlab demo

test: .venv/tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" -n 2 --dist worksteal

test-long: .venv/tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long -n 2 --dist loadfile

lint: .venv/tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/peers
	$(BIN)/python -m benchmarks

# The site, in build/docs, with every warning an error; then every page is opened in Chromium where there is one.
docs: .venv/docs
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -E -W -n --keep-going --quiet docs build/docs
	$(BIN)/python -m pytest tests/test_site.py

clean:
	rm -rf .venv build dist *.egg-info

.venv/installed: constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "flatlab needs Python 3.11 or newer; name one with make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

# With every extra that a test uses.
.venv/tests: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,tensorboard,dask,hf,flower-simulation,wandb]"
	touch $@

.venv/docs: .venv/tests
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

# The extra "bench", pinned, without what its packages ask for beyond .venv: backpack names torchvision, which nothing uses.
.venv/peers: .venv/tests benchmarks/peers.txt
	$(BIN)/python -m pip install --quiet --no-deps --requirement benchmarks/peers.txt
	touch $@
