# Two commands: `make demo` runs the whole loop and serves it, `make test` passes the tests. Each sets itself up.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
STORAGE ?= $(CURDIR)/runs/demo

export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help setup demo test quick check serve ui bench fuzz clean

help: ## show the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(VENV)/.installed ## make .venv and install the package with everything it needs

$(VENV)/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or run make PYTHON=<python>"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (torch is large: minutes the first time)"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt 'torch==2.14.1' 'torchvision==0.29.1' -e '.[dev]'
	@touch $@

demo: setup ## render a catalogue, run the whole loop, serve it (ARGS=--once asks one request and ends)
	@$(BIN)/python -m jobs.demo storage_path=$(STORAGE) $(if $(findstring --once,$(ARGS)),once=true,$(ARGS))

test: setup ## run the tests
	@$(BIN)/python -m pytest $(ARGS)

quick: setup ## run the tests that take under ten minutes together
	@$(BIN)/python -m pytest -m 'not slow' $(ARGS)

check: setup ## what CI checks beside the tests: format, lint, types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

serve: setup ## serve the champion of STORAGE at http://127.0.0.1:8080
	@$(BIN)/python -m jobs.serve storage_path=$(STORAGE) $(ARGS)

ui: setup ## MLflow UI of STORAGE at http://127.0.0.1:5000/#/experiments?workflowType=machine_learning
	@$(BIN)/mlflow ui --backend-store-uri sqlite:///$(STORAGE)/mlflow.db --host 127.0.0.1 --port 5000 $(ARGS)

bench: setup ## run the benchmarks; each prints ratios against a named baseline
	@for file in benchmarks/bench_*.py; do echo "== $$file"; PYTHONPATH=$(CURDIR) $(BIN)/python $$file || exit 1; done

fuzz: setup ## schemathesis over the HTTP API (ARGS="--minutes 30 --seed 7")
	@PYTHONPATH=$(CURDIR) $(BIN)/python benchmarks/fuzz_api.py $(ARGS)

clean: ## remove what the demo wrote
	@rm -rf $(CURDIR)/runs
