#!/usr/bin/env bash
# Lint and all tests. Arguments go to pytest: bash scripts/test.sh -m "not e2e and not slow" is `make check`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/lint.sh
exec .venv/bin/python -m pytest "$@"
