# `make demo` and `make test` make .venv on first use, and again when requirements.txt changes.
# make PYTHON=/path/to/python chooses the interpreter, make test ARGS="-k unet" some of the tests, and
# make test WORKERS=0 runs them in one process instead of one for each core.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3,$(shell command -v $(name))))
PY := .venv/bin/python
INSTALLED := .venv/installed
ARGS ?=
WORKERS ?= logical

.PHONY: demo test mutate lint venv check jittor

demo: jittor
	$(PY) -m medsegdiff demo $(ARGS)

test: jittor
	$(PY) -m pytest --numprocesses $(WORKERS) --maxprocesses 8 $(ARGS)

# Plants every fault of the parity suite in the Jittor backend and writes the table of what became of them.
mutate: jittor
	$(PY) -m parity mutate --table parity/MUTATIONS.md $(ARGS)

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

venv: $(INSTALLED)

# What has to be on the machine: a suitable Python with headers, g++, room on the disk.
check:
	@test -n "$(PYTHON)" || { echo "No Python found. Install it: apt-get install python3.11 python3.11-venv python3.11-dev" >&2; exit 2; }
	@$(PYTHON) -m guided_diffusion_core.system.environment .

$(INSTALLED): requirements.txt
	@$(MAKE) --no-print-directory check
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --requirement requirements.txt
	@touch $@

# Jittor compiles its core on its first start, which takes minutes: in one process, before others start.
jittor: $(INSTALLED)
	@$(PY) -c "from guided_diffusion_jt import runtime; runtime.start()"
