# make demo   the whole job on this machine      make test   everything that CI runs (WORKERS=2)
# make setup  only the set-up                    make check  linters, types, contracts, protocol
# make bench  short benchmarks                   make fuzz   wild messages (MESSAGES=100000 SEED=1)
# make docs   the documentation site, in site/
# make chaos  random kills, then the bytes are compared (MINUTES=10 KILLS=200 SEED=...)
# make soak   thousands of rounds with flat memory (MINUTES=30)
# make test-compose   deploy/docker tried on a Docker engine of its own, where that can be

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test test-compose check docs bench chaos soak fuzz clean

help:
	@sed -n 's/^# *//p' Makefile | head -7

setup: $(READY)

$(READY): pyproject.toml constraints.txt scripts/setup.sh scripts/build_deepspeed.sh
	@PYTHON=$(PYTHON) VENV=$(VENV) sh scripts/setup.sh
	@touch $@

demo: $(READY)
	@$(BIN)/partsum demo

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/buf lint protos
	@sh scripts/check_protos.sh

# In the order of the files: those that take long come first, and no worker is left alone with one.
test: check
	$(BIN)/pytest --numprocesses $(or $(WORKERS),2) --dist loadfile --no-loadscope-reorder

docs: $(READY)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Open site/index.html"

# Root, a Docker engine and debootstrap: it says what it lacks, and skips that.
test-compose: $(READY)
	$(BIN)/python -m deploy.docker.selftest $(if $(FOLDER),--folder $(FOLDER))

bench: $(READY)
	$(BIN)/python benchmarks/rounds.py --quick
	$(BIN)/python benchmarks/memory.py --quick
	$(BIN)/python benchmarks/handoff.py --quick
	$(BIN)/python benchmarks/time_to_accuracy.py --quick
	$(BIN)/python benchmarks/hostile.py --quick

chaos: $(READY)
	$(BIN)/pytest -m long tests/faults tests/e2e
	$(BIN)/python tests/faults/chaos.py --minutes $(or $(MINUTES),10) --kills $(or $(KILLS),200) \
		$(if $(SEED),--seed $(SEED))

fuzz: $(READY)
	$(BIN)/python tests/faults/fuzz.py --messages $(or $(MESSAGES),100000) --seed $(or $(SEED),1)

soak: $(READY)
	$(BIN)/python tests/faults/soak.py --minutes $(or $(MINUTES),30)

clean:
	rm -rf $(VENV) .venv-protos site
