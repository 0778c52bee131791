#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Whether everything that a job needs of a GPU works here: a result per step in outputs/gpu_check, and a table.
#   bash scripts/gpu_check.sh [--again] [--rehearse] [--out DIR] [STEP...]      in the Python environment that is active
# The same command repeats only the steps that have not passed. Without a GPU, those that need one say so;
# --rehearse runs them on the CPU, where vLLM is installed (bash scripts/setup.sh vllm).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export CW_GRPO_HOME=${CW_GRPO_HOME:-$root/outputs}
if ! (cd / && python3 -c 'import cw_grpo') 2>/dev/null; then  # not this directory's
    echo "error: cw-grpo is not installed in this environment ($(command -v python3)): pip install \"$root[vllm]\"" >&2
    exit 2
fi
exec python3 "$root/scripts/gpu_check.py" "$@"
