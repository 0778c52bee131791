# SPDX-License-Identifier: Apache-2.0
"""Registers CW-GRPO in verl, for ``VERL_USE_EXTERNAL_MODULES=recipe.cw_grpo.register``.

verl imports this module at ``import verl``, in every process of a job. It registers the estimator and the policy
losses, and replaces the functions of verl that hand them too little: an estimator gets no log-probs, and the V1 trainer
balances the rows of a batch one by one, which takes the groups of the policy losses apart.
"""

import functools
import inspect
import os
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from verl.trainer.ppo import core_algos, metric_utils, ray_trainer
from verl.trainer.ppo.v1 import trainer_base, utils
from verl.utils import config

from .advantage import compute_cw_grpo_outcome_advantage, take_metrics, weight_batch
from .group_order import check_batch_order, keep_groups_together
from .policy_loss import compute_policy_loss_cw_grpo, compute_policy_loss_cw_grpo_released
from .settings import ESTIMATOR, LOSS, LOSS_RELEASED, check_job, describe, notes, read_options

PACKAGE = "cw_grpo.plugin"
"""The same method as a package, which registers the same names."""


def check_settings(target: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Around verl's `validate_config`: reject settings that conflict, and print where the weights are applied.

    Raises:
        ValueError: settings that conflict, by their keys, with what to set instead.
    """
    result = target(*args, **kwargs)
    job = inspect.signature(target).bind(*args, **kwargs).arguments["config"]
    check_job(job)
    if read_options(job.algorithm).record is not None:
        raise ValueError("algorithm.cw_grpo.record is an option of the package cw-grpo, not of this recipe: remove it")
    line = describe(job, job.algorithm.adv_estimator)
    if line is not None:
        print(line, *notes(job), sep="\n", flush=True)
    return result


def add_metrics(target: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Around verl's `compute_data_metrics`, which every trainer logs once a step: with the metrics of the weights."""
    return target(*args, **kwargs) | take_metrics()


def _check_alone() -> None:
    """Reject a process that loads the package as well.

    Raises:
        ImportError: it does; names both, and what to do.
    """
    modules = os.environ.get("VERL_USE_EXTERNAL_MODULES", "").split(",")
    discovered = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower() != "none"
    points = entry_points(group="verl.plugins") if discovered else ()
    if PACKAGE in sys.modules or PACKAGE in modules or any(point.value == PACKAGE for point in points):
        raise ImportError(
            f"both {__name__} and the package cw-grpo ({PACKAGE}) would register CW-GRPO: remove {__name__} from "
            "VERL_USE_EXTERNAL_MODULES, or uninstall the package"
        )


def _replace(owner: Any, name: str, function: Callable[..., Any]) -> None:
    """Put ``function(target, args, kwargs)`` in place of ``owner.name``, in every module that took it from there."""
    target = getattr(owner, name)

    @functools.wraps(target)
    def replaced(*args: Any, **kwargs: Any) -> Any:
        return function(target, args, kwargs)

    setattr(owner, name, replaced)
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(name) is target:
            setattr(module, name, replaced)


_check_alone()
core_algos.register_adv_est(ESTIMATOR)(compute_cw_grpo_outcome_advantage)
core_algos.register_policy_loss(LOSS)(compute_policy_loss_cw_grpo)
core_algos.register_policy_loss(LOSS_RELEASED)(compute_policy_loss_cw_grpo_released)
for _owner, _name in ((ray_trainer, "compute_advantage"), (utils, "compute_advantage_for_multi_trajectories")):
    _replace(_owner, _name, weight_batch)
    _replace(_owner, _name, check_batch_order)
_replace(trainer_base.PPOTrainer, "_balance_batch", keep_groups_together)
_replace(metric_utils, "compute_data_metrics", add_metrics)
_replace(config, "validate_config", check_settings)
