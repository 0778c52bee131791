"""Reading what a run wrote: the files of verl's `file` and `tensorboard` loggers.

A run of `cw-grpo train` that was resumed has one metrics file per attempt in ``<run-dir>/metrics``.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from cw_grpo.settings import ESTIMATOR, LOSSES

METRICS_FOLDER = "metrics"

TRACKER = "latest_checkpointed_iteration.txt"
"""verl's note of the last checkpoint, beside the checkpoints."""

TRAINED = "training/global_step"
"""A metric of every training step; a validation before training has none."""


SETTINGS_FREE_TO_CHANGE = (
    # How long the run is, what it writes, and from where it resumes.
    *(f"trainer.{key}" for key in ("total_training_steps", "total_epochs", "resume_mode", "resume_from_path")),
    *(f"trainer.{key}" for key in ("save_freq", "max_actor_ckpt_to_keep", "max_critic_ckpt_to_keep")),
    *(f"trainer.{key}" for key in ("del_local_ckpt_after_load", "default_hdfs_dir", "esi_redundant_time")),
    *(f"trainer.{key}" for key in ("logger", "project_name", "experiment_name", "log_val_generations")),
    *(f"trainer.{key}" for key in ("rollout_data_dir", "validation_data_dir", "ray_wait_register_center_timeout")),
    *(f"algorithm.cw_grpo.{key}" for key in ("record", "record_every", "record_tokens")),
    "prepare.record",
    # Validation.
    *(f"trainer.{key}" for key in ("test_freq", "val_before_train", "val_only")),
    *(f"data.{key}" for key in ("val_files", "val_batch_size", "val_max_samples")),
    "actor_rollout_ref.rollout.val_kwargs",
    # Resources: memory, processes and speed.
    *("launcher", "parallel", "ray_kwargs", "transfer_queue", "global_profiler", "reward.num_workers"),
    *(f"data.{key}" for key in ("dataloader_num_workers", "filter_overlong_prompts_workers", "use_shm")),
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

MICRO_BATCH_SETTINGS = tuple(
    f"actor_rollout_ref.actor.{key}"
    for key in ("ppo_micro_batch_size_per_gpu", "use_dynamic_bsz", "ppo_max_token_len_per_gpu")
)
"""Free to change as well, but with a loss that takes means over a micro-batch."""

MICRO_BATCH_LOSSES = ("clip_cov", "kl_cov", "cw_grpo_released")
"""Policy losses whose gradient depends on how a batch is cut."""


def is_free_to_change(key: str, config: Any) -> bool:
    """Whether a setting of a job (a config of OmegaConf) may change when its run resumes, without another training."""
    if is_below(key, MICRO_BATCH_SETTINGS):
        return OmegaConf.select(config, "actor_rollout_ref.actor.policy_loss.loss_mode") not in MICRO_BATCH_LOSSES
    return is_below(key, SETTINGS_FREE_TO_CHANGE)


def last_checkpoint(checkpoints: Path) -> int | None:
    """The step of the checkpoint that verl would resume from, of those in a directory; None if verl has noted none.

    Raises:
        ValueError: the note holds no number; names it.
    """
    tracker = checkpoints / TRACKER
    if not tracker.is_file():
        return None
    try:
        return int(tracker.read_text())
    except ValueError as error:
        raise ValueError(f"{tracker} holds no step number") from error


def attempt_files(run_dir: Path) -> list[Path]:
    """The metrics files of a run's attempts, oldest first."""
    return sorted((run_dir / METRICS_FOLDER).glob("attempt-*.jsonl"))


def next_attempt_file(run_dir: Path) -> Path:
    """Where the next attempt's metrics go; verl's file logger truncates a file that is there."""
    numbers = [int(path.stem.removeprefix("attempt-")) for path in attempt_files(run_dir)]
    return run_dir / METRICS_FOLDER / f"attempt-{max(numbers, default=0) + 1:03d}.jsonl"


def parse_line(line: str) -> tuple[int, dict[str, Any]]:
    """Step and metrics of a line that verl's file logger wrote.

    Raises:
        ValueError: the line is something else.
    """
    record = json.loads(line)
    if not (isinstance(record, dict) and isinstance(record.get("step"), int) and isinstance(record.get("data"), dict)):
        raise ValueError("not a record of verl's file logger")
    return record["step"], record["data"]


def read_metrics_file(path: Path) -> dict[int, dict[str, Any]]:
    """Metrics by step. A last line that was cut off is skipped with a warning.

    Raises:
        ValueError: another line is not a record of verl's file logger.
    """
    steps: dict[int, dict[str, Any]] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            step, data = parse_line(line)
        except ValueError as error:
            if number == len(lines):
                warnings.warn(f"{path}:{number}: the last line is cut off and left out", stacklevel=2)
                break
            raise ValueError(f"{path}:{number}: {error}") from error
        # verl logs a step's validation apart from its training.
        steps.setdefault(step, {}).update(data)
    return steps


def read_tensorboard(folder: Path) -> dict[int, dict[str, Any]]:
    """Scalars by step from the event files of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    steps: dict[int, dict[str, Any]] = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            steps.setdefault(event.step, {})[name] = event.value
    return steps


def load_metrics(run_dir: Path | str) -> pd.DataFrame:
    """All metrics of a run: one row a step (the index), one column a metric.

    A resumed attempt replaces earlier attempts from its first training step on: it went back to the checkpoint before
    it, whose validation it may have repeated.

    Args:
        run_dir: the folder of a run; or a JSONL file of verl's `file` logger, a folder with such files, one a start in
            the order of their names, or a folder with event files of TensorBoard.

    Raises:
        FileNotFoundError: there is no metrics file.
    """
    run_dir = Path(run_dir)
    files = [run_dir] if run_dir.is_file() else attempt_files(run_dir) or sorted(run_dir.glob("*.jsonl"))
    if not files and any(run_dir.glob("events.out.tfevents.*")):
        return _frame(read_tensorboard(run_dir))
    if not files:
        raise FileNotFoundError(f"no metrics in {run_dir / METRICS_FOLDER}: is {run_dir} the folder of a run?")
    merged: dict[int, dict[str, Any]] = {}
    for path in files:
        attempt = read_metrics_file(path)
        if attempt:
            first = min((step for step, data in attempt.items() if TRAINED in data), default=min(attempt))
            merged = {step: data for step, data in merged.items() if step < first}
            for step, data in attempt.items():
                merged.setdefault(step, {}).update(data)
    return _frame(merged)


def method_of(config: dict) -> str:
    """The method that a run's resolved config asks for: as the recipe's group `method` calls it, else by verl's names.

    Where a loss of CW-GRPO's is set the estimator's weights are not applied, so the loss it is.
    """
    algorithm = config.get("algorithm") or {}
    actor = (config.get("actor_rollout_ref") or {}).get("actor") or {}
    loss = (actor.get("policy_loss") or {}).get("loss_mode") or "vanilla"
    if loss in LOSSES:
        return loss
    estimator = algorithm.get("adv_estimator") or "grpo"
    mean = (algorithm.get("cw_grpo") or {}).get("log_prob_mean") or "response"
    if estimator == ESTIMATOR and mean != "response":
        estimator = f"{estimator}-{mean}"
    return "+".join(name for name in (estimator, loss) if name not in ("grpo", "vanilla")) or "grpo"


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a run's config by their dotted keys; an empty node is a value."""
    if not isinstance(config, dict) or not config:
        return {prefix: config}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def is_below(key: str, nodes: Iterable[str]) -> bool:
    """Whether a dotted key is one of the nodes or lies below one."""
    return any(key == node or key.startswith(f"{node}.") for node in nodes)


def _frame(steps: dict[int, dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame.from_dict(steps, orient="index").sort_index()
    frame.index.name = "step"
    return frame
