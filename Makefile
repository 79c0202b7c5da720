# The front door. Needs a C compiler, make and a Python with its headers; the rest is fetched into
# .venv/ (one for each version of Python) and built in build/. `make` alone lists the targets.

PYTHON ?= python3
PORT ?= 2525
PREFIX ?= /usr/local
# Warnings stop the build where nobody is there to read them.
WERROR ?= $(if $(CI),true,false)
# How long each fuzz target runs.
FUZZ_SECONDS ?= 30
# More arguments for pytest, or for bench/run.py.
ARGS ?=
# How many processes share the Python tests. They wait most of the time: more than there are cores.
PROCESSES ?= 6

TAG := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2] + sys.abiflags)')
VENV ?= .venv/$(TAG)
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

# Prints a list out of pyproject.toml, which alone says what is needed.
REQUIREMENTS := $(BIN)/python -c 'import functools, sys, tomllib; print(*functools.reduce(dict.get, \
	sys.argv[1:], tomllib.load(open("pyproject.toml", "rb"))), sep="\n")'
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

SOURCES := pyproject.toml meson.build meson.options $(shell find include core python -type f \
	-name '[!.]*.[ch]' -o -name '*.py' -o -name '*.pyi' -o -name meson.build 2>/dev/null)

# $(call setup,directory,options): the options hold whether or not the directory is new.
setup = if test -f $(1)/build.ninja; then meson configure $(1) $(2); else meson setup $(1) $(2); fi

# $(call meson-test,directory,options): names what was skipped, as pytest does.
meson-test = ninja --quiet -C $(1) && meson test -C $(1) --no-rebuild --print-errorlogs $(2) && \
	if grep -oE 'ok [0-9]+ - [^\"]*\# SKIP[^\"]*' $(1)/meson-logs/testlog.json; then \
		test -z "$$BECKET_NO_SKIP" || { echo 'BECKET_NO_SKIP is set: nothing may skip'; exit 1; }; fi

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help run test test-c test-python test-sanitize test-sanitize-c test-sanitize-python soak fuzz \
	bench bench-quick bench-prepare lint format install-c clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo 'Variables: PYTHON=$(PYTHON) PORT=$(PORT) PREFIX=$(PREFIX) WERROR=$(WERROR) ARGS=$(ARGS) \
		PROCESSES=$(PROCESSES) FUZZ_SECONDS=$(FUZZ_SECONDS)'

run: $(VENV)/.package $(VENV)/.extra-pyopenssl $(VENV)/.extra-tlslite ## Serve mail from PORT on: in plain, and under every TLS engine
	exec $(BIN)/becket demo --maildir Maildir --port $(PORT) --unix becket-smtp.sock

# -k: one failure does not hide the next.
test: ## Every test and check, from nothing; names what it had to leave out
	@tests/packages.sh
	@$(MAKE) -k --no-print-directory test-c test-python lint; status=$$?; \
	tests/packages.sh --report; \
	test $$status = 0 && echo 'make test: passed' || echo 'make test: FAILED, see above'; \
	exit $$status

test-c: $(VENV)/.build ## The C tests
	@$(call setup,build/c,-Dexamples=true -Dwerror=$(WERROR))
	@$(call meson-test,build/c)

test-python: $(VENV)/.package $(VENV)/.extra-test ## The Python tests, on the package as a user installs it
	$(BIN)/python -m pytest -n $(PROCESSES) $(ARGS)

# The interpreter is not built with sanitizers, so gcc's are loaded ahead of it, and PYTHONMALLOC
# lets them watch every object. It and other programs that the tests start leak at exit: a leak
# ends no process by itself, and tests/sanitizer.awk finds ours among the reports. UBSan writes to
# stderr only, hence --capture=sys. Leaks are found when a process exits, which those of pytest-xdist
# do not: PROCESSES of our own have a part of the tests each.
SANITIZE := build/sanitize-$(TAG)
SANITIZE_OPTIONS = -Db_sanitize=address,undefined -Db_lundef=false -Ddefault_library=static \
	-Dpython=enabled -Dpython.platlibdir=$(CURDIR)/$(SANITIZE)/site -Dwerror=$(WERROR)
SANITIZERS = $(shell for name in asan ubsan; do $${CC:-cc} -print-file-name=lib$$name.so; done)
SANITIZER_LOG = log_path=$(CURDIR)/$(SANITIZE)/reports/of:stack_trace_format='    \#%n %f %S (%m)'

test-sanitize: ## C and Python tests under ASan (with leaks) and UBSan
	@tests/packages.sh
	@$(MAKE) -k --no-print-directory test-sanitize-c test-sanitize-python

test-sanitize-c: $(VENV)/.build
	@$(call setup,$(SANITIZE),$(SANITIZE_OPTIONS))
	@export ASAN_OPTIONS=detect_leaks=1:halt_on_error=1; \
	export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1; \
	$(call meson-test,$(SANITIZE),--timeout-multiplier 4)

test-sanitize-python: $(VENV)/.package $(VENV)/.extra-test
	@$(call setup,$(SANITIZE),$(SANITIZE_OPTIONS)) && ninja --quiet -C $(SANITIZE)
	@meson install -C $(SANITIZE) --no-rebuild --quiet --tags runtime,python-runtime
	@rm -rf $(SANITIZE)/reports && mkdir $(SANITIZE)/reports
	seq $(PROCESSES) | xargs -I @ -P $(PROCESSES) env BECKET_SHARD=@/$(PROCESSES) \
		PYTHONPATH=$(CURDIR)/$(SANITIZE)/site PYTHONMALLOC=malloc LD_PRELOAD='$(SANITIZERS)' \
		ASAN_OPTIONS="detect_leaks=1:halt_on_error=1:$(SANITIZER_LOG)" LSAN_OPTIONS=exitcode=0 \
		UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
		$(BIN)/python -m pytest --capture=sys $(ARGS); status=$$?; \
	find $(SANITIZE)/reports -type f | xargs awk -f tests/sanitizer.awk && exit $$status

# clang alone has a library that thinks up inputs, and has it in a package of its own.
FUZZ_OPTIONS = -Dfuzz=true -Dtests=false -Ddefault_library=static -Db_lundef=false \
	-Db_sanitize=address,undefined -Dwerror=$(WERROR)

soak: $(VENV)/.package $(VENV)/.extra-twisted ## 200,000 connections, plain and TLS: nothing of them may stay behind
	$(BIN)/python tests/soak/soak.py $(ARGS)
	$(BIN)/python tests/soak/soak.py --kind streams $(ARGS)
	$(BIN)/python tests/soak/soak.py --tls $(ARGS)
	$(BIN)/python tests/soak/soak.py --kind twisted $(ARGS)
	$(BIN)/python tests/soak/soak.py --kind twisted --tls $(ARGS)

fuzz: $(VENV)/.build ## Fuzz TLS with clang, each target for FUZZ_SECONDS
	@tests/packages.sh fuzz
	@command -v clang >/dev/null || { echo 'make fuzz: clang is missing'; exit 1; }
	@ls "$$(clang -print-resource-dir)"/lib/*/libclang_rt.fuzzer* >/dev/null 2>&1 || \
		{ echo "make fuzz: clang's compiler-rt is missing, with libFuzzer in it"; exit 1; }
	@export CC=clang; $(call setup,build/fuzz,$(FUZZ_OPTIONS))
	@ninja --quiet -C build/fuzz
	@tests/fuzz/run.sh build/fuzz $(FUZZ_SECONDS)

bench: bench-prepare ## All benchmarks, with the peers that could be installed
	$(BIN)/python bench/run.py $(ARGS)

bench-quick: bench-prepare ## The same, shortened: to see that it works, not to quote
	$(BIN)/python bench/run.py --quick $(ARGS)

bench-prepare: $(VENV)/.package $(VENV)/.bench
	@tests/packages.sh bench
	@$(call setup,build/release,-Dbuildtype=release -Db_lto=true -Dtests=false -Dbench=true)
	@ninja --quiet -C build/release

lint: $(VENV)/.package $(VENV)/.extra-test ## ruff, mypy, and the extension's stubs held against it
	ruff check
	mypy
	$(BIN)/python -m mypy.stubtest becket._becket

format: $(VENV)/.extra-format ## Rewrite C and Python in the project's layout
	ruff format
	find include core python tests examples -name '*.[ch]' -exec clang-format -i {} +

install-c: $(VENV)/.build ## Install the C library and header under PREFIX (and DESTDIR)
	@$(call setup,build/install,-Dbuildtype=release -Dtests=false -Dprefix=$(abspath $(PREFIX)))
	meson install -C build/install

clean: ## Remove all that was built or fetched
	rm -rf build .venv .hypothesis .mypy_cache .pytest_cache .ruff_cache

# ---- What the targets stand on: each stamp in a .venv says that something is installed there.

$(VENV)/.build: pyproject.toml
	@echo 'Preparing $(VENV)'
	@test -x $(BIN)/python || { rm -rf build/*-$(TAG); $(PYTHON) -m venv $(VENV); }
	@$(REQUIREMENTS) build-system requires > $@.txt
	@$(PIP) -r $@.txt
	@touch $@

$(VENV)/.extra-%: pyproject.toml | $(VENV)/.build
	@echo "Fetching what '$*' needs"
	@$(REQUIREMENTS) project optional-dependencies $* > $@.txt
	@$(PIP) -r $@.txt
	@touch $@

# Peers are strangers: one that does not install is left out, and tried again the next time.
$(VENV)/.bench: bench/requirements.txt | $(VENV)/.build
	@echo 'Fetching the peers'
	@sed 's/#.*//' $< | grep '[^ ]' | { all=true; while read -r peer; do \
		$(PIP) "$$peer" || { all=false; echo "Left out: $$peer"; }; done; \
		$$all && touch $@ || true; }

# The build directory is kept, so that only what changed is compiled again.
$(VENV)/.package: $(SOURCES) | $(VENV)/.build
	@echo 'Building becket for Python $(TAG)'
	@$(PIP) --no-build-isolation --no-deps --force-reinstall \
		-Cbuild-dir=build/python-$(TAG) -Csetup-args=-Dwerror=$(WERROR) .
	@touch $@
