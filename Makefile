# Everything sets itself up: make demo, make test. Needs Python 3.11, make, and a network for the first install.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: demo test lint clean
.DELETE_ON_ERROR:

.venv/.ready: pyproject.toml constraints.txt
	@echo "installing into .venv (about 6 GB with PyTorch, some minutes; once)"
	@$(PYTHON) -c 'import sys; sys.exit("error: Python %d.%d is too old: expected 3.11 or newer; make PYTHON=/path/to/python3.11" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/.ready ## the main job on the embedded music: codec, codes, priors, ten seconds of new music, a page
	$(BIN)/python -m jukebox_lite.demo $(DEMO)

test: .venv/.ready ## as many at once as there are cores, each on one
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean: ## what the demo leaves, but for .venv, the rendered music and its codes
	rm -rf runs/demo
