# Everything below needs make and Python 3.11 or newer; PYTHON=/path/to/python names another one.

VENV ?= .venv
PYTHON ?=
CONSTRAINTS ?= constraints.txt
ARGS ?=
MINUTES ?= 2
QUICK ?=
SEED ?=
DEMO ?=

RUN := $(VENV)/bin/python
ON_THE_DEMO := AUTORUN_VAR=var/demo DJANGO_SETTINGS_MODULE=settings.sqlite SCAN_PREPROCESSING_VERSION=1.1
# One resolution for every Python and platform, with hashes; it names no registry.
LOCK = $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --custom-compile-command "make lock" --generate-hashes \
	--all-extras $(addprefix --group ,sample test lint docs browser bench lock build) pyproject.toml $(ARGS)
PIP = PYTHONWARNINGS=ignore $(RUN) -m pip install -qq --disable-pip-version-check

# $(call install,GROUPS): installs autorun and what the groups need, and remembers by the target's file. pip takes
# nothing whose hash the lock file does not have; to build an editable package it would fetch setuptools without one.
define install
	@echo "Installing into $(VENV); the first time this takes a minute or two."
	@$(RUN) .ci/locked $(CONSTRAINTS) build $(1) > $@.txt
	@$(PIP) --require-hashes --only-binary :all: -r $@.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@
endef

.PHONY: help venv demo demo-embeddings up check test test-faults test-hosts soak bench test-browser test-million pictures messages lint format types lock audit docs clean

help:
	@echo "make demo          real scans processed before your eyes: saves, a sweep, a backfill"
	@echo "make demo-embeddings  texts embedded by row and by batch, and searched (installs about 6 GB)"
	@echo "make up            web, worker and beat for looking around, until Ctrl-C (DEMO=1: on the demo's data)"
	@echo "make check         style, layers, types and the fast tests on SQLite, in under three minutes"
	@echo "make test          all tests, on every database that answers (ARGS='-k name' for some)"
	@echo "make test-browser  the pages in a real browser (installs chromium if there is none)"
	@echo "make test-million  each page with a million runs, in time (needs PostgreSQL)"
	@echo "make pictures      the pictures of the documentation, from the pages as they are"
	@echo "make test-faults   workers, brokers and databases ill-treated for real"
	@echo "make test-hosts    several hosts in network namespaces, cut off from each other (needs root)"
	@echo "make soak          random faults for MINUTES=2 (SEED=1, ARGS='--database postgres --broker redis')"
	@echo "make bench         every line of docs/performance.md (QUICK=1: small sizes, under three minutes)"
	@echo "make messages      the catalogues of German and French anew from the code (needs GNU gettext)"
	@echo "make lint          style and layers"
	@echo "make types         mypy"
	@echo "make format        ruff format"
	@echo "make lock          the versions in constraints.txt anew from pyproject.toml (ARGS=--upgrade for the newest)"
	@echo "make audit         known vulnerabilities of these versions, as the JSON API of PyPI knows them"
	@echo "make docs          the documentation as HTML, in docs/_build"
	@echo "make venv          the environment alone, in $(VENV)"
	@echo "make clean         remove everything these commands made"

venv: $(VENV)/.test

demo: $(VENV)/.sample
	@rm -rf var/demo
	@AUTORUN_VAR=var/demo DJANGO_SETTINGS_MODULE=settings.sqlite $(RUN) manage.py demo $(ARGS)

demo-embeddings: $(VENV)/.embeddings
	@rm -rf var/embeddings
	@AUTORUN_VAR=var/embeddings DJANGO_SETTINGS_MODULE=settings.embeddings $(RUN) manage.py demo_embeddings $(ARGS)

up: $(VENV)/.sample
	@$(if $(DEMO),$(ON_THE_DEMO)) $(RUN) manage.py up $(ARGS)

# Before every commit. What needs a server or some seconds is left to `make test`.
check: lint types
	@AUTORUN_TEST_DATABASE=sqlite $(RUN) -m pytest -q -n 2 -m "not slow and not services" $(ARGS)

test: $(VENV)/.test
	@$(RUN) -m tests $(ARGS)

# Processes and servers are killed, frozen and cut off for real: about ten minutes a database.
test-faults: $(VENV)/.test
	@AUTORUN_TEST_FAULTS=1 $(RUN) -m tests -m faults tests/faults $(ARGS)

# Hosts in network namespaces, which need root: cut off, wiped, and losing packets.
test-hosts: $(VENV)/.test
	@AUTORUN_TEST_FAULTS=1 AUTORUN_TEST_DATABASE=postgres $(RUN) -m tests tests/faults/test_hosts.py $(ARGS)

soak: $(VENV)/.test
	@$(RUN) -m tests.faults.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

# Twice: in the admin's own look, and in django-unfold's.
test-browser: $(VENV)/.browser
	@.ci/chromium
	@$(RUN) -m pytest -m browser -k "not million" $(ARGS)
	@$(RUN) -m pytest -m browser --ds=tests.browser.unfold_settings -k "(sound or cancelled) and not without" $(ARGS)

# How long each page takes with a million runs; needs PostgreSQL.
test-million: $(VENV)/.browser
	@AUTORUN_TEST_DATABASE=postgres $(RUN) -m pytest -m browser -k million -s $(ARGS)

# The pictures of the documentation, taken anew.
pictures: $(VENV)/.browser
	@.ci/chromium
	@AUTORUN_PICTURES=1 $(RUN) -m pytest -m browser tests/browser/test_pictures.py $(ARGS)

bench: $(VENV)/.bench
	@$(RUN) -m bench $(if $(QUICK),--scale quick --keep) $(ARGS)

# The date that xgettext writes would change the catalogues each time.
messages: $(VENV)/.lint
	cd autorun && PYTHONPATH=.. DJANGO_SETTINGS_MODULE=settings.sqlite $(abspath $(RUN)) -m django makemessages \
		--all --no-location --no-wrap --no-obsolete --verbosity 0
	sed -i '/^"POT-Creation-Date/d' autorun/locale/*/LC_MESSAGES/django.po
	cd autorun && PYTHONPATH=.. $(abspath $(RUN)) -m django compilemessages --verbosity 0

lint: $(VENV)/.lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports

format: $(VENV)/.lint
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

types: $(VENV)/.lint
	$(VENV)/bin/mypy

lock: $(VENV)/.lock
	$(LOCK) -o constraints.txt
	$(LOCK) -c .ci/oldest.txt -o .ci/oldest-constraints.txt

# --strict: a package that could not be looked up is an error, and not taken for a sound one.
audit: $(VENV)/.lock
	$(VENV)/bin/pip-audit --strict --vulnerability-service pypi --no-deps --disable-pip -r constraints.txt $(ARGS)

docs: $(VENV)/.docs
	$(VENV)/bin/sphinx-build -W --keep-going -q -b html docs docs/_build

clean:
	rm -rf $(VENV) var build dist docs/_build *.egg-info .ci/work .hypothesis .import_linter_cache \
		.mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN):
	@python=$$(PYTHON="$(PYTHON)" .ci/python) && "$$python" -m venv $(VENV)

$(VENV)/.sample: pyproject.toml $(CONSTRAINTS) | $(RUN)
	$(call install,sample)

$(VENV)/.embeddings: $(VENV)/.sample
	@sed -n '/==/s/ \\$$//p' $(CONSTRAINTS) > $@.txt
	@$(PIP) -c $@.txt --group embeddings
	@touch $@

$(VENV)/.test: pyproject.toml $(CONSTRAINTS) | $(RUN)
	$(call install,test)

$(VENV)/.browser: pyproject.toml $(CONSTRAINTS) | $(RUN)
	$(call install,browser)

$(VENV)/.bench: pyproject.toml $(CONSTRAINTS) | $(RUN)
	$(call install,bench)

$(VENV)/.lint: pyproject.toml $(CONSTRAINTS) | $(RUN)
	$(call install,test lint)

$(VENV)/.lock: pyproject.toml $(CONSTRAINTS) | $(RUN)
	$(call install,lock)

$(VENV)/.docs: pyproject.toml $(CONSTRAINTS) | $(RUN)
	$(call install,docs)
