# Everything a reader needs, from a clean clone. The first target makes .venv from exact versions; it is kept until the
# lock changes. Choose an interpreter with PYTHON=python3.12, a torch build with TORCH_INDEX or TORCH_ARGS (see below).

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
CPU_INDEX := https://download.pytorch.org/whl/cpu
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# On Linux without an NVIDIA GPU torch comes as its CPU build (200 MB) from CPU_INDEX; the default build would bring
# gigabytes of CUDA. TORCH_INDEX=URL takes another index, TORCH_INDEX= (empty) your own default; TORCH_ARGS goes to pip.
ifeq ($(origin TORCH_INDEX), undefined)
ifeq ($(shell uname -s):$(shell command -v nvidia-smi),Linux:)
TORCH_INDEX := auto
endif
endif

# The networks of the tests and notebooks are so small that a second thread costs more than it brings (half the speed on
# two cores that share one unit of arithmetic), so tests take a second process instead: JOBS=4 takes four, JOBS=0 none.
JOBS ?= 2
test verify-exercises: export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-full train bench bench-sd notebooks figures refresh check verify-exercises site check-site lint format clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /	/' | expand -t 12

demo: $(VENV)/.done  ## one scene, generated and edited three ways beside the true answers -> out/demo.png
	$(BIN)/python -m minidiff demo

test: $(VENV)/.oracles  ## the test suite on JOBS=2 processes, with diffusers and transformers to compare with; ARGS="-k ddim" for some
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-full: $(VENV)/.oracles  ## every network at its real size against diffusers: minutes, 8 GB of memory, 5 GB of disk
	$(BIN)/python -m pytest -m full $(ARGS)

train: $(VENV)/.done  ## train the shipped model again -> runs/tiny (resumable at any moment)
	$(BIN)/python -m minidiff train tiny

bench: $(VENV)/.done  ## score the shipped model against the right answers -> out/evaluate.json
	$(BIN)/python -m minidiff evaluate tiny --json out/evaluate.json

bench-sd: $(VENV)/.oracles  ## Stable Diffusion's time and memory against diffusers; ARGS="--width .1 --latent 16" is quick
	$(BIN)/python tests/benchmarks/bench_sd.py $(ARGS)

notebooks: $(VENV)/.lab  ## JupyterLab with all notebooks, solved and blank, and the kernel ready
	$(BIN)/jupyter lab --notebook-dir notebooks $(ARGS)

figures: $(VENV)/.done  ## every figure of README and tutorials, drawn by the shipped model -> tutorials/figures/
	$(BIN)/python tutorials/figures.py

refresh: $(VENV)/.lab  ## all that quotes or shows the weights, made anew (hours); ARGS="--list" or "--only readme"; BENCH=1 scores, too
	$(BIN)/python tutorials/refresh.py $(if $(BENCH),--score) $(ARGS)

check: $(VENV)/.done  ## grade a file of your own functions: MINIDIFF_SOLUTIONS=mywork.py make check
	@test -n "$(MINIDIFF_SOLUTIONS)" || { echo "which file? MINIDIFF_SOLUTIONS=mywork.py make check"; exit 2; }
	$(BIN)/python -m minidiff learn check "$(MINIDIFF_SOLUTIONS)"

verify-exercises: $(VENV)/.done  ## every exercise: stub fails, reference passes, mistakes are named; every notebook runs
	$(BIN)/python -m minidiff.learn.verify
	$(BIN)/python notebooks/run.py

site: $(VENV)/.site  ## tutorials, playground, gallery, leaderboard, code beside its explanation -> out/site/index.html
	$(BIN)/python tutorials/site/build.py $(ARGS)

check-site: site  ## open every page of the site in headless Chromium (Debian: apt-get install chromium)
	$(BIN)/python tutorials/site/check.py

lint: $(VENV)/.done  ## ruff's rules and format; mypy on core, pipe and samplers
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(VENV)/.done  ## lay out all code as `make lint` wants it
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean:  ## remove the environment and everything made, except runs/
	rm -rf $(VENV) out build *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

$(VENV)/.done: requirements/base.lock
	@$(PYTHON) -c "import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 13) else 'minidiff needs \
	Python 3.10 to 3.13, $(PYTHON) is %d.%d; choose another one, as in: make PYTHON=python3.12' % v)"
	@echo "making $(VENV) (once; a few minutes)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) -r requirements/base.lock
	@index="$(TORCH_INDEX)"; \
	if [ "$$index" = auto ]; then \
	  if $(BIN)/python -c "import urllib.request as u; u.urlopen('$(CPU_INDEX)/torch/', timeout=5)" 2>/dev/null; then \
	    index="$(CPU_INDEX)"; echo "no NVIDIA GPU here: installing the CPU build of $(TORCH)"; \
	  elif $(BIN)/python -m pip install --dry-run $(TORCH) 2>/dev/null | grep -q nvidia; then \
	    echo "torch's CPU index cannot be reached, and yours has $(TORCH) with gigabytes of CUDA only."; \
	    echo "To take that: make TORCH_INDEX=    To name another index: make TORCH_INDEX=URL"; exit 1; \
	  else index=""; echo "torch's CPU index cannot be reached: installing $(TORCH) from your own index"; fi; \
	fi; \
	$(PIP) $${index:+--index-url "$$index"} $(TORCH_ARGS) $(TORCH)
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.oracles: $(VENV)/.done requirements/oracles.lock
	@echo "adding diffusers and transformers, which the tests compare with"
	@$(PIP) -r requirements/oracles.lock
	@$(PIP) --no-deps k-diffusion==0.1.1.post1  # one file of it is compared with; its own needs are large
	@touch $@

$(VENV)/.lab: $(VENV)/.done requirements/lab.lock
	@echo "adding JupyterLab"
	@$(PIP) -r requirements/lab.lock
	@touch $@

$(VENV)/.site: $(VENV)/.done requirements/site.lock
	@echo "adding what the site is built with (Sphinx, a theme, onnx) and playwright, which checks it"
	@$(PIP) -r requirements/site.lock
	@touch $@
