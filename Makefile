# make serve    [ARGS="--port 9000"]   set up what is missing, start the server
# make test     [ARGS="-k stream"]     set up what is missing, run the tests
# make loadtest [ARGS="--help"]        locust: users of every kind against a server
# make bench    [ARGS="--help"]        softserve beside vLLM's own server
# make check                           ruff, mypy, the import rules, and, where npm is, the playground's types
.PHONY: serve test loadtest bench check format lock clean

serve:
	@scripts/install.sh serve
	@exec .venv/bin/softserve serve $(ARGS)

test:
	@scripts/install.sh test
	.venv/bin/pytest -n 2 $(ARGS)

loadtest:
	@scripts/install.sh loadtest
	.venv/bin/python -m loadtest $(ARGS)

bench:
	@scripts/install.sh loadtest
	.venv/bin/python -m loadtest.bench $(ARGS)

check:
	@scripts/install.sh test
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
	scripts/playground/check.sh

format:
	.venv/bin/ruff check --fix
	.venv/bin/ruff format
	scripts/playground/check.sh format

lock:
	scripts/lock.sh

clean:
	rm -rf .venv
