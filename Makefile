# Two words for a newcomer: `make demo` and `make test`. Both build .venv first; `make help` lists all.
#
#   make demo PYTHON=python3.12          another Python (3.10 to 3.13)
#   make test ARGS="-k registry -x"      arguments for pytest
#   make demo TORCH_INDEX=https://pypi.org/simple     PyTorch with CUDA (Linux, a download of 3 GB)

VENV := .venv
DEMO := demo
GALLERY := gallery
ARGS :=
TORCH_INDEX := https://download.pytorch.org/whl/cpu
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# An older pip answers a missing index with minutes of retries; once is enough.
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check --retries 1 install --quiet --no-compile

.DELETE_ON_ERROR:
.PHONY: help install demo gallery test lint docs constraints clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile

install: $(INSTALLED) ## build the virtual environment with the pinned releases

demo: $(INSTALLED) $(DEMO)/.written ## harmonize a synthetic traveling-subject dataset
	$(BIN)/python run.py $(DEMO)/bids $(DEMO)/out participant group --sloppy -w $(DEMO)/work
	@echo
	@echo "Group report:      $(CURDIR)/$(DEMO)/out/group.html"
	@if test -f docs/gallery/group.html; \
		then echo "Reports of a study at 1 mm: $(CURDIR)/docs/gallery/group.html"; \
		else echo "The demo is coarse. For the reports of a study at 1 mm: make gallery (hours)"; fi
	@echo "A harmonized scan: $(CURDIR)/$$(find $(DEMO)/out -name '*_desc-harmonized_T1w.nii.gz' \
		! -name '*_space-*' | sort | tail -n 1)"

gallery: $(INSTALLED) ## make the reports of a phantom study at 1 mm (hours; docs/gallery)
	$(BIN)/python tools/gallery.py docs/gallery --folder $(GALLERY) \
		--picture docs/images/wall-of-brains.png

test: $(INSTALLED) ## run all tests
	$(BIN)/python -m pytest $(ARGS)

lint: $(INSTALLED) ## check style and types
	$(BIN)/python -m ruff check
	$(BIN)/python -m mypy

docs: $(VENV)/.installed-docs ## build the documentation with its tutorials; docs/build/index.html
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/build
	@echo "Documentation: $(CURDIR)/docs/build/index.html"

constraints: ## write constraints.txt anew with current releases (see docs/extend/constraints.md)
	tools/constraints.sh

clean: ## remove the virtual environment, the demo and the built documentation
	rm -rf $(VENV) $(DEMO) docs/build docs/auto_tutorials docs/reference/generated

# The stamp comes last, so that a phantom that was interrupted is written anew.
$(DEMO)/.written: | $(INSTALLED)
	rm -rf $(DEMO)/bids $(DEMO)/bids-truth
	$(BIN)/python -m harmonizer.phantom $(DEMO)/bids --subjects 4 --scanners 3 --voxel-mm 2 --seed 1
	touch $@

# PyTorch goes first and alone: only it comes from the CPU index, which spares 3 GB of CUDA. pip
# would compile on one core; compileall does on all, and may pass by templates that are no Python.
$(INSTALLED): setup.cfg setup.py pyproject.toml constraints.txt
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
		2>/dev/null || { echo "Python 3.10 to 3.13 is needed; PYTHON is '$(PYTHON)'." \
		"Install one and name it: make $(or $(MAKECMDGOALS),demo) PYTHON=/path/to/python3.12" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) -m venv failed; on Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo 'Installing into $(VENV): some minutes and 2 GB, once.'
	$(PIP_INSTALL) --no-deps --extra-index-url $(TORCH_INDEX) -c constraints.txt torch
	$(PIP_INSTALL) -c constraints.txt --editable '.[test]'
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	touch $@

$(VENV)/.installed-docs: $(INSTALLED)
	$(PIP_INSTALL) -c constraints.txt --editable '.[doc]'
	touch $@
