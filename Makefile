# Everything lives in .venv; nothing is installed outside it. PYTHON=... picks the interpreter that .venv is made with.

WORKERS ?= 2

.PHONY: help setup setup-test quickstart lint types pytest test

help:
	@echo "make quickstart   install into .venv, then train, compose and verify two tasks on real images"
	@echo "make test         install with the test dependencies, then lint, types and tests"
	@echo "make setup        only install; leaves .venv/bin/python and .venv/bin/memtok"

setup:
	@scripts/setup.sh

setup-test:
	@scripts/setup.sh test

quickstart: setup
	.venv/bin/memtok quickstart

lint: setup-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: lint
	.venv/bin/mypy

# Two workers with one thread each: small models do not gain from a second thread.
pytest: types
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(WORKERS) --dist worksteal

test: pytest
