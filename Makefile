# What a developer types; `make` alone lists it.

SHELL := /bin/bash
.DEFAULT_GOAL := help
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/local/sbin:/usr/sbin:/sbin

.PHONY: help demo test lint bench bench-load build docs

help: ## Lists the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: ## Shows everything working on this machine; ONCE=1 prints what was metered and stops
	@scripts/setup
	cargo build --release --locked --bin tollgate
	@cargo run --release --locked --quiet --bin tollgate -- demo $(if $(ONCE),--once)

test: ## Runs every test, against a real Postgres, a real nginx, real SDK clients and a real browser
	@scripts/setup --with-nginx --with-sdk --with-browser
	scripts/test

lint: ## Formatting, clippy, documentation, licences: as CI does
	@scripts/setup --with-lint
	cargo fmt --all --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
	@# The fuzz targets, with the gateway's own versions; linking them takes a nightly compiler and C++.
	cp Cargo.lock fuzz/Cargo.lock
	cargo check --manifest-path fuzz/Cargo.toml --target-dir target --no-default-features --bins
	cargo deny --locked check licenses bans sources

bench: ## Every benchmark: micro, and the load run
	@scripts/setup --with-bench
	cargo bench --locked --benches

bench-load: ## Requests/s, latency, CPU and memory per request and stream, against nginx (Linux); ARGS="--seconds 2"
	@scripts/setup --with-bench
	cargo bench --locked --bench load -- $(ARGS)

docs: ## Writes the tables of docs/formats.md and docs/exactness.md anew
	WRITE_DOCS=1 cargo test --locked --lib cli::formats
	WRITE_DOCS=1 cargo test --locked --test it exactness

build: ## The release binary, target/release/tollgate
	@scripts/setup
	cargo build --release --locked --bin tollgate
