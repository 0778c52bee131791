#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# verl's own trainer with CW-GRPO on this machine's CPU, from nothing: environment, model, data, training.
#   bash scripts/run_cw_grpo_cpu.sh [method=...] [scale=smollm2|tiny] [any hydra override] [--fresh] [--run-dir DIR]
#   bash scripts/run_cw_grpo_cpu.sh compare [scale=...] [any hydra override] [--fresh]   grpo, cw_grpo, a report of both
# cluster=cpu_vllm: vLLM answers, in its build for CPUs and an environment of its own.
# The same command resumes from its last checkpoint. Models, data and runs are kept in outputs/, in CW_GRPO_HOME, or in
# --home DIR.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export CW_GRPO_HOME=${CW_GRPO_HOME:-$root/outputs}

environment=
for argument in "$@"; do
    case $argument in
        cluster=cpu_vllm) environment=vllm ;;
        cluster=*) environment= ;;
    esac
done
venv=$root/.venv${environment:+-$environment}
bash "$root/scripts/setup.sh" ${environment:+"$environment"}
# Once for what is installed: its directory changes with each package.
checked=$venv/.cw_grpo_checked
installed=$(echo "$venv"/lib/python3.*/site-packages)
if [ ! "$checked" -nt "$installed" ]; then
    "$venv/bin/cw-grpo" doctor
    touch "$checked"
fi

train=("$venv/bin/cw-grpo" train --config-path "$root/recipe/cw_grpo/config" cluster=cpu)
if [ "${1-}" != compare ]; then
    exec "${train[@]}" "$@"
fi
shift
scale=smollm2 home=$CW_GRPO_HOME previous=
for argument in "$@"; do
    case $argument in
        scale=*) scale=${argument#scale=} ;;
        --home=*) home=${argument#--home=} ;;
        method=*) echo "error: compare sets method itself" >&2; exit 2 ;;
        --run-dir*) echo "error: compare sets --run-dir itself: for other directories give --home DIR" >&2; exit 2 ;;
    esac
    if [ "$previous" = --home ]; then home=$argument; fi
    previous=$argument
done
runs=${home/#\~\//$HOME/}/runs
for method in grpo cw_grpo; do
    echo "compare: $method"
    "${train[@]}" "$@" "method=$method"
done
report=$runs/$scale-compare
"$venv/bin/cw-grpo" report "$runs/$scale-grpo" "$runs/$scale-cw_grpo" --out "$report"
echo "picture: $report/entropy_reward.png"
