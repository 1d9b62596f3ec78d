# make demo   installs what is missing, builds for a first look, and shows a whole cluster serving agents
# make build  builds what is to be used and measured: optimised
# make test   the test command: everything that CI runs
# make clients runs the official SDKs and hostile requests against a fresh server (needs python3 with venv)
# All of them install the system packages they need (with apt-get, as root or through sudo) and say so.
SHELL := /bin/bash
ENV := source .ci/env
.PHONY: demo test build setup lint clients
setup:
	@bash .ci/setup
build: setup
	@$(ENV) && cargo build --release --locked -p mainstay -p mainstay-native
demo: setup
	@$(ENV) && cargo build --locked -p mainstay
	@$(ENV) && "$$CARGO_TARGET_DIR/debug/mainstay" demo
test: setup
	@bash .ci/test
clients: build
	@bash .ci/clients
lint: setup
	@$(ENV) && cargo fmt --all --check && cargo clippy --release --locked --workspace --all-targets -- -D warnings
