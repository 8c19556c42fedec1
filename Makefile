PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup train test check lint format clean

train: setup  ## train the default model on the default corpus, evaluate it, plot, and let it write
	$(BIN)/longreach train --config configs/corpus/hyena.yaml

test: setup  ## run every test
	$(BIN)/python -m pytest

setup: .venv/installed  ## make .venv with everything pinned in constraints.txt

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "longreach needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,log]'
	touch $@

check: lint test  ## what must be green before a commit

lint: setup  ## format, lint and types, without changing anything
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: setup  ## rewrite the files in the house style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove what setup and tests made; runs/ stays
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build *.egg-info
