# Needs a Rust toolchain; everything else that is missing is a Debian package, installed by the first step when root.

SHELL := /bin/bash
.DEFAULT_GOAL := build
.PHONY: build test demo bench setup

# What must be there, and the package that brings it.
NEEDS := cc:gcc ld:binutils ip:iproute2 unshare:util-linux bash:bash hostname:hostname ldd:libc-bin
# Programs that the tests run as jobs.
NEEDS += make:make sqlite3:sqlite3 redis-server:redis-server redis-cli:redis-tools vim:vim tmux:tmux go:golang-go
FILES := /usr/bin/python3:python3 \
         /usr/lib/python3/dist-packages/numpy:python3-numpy \
         /usr/include/seccomp.h:libseccomp-dev \
         /usr/include/stdio.h:libc6-dev \
         /usr/share/common-licenses/GPL-3:base-files

build: setup
	cargo build --workspace

# Tests wait more than they compute, so more of them than CPUs run at a time.
THREADS := $(shell echo $$(( $$(nproc) * 2 )))

# The matrix comes first, with its table; the last lines are the runner's summary of everything else.
test: setup
	@status=0; run() { echo "$$*"; "$$@" || status=1; }; \
	if cargo nextest --version >/dev/null 2>&1; then \
	  run cargo test --test matrix -- --test-threads $(THREADS); \
	  run cargo nextest run --workspace --no-fail-fast --test-threads $(THREADS) -E 'not binary(matrix)'; \
	else run cargo test --workspace --no-fail-fast; fi; exit $$status

demo: build
	@cargo test --quiet --no-run --test demo
	cargo test --quiet --test demo -- story

bench: setup
	cargo bench --bench cost

setup:
	@command -v cargo >/dev/null || { echo "A Rust toolchain is needed: cargo is not in PATH." >&2; exit 1; }
	@missing=(); \
	for need in $(NEEDS); do command -v "$${need%%:*}" >/dev/null || missing+=("$${need##*:}"); done; \
	for need in $(FILES); do [ -e "$${need%%:*}" ] || missing+=("$${need##*:}"); done; \
	[ "$${#missing[@]}" -eq 0 ] && exit 0; \
	if [ "$$(id -u)" -ne 0 ]; then echo "Please install as root: apt-get install $${missing[*]}" >&2; exit 1; fi; \
	install="apt-get install -y --no-install-recommends $${missing[*]}"; echo "$$install"; \
	export DEBIAN_FRONTEND=noninteractive; \
	$$install || { echo "apt-get update"; apt-get update && $$install; }
