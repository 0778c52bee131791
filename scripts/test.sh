#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Lint and all tests. Arguments go to pytest: bash scripts/test.sh -m "not e2e and not slow" is `make check`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/lint.sh
# Two at a time, because verl's processes start one after the other; -n 0 for one. Each with one thread, as a job has.
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder "$@"
