# Everything lives in .venv; nothing is installed outside it. PYTHON=... picks the interpreter that .venv is made with.

WORKERS ?= 2

.PHONY: help setup setup-test setup-browser setup-bench quickstart lint types pytest test bench

help:
	@echo "make quickstart   install into .venv, then train, compose and verify two tasks on real images"
	@echo "make test         install with the test dependencies, then lint, types and tests"
	@echo "make fuzz         send the server many requests made from its OpenAPI schema, with a seed that is printed"
	@echo "make bench        install with the packages that memtok is compared with, then time all of them on this machine"
	@echo "make setup        only install; leaves .venv/bin/python and .venv/bin/memtok"

setup:
	@scripts/setup.sh

setup-test:
	@scripts/setup.sh test

# For the tests of the server's page; without it they are skipped.
setup-browser:
	@scripts/setup_browser.sh

setup-bench:
	@scripts/setup.sh bench

quickstart: setup
	.venv/bin/memtok quickstart

lint: setup-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: lint
	.venv/bin/mypy

# Two workers with one thread each: small models do not gain from a second thread.
pytest: types setup-browser
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(WORKERS) --dist worksteal

test: pytest

# The same test runs in `make test` with less input and a fixed seed. SEED=7 repeats a run.
SEED ?= $(shell od -An -N3 -tu4 /dev/urandom | tr -d ' ')
fuzz: setup-test
	MEMTOK_TEST_SEED=$(SEED) MEMTOK_FUZZ_EXAMPLES=100 .venv/bin/python -m pytest -s tests/serving/test_schema.py

# One thread per core, nothing else at work: what else runs on the machine shows in the times.
bench: setup-bench
	.venv/bin/memtok bench --out benchmarks/results
