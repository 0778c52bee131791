#!/usr/bin/env bash
# Makes what the tests need and runs them all, lint included. Arguments go to pytest: bash scripts/test.sh -m "not e2e"
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
bash scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest "$@"
