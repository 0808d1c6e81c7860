# make lab and make test are the two commands; `make help` lists the rest.
.DEFAULT_GOAL := help
.PHONY: help lab test test-lowest types check notebooks faults book replays bench claims record records clean

# The interpreter that creates .venv: the first one found that is new enough, or `make lab PYTHON=/path/to/python`.
NEW_ENOUGH = import sys, venv; sys.exit(sys.version_info < (3, 11))
CANDIDATES = python3 python3.14 python3.13 python3.12 python3.11
PYTHON ?= $(shell for p in $(CANDIDATES); do "$$p" -c '$(NEW_ENOUGH)' 2>/dev/null && { echo "$$p"; break; }; done)
FIND_PYTHON = "$(PYTHON)" -c '$(NEW_ENOUGH)' 2>/dev/null || { echo "Python 3.11 or newer is needed, with its venv module\
 (Debian and Ubuntu: python3-venv). Install one, or name one you have: make PYTHON=/path/to/python3.12" >&2; exit 1; }
VENV_PYTHON = .venv/bin/python
INSTALLED = .venv/installed
# Worker processes of the tests, each with one thread; ARGS goes on to JupyterLab, pytest, or the script.
WORKERS ?= 2
# A file stays with one worker, and the files keep the order of tests/conftest.py.
BY_FILE = --dist loadscope --no-loadscope-reorder
ARGS ?=
# JupyterLab refuses to run as root, the usual user in a container, unless told that it may.
AS_ROOT = $(shell [ "$$(id -u)" = 0 ] && echo --allow-root)

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

lab: $(INSTALLED)  ## create the environment if needed and open the first notebook in JupyterLab
	$(VENV_PYTHON) -m jupyterlab --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb $(AS_ROOT) $(ARGS)

test: $(INSTALLED)  ## create the environment if needed and run every test: unit, property, notebook, browser
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m mypy
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n $(WORKERS) $(BY_FILE) $(ARGS)

test-lowest: .venv-lowest/installed  ## run every test with the oldest packages that pyproject.toml allows
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n $(WORKERS) $(BY_FILE) $(ARGS)

types: $(INSTALLED)  ## check the types of fedlab_core
	$(VENV_PYTHON) -m mypy $(ARGS)

check:  ## say OK or FAIL for each package, device and data set, and what to do about each FAIL
	@if [ -x $(VENV_PYTHON) ]; then $(VENV_PYTHON) tools/check.py; else $(FIND_PYTHON) && "$(PYTHON)" tools/check.py; fi

notebooks: $(INSTALLED)  ## execute every notebook and save it the way it is committed (ARGS="--check" saves nothing)
	$(VENV_PYTHON) tools/execute_notebooks.py $(ARGS)

faults: $(INSTALLED)  ## kill, interrupt, damage, fill the disk and call with nonsense, and count what comes of it
	OMP_NUM_THREADS=1 PYTHONPATH=. $(VENV_PYTHON) -m tools.faults $(ARGS)

book: $(INSTALLED)  ## build the book, a static site, into build/book/html (warnings are errors; executes nothing)
	$(VENV_PYTHON) tools/book.py $(ARGS)

replays: $(INSTALLED)  ## record the run of each lab that the book plays, docs/replays (ARGS=NAME records one)
	OMP_NUM_THREADS=1 PYTHONPATH=. $(VENV_PYTHON) -m tools.replays $(ARGS)

bench: $(INSTALLED)  ## time rounds against a plain loop (QUICK=1: minutes, no file; PEERS=1: FedJAX, pfl, Flower too)
	$(VENV_PYTHON) -m benchmarks $(if $(QUICK),--quick )$(if $(PEERS),--peers )$(ARGS)

claims: $(INSTALLED)  ## print the table of claims and write figures/claims.json
	$(VENV_PYTHON) -m fedlab_core.claims $(ARGS)

record: $(INSTALLED)  ## make a record of figures/ again, resumably: make record NAME=fedavg_mnist (NAME=-h lists them)
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m fedlab_core.studies records --again $(NAME) $(ARGS)

records: $(INSTALLED)  ## make what is missing in the records, in the background: STOP=1 ends it, DEVICE=cuda, ARGS=NAME
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m fedlab_core.studies records $(if $(STOP),--stop )$(if $(DEVICE),--device $(DEVICE) )$(ARGS)

clean:  ## remove the environment, caches and screenshots; data and figures stay
	rm -rf .venv .venv-lowest build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis tests/browser/artefacts
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml tools/jupyterlab_overrides.json
	@$(FIND_PYTHON)
	test -x $(VENV_PYTHON) || "$(PYTHON)" -m venv .venv
	$(VENV_PYTHON) -m pip install --disable-pip-version-check --editable ".[test,book]"
	mkdir -p .venv/share/jupyter/lab/settings
	cp tools/jupyterlab_overrides.json .venv/share/jupyter/lab/settings/overrides.json
	touch $@

# Old releases have wheels for old interpreters only.
.venv-lowest/installed: CANDIDATES = python3.12 python3.13 python3.11
.venv-lowest/installed: pyproject.toml tools/lowest.py
	@$(FIND_PYTHON)
	test -x .venv-lowest/bin/python || "$(PYTHON)" -m venv .venv-lowest
	.venv-lowest/bin/python tools/lowest.py > .venv-lowest/requirements.txt
	.venv-lowest/bin/python -m pip install --disable-pip-version-check -r .venv-lowest/requirements.txt
	.venv-lowest/bin/python -m pip install --disable-pip-version-check --no-deps --editable .
	touch $@
