#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A job of the recipe on GPUs, in the Python environment that is active; see docs/gpus.md.
#   bash scripts/run_cw_grpo_gpu.sh scale=... [method=...] [cluster=1gpu|1node|1node_h200|1node8] [any override]
#   NNODES=4 bash scripts/run_cw_grpo_gpu.sh scale=... cluster=nnodes      in a Ray cluster that runs already
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export CW_GRPO_HOME=${CW_GRPO_HOME:-$root/outputs}
if ! command -v cw-grpo >/dev/null; then
    echo "error: cw-grpo is not installed in this environment: pip install \"$root[vllm]\"" >&2
    exit 2
fi

case " $* " in
    *" cluster=nnodes "*) cw-grpo doctor --address auto ;;
    *) cw-grpo doctor ;;
esac
exec cw-grpo train --config-path "$root/recipe/cw_grpo/config" cluster=1node "$@"
