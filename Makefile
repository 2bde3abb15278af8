# The command surface. Each target works from a fresh clone: it makes .venv, installs the pinned tools, builds and runs.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
# A program of lab/, by its name.
LAB := PYTHONPATH=lab $(PY) -m
# A worker for each processor, which takes a file's tests together: they share what they set up.
PYTEST := $(PY) -m pytest --numprocesses auto --dist loadscope
NATIVE := python/guestclock/_core.abi3.so
RUST := $(shell find rust -name '*.rs' -o -name Cargo.toml) Cargo.toml Cargo.lock
# Where there is Python to check. Written out, so that a missing folder isn't passed over in silence.
PYTHON_CODE := python/guestclock tests examples benches lab tools
# What the legs of kvm-test left.
TRACES = $(or $(wildcard out/kvm/*/*.jsonl.gz),$(error there are no traces in out/kvm: make kvm-test leaves them))
ASV := cd benches && $(abspath $(PY)) -m asv
# Some benchmarks, by a pattern of their names.
BENCHMARKS = $(if $(ONLY),--bench '$(ONLY)')
# The one tool that isn't a Python package, in a folder of its version.
CARGO_MUTANTS := target/cargo-mutants-27.1.0
# It has QEMU stand still for 25 s: `make kvm-test` runs it, after all legs.
STOPPED := tests/test_stopped_machine.py
# Benchmarks of 64 vCPUs or 1000 timers, and those without a size.
SMALL := ^(?!.*\b(1|512|4096|65536|100000|1000000)\b)

# The first Python on PATH that is new enough; PYTHON=/path/to/python3 overrides it.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$python"; break; }; done)

# Each release build is one that could be shipped, linked by zig, where wheels are made: so none is built again after the
# tests. Elsewhere it is built as cargo would.
RELEASE = $(addprefix --zig --compatibility manylinux_2_17 --target ,\
	$(filter x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu,$(shell rustc --print host-tuple 2>/dev/null)))
# Its programs for those that look for them on PATH: pip for maturin, maturin for zig.
WITH_TOOLS := PATH="$(abspath $(BIN)):$$PATH"

# One interpreter for every cargo command, so that pyo3 isn't rebuilt when the caller's PATH changes.
export PYO3_PYTHON := $(abspath $(PY))
export PIP_DISABLE_PIP_VERSION_CHECK := 1

##@ Use it
.PHONY: demo
demo: $(NATIVE) ## A real guest's clock across a save and a restore, without guestclock and with; the picture goes to out/
	$(BIN)/guestclock demo

.PHONY: demo-linux
demo-linux: $(NATIVE) | cargo ## A real Linux guest on emulated KVM, saved and restored four ways, by its own account: out/linux-guest
	$(LAB) testbed wheel
	$(LAB) linux_guest --record docs/linux-guest-console.txt

.PHONY: doctor
doctor: $(NATIVE) ## What this host offers: counter, wall clock, KVM
	$(BIN)/guestclock doctor

.PHONY: wheel
wheel: $(VENV)/.tools | cargo ## The release wheel in dist/, for glibc 2.17 and newer; its stable ABI and that level checked, and an install
	rm -f dist/*_$(shell uname -m).whl
	$(WITH_TOOLS) $(PY) -m maturin build --release $(RELEASE) --out dist
	$(call checked,$(shell uname -m))

.PHONY: wheel-aarch64
wheel-aarch64: $(VENV)/.tools | cargo ## The same for arm64, cross-built on an x86 Debian machine, beside the other in dist/
	$(LAB) testbed wheel
	$(call checked,aarch64)

.PHONY: sdist
sdist: $(VENV)/.tools | cargo ## The sdist in dist/, seen to have all that is tracked
	rm -f dist/*.tar.gz
	$(PY) -m maturin sdist --out dist
	$(PY) tools/check_sdist.py dist/*.tar.gz

define checked
	$(PY) -m abi3audit --strict --verbose dist/*_$(1).whl
	$(PY) tools/check_wheel.py dist/*_$(1).whl
endef

.PHONY: setup
setup: $(NATIVE) ## Only makes .venv, with the tools and the release build in it

##@ Check it
.PHONY: test
test: test-rust test-python ## The tests, on the build that is shipped

.PHONY: test-rust
test-rust: $(VENV)/.tools | cargo ## The Rust crates' tests and doc tests; random cases of each law: 64, or CASES=n SEED=n
	PROPTEST_CASES=$(or $(CASES),64) $(if $(SEED),PROPTEST_RNG_SEED=$(SEED)) cargo test --workspace --exclude guestclock-python --locked

# In a folder of its own: the flag would have everything else built again. Optimising the whole costs more than it saves.
.PHONY: loom
loom: | cargo ## The live VM under every interleaving of up to three threads
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=$(or $(CARGO_TARGET_DIR),target)/loom \
		CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
		cargo test --package guestclock-core --package guestclock-model --release --test loom --test vmclock --locked

.PHONY: test-python
test-python: $(NATIVE) ## The Python suite
	$(PYTEST) --ignore=$(STOPPED)

# Installed into a folder of its own: the native module's file has one name, with Linux and without.
PORTABLE := target/portable
MODEL := atomicity backends catch_up checkpoint clock_bank counters deadline_queue elapsed evidence faults files fleet format \
	inspect interchange lifecycle mistakes model observed refusals release_at restore scaled snapshots testing timers_after \
	trace verify without_linux
.PHONY: test-portable
test-portable: $(NATIVE) | cargo ## The model's tests on the build that other systems than Linux have; or TESTS="files"
	rm -rf $(PORTABLE)
	$(WITH_TOOLS) $(PY) -m maturin build --quiet --release --no-default-features $(RELEASE) --out $(PORTABLE)/dist
	$(PY) -m pip install --quiet --no-deps --target $(PORTABLE)/site $(PORTABLE)/dist/*.whl
	export PYTHONPATH=$(abspath $(PORTABLE)/site); $(PY) -c "from guestclock._core import _LINUX; assert not _LINUX"; \
		$(PYTEST) $(or $(TESTS),$(MODEL:%=tests/test_%.py))

.PHONY: kvm-test
kvm-test: $(if $(LEGS)$(SHORT),$(VENV)/.tools,$(NATIVE)) | cargo ## Real KVM, on kernels booted here: all legs, LEGS="6.12 nested", or SHORT=1 (lab/README.md)
	$(LAB) testbed test $(LEGS) $(if $(SEED),--seed $(SEED)) $(if $(SHORT),--short)
	$(if $(LEGS)$(SHORT),,$(PY) -m pytest $(STOPPED))

.PHONY: kvm-fetch
kvm-fetch: $(VENV)/.tools | cargo ## Only fetches what kvm-test needs: for all legs, or LEGS="6.12 nested"
	$(LAB) testbed fetch $(LEGS)

.PHONY: migrate-test
migrate-test: $(NATIVE) | cargo ## A Linux guest between two emulated hosts, 20 times, and over a host's restart: out/migration; or ROUNDS=n
	$(LAB) testbed wheel
	$(LAB) linux_guest.migration --rounds $(or $(ROUNDS),10)

.PHONY: guest-probe
guest-probe: $(VENV)/.tools ## The static arm64 program that tells a Linux guest's clocks, into dist/ (docs/linux-guest.md)
	$(LAB) testbed probe

.PHONY: kvm-repeat
kvm-repeat: $(VENV)/.tools ## Counted instructions: one seed, two machines, the same trace byte for byte (lab/README.md)
	for run in 1 2; do $(LAB) testbed boot 6.12 --icount --out out/kvm/repeat-$$run -- \
		env PYTHONPATH=lab:examples python3 -m differential take repeated --seed $(or $(SEED),1) --sequences 40; done
	cmp out/kvm/repeat-1/repeated.jsonl.gz out/kvm/repeat-2/repeated.jsonl.gz && echo "the same bytes"

.PHONY: kvm-replay
kvm-replay: $(NATIVE) ## Judges the traces of kvm-test again, by the model as it is here: all, or TRACE=file
	$(LAB) differential replay $(or $(TRACE),$(TRACES))

.PHONY: kvm-mutants
kvm-mutants: $(VENV)/.tools | cargo ## Plants wrong rules in copies of the tree: the traces of kvm-test have to contradict each
	$(LAB) mutants --traces $(or $(TRACE),$(TRACES))

# In two rounds: the core's quickest tests by themselves, and what they miss, by all of its tests and the model's. In a copy
# of the tree, so that a run that is killed leaves no wrong rule behind; cp gives the files new times, so that nothing
# built of one passes for built of this tree. The same inputs in each run, no search for smaller ones, and none kept, so
# that a wrong rule is judged by the tests alone, and not by what they found of another.
MUTATE = CARGO_TARGET_DIR=$(abspath target/mutated/target) \
	PROPTEST_RNG_SEED=1 PROPTEST_MAX_SHRINK_ITERS=0 PROPTEST_DISABLE_FAILURE_PERSISTENCE=1 \
	$(CARGO_MUTANTS)/bin/cargo-mutants mutants --dir target/mutated/tree --in-place --output out/mutants \
	$(if $(ONLY),$(addprefix --file ,$(or $(wildcard $(ONLY)),$(error there is no $(ONLY)))))
FIRST_ROUND := --lib --test=advice --test=arch --test=plan --test=time --test=traps
SECOND_ROUND := --lib --tests --package=guestclock-model
.PHONY: mutants
mutants: $(CARGO_MUTANTS)/bin/cargo-mutants ## Plants wrong rules in the core, which its tests and the model's have to catch: an hour, or SHARD=0/8 ONLY=file
	rm -rf target/mutated/tree out/mutants && mkdir -p target/mutated/tree/lab/fuzz out/mutants
	cp -r Cargo.toml Cargo.lock .cargo rust tests docs target/mutated/tree
	cp -r lab/fuzz/corpus target/mutated/tree/lab/fuzz
	$(MUTATE) $(if $(SHARD),--shard $(SHARD)) $(addprefix --cargo-arg=,$(FIRST_ROUND)) || [[ $$? == [23] ]]
	cd out/mutants && cat mutants.out/{missed,timeout}.txt >left.txt
	@if [[ -s out/mutants/left.txt ]]; then echo "Once more, by all tests:"; \
		$(MUTATE) --list | grep -vxFf out/mutants/left.txt >out/mutants/mutants.out/previously_caught.txt || true; \
		$(MUTATE) --iterate $(addprefix --cargo-arg=,$(SECOND_ROUND)); fi

.PHONY: study
study: $(NATIVE) ## 200 000 simulated migrations and every corner, lying hosts too: no error exceeds its bound (docs/study.md); or SEED=n
	$(LAB) study --seed $(or $(SEED),1) --plot out/guestclock-study.svg

.PHONY: streams
streams: $(NATIVE) ## A migration stream of a real QEMU as QEMU prints it, and its guest's log: tests/golden/snapshots
	$(LAB) streams

.PHONY: accuracy
accuracy: wheel-aarch64 ## Where a guest's clock is after a restore, as it reads it itself: the table in out/accuracy.md
	$(LAB) accuracy

.PHONY: kvm-boot
kvm-boot: $(VENV)/.tools ## One command in one such machine: make kvm-boot LEG=6.12 COMMAND="guestclock doctor"
	@$(LAB) testbed boot $(or $(LEG),6.12) -- sh -c '$(or $(COMMAND),guestclock doctor)'

# With the compiler's own coverage counters, which any toolchain has; --target keeps them out of build scripts. An input that
# breaks a rule stays in out/fuzz: make fuzz ONLY=out/fuzz/crash-… runs it again.
FUZZ := env CARGO_TARGET_DIR=$(or $(CARGO_TARGET_DIR),target)/fuzz RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module \
	-Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
	-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1" \
	cargo run --manifest-path lab/fuzz/Cargo.toml --release --locked --target $$(rustc --print host-tuple) \
	--bin checkpoint --

.PHONY: fuzz
fuzz: | cargo ## Hostile bytes for the checkpoint reader and a restore, led by the code they reach: a million, or RUNS=n SEED=n ONLY=file
	mkdir -p out/fuzz/corpus
	$(FUZZ) $(or $(ONLY),-runs=$(or $(RUNS),1000000) -seed=$(or $(SEED),1) -max_len=4096 -artifact_prefix=out/fuzz/ \
		-print_final_stats=1 out/fuzz/corpus lab/fuzz/corpus/checkpoint tests/golden)

# The fuzzer's neighbours, which nothing leads: without coverage counters, and with each check of a debug build.
BLIND := env CARGO_TARGET_DIR=$(or $(CARGO_TARGET_DIR),target)/blind \
	cargo run --manifest-path lab/fuzz/Cargo.toml --release --locked --bin

.PHONY: damage
damage: | cargo ## Checkpoint files damaged at random, against the fuzzer's rules: a million, or RUNS=n SEED=n
	$(BLIND) damage -- $(or $(RUNS),1000000) $(or $(SEED),1)

.PHONY: reads
reads: | cargo ## Reads of a VM without a lock, beside a thread that moves its counters: a hundred million, or RUNS=n SEED=n
	$(BLIND) reads -- $(or $(RUNS),100000000) $(or $(SEED),1)

.PHONY: deep-test
deep-test: loom deep-model mutants ## The slow tests: every interleaving; the model against the reference from a fresh seed, or SEED=n; make mutants

.PHONY: deep-model
deep-model: $(NATIVE)
	@seed=$${SEED:-$$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}; echo "To repeat it: make deep-model SEED=$$seed"; \
	GUESTCLOCK_EXAMPLES=$(EXAMPLES) $(PYTEST) tests/test_model.py --hypothesis-profile=deep --hypothesis-seed=$$seed --timeout=1800

.PHONY: lint
lint: $(VENV)/.tools | cargo ## rustfmt, clippy pedantic, the core without std, ruff, doc sentences, whether the mutants still apply
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo clippy --package guestclock-core --no-default-features --locked -- -D warnings
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	cargo fmt --manifest-path lab/fuzz/Cargo.toml --check
	$(PY) tools/sentences.py
	$(LAB) mutants --check

.PHONY: deep-lint
deep-lint: lint ## And clippy on what is built by itself: the binding without Linux, loom tests, the fuzzer, and all as it is on arm64
	cargo clippy --package guestclock-python --no-default-features --locked -- -D warnings
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=$(or $(CARGO_TARGET_DIR),target)/loom \
		cargo clippy --package guestclock-core --package guestclock-model --test loom --test vmclock --locked -- -D warnings -A clippy::must_use_candidate
	CARGO_TARGET_DIR=$(or $(CARGO_TARGET_DIR),target)/fuzz cargo clippy --manifest-path lab/fuzz/Cargo.toml --locked -- -D warnings
	$(LAB) testbed lint

.PHONY: types
types: $(NATIVE) ## mypy strict, and the native module against its stub, docstrings too
	$(PY) -m mypy $(PYTHON_CODE)
	$(PY) -m mypy.stubtest guestclock._core --mypy-config-file pyproject.toml --allowlist tests/stubtest-allowlist.txt
	$(PY) tools/stub_docs.py

.PHONY: site
site: $(NATIVE) ## The documentation as web pages in out/site, built offline; a warning is an error
	$(PY) -m sphinx --fail-on-warning --keep-going --quiet --jobs auto docs out/site

.PHONY: docs
docs: site ## The site and the Rust docs. Examples, codes and links are tests: make test
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

.PHONY: ci
ci: ## All that CI runs
	.ci/run

##@ Measure it
.PHONY: bench
bench: $(NATIVE) ## Every target of the costs, as ratios of one run: all, or ONLY=text ISA=avx2 WRITE=file
	$(PY) benches/ratios.py $(if $(ONLY),--only "$(ONLY)") $(if $(ISA),--isa $(ISA)) $(if $(WRITE),--write $(WRITE))

# What a changed tree takes is stored under no commit.
.PHONY: bench-asv
bench-asv: $(NATIVE) ## The asv suite against this build, stored under its commit and published: all, or ONLY=pattern
	$(ASV) machine --yes
	$(ASV) run --python=same --show-stderr $(BENCHMARKS) \
		$$(git diff --quiet HEAD && echo --set-commit-hash $$(git rev-parse HEAD) || echo --dry-run)
	$(ASV) publish

# Each commit of the branch itself, which alone asv publishes, is built in an environment of asv's own. What cargo made for
# one serves the next, as asv empties its tree.
.PHONY: bench-track
bench-track: $(VENV)/.tools | cargo ## The asv suite across commits, each built for release; stored, published, compared: RANGE=A..B, all or ONLY=pattern
	@[[ "$(RANGE)" == ?*..?* ]] || { echo "name two commits: make bench-track RANGE=main~5..main" >&2; exit 1; }
	$(ASV) machine --yes
	(git rev-parse $(firstword $(subst .., ,$(RANGE))); git rev-list --reverse --first-parent $(RANGE)) | \
		(export CARGO_TARGET_DIR=$(abspath benches/.asv/target); $(ASV) run --show-stderr $(BENCHMARKS) HASHFILE:-)
	$(ASV) publish
	$(ASV) compare $(subst .., ,$(RANGE))
	@echo "The pages: $(abspath benches/.asv/html/index.html) (asv preview serves them, and a browser takes their scripts from the internet)"

.PHONY: bench-smoke
bench-smoke: $(NATIVE) ## Proves that the benchmarks run; judges nothing
	$(ASV) machine --yes >/dev/null
	$(ASV) run --python=same --quick --dry-run --show-stderr --bench '$(SMALL)'
	$(PY) benches/ratios.py --quick

.PHONY: instructions
instructions: $(VENV)/.tools | cargo ## Counts what the core's hot paths execute: more than 2 % off benches/instructions.json fails, as another compiler does
	$(PY) tools/instructions.py

##@ Keep it
.PHONY: fmt
fmt: $(VENV)/.tools | cargo ## Formats Rust and Python
	cargo fmt --all
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

.PHONY: instructions-update
instructions-update: $(VENV)/.tools | cargo ## Renews benches/instructions.json, after a change that is meant, or with a new compiler
	$(PY) tools/instructions.py --update

.PHONY: payload
payload: $(VENV)/.tools ## Assembles the bare-metal guest again, after a change of its source
	$(PY) tools/assemble_payload.py

.PHONY: nightly
nightly: $(NATIVE) ## What is too long for a submission: all kernels, the study, the fuzzers, every benchmark; out/nightly/result.json; or ONLY="fuzz study", or PERCENT=2
	$(LAB) nightly $(if $(ONLY),--only $(ONLY)) $(if $(PERCENT),--percent $(PERCENT))

.PHONY: pins
pins: | $(VENV)/.made ## Renews the tools' versions in requirements-dev.txt from pyproject.toml
	$(PY) -m pip install --quiet uv
	$(PY) -m uv pip compile pyproject.toml --quiet --upgrade --group dev --extra demo --universal --python-version 3.11 \
		--no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command "make pins" -o requirements-dev.txt

.PHONY: clean
clean: ## Removes whatever these targets made
	rm -rf $(VENV) dist out target benches/.asv $(NATIVE) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find python tests benches examples lab tools -name __pycache__ -prune -exec rm -rf {} +
	@-PYTHONPATH=lab $(or $(PYTHON),python3) -m testbed cache

.PHONY: help
help: ## This list
	@awk 'BEGIN { FS = ":.*## "; print "make TARGET, from a fresh clone, with nothing set up by hand:" } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  %-19s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# What the targets stand on: real files, so that nothing is done twice.
$(VENV)/.made: | cargo
	@test -n "$(PYTHON)" || { echo "guestclock needs Python 3.11 or newer, and there is none on PATH." \
		"Name one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) can't make virtual environments." \
		"On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	"$(PYTHON)" -m venv --clear $(VENV)
	@touch $@

$(CARGO_MUTANTS)/bin/cargo-mutants: | cargo
	cargo install cargo-mutants --version $(lastword $(subst -, ,$(CARGO_MUTANTS))) --locked --root $(CARGO_MUTANTS)

$(VENV)/.tools: requirements-dev.txt | $(VENV)/.made
	$(PY) -m pip install --quiet --requirement requirements-dev.txt
	@touch $@

# An editable install: Python code runs from the work tree, and only a change in the Rust code or the metadata builds again.
$(NATIVE): $(RUST) pyproject.toml $(VENV)/.tools | cargo
	@echo "Building the native module (release, link-time optimised): the first time takes a minute."
	$(WITH_TOOLS) $(PY) -m pip install --quiet --no-build-isolation --no-deps \
		--config-settings build-args="$(RELEASE)" --editable .
	@touch $@

.PHONY: cargo
cargo:
	@command -v cargo >/dev/null || { echo "guestclock is built with Rust, and there is no cargo on PATH." \
		"Install the toolchain (rustup, or your distribution's packages), 1.95 or newer." >&2; exit 1; }
