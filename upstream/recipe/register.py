# SPDX-License-Identifier: Apache-2.0
"""Registers CW-GRPO in verl, for ``VERL_USE_EXTERNAL_MODULES=recipe.cw_grpo.register``.

verl imports this module at ``import verl``, in every process of a job. It registers the estimator and the policy
losses, and replaces the functions of verl that hand them too little: an estimator gets no log-probs, and the V1 trainer
balances the rows of a batch one by one, which takes the groups of the policy losses apart.

Nothing of verl is imported here. Each change takes effect right after verl's own module was imported, before another
one can take a name from it.
"""

import functools
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

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


def _register(core_algos: ModuleType) -> None:
    core_algos.register_adv_est(ESTIMATOR)(compute_cw_grpo_outcome_advantage)
    core_algos.register_policy_loss(LOSS)(compute_policy_loss_cw_grpo)
    core_algos.register_policy_loss(LOSS_RELEASED)(compute_policy_loss_cw_grpo_released)


def _replace(path: str, *functions: Callable[..., Any]) -> Callable[[ModuleType], None]:
    """Puts each ``function(target, args, kwargs)`` in place of a module's function or method, the last outside."""

    def replace(module: ModuleType) -> None:
        *owners, name = path.split(".")
        owner = functools.reduce(getattr, owners, module)
        for function in functions:
            target = getattr(owner, name)
            replaced = _wrapped(target, function)
            setattr(owner, name, replaced)
            # Those that took the name before this module was imported.
            for holder in list(sys.modules.values()):
                if getattr(holder, "__dict__", {}).get(name) is target:
                    setattr(holder, name, replaced)

    return replace


def _wrapped(target: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(target)
    def replaced(*args: Any, **kwargs: Any) -> Any:
        return function(target, args, kwargs)

    return replaced


class _AfterImport(MetaPathFinder):
    """Calls a function with each of some modules, right after it is imported."""

    def __init__(self, functions: dict[str, Callable[[ModuleType], None]]) -> None:
        self.waiting = {name: function for name, function in functions.items() if name not in sys.modules}
        for name in functions.keys() - self.waiting.keys():
            functions[name](sys.modules[name])

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        function = self.waiting.pop(fullname, None)
        if function is None or (spec := importlib.util.find_spec(fullname)) is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            function(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


_check_alone()
sys.meta_path.insert(
    0,
    _AfterImport(
        {
            "verl.trainer.ppo.core_algos": _register,
            "verl.utils.config": _replace("validate_config", check_settings),
            "verl.trainer.ppo.metric_utils": _replace("compute_data_metrics", add_metrics),
            "verl.trainer.ppo.ray_trainer": _replace("compute_advantage", weight_batch, check_batch_order),
            "verl.trainer.ppo.v1.utils": _replace(
                "compute_advantage_for_multi_trajectories", weight_batch, check_batch_order
            ),
            "verl.trainer.ppo.v1.trainer_base": _replace("PPOTrainer._balance_batch", keep_groups_together),
        }
    ),
)
