# Two commands: `make demo` shows the main job end to end, `make test` checks everything in process.
# `make check` runs what takes longer: faults, a real Slurm, a browser, the commands of README.md.
# `make docs` builds docs/ and the docstrings as a site of pages, site/index.html.
# `make bench` times everything, in under 25 minutes, and writes its results.
# `make replicate` runs what is missing of docs/replication.md; hours, and it can be stopped.
# `make faults KILLS=200 MOMENTS=1` kills work at more random moments than `make check` does.

PYTHON ?= python3
SEED ?= 0
FOLDER ?= runs/demo
KILLS ?= 200
BIN := .venv/bin

.PHONY: install demo test check docs bench replicate faults clean

install: .venv/installed

.venv/installed: pyproject.toml
	@test -x $(BIN)/python || { echo "Making .venv"; $(PYTHON) -m venv .venv; }
	@echo "Installing into .venv; with PyTorch this takes some minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

demo: install
	@$(BIN)/robustguide demo --folder $(FOLDER) --seed $(SEED)

test: install
	@$(BIN)/ruff check robustguide tests
	@$(BIN)/ruff format --check robustguide tests
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not check" -n 2 --dist loadfile

check: install
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m check

docs: install
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open site/index.html in a browser; it needs no network."

bench: install
	@$(BIN)/python benchmarks/bench.py

replicate: install
	@$(BIN)/robustguide replicate --page docs/replication.md

faults: install
	@OMP_NUM_THREADS=1 KILLS=$(KILLS) MOMENTS=$(MOMENTS) $(BIN)/python -m pytest -q -s -m check tests/test_faults.py

clean:
	rm -rf .venv runs build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
