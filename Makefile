# Every target is one command, run in .venv, which the first of them creates from Python 3.11 or newer alone.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: parity test convergence slow huggingface old-reference browser lint test-gpu bench clean
.DEFAULT_GOAL := parity

# The tests start hundreds of processes. Each would compile every module anew where Python keeps no compiled code, as the
# images of many machines have it.
test slow convergence: export PYTHONDONTWRITEBYTECODE :=

# Compares port and reference level by level on the recorded checkpoint: verdict on the terminal, report in out/parity.
parity: .venv/installed
	$(BIN)/epibert parity --out out/parity

# Two processes, for two cores; one climbs the ladder.
test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Whole training runs of both stacks; stands on the ladder that `make parity` or `make test` has proven.
convergence: .venv/installed
	$(BIN)/python -m pytest -m convergence

# Proofs that take long each.
slow: .venv/installed
	$(BIN)/python -m pytest -m slow

# Other people's BERT, beside .venv: torchmetrics imports transformers wherever it is installed, for seconds each time.
huggingface: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target out/huggingface --no-deps \
		-c constraints.txt transformers huggingface-hub tokenizers regex
	PYTHONPATH=out/huggingface $(BIN)/python -m pytest -m huggingface

# References recorded in a Python of their own: TensorFlow 2.15 with its Keras 2, the last before Keras 3.
old-reference: .venv/installed
	$(PYTHON) -m venv out/old-reference
	out/old-reference/bin/python -m pip install --quiet --disable-pip-version-check -r tests/suites/old_reference.txt
	$(BIN)/python -m pytest -m old_reference

# The report in Chromium, which must be installed.
browser: .venv/installed
	$(BIN)/python -m pytest -m browser

lint: .venv/installed
	$(BIN)/pre-commit run --all-files

# What names its device, and the ladder with the port on a GPU; fails where there is none.
test-gpu: .venv/installed
	$(BIN)/python -c "import sys, torch; sys.exit(None if torch.cuda.is_available() else 'no CUDA device')"
	$(BIN)/python -m pytest -k cuda tests/unit
	$(BIN)/epibert parity --device cuda --out out/parity_cuda

bench: .venv/installed
	$(BIN)/epibert bench

clean:
	rm -rf out .venv .pytest_cache .ruff_cache .hypothesis *.egg-info

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[reference,report,cluster,tracks,loggers,development]'
	touch $@
