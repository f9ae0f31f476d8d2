# Any Python from 3.11.
PYTHON ?= python3
# The tested versions of torch. They are installed first, so that no other package
# brings a different build. For PyTorch's CPU build:
#   make test TORCH="torch torchvision --index-url https://download.pytorch.org/whl/cpu"
# Run `make clean` after a change of PYTHON or TORCH.
TORCH ?= torch==2.14.1 torchvision==0.29.1

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

# Test files of at most three seconds each, and the loop of a fit: `make check` takes less
# than a minute on two cores.
CORE := tests/test_docs.py tests/test_docstrings.py \
	tests/_clustering/test_merging.py tests/_clustering/test_pixels.py \
	tests/_clustering/test_pseudo_labels.py tests/_clustering/test_whitening.py \
	tests/_fit/test_loop.py tests/_fit/test_recipe.py tests/_fit/test_symptoms.py \
	tests/_inputs/test_decoding.py tests/_inputs/test_tables.py \
	tests/_training/test_augment.py tests/_training/test_heads.py \
	tests/_utils/test_device.py tests/_utils/test_files.py tests/_utils/test_memory.py \
	tests/_utils/test_messages.py tests/_utils/test_random.py

# Several test processes side by side would wait for each other's threads: one thread
# each, and idle threads sleep. scikit-learn skips its array-API checks without
# SCIPY_ARRAY_API.
PYTEST := SCIPY_ARRAY_API=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive \
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: demo check test test-slow lint docs clean
.NOTPARALLEL: # the extras share one venv

demo: $(VENV)/.installed-plot
	@MPLBACKEND=Agg $(BIN)/python examples/plot_digits.py

# While working: lint, types and the core of the tests.
check: lint
	@$(PYTEST) --quiet $(CORE)

# Before a merge: everything but the slow tests.
test: lint
	@$(PYTEST)

# Large networks at full size, one after another.
test-slow: lint
	@$(BIN)/python -m pytest -m slow tests

# Style, layers and types.
lint: $(VENV)/.installed-test
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --diff --quiet .
	@$(BIN)/lint-imports --no-logo --no-cache
	@$(BIN)/mypy

# Build the site in docs/_build/html. Every warning is an error. Examples that did not
# change since the last build are not run again.
docs: $(VENV)/.installed-docs
	@$(BIN)/python -m sphinx -W --keep-going --quiet docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

clean:
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .ruff_cache .mypy_cache
	rm -rf docs/_build docs/api docs/auto_examples
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp file is made last, so that a failed install is tried again.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@echo "Installing $(TORCH) into $(VENV) (a few minutes, this time only)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) $(TORCH)
	@touch $@

# An install is repeated when the dependencies or the version in __init__.py change.
$(VENV)/.installed-%: $(VENV)/.torch pyproject.toml skdeepcluster/__init__.py
	@echo "Installing skdeepcluster[$*] into $(VENV)"
	@$(PIP) --editable '.[$*]'
	@touch $@
