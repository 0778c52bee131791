"""The only module that touches verl's registries and hooks.

verl loads it through the ``verl.plugins`` entry point at ``import verl``, in every process. It imports nothing of verl
by itself: each hook runs right after verl's own module was imported, before anybody can take a name from it.

verl swallows the errors of a plugin, so a hook that finds nothing to hold on to does not raise: its state says so
(:func:`states`), `cw-grpo doctor` shows it, and a job that uses CW-GRPO stops with it.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import wrapt

from cw_grpo import config as cw_config
from cw_grpo.layout import check_layout
from cw_grpo.reward_metrics import add_reward_metrics_v0, add_reward_metrics_v1, check_reward

IN_PLACE = "in place"
WAITING = "its module has not been imported"

V1 = "verl.trainer.ppo.v1"

_announced: set[str] = set()


@dataclass(frozen=True)
class Hook:
    """``wrapper(wrapped, args, kwargs)`` around ``module.name``, which must have ``parameters``."""

    module: str
    name: str
    wrapper: Callable[[Callable[..., Any], tuple, dict], Any]
    parameters: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


def compute_weighted_advantage(wrapped: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Around verl's `compute_advantage` and `compute_advantage_for_multi_trajectories`.

    For `adv_estimator=cw_grpo`: verl's own computation for `grpo`, agent sessions included, then its advantages times
    the weights from the batch's ``old_log_probs``; ``returns`` stay unweighted. Other estimators pass untouched.
    """
    from verl.trainer.ppo.core_algos import AdvantageEstimator

    from cw_grpo import record
    from cw_grpo.advantage import reweight

    call = inspect.signature(wrapped).bind(*args, **kwargs)
    call.apply_defaults()
    config = call.arguments["config"]
    estimator = cw_config.estimator_of(call.arguments["adv_estimator"])
    _announce(config, estimator)
    job = cw_config.job_of(config)
    if (loss := cw_config.loss_mode(job)) in cw_config.LOSSES:
        from cw_grpo.group_order import check_order

        check_order(call.arguments["data"].non_tensor_batch["uid"], job.actor_rollout_ref.rollout.n, loss)
    if estimator == cw_config.ESTIMATOR:
        call.arguments["adv_estimator"] = AdvantageEstimator.GRPO
    data = wrapped(*call.args, **call.kwargs)
    if estimator == cw_config.ESTIMATOR:
        data.batch["advantages"] = reweight(
            data.batch["advantages"],
            data.batch.get("old_log_probs", None),
            data.batch["response_mask"],
            data.non_tensor_batch["uid"],
            config,
        )
    if job is not None and estimator == cw_config.estimator_of(job.algorithm.adv_estimator):
        record.record_v0(data, config)
    return data


def _announce(algorithm: Any, estimator: str) -> None:
    """At a job's first step: check its settings and the hooks, and print where the weights are applied."""
    job = cw_config.job_of(algorithm)
    if job is None or (estimator != cw_config.ESTIMATOR == job.algorithm.adv_estimator):
        return  # the latter: verl's grpo computation within that of cw_grpo
    for line in (cw_config.describe(job, estimator), cw_config.describe_record(algorithm)):
        if line is not None and line not in _announced:
            check_job(job)
            _announced.add(line)
            print(line, flush=True)


def add_metrics(wrapped: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Around verl's `compute_data_metrics`, which every trainer logs once a step: with the metrics of the weights."""
    from cw_grpo.advantage import take_metrics

    return add_reward_metrics_v0(wrapped, args, kwargs) | take_metrics()


def add_metrics_v1(wrapped: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Around `PPOTrainer._compute_metrics` (V1): the reward's parts, and the sample of tokens if one is due."""
    from cw_grpo.record import record_v1

    result = add_reward_metrics_v1(wrapped, args, kwargs)
    call = inspect.signature(wrapped).bind(*args, **kwargs).arguments
    record_v1(call["self"].config, call["batch"], call["global_steps"])
    return result


def say_step(wrapped: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Around `RayPPOTrainer._get_gen_batch` (V0), the first call of a step: its number goes with the batch."""
    from cw_grpo.record import STEP

    call = inspect.signature(wrapped).bind(*args, **kwargs).arguments
    call["batch"].meta_info[STEP] = call["self"].global_steps
    return wrapped(*args, **kwargs)


def check_settings(wrapped: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Around verl's `validate_config`: refuse settings that do not fit before anything is started."""
    result = wrapped(*args, **kwargs)
    config = inspect.signature(wrapped).bind(*args, **kwargs).arguments["config"]
    check_job(config)
    check_layout(config)
    check_reward(config)
    return result


def keep_groups_together(wrapped: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Around `PPOTrainer._balance_batch` (V1), which balances rows one by one: whole groups, if the loss needs them."""
    from cw_grpo.group_order import order_groups

    return order_groups(args[0], wrapped(*args, **kwargs))


_BATCH = ("data", "adv_estimator", "config")
HOOKS = (
    Hook("verl.trainer.ppo.ray_trainer", "compute_advantage", compute_weighted_advantage, _BATCH),
    Hook("verl.trainer.ppo.v1.utils", "compute_advantage_for_multi_trajectories", compute_weighted_advantage, _BATCH),
    Hook("verl.trainer.ppo.v1.trainer_base", "PPOTrainer._balance_batch", keep_groups_together),
    Hook(
        "verl.trainer.ppo.v1.trainer_base",
        "PPOTrainer._compute_metrics",
        add_metrics_v1,
        ("batch", "metrics", "global_steps"),
    ),
    Hook("verl.trainer.ppo.ray_trainer", "RayPPOTrainer._get_gen_batch", say_step, ("batch",)),
    Hook("verl.trainer.ppo.metric_utils", "compute_data_metrics", add_metrics, ("batch",)),
    Hook("verl.utils.config", "validate_config", check_settings, ("config",)),
)
_states: dict[Hook, str] = dict.fromkeys(HOOKS, WAITING)


def states() -> dict[Hook, str]:
    """For each hook: :data:`IN_PLACE`, :data:`WAITING`, or what verl lacks."""
    return dict(_states)


def explain() -> str:
    """The hooks that are not in place and the versions, for error messages."""
    lacking = "; ".join(f"{hook}: {state}" for hook, state in _states.items() if state != IN_PLACE)
    return f"hooks: {lacking or 'all in place'}; verl {_version('verl')}, cw-grpo {_version('cw-grpo')}"


def check_job(job: Any) -> None:
    """:func:`cw_grpo.config.check_job`, and that verl has what the hooks hold on to if the job uses CW-GRPO.

    Raises:
        ValueError: a setting that does not fit.
        RuntimeError: a hook that finds nothing to hold on to, with the versions.
    """
    cw_config.check_job(job)
    uses_it = cw_config.describe(job, job.algorithm.adv_estimator) is not None
    # verl's V1 package imports all of its modules: one that still waits is not there any more.
    absent = [hook for hook in HOOKS if hook.module.startswith(V1) and V1 in sys.modules and _states[hook] == WAITING]
    if uses_it and (absent or any(state not in (IN_PLACE, WAITING) for state in _states.values())):
        raise RuntimeError(
            f"this verl lacks what CW-GRPO holds on to, so the job would not do what it says ({explain()}). "
            "Install a verl>=0.9,<0.10 that `cw-grpo doctor` accepts"
        )


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed as a distribution"


def _attach(hook: Hook, module: ModuleType) -> None:
    try:
        parent, attribute, target = wrapt.resolve_path(module, hook.name)
    except AttributeError:
        _states[hook] = f"{module.__name__} has no {hook.name}"
        return
    missing = [name for name in hook.parameters if name not in inspect.signature(target).parameters]
    if missing:
        _states[hook] = f"it has no parameter {', '.join(missing)}"
        return

    # A plain function, not a proxy: Ray pickles the globals of actors that are defined in a __main__.
    @functools.wraps(target)
    def hooked(*args: Any, **kwargs: Any) -> Any:
        return hook.wrapper(target, args, kwargs)

    setattr(parent, attribute, hooked)
    _states[hook] = IN_PLACE


@wrapt.when_imported("verl.trainer.ppo.core_algos")
def _register(core_algos: ModuleType) -> None:
    from cw_grpo import advantage, policy_loss

    core_algos.register_adv_est(cw_config.ESTIMATOR)(advantage.compute_cw_grpo_outcome_advantage)
    core_algos.register_policy_loss(cw_config.LOSS)(policy_loss.compute_policy_loss_cw_grpo)
    core_algos.register_policy_loss(cw_config.LOSS_RELEASED)(policy_loss.compute_policy_loss_cw_grpo_released)


for _hook in HOOKS:
    wrapt.register_post_import_hook(functools.partial(_attach, _hook), _hook.module)
