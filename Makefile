# make evolve   install, run the embedded example, print where its report is
# make test     install, check the style, run the tests; LOCK=.ci: by the locked versions and hashes
# make lock     write the lock anew, with the newest versions, for Python 3.11
# make audit    ask PyPI's database of known weaknesses about what is locked
PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/tiny
PY := $(VENV)/bin/python
LOCK ?=
# uv compares the hash of every file that a constraint has one for.
LOCKED := $(if $(LOCK),--constraint $(LOCK)/lock.txt --constraint $(LOCK)/torch.txt)
INSTALL := $(VENV)/bin/uv pip install --quiet --python $(PY) $(LOCKED)
COMPILE := $(VENV)/bin/uv pip compile --quiet --upgrade --python-version 3.11 --generate-hashes
COMPILE += --no-annotate --custom-compile-command "make lock"

# uv does not read pip's own setting for folders of wheels.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.PHONY: evolve test slow lock audit clean

evolve: $(VENV)/.run
	$(PY) -m evoid_jax.train --config=configs/evoid.py:tiny --workdir=$(WORKDIR)

test: $(VENV)/.test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pytest -q

slow: $(VENV)/.test
	$(PY) -m pytest -q -m slow

$(PY):
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet $(if $(LOCK),--require-hashes -r $(LOCK)/uv.txt,uv)

$(VENV)/.run: $(PY) requirements.txt requirements-sidecars.txt setup.py
	@echo "installing into $(VENV) ..."
	$(INSTALL) --editable . -r requirements-sidecars.txt
	@touch $@

$(VENV)/.test: $(VENV)/.run requirements-test.txt
	@echo "installing what the tests need ..."
	$(INSTALL) -r requirements-test.txt -r requirements-sidecars.txt
	@touch $@

lock: $(PY)
	$(COMPILE) --no-emit-package torch -o .ci/lock.txt \
	  requirements.txt requirements-sidecars.txt requirements-test.txt
	echo uv | $(COMPILE) -o .ci/uv.txt -

audit: $(PY)
	$(VENV)/bin/uv tool run pip-audit --disable-pip --require-hashes -r .ci/lock.txt

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
