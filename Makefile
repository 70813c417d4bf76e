# SPDX-License-Identifier: Apache-2.0
# `make demo` runs the main job, `make test` the tests; both install what they need into .venv/.
.DELETE_ON_ERROR:
.PHONY: help env tools demo test test-full-size test-sim-usb fuzz-link lint format types contract figure-acquisition figure-decode figure-sifting figure-sifting_rates figure-toeplitz_host figure-toeplitz_explored pnr-toeplitz figure-tdc pnr-tdc pnr-sender pnr-receiver bitstreams board-areas board-pins lock clean

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/
# Arguments for the demo, such as DEMO="--distance 50 --seed 7".
DEMO ?=
# Arguments for pytest, such as TESTS=tests/host.
TESTS ?= tests
# Designs that are placed and routed at a time.
JOBS ?= 1
# Parts to place and route for, all if none, such as DEVICES=LFE5U-25F-6.
DEVICES ?=
# nextpnr's seeds for pnr-toeplitz, all if none, such as SEEDS="1 2".
SEEDS ?=

# Boards to build for, all if none, such as BOARDS="ecpix5-45f orangecrab-25f".
BOARDS ?=

# A converter to place and route, such as TDC="--device LFE5U-85F-6 --inputs 8 --lines 4".
TDC ?=

help: ## List the commands.
	@grep -hE '^[a-z_-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z_-]+):.*## /  make \1\t/' | expand -t 20

tools:
	@missing=0; \
	for tool in g++ make perl; do \
	  command -v $$tool >/dev/null 2>&1 || { \
	    echo "$$tool is missing: install the system package $$tool" >&2; missing=1; }; \
	done; \
	command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "$(PYTHON) is missing: install the system packages python3 and python3-venv" >&2; exit 1; }; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is older than 3.11: install a newer one, then PYTHON=python3.11 make ..." >&2; missing=1; }; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make environments: install the system package python3-venv" >&2; missing=1; }; \
	exit $$missing

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN)python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(RUN)python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

env: tools $(VENV)/.installed ## Install everything from PyPI, pinned, into .venv/.

demo: env ## From photons to identical secret keys, through the real gateware.
	$(RUN)keyrail demo --report keyrail-demo.html --json keyrail-demo.json $(DEMO)

test: env ## Run every test.
	$(RUN)pytest -n 2 $(TESTS)

test-full-size: env ## The Toeplitz engine at 2^20 bits, receivers in time (some minutes).
	KEYRAIL_FULL_SIZE=1 $(RUN)pytest tests/gateware/test_toeplitz_full_size.py tests/link/test_tagger.py tests/link/test_pins.py

test-sim-usb: env ## The host library on whole stations behind their USB cores (some minutes).
	KEYRAIL_SIM_USB=1 $(RUN)pytest tests/link/test_every_board.py

fuzz-link: env ## 10^5 mutated frames against two stations, write docs/figures/fuzz_link.json (some minutes).
	$(call simulated,fuzz_link)

lint: env ## Check style, types and generated files.
	$(RUN)ruff check .
	$(RUN)ruff format --check .
	$(RUN)mypy
	$(RUN)python -m keyrail.contract.render header | diff -u firmware/keyrail_contract.h -
	$(RUN)python -m keyrail.contract.render manual | diff -u docs/registers.md -

format: env ## Format the sources.
	$(RUN)ruff check --fix .
	$(RUN)ruff format .

contract: env ## Write the views of the contract: C header and register chapter.
	$(RUN)python -m keyrail.contract.render header > firmware/keyrail_contract.h
	$(RUN)python -m keyrail.contract.render manual > docs/registers.md

# A figure that simulation measures, whole or as it was, and its page.
define simulated
$(RUN)python -m keyrail_sim.figures $(1) > docs/figures/$(1).json.new
	mv docs/figures/$(1).json.new docs/figures/$(1).json
endef
define page
$(RUN)python -m keyrail_sim.figures table docs/figures/$(1).json > docs/figures/$(1).md
endef

figure-%: env ## Measure and write docs/figures/NAME.json (simulation).
	$(call simulated,$*)

figure-toeplitz_host: env ## Time the Toeplitz hash of the control PC, write docs/figures/toeplitz_host.json.
	$(call simulated,toeplitz_host)
	$(call page,toeplitz_host)

figure-sifting: env ## 10^8 slots through both boards, frames lost at random (an hour at most).
	$(call simulated,sifting)
	$(call page,sifting)

figure-sifting_rates: env ## Rates and latencies of sifting, write docs/figures/sifting_rates.json, .md and .svg.
	$(call simulated,sifting_rates)
	$(call page,sifting_rates)
	$(RUN)python -m keyrail_sim.figures plot sifting_rates docs/figures/sifting_rates.json docs/figures/sifting_rates.svg

figure-decode: env ## Decoding of T2 records beside ptufile and tttrlib, write docs/figures/decode.json.
	$(call simulated,decode)
	$(call page,decode)

figure-acquisition: env ## Success rate of the acquisition, write docs/figures/acquisition.json and .svg.
	$(call simulated,acquisition)
	$(RUN)python -m keyrail_sim.figures plot acquisition docs/figures/acquisition.json docs/figures/acquisition.svg

pnr-toeplitz: env ## Place and route the Toeplitz engine, write docs/figures/toeplitz.json.
	$(RUN)python -m keyrail_boards.toeplitz --jobs $(JOBS) $(DEVICES:%=--device %) $(SEEDS:%=--seed %) docs/figures/toeplitz.json

pnr-sender: env ## Place and route the sender's station on a 25F, write docs/figures/sender.json.
	$(RUN)python -m keyrail_boards.sender docs/figures/sender.json

pnr-receiver: env ## Place and route the receiver's tag path, write docs/figures/receiver.json.
	$(RUN)python -m keyrail_boards.receiver $(DEVICES:%=--device %) docs/figures/receiver.json

bitstreams: env ## Build every station that claims to fit its board, write docs/figures/boards.json.
	$(RUN)python -m keyrail_boards.stations $(BOARDS:%=--board %) docs/figures/boards.json

board-areas: env ## Map and pack stations that do not claim to fit: their areas into docs/figures/boards.json.
	$(RUN)python -m keyrail_boards.stations --everything --pack-only $(BOARDS:%=--board %) docs/figures/boards.json

board-pins: env ## Write the page of pins and clocks, docs/board_pins.md.
	$(RUN)python -m keyrail_boards.pins > docs/board_pins.md

figure-toeplitz_explored: env ## Compare variants of the Toeplitz engine, write docs/figures/toeplitz_explored.json.
	$(RUN)python -m keyrail_boards.toeplitz --explored --jobs $(JOBS) docs/figures/toeplitz_explored.json

figure-tdc: env ## Model of the time-to-digital converter from routed lines, write docs/figures/tdc.json.
	$(RUN)python -m keyrail_boards.tdc figure docs/figures

pnr-tdc: env ## Place and route a whole time-to-digital converter, write docs/figures/tdc_pnr.json.
	$(RUN)python -m keyrail_boards.tdc build $(TDC) docs/figures/tdc_pnr.json

lock: ## Write requirements.lock anew from the bounds in pyproject.toml.
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet hatchling editables -e '.[dev]'
	{ echo "# SPDX-License-Identifier: Apache-2.0"; \
	  echo "# Every package of the development environment, pinned: written by \`make lock\`."; \
	  build/lock/bin/python -m pip freeze --exclude-editable; } > requirements.lock

clean: ## Remove what was built, except .venv/.
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
