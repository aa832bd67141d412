# The two commands that matter: `make run` and `make test`. Both set up what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What `make run` passes on, as in: make run ARGS="--port 9000"
ARGS ?=
# What `make bench` measures.
WHAT ?= all

COMPILE := CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet --no-config \
	--generate-hashes --allow-unsafe --build-deps-for=editable --strip-extras \
	--no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options

.PHONY: run test bench lint format lock clean

# Serve with an embedded Valkey and this machine's figures; prints the address.
run: $(VENV)/installed
	$(BIN)/sse-gateway demo $(ARGS)

# Everything that must hold. Of the time, about 19 minutes on 2 cores, pytest takes 18: 2 for client.js in
# Chromium, 3 for NGINX, Varnish and purges, 1 each for slices with long-polls and for the doctor, 2 for
# exact resume on both transports, 3 for the rest of HTTP, 6 for all else; a first set-up adds about one.
test:
	bash tests/system-packages.sh
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory tests/js/node_modules/.package-lock.json
	$(BIN)/python -m pytest --cov --cov-report=term --cov-fail-under=90
	$(BIN)/python -m coverage report --include='gateway/protocol/*' --fail-under=100

# Long measurements beside the peers: make bench WHAT=fanout ARGS="--peers all --json out.json".
# Slower than hoped is no failure; a run that is not complete and in order is one.
bench: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks $(WHAT) $(ARGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict gateway tests benchmarks

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Names, versions and hashes; never an address.
lock: $(VENV)/installed-dev
	$(COMPILE) --upgrade --output-file requirements.lock pyproject.toml
	$(COMPILE) --upgrade --extra dev --constraint requirements.lock \
		--output-file requirements-dev.lock pyproject.toml
	$(COMPILE) --upgrade --extra bench --constraint requirements.lock \
		--constraint requirements-dev.lock --output-file requirements-bench.lock pyproject.toml
	cd tests/js && npm install --package-lock-only
	cd benchmarks/peers/better_sse && npm install --package-lock-only

clean:
	rm -rf $(VENV) build dist *.egg-info gateway/hub/*.so .mypy_cache .pytest_cache .ruff_cache \
		.hypothesis .coverage .coverage.* htmlcov tests/js/node_modules \
		benchmarks/peers/better_sse/node_modules

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 3) and "Python 3.11.3 or newer is needed")'
	$(PYTHON) -m venv $(VENV)

# The lock files are complete: with `--no-deps` pip takes them as they are. Left to resolve, an older pip
# stops at the newest release of what another package wants with an extra (coverage[toml]).
$(VENV)/installed: requirements.lock pyproject.toml gateway/hub/_writing.c | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

$(VENV)/installed-dev: requirements-dev.lock $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-dev.lock
	touch $@

$(VENV)/installed-bench: requirements-bench.lock $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-bench.lock
	touch $@

tests/js/node_modules/.package-lock.json: tests/js/package-lock.json
	cd tests/js && npm ci --no-progress
	touch $@
