#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# CW-GRPO on MATH with Qwen2.5-Math-7B-Instruct and four GPUs of 80 GB. Run it from verl's root:
#   python3 examples/data_preprocess/math_dataset.py --local_save_dir ~/data/math
#   bash recipe/cw_grpo/run_qwen2.5_math_7b_cw_grpo.sh [overrides]       method=grpo is the baseline
set -xeuo pipefail

data=${DATA:-$HOME/data/math}
export VERL_USE_EXTERNAL_MODULES=recipe.cw_grpo.register

python3 -m verl.trainer.main_ppo \
    --config-path="$PWD/recipe/cw_grpo/config" \
    --config-name=cw_grpo_trainer \
    +ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES="$VERL_USE_EXTERNAL_MODULES" \
    data.train_files="$data/train.parquet" \
    data.val_files="$data/test.parquet" \
    data.filter_overlong_prompts=True \
    reward.custom_reward_function.path=recipe/cw_grpo/reward.py \
    +reward.custom_reward_function.reward_kwargs.require_think=False \
    actor_rollout_ref.model.path="${MODEL_PATH:-Qwen/Qwen2.5-Math-7B-Instruct}" \
    actor_rollout_ref.actor.ulysses_sequence_parallel_size=4 \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.tensor_model_parallel_size=1 \
    actor_rollout_ref.rollout.gpu_memory_utilization=0.5 \
    trainer.logger='["console","file"]' \
    trainer.experiment_name=qwen2.5_math_7b_cw_grpo \
    trainer.n_gpus_per_node=4 \
    trainer.nnodes=1 "$@"
