#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The paper's run of DeepSeek-R1-Distill-Qwen-1.5B; by default on one machine of four GPUs, with method=cw_grpo.
#   bash scripts/run_cw_grpo_qwen1_5b.sh [method=...] [cluster=...] [any hydra override] [--fresh] [--run-dir DIR]
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_cw_grpo_gpu.sh" scale=qwen1_5b "$@"
