# The README's two commands, without repeating what was done: make run, make test, make lint, make lock.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test full coverage bench chaos lint hooks lock schema clients screenshots

run: .venv/.run
	$(BIN)/python manage.py demo

test: .venv/.test
	$(BIN)/python -m tests

full: .venv/.test
	$(BIN)/python -m tests --full

# Fails below the minimum, and for a gap that docs/coverage.md does not list.
coverage: .venv/.test
	$(BIN)/python -m tests --coverage

# Needs Debian's wrk (apt install wrk), and pgbench for its last rows; twelve minutes of a quiet machine.
bench: .venv/.bench
	$(BIN)/python -m bench

# What holds under faults, docs/reliability.md: at most 20 minutes. Needs nginx for one scenario.
chaos: .venv/.test
	$(BIN)/python -m bench.chaos

lint: .venv/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/bandit -q -c pyproject.toml -r manage.py quotasite quotas webhooks
	$(BIN)/mypy
	$(BIN)/mypy --config-file clients/python/pyproject.toml
	$(BIN)/lint-imports
	$(BIN)/python manage.py makemigrations --check
	$(BIN)/python manage.py spectacular --validate --fail-on-warn | diff docs/openapi.yaml -

# The quick part of it before each commit: .githooks/pre-commit.
hooks: .venv/.dev
	git config core.hooksPath .githooks

schema: .venv/.dev
	$(BIN)/python manage.py spectacular --file docs/openapi.yaml

# Needs node 20, npm and chromium: TypeScript's types from the schema and its archive, Python's wheel, then the tests of both.
clients: .venv/.test
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir clients/python/dist ./clients/python
	cd clients/typescript && npm ci --ignore-scripts --no-audit --no-fund && npm run schema && npm pack
	$(BIN)/python -m pytest tests/clients --full

# Needs chromium and chromedriver.
screenshots: .venv/.test
	$(BIN)/python -m tests.tools.screenshots docs/pictures

.venv/.run: requirements.txt
.venv/.test: requirements-test.txt
.venv/.dev: requirements-dev.txt
.venv/.bench: requirements-bench.txt
.venv/.run .venv/.test .venv/.dev .venv/.bench: | .venv
	$(BIN)/pip install -qr $<
	touch $@

.venv:
	$(PYTHON) -m venv .venv

# Needs uv. A pinned version is kept while pyproject.toml allows it; `make lock UPGRADE=-U` takes the newest.
LOCK := uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-emit-find-links --no-header
lock:
	$(LOCK) $(UPGRADE) -o requirements.txt
	for group in test dev bench; do \
	  $(LOCK) $(UPGRADE) --group $$group -o requirements-$$group.txt || exit 1; done
