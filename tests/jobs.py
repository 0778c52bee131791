# SPDX-License-Identifier: Apache-2.0
"""Configurations of jobs: verl's own, composed, and the part that the estimator and the losses read."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import verl.trainer
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, flag_override
from verl.utils.config import validate_config

from cw_grpo.job.plan import Plan, make_plan

BASE = (
    "algorithm.adv_estimator=grpo",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.rollout.n=4",
    "data.train_batch_size=8",
    "actor_rollout_ref.actor.ppo_mini_batch_size=8",
    "actor_rollout_ref.actor.use_dynamic_bsz=False",
    "trainer.n_gpus_per_node=1",
)
LOSS = "actor_rollout_ref.actor.policy_loss.loss_mode="


@functools.cache
def _compose(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(Path(verl.trainer.__file__).parent / "config"), version_base=None):
        return compose("ppo_trainer", overrides=[*BASE, *overrides])


def _split(overrides: Sequence[str]) -> tuple[list[str], list[Override]]:
    """What decides which files hydra composes, and values, which it sets when all are composed."""
    chosen, values = [], []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if "." in override.key_or_group and override.package is None:
            values.append(override)
        else:
            chosen.append(override.input_line)
    return chosen, values


def _with_values(config: DictConfig, values: Sequence[Override]) -> DictConfig:
    """A copy with the values, as hydra sets them."""
    config = config.copy()
    with flag_override(config, "struct", True):
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
    return config


def job(*overrides: str) -> DictConfig:
    """verl's `ppo_trainer`, four responses a prompt, with the overrides."""
    chosen, values = _split(overrides)
    return _with_values(_compose(*chosen), values)


@functools.cache
def _plan(*overrides: str) -> Plan:
    return make_plan(overrides)


def cached_plan(*overrides: str) -> Plan:
    """The recipe's job, as `make_plan` makes it of what fits; its files are composed once for all tests."""
    chosen, values = _split(overrides)
    made = _plan(*chosen)
    return replace(made, overrides=overrides, config=_with_values(made.config, values))


def validate(config: DictConfig) -> None:
    """verl's own validation."""
    validate_config(config, use_reference_policy=False, use_critic=False)


def make_job(estimator: str = "cw_grpo", loss_mode: str = "vanilla", **cw_grpo: Any) -> DictConfig:
    """Four responses a prompt; ``cw_grpo`` are the keys under `algorithm.cw_grpo`.

    verl hands an estimator the live ``algorithm`` node of the whole.
    """
    config = OmegaConf.create(
        {
            "algorithm": {"adv_estimator": estimator, "norm_adv_by_std_in_grpo": True},
            "actor_rollout_ref": {
                "actor": {
                    "policy_loss": {"loss_mode": loss_mode},
                    "use_dynamic_bsz": False,
                    "ppo_micro_batch_size_per_gpu": 4,
                    "shuffle": False,
                },
                "rollout": {"n": 4},
                "model": {"path": "/models/some"},
            },
            "trainer": {"use_v1": True, "balance_batch": True},
        }
    )
    if cw_grpo:
        config.algorithm.cw_grpo = cw_grpo
    OmegaConf.set_struct(config, True)
    return config
