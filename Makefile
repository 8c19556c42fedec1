PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist worksteal
KERNELS := setup.py $(wildcard longreach/ops/csrc/*)
BUILT := $(patsubst %,longreach/ops/kernels/%.so,$(if $(filter x86_64 AMD64,$(shell uname -m)),avx512 avx2) baseline)

.PHONY: setup train test test-backends check lint format wheel sanitize clean

train: setup  ## train the default model on the default corpus, evaluate it, plot, and let it write
	$(BIN)/longreach train --config configs/corpus/hyena.yaml

test: setup  ## run every test, on all cores
	$(PYTEST)

test-backends: setup  ## laws and golden cases on every backend of a CPU; without S4's Cauchy sum, for systems that do not grow
	for names in reference "fft tiled doubling blocked chunked scan convolution conv1d merged gathered" \
			"blocked groups sdpa" "native onednn"; do \
		$(PYTEST) $$(printf -- '--backend %s ' $$names) tests/test_mixers.py tests/test_golden.py || exit 1; done

setup: .venv/installed  ## make .venv with everything pinned in constraints.txt, and build the kernels where they changed
	@$(MAKE) --no-print-directory --silent .venv/kernels

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "longreach needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,log]'
	touch $@
	if ls $(BUILT) > /dev/null 2>&1; then touch .venv/kernels; fi

.venv/kernels: $(KERNELS)
	$(BIN)/python setup.py --quiet build_ext --inplace
	if ls $(BUILT) > /dev/null 2>&1; then touch $@; fi  # else the next `make setup` tries again

check: lint test  ## what must be green before a commit

lint: setup  ## format, lint and types, without changing anything
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: setup  ## rewrite the files in the house style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: setup  ## one wheel in dist/ for every Python, with the kernels for this kind of processor
	rm -rf build/lib* build/bdist*
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .

sanitize: setup  ## run the tests of the kernels under the address, undefined behaviour and thread sanitizers
	tests/sanitize/run $(BIN)/python

clean:  ## remove what setup and tests made; runs/ stays
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build dist *.egg-info longreach/ops/kernels
