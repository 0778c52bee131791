.PHONY: setup check test lint format demo bench bench-cpu study study-table upstream downstream

# The environment of the launchers and the tests, in .venv.
setup:
	bash scripts/setup.sh

# Lint, and the tests that start no trainer and make no model: minutes.
check:
	bash scripts/test.sh -m "not e2e and not slow"

# Everything.
test:
	bash scripts/test.sh

lint:
	bash scripts/lint.sh

format: setup
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# verl's trainer with CW-GRPO on this machine's CPU.
demo:
	bash scripts/run_cw_grpo_cpu.sh scale=tiny

# Ratios to verl's own functions, in results/bench.csv and docs/performance.md.
bench: setup
	.venv/bin/python scripts/bench.py --page docs/performance.md

# The recipe as verl-recipe takes it, in a new directory: make upstream OUT=../verl/recipe/cw_grpo
upstream: setup
	.venv/bin/python scripts/upstream.py $(or $(OUT),$(error name the directory: make upstream OUT=...))

# The tests of the adapters with every supported release of verl, in results/downstream.csv and docs/upstream.md.
downstream: setup
	.venv/bin/python scripts/downstream.py --page docs/upstream.md

# What a first user of the CPU job waits for, as multiples of a matrix product.
bench-cpu: setup
	.venv/bin/python scripts/bench_cpu_job.py --home outputs

# The runs of docs/study.md that are missing, two at a time, for half a day; and what the finished ones show.
study: setup
	.venv/bin/python scripts/study.py run

study-table: setup
	.venv/bin/python scripts/study.py table --page docs/study.md
