# SPDX-License-Identifier: Apache-2.0
"""Mistakes that a job's settings show before anything is started, and that verl finds late or not at all."""

from __future__ import annotations

import importlib.util
import netrc
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from cw_grpo.checks.layout import fsdp_ulysses
from cw_grpo.job.plan import did_you_mean, environment
from cw_grpo.settings import ESTIMATOR, LOSSES, bypasses_old_log_probs, check_job, equal_responses, notes

_ACTOR, _ROLLOUT, _REF, _MODEL = (f"actor_rollout_ref.{part}" for part in ("actor", "rollout", "ref", "model"))
_LOSS_MODE = f"{_ACTOR}.policy_loss.loss_mode"

_RECIPE_NAMES = ("grpo", ESTIMATOR, "vanilla", "clip_cov", "kl_cov", *LOSSES)
"""Known without importing verl, which takes seconds."""

_NEEDED = (
    *("data.train_batch_size", "data.max_prompt_length", "data.max_response_length", f"{_ROLLOUT}.n"),
    *("trainer.nnodes", "trainer.n_gpus_per_node"),
)
"""Whole numbers of at least 1 that no job of verl is without."""

_POSITIVE = (
    *_NEEDED,
    *("trainer.total_training_steps", "trainer.total_epochs"),
    *(f"{_ACTOR}.{key}" for key in ("ppo_mini_batch_size", "ppo_micro_batch_size_per_gpu", "ppo_epochs")),
    *(f"{_ACTOR}.{key}" for key in ("ppo_max_token_len_per_gpu", "ulysses_sequence_parallel_size")),
    *(f"{_ROLLOUT}.{key}" for key in ("tensor_model_parallel_size", "max_num_seqs", "val_kwargs.n")),
    *(f"{_ROLLOUT}.{key}" for key in ("log_prob_micro_batch_size_per_gpu", "agent.num_workers")),
    f"{_REF}.log_prob_micro_batch_size_per_gpu",
    "reward.num_workers",
)
"""Whole numbers of at least 1, or null."""

_PATHS = (
    *(f"actor_rollout_ref.model.{key}" for key in ("path", "tokenizer_path", "hf_config_path", "custom_chat_template")),
    *("data.train_files", "data.val_files", "data.custom_cls.path", "reward.custom_reward_function.path"),
    *("trainer.default_local_dir", "trainer.resume_from_path", "trainer.rollout_data_dir"),
    *("trainer.validation_data_dir", "algorithm.cw_grpo.record", f"{_ROLLOUT}.agent.agent_loop_config_path"),
)
"""Paths in which verl takes `~` for the name of a directory."""

_LOGGER_PACKAGES = ("wandb", "mlflow", "swanlab", "tensorboard", "clearml", "trackio")
"""verl's loggers that need a package of their own name."""


def setting_problems(config: DictConfig, made: set[str]) -> Iterator[str]:
    """What is wrong with a job's settings, each with its key and what to do; ``made`` keys are set by the launcher."""
    numbers = list(number_problems(config))
    yield from numbers
    yield from name_problems(config)
    yield from path_problems(config, made)
    yield from logger_problems(config)
    yield from lora_problems(config)
    if not numbers:
        yield from packing_problems(config)
    if _has(config, _ACTOR, "algorithm") and not numbers:
        try:
            check_job(config)
        except ValueError as error:
            yield str(error)
        else:
            if problem := equal_responses(config):  # in a job without CW-GRPO
                yield problem


def _has(config: DictConfig, *nodes: str) -> bool:
    return all(OmegaConf.select(config, node) is not None for node in nodes)


def number_problems(config: DictConfig) -> Iterator[str]:
    """Counts that are not whole numbers of at least 1."""
    for key in _POSITIVE:
        node, _, name = key.rpartition(".")
        if name not in (OmegaConf.select(config, node) or ()):
            continue
        value = OmegaConf.select(config, key)
        allowed = key not in _NEEDED if value is None else type(value) is int and value >= 1
        if not allowed:
            yield f"{key}={'null' if value is None else value} must be a whole number of at least 1"


def name_problems(config: DictConfig) -> Iterator[str]:
    """An advantage estimator or a policy loss that verl does not have."""
    names = {key: OmegaConf.select(config, key) for key in ("algorithm.adv_estimator", _LOSS_MODE)}
    if all(name is None or name in _RECIPE_NAMES for name in names.values()) or _registers_more(config):
        yield from _swapped(names)
        return
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY

    import cw_grpo.plugin  # noqa: F401  # registers its own, if this Python has no entry point for it

    registries = (ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY)
    for (key, name), registry in zip(names.items(), registries, strict=True):
        if name is not None and name not in registry:
            hint = did_you_mean(str(name), registry) or f"; verl has {', '.join(sorted(registry))}"
            yield f"{key}={name} does not exist{hint}"


def _swapped(names: dict[str, Any]) -> Iterator[str]:
    """A loss's name where an estimator's belongs, or the other way round."""
    estimator, loss = names.values()
    if estimator in (*LOSSES, "vanilla", "clip_cov", "kl_cov"):
        yield f"algorithm.adv_estimator={estimator} is the name of a policy loss: set {_LOSS_MODE} to it"
    if loss in ("grpo", ESTIMATOR):
        yield f"{_LOSS_MODE}={loss} is the name of an advantage estimator: set algorithm.adv_estimator to it"


def _registers_more(config: DictConfig) -> bool:
    """Whether the job imports modules that may add names to verl's registries."""
    modules = environment(config).get("VERL_USE_EXTERNAL_MODULES", "")
    others = set(re.split(r"\s*,\s*", modules)) - {"", "cw_grpo.cpu", "cw_grpo.plugin"}
    return bool(others) or OmegaConf.select(config, "actor_rollout_ref.model.external_lib") is not None


def path_problems(config: DictConfig, made: set[str]) -> Iterator[str]:
    """Paths that start with `~`, which the shell does not expand behind a `=`, nor does verl."""
    for key in _PATHS:
        values = OmegaConf.select(config, key, throw_on_missing=False) if key not in made else None
        for value in values if isinstance(values, ListConfig) else [values]:
            if isinstance(value, str) and value.startswith("~"):
                yield f"{key}={value}: verl does not expand ~; write {os.path.expanduser(value)}"


def packing_problems(config: DictConfig) -> Iterator[str]:
    """GPUs that share a padded sequence, which verl's FSDP rejects when its workers start."""
    packed = OmegaConf.select(config, f"{_MODEL}.use_remove_padding", default=True)
    if packed or not str(OmegaConf.select(config, f"{_ACTOR}.strategy")).startswith("fsdp"):
        return
    for node, setting in ((_ACTOR, " (parallel.ulysses=1, docs/gpus.md)"), (f"{_ACTOR}.fsdp_config", "")):
        key = f"{node}.ulysses_sequence_parallel_size"
        if (size := OmegaConf.select(config, key) or 1) > 1:
            yield (
                f"{key}={size} needs packed sequences, but {_MODEL}.use_remove_padding=false (attention=sdpa): set it "
                f"to 1{setting}, or use flash-attn (attention=flash_attn)"
            )


def lora_problems(config: DictConfig) -> Iterator[str]:
    """Keys of LoRA that verl's FSDP does not read: it would train the whole model, with itself as the reference."""
    model = OmegaConf.select(config, _MODEL)
    if not str(OmegaConf.select(config, f"{_ACTOR}.strategy")).startswith("fsdp") or model is None:
        return
    if (model.get("lora_rank") or 0) > 0:
        return
    for key in ("lora.rank", "lora_adapter_path"):
        if value := OmegaConf.select(model, key):
            yield (
                f"{_MODEL}.{key}={value} has no effect in verl's FSDP without {_MODEL}.lora_rank: the whole model "
                "would be trained. Set lora_rank, or remove it"
            )


def logger_problems(config: DictConfig) -> Iterator[str]:
    """Loggers that cannot log, and metrics that the launcher could not read."""
    loggers = OmegaConf.select(config, "trainer.logger")
    names = [loggers] if isinstance(loggers, str) else list(loggers or [])
    if "file" not in names:
        yield (
            f"trainer.logger={loggers} has no `file`, from which progress, picture and report are read: add it, as in "
            "trainer.logger=[console,file,wandb]"
        )
    for name in names:
        if name in ("console", "file", "tracking", "vemlp_wandb", "rl_insight"):
            continue
        if name not in _LOGGER_PACKAGES:
            known = ("console", "file", *_LOGGER_PACKAGES)
            hint = did_you_mean(name, known) or f"; verl has {', '.join(known)}"
            yield f"trainer.logger: {name} does not exist{hint}"
        elif importlib.util.find_spec(name) is None:
            yield f"trainer.logger has {name}, which is not installed here: pip install {name}"
        elif name == "wandb" and not _wandb_can_log(environment(config)):
            yield (
                "trainer.logger has wandb, which has no API key here: run `wandb login`, set WANDB_API_KEY, or set "
                "WANDB_MODE=offline"
            )


def _wandb_can_log(env: Mapping[str, str]) -> bool:
    """Whether wandb has credentials or needs none; its own check waits for its server, if there is no network."""
    if env.get("WANDB_MODE", "online") in ("offline", "disabled", "dryrun"):
        return True
    if env.get("WANDB_API_KEY") or env.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    if (Path(env.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser() / "settings").is_file():
        return True  # a mode or another server, for wandb to read
    try:
        hosts = netrc.netrc(env.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    host = urllib.parse.urlsplit(env.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    return host in hosts


def setting_notes(config: DictConfig) -> Iterator[str]:
    """What a user should know of a job's settings, though it can run."""
    if _has(config, _ROLLOUT, "algorithm"):
        yield from notes(config)
        yield from batching_notes(config)
    if bypasses_old_log_probs(config):
        yield (
            "algorithm.rollout_correction.bypass_mode=true: verl makes no pass for old log-probs, so there is no "
            "metric actor/entropy, and progress and picture show no entropy"
        )


def batching_notes(config: DictConfig) -> Iterator[str]:
    """What the size of a micro-batch costs the estimator on GPUs, and changes in a loss with means over it."""
    if OmegaConf.select(config, "trainer.device") != "cuda":
        return
    actor, n = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout.n
    loss, micro = (OmegaConf.select(actor, key) for key in ("policy_loss.loss_mode", "ppo_micro_batch_size_per_gpu"))
    if micro is None or actor.use_dynamic_bsz:
        return
    if loss in ("clip_cov", "kl_cov") and micro < n:
        yield (
            f"loss_mode={loss}: verl takes its means over a micro-batch, here of {micro} rows; with the {n} of a group "
            "the update is another"
        )
    if loss in (None, "vanilla"):
        tokens = micro * (config.data.max_prompt_length + config.data.max_response_length) // fsdp_ulysses(config)
        yield (
            f"a micro-batch has {micro} rows, however short they are. This method does not need that: with "
            f"{_ACTOR}.use_dynamic_bsz=true {_ACTOR}.ppo_max_token_len_per_gpu={tokens}, rows of half the full length "
            "take half the passes"
        )
