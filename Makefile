# Every target first creates .venv and installs the package; later calls reuse it.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: demo test slow processors hostile lint docs dist bench clean help

help:           ## list the targets
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/'

demo: $(STAMP)  ## train, analyse and report on real digits
	$(BIN)/stablab demo

test: $(STAMP)  ## run the fast tests
	$(BIN)/python -m pytest -n auto --dist worksteal

slow: $(STAMP)  ## run the slow tests and the browser tests
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "slow and not gpu"

processors: $(STAMP) ## run processor-dependent tests with each set of torch's kernels, with one thread and two
	@for kernels in default avx2 native; do for threads in 1 2; do \
		echo "== $$kernels kernels, $$threads threads"; \
		if [ $$kernels = native ]; then unset ATEN_CPU_CAPABILITY; else export ATEN_CPU_CAPABILITY=$$kernels; fi; \
		OMP_NUM_THREADS=$$threads $(BIN)/python -m pytest -q -n auto \
			tests/train/test_golden_run.py tests/recording tests/analysis || exit 1; \
	done; done

INPUTS ?= 3000
KILLS ?= 300
hostile: $(STAMP) ## test mutated inputs and kills (half an hour; less with INPUTS=... KILLS=...)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.hostile --inputs $(INPUTS) --kills $(KILLS)

lint: $(STAMP)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)  ## build the documentation in site/
	$(BIN)/mkdocs build --quiet --strict

dist: $(STAMP)  ## build sdist and wheel in dist/ and test the wheel in a new environment
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(PYTHON) -m venv dist/try
	dist/try/bin/pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cd dist && PYTHONPATH= try/bin/stablab demo --iterations 30 --runs-dir demo-runs -o demo.html

bench: $(STAMP) ## run all benchmarks that need no folder of runs or logs
	@for script in $$(grep -LE 'add_argument\("folder", type=Path\)|"--real"' benchmarks/[a-z]*.py); do \
		echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:          ## remove the virtual environment and caches, but not runs
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis site build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "StabilityLab needs Python 3.11 or newer; choose one with: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
