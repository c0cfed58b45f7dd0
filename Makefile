# make demo: compare both frameworks on the embedded data set.   make test: run every test on both.
# make docs: build the site into build/site.
# A fresh machine needs Python 3.11+ and make; everything else is installed into .venv.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
# A process for each core, with one thread each; the tests of a file stay together.
PYTEST := OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1 \
          $(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test lint docs clean

demo: .venv/all
	$(BIN)/keras-segen compare unet --data shapes --epochs 3 --out runs/compare

test: .venv/test lint
	KERAS_BACKEND=tensorflow $(PYTEST)
	KERAS_BACKEND=torch $(PYTEST)

# The tests build it, too: a warning is an error, and so is a link that leads nowhere.
docs: .venv/docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html -c docs -d build/doctrees . build/site
	@echo "The site is in build/site/index.html."

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/all: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed.")'
	$(PYTHON) -m venv .venv
	@echo "Installing keras-segen with TensorFlow and PyTorch into .venv (3 to 4 GB on disk) ..."
	$(PIP) --editable '.[all]'
	@touch $@

.venv/docs: .venv/all
	$(PIP) --editable '.[all,docs]'
	@touch $@

.venv/test: .venv/all
	$(PIP) --editable '.[all,test]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info runs
