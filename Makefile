# make demo, make test, make quick, make coverage, make lint, make docs, make bench. Override the interpreter or a folder:
# make test PYTHON=python3.12 VENV=/tmp/env
PYTHON ?= python3
VENV ?= .venv-test
# The demo has an environment of its own: the tests' one holds a torchvision for open_clip that may not fit its torch.
DEMO_VENV ?= .venv
# Other mixture libraries pull in much that nobody else needs.
BENCH_VENV ?= .venv-bench

# For the open_clip tests. Left out of the extras and installed without dependencies, so that their pins of torch
# cannot replace the build of torch that is there; the other packages they import follow in the second line.
OPEN_CLIP := torchvision timm ftfy open_clip_torch
OPEN_CLIP_NEEDS := regex wcwidth huggingface_hub
# What the documentation compares with; without dependencies for the same reason.
PEERS := tgmm
PEERS_NEED := seaborn

# On Linux without a driver of NVIDIA's, PyTorch's build for CPUs: 0.2 GB instead of 6. TORCH_INDEX= takes the usual one.
TORCH_INDEX ?= $(if $(shell command -v nvidia-smi),,$(if $(filter Linux,$(shell uname -s)),https://download.pytorch.org/whl/cpu))
define install_torch
	$(if $(TORCH_INDEX),$(1)/bin/python -m pip install --quiet --no-compile --retries 1 --index-url $(TORCH_INDEX) torch \
		|| echo "No PyTorch from $(TORCH_INDEX): taking the usual build.")
endef

# Some machines forbid Python to keep bytecode: then every process of the tests compiles torch anew, in twice the time.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test quick coverage lint docs bench clean

demo: $(DEMO_VENV)/.installed
	$(DEMO_VENV)/bin/python examples/cxr_cml.py

test: $(VENV)/.installed-for-tests
	$(VENV)/bin/python -m pytest -n auto --dist worksteal

# What there is time for between two changes: no long experiments, and none in processes of their own.
quick: $(VENV)/.installed-for-tests
	$(VENV)/bin/python -m pytest -n auto --dist worksteal -m "not slow"

# The same, with the share of src that is run.
coverage: $(VENV)/.installed-for-tests
	$(VENV)/bin/python -m pytest -n auto --dist worksteal --cov --cov-report=term

lint: $(VENV)/.installed-for-tests
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

docs: $(VENV)/.installed-for-tests
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

bench: $(BENCH_VENV)/.installed
	$(BENCH_VENV)/bin/python -m benchmarks.compare

clean:
	rm -rf $(VENV) $(DEMO_VENV) $(BENCH_VENV) site docs/assets

# The stamps make the second call quick; the package itself is installed editable, so only its requirements age. Without
# --no-compile, pip takes twice as long, for bytecode of modules that nobody imports.
$(DEMO_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DEMO_VENV)
	$(call install_torch,$(DEMO_VENV))
	$(DEMO_VENV)/bin/python -m pip install --quiet --no-compile -e ".[examples]"
	touch $@

$(VENV)/.installed-for-tests: pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(call install_torch,$(VENV))
	$(VENV)/bin/python -m pip install --quiet --no-compile -e ".[dev]" $(OPEN_CLIP_NEEDS) $(PEERS_NEED)
	$(VENV)/bin/python -m pip install --quiet --no-compile --no-deps $(OPEN_CLIP) $(PEERS)
	touch $@

$(BENCH_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(BENCH_VENV)
	$(call install_torch,$(BENCH_VENV))
	$(BENCH_VENV)/bin/python -m pip install --quiet --no-compile -e ".[benchmarks]"
	touch $@
