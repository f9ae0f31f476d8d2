# Any Python >= 3.11.
PYTHON ?= python3
# The versions tested. It is installed first, so that nothing pulls another build in.
# For PyTorch's CPU build:
#   make test TORCH="torch torchvision --index-url https://download.pytorch.org/whl/cpu"
# After a change of PYTHON or TORCH, run `make clean` first.
TORCH ?= torch==2.14.1 torchvision==0.29.1

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: demo test test-slow lint types docs clean
.NOTPARALLEL: # the extras share one venv

demo: $(VENV)/.installed-plot
	@MPLBACKEND=Agg $(BIN)/python examples/plot_digits.py

# The array-API checks of scikit-learn are skipped without SCIPY_ARRAY_API. Threads of
# processes side by side would wait for each other: one each, and where there are more
# they sleep while they wait.
test: lint
	@SCIPY_ARRAY_API=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest \
		--numprocesses auto --maxprocesses 4 --dist loadfile

# Large networks at full size, one after another.
test-slow: lint
	@$(BIN)/python -m pytest -m slow tests

lint: $(VENV)/.installed-test
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --diff --quiet .

types: $(VENV)/.installed-test
	@$(BIN)/mypy

# The site, into docs/_build/html. A warning is an error, and all are told. Examples that
# did not change since the last time are not run again.
docs: $(VENV)/.installed-docs
	@$(BIN)/python -m sphinx -W --keep-going --quiet docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

clean:
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .ruff_cache .mypy_cache
	rm -rf docs/_build docs/api docs/auto_examples
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is touched last: an install that failed leaves none and is tried again.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@echo "Installing $(TORCH) into $(VENV) (a few minutes, this time only)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) $(TORCH)
	@touch $@

# __init__.py holds the version.
$(VENV)/.installed-%: $(VENV)/.torch pyproject.toml skdeepcluster/__init__.py
	@echo "Installing skdeepcluster[$*] into $(VENV)"
	@$(PIP) --editable '.[$*]'
	@touch $@
