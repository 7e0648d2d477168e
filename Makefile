# make demo, make test, make lint. Override the interpreter or the environment's folder: make test PYTHON=python3.12 VENV=/tmp/env
PYTHON ?= python3
VENV ?= .venv

PIP := $(VENV)/bin/python -m pip install --quiet
# For the open_clip examples. Left out of the extras and installed without dependencies, so that their pins of torch
# cannot replace the build of torch that is there; the other packages they import follow in the second line.
OPEN_CLIP := torchvision timm ftfy open_clip_torch
OPEN_CLIP_NEEDS := regex wcwidth huggingface_hub

.PHONY: demo test lint clean

demo: $(VENV)/.examples-installed
	$(VENV)/bin/python examples/cxr_cml.py

test: $(VENV)/.dev-installed
	$(VENV)/bin/python -m pytest --cov --cov-report=term

lint: $(VENV)/.dev-installed
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The stamps make the second call quick; the package itself is installed editable, so only its requirements age.
$(VENV)/.examples-installed: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e ".[examples]"
	touch $@

$(VENV)/.dev-installed: pyproject.toml Makefile | $(VENV)/bin/python
	$(PIP) -e ".[dev]" $(OPEN_CLIP_NEEDS)
	$(PIP) --no-deps $(OPEN_CLIP)
	touch $@
