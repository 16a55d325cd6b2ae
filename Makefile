# Everything is installed into .venv from pyproject.toml and constraints.txt by pip; make does it by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test test-all check docs images clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

demo: setup
	$(BIN)/python -m rws_ray.train jobs/digits.toml

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

test: check
	$(BIN)/python -m pytest

test-all: check
	$(BIN)/python -m pytest -m "long or not long"

docs: setup
	$(BIN)/python docs/reference.py
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build

# For Kubernetes (docs/kubernetes.md); GPU nodes want the target cuda as rws-ray:0.1.0-cuda. BASE=… pins by digest.
images:
	docker build $(if $(BASE),--build-arg BASE=$(BASE)) --file docker/ray.Dockerfile --target cpu --tag rws-ray:0.1.0 .
	docker build $(if $(BASE),--build-arg BASE=$(BASE)) --file docker/tracking.Dockerfile --tag rws-tracking:0.1.0 .

clean:
	rm -rf $(VENV) docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
