PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch first and pinned, so that no later step chooses another build of it.
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
FILES := src tests $(wildcard scripts benchmarks examples)

.PHONY: demo test test-all lint bench docs clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed
	$(BIN)/isotrace demo --out demo

# Two processes, unless PROCESSES says otherwise; a file's tests stay together, with what they share.
PROCESSES ?= 2
PYTEST := $(BIN)/python -m pytest -q -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed-test
	$(PYTEST) -m "not card and not nightly"

# Also what the cards of the bundled models say, measured again, the tools of others that are installed, and many odd
# inputs.
test-all: $(VENV)/.installed-test
	$(PYTEST)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check $(FILES)
	$(BIN)/ruff format --check $(FILES)
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.installed-test
	@set -e; for script in benchmarks/*.py; do [ -e "$$script" ] || continue; echo "== $$script"; $(BIN)/python "$$script"; done

docs: $(VENV)/.installed
	$(BIN)/python scripts/write_api.py
	$(BIN)/python scripts/write_notebook.py

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "isotrace needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.torch: $(VENV)/.created constraints.txt
	$(INSTALL) '$(TORCH)'
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(INSTALL) -e '.[fast]'
	touch $@

$(VENV)/.installed-test: $(VENV)/.torch pyproject.toml
	$(INSTALL) -e '.[test]'
	touch $@ $(VENV)/.installed
