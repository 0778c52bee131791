#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Licence lines, ruff, the directions of imports (import-linter) and types (mypy), as pyproject.toml sets them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
bash scripts/check_licence.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/lint-imports --no-logo
.venv/bin/mypy
