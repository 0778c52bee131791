#!/usr/bin/env bash
# ruff, the directions of imports (import-linter) and types (mypy), as pyproject.toml sets them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/lint-imports --no-logo
.venv/bin/mypy
