# SPDX-License-Identifier: Apache-2.0
"""A run's configuration: its method, its values by key, and the settings that may change when it resumes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cw_grpo.settings import ESTIMATOR, LOSSES

SETTINGS_FREE_TO_CHANGE = (
    # What the run writes, and from where it resumes.
    *(f"trainer.{key}" for key in ("resume_mode", "resume_from_path")),
    *(f"trainer.{key}" for key in ("save_freq", "max_actor_ckpt_to_keep", "max_critic_ckpt_to_keep")),
    *(f"trainer.{key}" for key in ("del_local_ckpt_after_load", "default_hdfs_dir", "esi_redundant_time")),
    *(f"trainer.{key}" for key in ("logger", "project_name", "experiment_name", "log_val_generations")),
    *(f"trainer.{key}" for key in ("rollout_data_dir", "validation_data_dir", "ray_wait_register_center_timeout")),
    *(f"algorithm.cw_grpo.{key}" for key in ("record", "record_every", "record_tokens")),
    "prepare.record",
    # What is checked before the start.
    "check_reward",
    # Validation.
    *(f"trainer.{key}" for key in ("test_freq", "val_before_train", "val_only")),
    *(f"data.{key}" for key in ("val_files", "val_batch_size", "val_max_samples")),
    "actor_rollout_ref.rollout.val_kwargs",
    # Resources: memory, processes and speed.
    *("launcher", "parallel", "ray_kwargs", "transfer_queue", "global_profiler", "reward.num_workers"),
    *(f"data.{key}" for key in ("filter_overlong_prompts_workers", "use_shm")),
    *(f"actor_rollout_ref.model.{key}" for key in ("enable_gradient_checkpointing", "enable_activation_offload")),
    "actor_rollout_ref.model.use_shm",
    *(
        f"actor_rollout_ref.{role}.{key}"
        for role in ("actor", "ref")
        for key in (
            *("ulysses_sequence_parallel_size", "use_torch_compile", "entropy_checkpointing", "profiler"),
            *("entropy_from_logits_with_chunking", "entropy_from_logits_chunk_size"),
            *(f"fsdp_config.{key}" for key in ("param_offload", "optimizer_offload", "offload_policy")),
            *(f"fsdp_config.{key}" for key in ("reshard_after_forward", "forward_prefetch", "use_torch_compile")),
            *(f"fsdp_config.{key}" for key in ("ulysses_sequence_parallel_size", "entropy_checkpointing")),
            *(f"megatron.{key}" for key in ("param_offload", "optimizer_offload")),
        )
    ),
    *(
        f"actor_rollout_ref.{role}.{key}"
        for role in ("ref", "rollout")
        for key in ("log_prob_micro_batch_size_per_gpu", "log_prob_use_dynamic_bsz", "log_prob_max_token_len_per_gpu")
    ),
    *(
        f"actor_rollout_ref.rollout.{key}"
        for key in (
            *("gpu_memory_utilization", "enforce_eager", "cudagraph_capture_sizes", "free_cache_engine"),
            *("max_num_batched_tokens", "max_num_seqs", "enable_chunked_prefill", "enable_prefix_caching"),
            *("tensor_model_parallel_size", "data_parallel_size", "layered_summon", "multi_stage_wake_up"),
            *("disable_log_stats", "agent.num_workers", "checkpoint_engine.update_weights_bucket_megabytes"),
        )
    ),
)
"""Settings that say how a run is executed, not what it trains: they may differ when it resumes from a checkpoint."""

MICRO_BATCH_SETTINGS = (
    "rows_per_micro_batch",
    *(
        f"actor_rollout_ref.actor.{key}"
        for key in ("ppo_micro_batch_size_per_gpu", "use_dynamic_bsz", "ppo_max_token_len_per_gpu")
    ),
)
"""Free to change as well, but with a loss that takes means over a micro-batch."""

LENGTH_SETTINGS = ("trainer.total_training_steps", "trainer.total_epochs")
"""How long the run is: free to change as well, but with a checkpoint if the learning rate depends on it."""

FIXED_BY_CHECKPOINT = ("data.dataloader_num_workers",)
"""Free to change until there is a checkpoint, which verl can load with the same value alone."""

MICRO_BATCH_LOSSES = ("clip_cov", "kl_cov", "cw_grpo_released")
"""Policy losses whose gradient depends on how a batch is cut."""


def is_free_to_change(key: str, config: Any, step: int = 0) -> bool:
    """Whether a setting may change when a run resumes, without another training.

    Args:
        key: the setting's.
        config: the job's, a config of OmegaConf.
        step: of the checkpoint; 0 if there is none.
    """
    if is_below(key, MICRO_BATCH_SETTINGS):
        return OmegaConf.select(config, "actor_rollout_ref.actor.policy_loss.loss_mode") not in MICRO_BATCH_LOSSES
    if key in (*FIXED_BY_CHECKPOINT, *LENGTH_SETTINGS) and step == 0:
        return True
    if key in LENGTH_SETTINGS:
        steps = select(config, "trainer.total_training_steps")
        return (key == "trainer.total_epochs" and steps is not None) or _rate_is_constant(config, step, steps)
    return is_below(key, SETTINGS_FREE_TO_CHANGE)


def _rate_is_constant(config: Any, step: int, steps: int | None) -> bool:
    """Whether the learning rate is the same from a step on, however long the run of so many steps becomes."""
    optim = select(config, "actor_rollout_ref.actor.optim") or {}
    # The first is the deprecated name of the second; the last is Megatron's.
    style = optim.get("warmup_style") or optim.get("lr_scheduler_type") or optim.get("lr_decay_style")
    if style != "constant":
        return False
    ratio = 0 if (optim.get("lr_warmup_steps") or 0) > 0 else optim.get("lr_warmup_steps_ratio") or 0
    return ratio == 0 or (steps is not None and step >= int(ratio * steps))


def read_config(run_dir: Path) -> DictConfig:
    """The configuration of a run, as it was composed.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read; names the file.
    """
    path = run_dir / "config.yaml"
    try:
        config = OmegaConf.load(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, DictConfig):
        raise ValueError(f"{path} is not a mapping")
    return config


def select(config: DictConfig, key: str) -> Any:
    """The value of a dotted key; None if there is none, or it refers to something that is not there."""
    try:
        return OmegaConf.select(config, key)
    except OmegaConfBaseException:
        return None


def method_of(config: DictConfig) -> str:
    """The method that a run's config asks for: as the recipe's group `method` calls it, else by verl's names.

    If a loss of CW-GRPO is set, the estimator's weights are not applied: the loss is the method.
    """
    loss = str(select(config, "actor_rollout_ref.actor.policy_loss.loss_mode") or "vanilla")
    if loss in LOSSES:
        return loss
    estimator = str(select(config, "algorithm.adv_estimator") or "grpo")
    mean = str(select(config, "algorithm.cw_grpo.log_prob_mean") or "response")
    if estimator == ESTIMATOR and mean != "response":
        estimator = f"{estimator}-{mean}"
    if estimator == ESTIMATOR and select(config, "algorithm.cw_grpo.centre"):
        estimator = f"{estimator}-centred"
    return "+".join(name for name in (estimator, loss) if name not in ("grpo", "vanilla")) or "grpo"


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a config by their dotted keys; an empty node is a value."""
    if not isinstance(config, dict) or not config:
        return {prefix: config}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def is_below(key: str, nodes: Iterable[str]) -> bool:
    """Whether a dotted key is one of the nodes or lies below one."""
    return any(key == node or key.startswith(f"{node}.") for node in nodes)
