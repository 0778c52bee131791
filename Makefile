.PHONY: setup test lint format demo bench

# The environment of the launchers and the tests, in .venv.
setup:
	bash scripts/setup.sh

test:
	bash scripts/test.sh

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

format: setup
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# verl's trainer with CW-GRPO on this machine's CPU.
demo:
	bash scripts/run_cw_grpo_cpu.sh scale=tiny

# Ratios to verl's own functions, in results/bench.csv and docs/performance.md.
bench: setup
	.venv/bin/python scripts/bench.py --page docs/performance.md
