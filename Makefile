# Everything that the project can be asked to do. `make demo` and `make test` need nothing but Python.
PYTHON ?= python3
BIN := .venv/bin
export PYTHON

.PHONY: help docs sbom setup demo test test-gpu test-engines test-slow test-tutorial test-release test-ray clients test-clients test-image screenshots check format bench-serve bench-train compare lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## make .venv from the lock files; does nothing when it is up to date
	@requirements/setup.sh

demo: setup  ## train the demo bundle if it is missing and serve it; ONCE=1 evaluates it and ends
	@$(BIN)/meet demo $(if $(ONCE),--once)

test: setup  ## every test that needs no GPU and is not long
	@$(BIN)/python -m pytest

test-gpu: setup  ## the tests that need a CUDA device
	@$(BIN)/python -m pytest -m gpu

test-engines: setup  ## the server's tests on each release of the engine; ENGINES="0.31.0" runs some
	@requirements/engines.sh

test-slow: setup  ## the long tests
	@$(BIN)/python -m pytest -m slow

test-tutorial: setup  ## docs/TUTORIAL.md word for word in a fresh clone, with the seconds of each step; wants port 8000
	@$(BIN)/python -m pytest -m slow tests/end_to_end/test_tutorial.py -s -q

test-release: setup  ## install the wheels with each extra into fresh environments; wants a package registry
	@$(BIN)/python -m pytest -m slow tests/test_release.py

test-ray: setup  ## two replicas under Ray Serve; installs Ray into .clients/ray
	@requirements/ray.sh

clients:  ## install the clients of examples/clients, and build the TypeScript client and the page
	@requirements/clients.sh

CLIENT_TESTS := tests/server/test_client_examples.py tests/server/test_typescript_client.py tests/server/test_page.py \
	tests/server/test_playground.py tests/server/test_chat_page.py

test-clients: setup clients  ## every client and the page against the real server; fails without node 20 or a chromium
	@MEET_REQUIRE_CLIENTS=1 $(BIN)/python -m pytest $(CLIENT_TESTS)

test-image:  ## build the image and ask it, with buildah on a base of Debian's packages; root. BUNDLE=FOLDER
	@deploy/build_here.sh cpu
	@deploy/try_image.sh $(or $(BUNDLE),bundles/demo) localhost/meet:cpu

screenshots: setup  ## the page's pictures in docs/images, of the demo that is served at URL (localhost:8000)
	@$(BIN)/python requirements/screenshots.py $(URL)

docs: setup  ## the documentation into build/site, its reference anew from the code
	@$(BIN)/python requirements/docs_reference.py
	@[ -x .clients/docs/bin/mkdocs ] || $(PYTHON) -m venv .clients/docs
	@.clients/docs/bin/python -m pip --disable-pip-version-check install -qq --no-deps --require-hashes -r requirements/docs.lock
	@NO_MKDOCS_2_WARNING=1 .clients/docs/bin/mkdocs build --quiet --strict

sbom: setup  ## what .venv holds, as a CycloneDX bill of materials: build/meet.cdx.json
	@[ -x .clients/sbom/bin/python ] || $(PYTHON) -m venv .clients/sbom
	@.clients/sbom/bin/python -m pip --disable-pip-version-check install -qq --no-deps --require-hashes -r requirements/sbom.lock
	@mkdir -p build && .clients/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
		--output-file build/meet.cdx.json $(BIN)/python

check: setup  ## format, lint, types, import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup  ## format and mend what can be mended
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench-serve: setup  ## what control costs, as ratios; JSON=FILE writes the figures
	@$(BIN)/python tests/benchmarks/bench_serve.py $(if $(JSON),--json $(JSON)); served=$$?; \
	$(BIN)/python tests/benchmarks/bench_lora.py $(if $(JSON),--json $(JSON:.json=.lora.json)) && exit $$served

bench-train: setup  ## stage 1 beside TRL's SFTTrainer: speed, memory, loss; JSON=FILE writes the figures
	@$(BIN)/python tests/benchmarks/bench_train.py $(if $(JSON),--json $(JSON))

compare: setup  ## MEET beside its rivals on one budget, hours; goes on where it stood. CONFIG=FILE, JSON=FILE
	@$(BIN)/meet compare $(or $(CONFIG),examples/compare/demo.yaml) $(if $(JSON),--json $(JSON))

lock:  ## make the lock files anew (needs uv)
	@requirements/lock.sh

clean:  ## remove .venv and caches
	@rm -rf .venv .clients .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
