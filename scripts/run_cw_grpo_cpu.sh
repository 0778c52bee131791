#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# verl's own trainer with CW-GRPO on this machine's CPU, from nothing: environment, model, data, training.
#   bash scripts/run_cw_grpo_cpu.sh [method=...] [scale=smollm2|tiny] [any hydra override] [--fresh] [--run-dir DIR]
# The same command resumes from its last checkpoint. Models, data and runs are kept in outputs/, or in CW_GRPO_HOME.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export CW_GRPO_HOME=${CW_GRPO_HOME:-$root/outputs}

bash "$root/scripts/setup.sh"
"$root/.venv/bin/cw-grpo" doctor
exec "$root/.venv/bin/cw-grpo" train --config-path "$root/recipe/cw_grpo/config" cluster=cpu "$@"
