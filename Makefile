# `make demo` installs and runs the whole pipeline on a generated cohort; `make test` installs and
# passes every check. Both need Python >= 3.11 and nothing else.
PYTHON ?= python3
BIN := .venv/bin
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

.PHONY: install demo test lint unit end-to-end installed clean

install: .venv/.installed

# torch first and alone, by its exact version, so that no other build of it is pulled in.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("sacl needs Python >= 3.11") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

# What tests open exports with. Of nnU-Net's dependencies only those that its networks need.
NNUNET := nnunetv2 dynamic-network-architectures acvl-utils batchgenerators batchgeneratorsv2 blosc2 \
	connected-components-3d httpx lazy-loader msgpack ndindex numexpr scikit-image seaborn tifffile
.venv/.others: .venv/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt onnx onnxruntime onnxscript
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt $(NNUNET)
	touch $@

demo: install
	$(BIN)/sacl demo --work work/demo

test: install lint unit end-to-end

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A file stays on one worker: examples of a page build on each other, fixtures are made once.
unit: install .venv/.others
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not end_to_end"

end-to-end: install
	$(BIN)/python -m pytest -m end_to_end

# What a user gets: the wheel alone, in a fresh environment and an empty folder.
DEMO := --phantom.scans 12 --locate.volume.steps 4 --pretrain.steps 3 --finetune.steps 3
installed: install
	rm -rf dist work/installed
	$(BIN)/python -m build --outdir dist . > /dev/null
	$(PYTHON) -m venv work/installed/venv
	work/installed/venv/bin/pip install --quiet "$(TORCH)"
	work/installed/venv/bin/pip install --quiet --constraint constraints.txt dist/*.whl
	cd work/installed && venv/bin/sacl doctor && venv/bin/python -m sacl demo $(DEMO)
	rm -rf work/installed

clean:
	rm -rf .venv work build dist .pytest_cache .mypy_cache .ruff_cache
