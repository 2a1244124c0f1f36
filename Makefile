# The commands of the repository. `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help bootstrap dev test torture crash-demo model check lint fmt bench docs docs-check docs-write kafka-jars-lock ci

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /|/' | awk -F'|' '{ printf "  make %-16s %s\n", $$1, $$2 }'

bootstrap: ## install what Cargo cannot bring (asks first; YES=1 does not)
	@.ci/bootstrap

dev: bootstrap ## run all of Millpond with real Kafka and Postgres (ARGS="--no-demo ...")
	cargo run -- dev $(ARGS)

# Tests wait more than they compute: for what a server does, and for what it must not do.
TEST_THREADS = $$((2 * $$(getconf _NPROCESSORS_ONLN)))

test: bootstrap ## run all tests (ARGS="name of a test")
	RUST_TEST_THREADS="$${RUST_TEST_THREADS:-$(TEST_THREADS)}" cargo test $(ARGS)

torture: bootstrap ## break everything around Millpond and judge what is left (ARGS="--scenario K1 --seed 7", ARGS=report)
	cargo test --profile torture $(if $(findstring plant,$(ARGS)),--features planted) --test torture -- $(or $(ARGS),--seed 1)

crash-demo: bootstrap ## watch Millpond lose three processes and Postgres under load, and nothing else; two to three minutes
	cargo test --quiet --test torture -- demo

model: bootstrap ## run the protocol without servers, with every planted bug (ARGS="--bug a")
	cargo test --test model -- $(or $(ARGS),long)

check: fmt-check lint ## what a commit must pass before its tests

fmt: ## format the code
	cargo fmt

.PHONY: fmt-check
fmt-check:
	cargo fmt --check

lint: ## clippy, every warning an error
	cargo clippy --all-targets -- -D warnings

bench: bootstrap ## measure beside the limits of this machine, 5 minutes after the build (ARGS="single bulk sink reads", price, --quick)
	cargo bench --locked --bench limits -- $(ARGS)

.PHONY: instructions
instructions: ## compare the instruction counts of the hot paths with the committed ones (ARGS=--accept)
	FOR_CI=1 .ci/bootstrap
	.ci/instructions $(ARGS)

docs: ## build the crate's documentation
	cargo doc --no-deps

docs-check: ## the documentation builds without a warning, and what is generated is up to date
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps
	cargo test --test it -- docs

docs-write: ## write the pages that are generated from the code
	UPDATE_DOCS=1 cargo test --test it -- docs

kafka-jars-lock: ## list the checksums of the Kafka jars that deploy/dev-servers/pom.xml names
	@jars="$$(mktemp -d)" && trap 'rm -rf "$$jars"' EXIT && \
	mvn --batch-mode -C -q -f deploy/dev-servers/pom.xml dependency:copy-dependencies -DincludeScope=runtime \
		-DoutputDirectory="$$jars" && \
	(cd "$$jars" && LC_ALL=C sha256sum *.jar) | LC_ALL=C sort -k2 > deploy/dev-servers/kafka-jars.sha256

ci: ## all that the build server runs
	.ci/run
