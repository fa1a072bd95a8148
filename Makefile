# make demo    the whole path on this machine, in about five minutes after installation
# make test    lint, types, import contracts and tests
# make slow    the tests that take minutes: a soak, three ranks, a chaos run
# make bench   every benchmark, a table each
# make lint    formats and lints only

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow bench lint

demo: .venv/.stamp
	$(BIN)/raygen demo

test: .venv/.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup --no-loadscope-reorder

slow: .venv/.stamp
	$(BIN)/pytest -m slow --timeout 3600

bench: .venv/.stamp
	@set -e; for file in $$(grep -l -- '"--json"' tests/benchmarks/*.py); do \
		name=$$(basename $$file .py); echo "== $$name"; \
		$(BIN)/python -m tests.benchmarks.$$name; \
	done

lint: .venv/.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The environment, and nothing else.
.venv/.stamp: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@
