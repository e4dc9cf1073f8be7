# Needs Python 3.10 or newer, pip and make; everything else goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
# The demo needs little; what the developers need has that, too.
DEMO_INSTALLED := $(if $(wildcard $(INSTALLED)),$(INSTALLED),$(VENV)/demo-installed)
# Four processes of tests, for tests wait a lot. Each has a server of its own, because fault injection
# would disturb a shared one.
JOBS ?= $(if $(MONGODB_URI),0,4)
BENCH := .venv-bench
OLDEST := .venv-oldest
SOURCES := mongosession_wsgi tests examples docs/conf.py docs/_ext
# The files of rewritten tests and of the package are kept, whatever the environment says: to write
# them anew takes each process many seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test quick test-oldest check docs audit dist bench bench-throughput bench-report operations races explore mutants faults fuzz load soak clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

demo: $(DEMO_INSTALLED)  ## serve the example shop with a server of its own (ONCE=1: end after the transcript)
	@exec $(BIN)/python examples/demo.py $(if $(ONCE),--once)

test: $(INSTALLED)  ## run all tests, on the embedded server or on MONGODB_URI (ARGS="-k cookie", JOBS=0: one process)
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest --numprocesses $(JOBS) --dist worksteal $(ARGS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

quick: $(INSTALLED)  ## run the tests that need no server, in less than half a minute
	@$(BIN)/python -m pytest --quiet -m 'not server' --numprocesses 4 --dist worksteal $(ARGS)

test-oldest: $(OLDEST)/installed  ## run the tests of the frameworks with the oldest supported releases
	@$(OLDEST)/bin/python -m pytest -q tests/frameworks tests/test_requests.py tests/test_store.py tests/test_commands.py

check: $(INSTALLED)  ## lint, formatting, types, security lint, the import graph, prose
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini
	$(BIN)/bandit --quiet --recursive --severity-level medium mongosession_wsgi
	$(BIN)/python -m pytest -q tests/test_structure.py
	$(BIN)/python -m tests.prose

docs: $(INSTALLED)  ## build the site into build/docs, warnings as errors
	@$(BIN)/python -m sphinx -W --keep-going --quiet --builder html docs build/docs
	@echo "The site is in $(CURDIR)/build/docs: open index.html there."

audit: $(INSTALLED)  ## look the dependencies up in the databases of vulnerabilities (needs a network)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/pip-audit --skip-editable

dist: $(INSTALLED)  ## build the sdist and the wheel
	rm -rf dist
	$(BIN)/python -m build

# SERVER is embedded, java or rust; without, the server is that of MONGODB_URI, or else embedded.
MEASURE = $(BENCH)/bin/python -m tests.bench $(if $(SERVER),--server $(SERVER)) $(if $(FULL),--full) $(ARGS)

bench: $(BENCH)/installed  ## measure what a session costs, beside other session stores (QUICK=1, FULL=1, SERVER=rust)
	@$(MEASURE) $(if $(QUICK),--only floor)

bench-throughput: $(BENCH)/installed  ## measure requests a second under gunicorn (SERVER=rust, REPORT=1: into the page)
	@$(MEASURE) --only throughput $(if $(REPORT),--report)

bench-report: $(BENCH)/installed  ## measure everything, and write docs/benchmarks.md and its pictures (SERVER=rust)
	@$(MEASURE) --report

operations: $(INSTALLED)  ## time the command with many sessions (SESSIONS=200000)
	@$(BIN)/python -m tests.operations --sessions $(or $(SESSIONS),200000)

races: $(INSTALLED)  ## race overlapping requests (ROUNDS=10000, SERVER=java: in parallel, with a JDK and Maven)
	@$(BIN)/python -m tests.races --rounds $(or $(ROUNDS),10000) $(if $(SERVER),--server $(SERVER))

explore: $(INSTALLED)  ## try every order of the commands of two requests, with every fault (ARGS="--sets pairs")
	@$(BIN)/python -m tests.explore $(ARGS)

faults: $(INSTALLED)  ## break MongoDB and the way to it in all ways, and print what came of it
	@$(BIN)/python -m tests.faults

load: $(INSTALLED)  ## load every kind of server and worker (REQUESTS=10000)
	@$(BIN)/python -m tests.load --requests $(or $(REQUESTS),10000)

soak: $(INSTALLED)  ## send very many requests through one process, and see that nothing grows (N=1000000, SERVER=java or none)
	@$(BIN)/python -m tests.soak --requests $(or $(N),1000000) $(if $(SERVER),--server $(SERVER))

fuzz: $(INSTALLED)  ## throw cookies at the middleware (N=1000000)
	@$(BIN)/python -m tests.fuzz --examples $(or $(N),1000000)

mutants: $(INSTALLED)  ## break each guard behind docs/security.md, and see which test notices (ONLY="a thief")
	@$(BIN)/python -m tests.mutants --only "$(ONLY)"

clean:  ## remove what these commands made
	rm -rf $(VENV) $(OLDEST) $(BENCH) .demo .servers build dist *.egg-info .coverage .hypothesis .*_cache

# One call of pip for each environment: $(call install,folder,what to install).
define install
@echo "Installing into $(1), once ..."
@$(PYTHON) -m venv $(1)
@$(1)/bin/python -m pip install --disable-pip-version-check $(2)
@touch $@
endef

$(BENCH)/installed: setup.cfg setup.py
	$(call install,$(BENCH),--editable '.[bench]')

$(OLDEST)/installed: setup.cfg setup.py tests/oldest.txt
	$(call install,$(OLDEST),--constraint tests/oldest.txt --editable '.[test]')

$(VENV)/demo-installed: setup.cfg setup.py
	$(call install,$(VENV),--editable '.[demo]')

$(INSTALLED): setup.cfg setup.py
	$(call install,$(VENV),--editable '.[dev]')
# Tests are rewritten and kept, once: else each process of the first run would do so.
	@$(BIN)/python -m pytest --collect-only --quiet >/dev/null || true
