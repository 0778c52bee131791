"""`cw-grpo doctor`: whether this process, and so every process of a job here, trains what a job says."""

from __future__ import annotations

import importlib
import logging
import os
import platform
import sys
import traceback
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, entry_points, version

DISTRIBUTIONS = ("cw-grpo", "verl", "torch", "ray", "transformers", "TransferQueue", "vllm", "math-verify")
MODULE = "cw_grpo.plugin"
"""What verl loads."""


def run(echo: Callable[[str], None]) -> bool:
    """Print versions and one line a check, up to the first that fails; True if all hold.

    Imports verl: call it in a fresh process.
    """
    # What verl says about engines and accelerators that are not here is not this command's subject.
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    echo(", ".join(f"{name} {version}" for name, version in versions().items()))
    for name, check in CHECKS:
        try:
            problem = check()
        except Exception:
            problem = traceback.format_exc().strip()
        if problem is not None:
            echo(f"FAILED {name}\n       {problem}")
            return False
        echo(f"ok     {name}")
    return True


def versions() -> dict[str, str]:
    """Of Python and of what a job here runs on."""
    return {"python": platform.python_version()} | {name: installed(name) for name in DISTRIBUTIONS}


def installed(distribution: str) -> str:
    """Its version, or that it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def _named() -> str | None:
    if any(point.value == MODULE for point in entry_points(group="verl.plugins")):
        return None
    if MODULE in os.environ.get("VERL_USE_EXTERNAL_MODULES", "").split(","):
        return None
    return (
        f"no verl.plugins entry point names {MODULE}: install the package (pip install -e .) in this Python, or, where "
        f"only its folder is at hand, set VERL_USE_EXTERNAL_MODULES={MODULE}"
    )


def _loaded() -> str | None:
    if MODULE in sys.modules:
        return f"{MODULE} was imported before verl: this check needs a fresh process"
    importlib.import_module("verl")
    if MODULE in sys.modules:
        return None
    plugins = os.environ.get("VERL_USE_EXTERNAL_PLUGINS")
    if plugins is not None:
        return f"verl did not load it: VERL_USE_EXTERNAL_PLUGINS={plugins!r} must be unset, `auto`, or name cw_grpo"
    importlib.import_module(MODULE)
    return "verl did not load it, though it can be imported"


def _hooks() -> str | None:
    from cw_grpo import hooks, plugin

    for hook in plugin.HOOKS:
        importlib.import_module(hook.module)
    lacking = [f"{hook}: {state}" for hook, state in hooks.states().items() if state != hooks.IN_PLACE]
    return "; ".join(lacking) or None


def _registered() -> str | None:
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY

    from cw_grpo.settings import ESTIMATOR, LOSSES

    missing = [] if ESTIMATOR in ADV_ESTIMATOR_REGISTRY else [f"estimator {ESTIMATOR}"]
    missing += [f"policy loss {loss}" for loss in LOSSES if loss not in POLICY_LOSS_REGISTRY]
    return f"not in verl's registries: {', '.join(missing)}" if missing else None


def _weighted() -> str | None:
    import numpy as np
    import torch
    from verl.protocol import DataProto
    from verl.trainer.ppo import core_algos, ray_trainer
    from verl.trainer.ppo.v1 import utils
    from verl.workers.config import ActorConfig, OptimizerConfig

    from cw_grpo import covariance_weights
    from cw_grpo.settings import LOSS

    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1]])
    log_probs = torch.tensor([[-0.1, -2.0, -0.5], [-1.0, -0.2, 0.0], [-3.0, -0.1, -0.4]])
    rewards = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    uid = np.array(["q", "q", "q"], dtype=object)

    def batch() -> DataProto:
        tensors = {"token_level_rewards": rewards, "response_mask": mask, "old_log_probs": log_probs}
        return DataProto.from_dict(tensors=tensors, non_tensors={"uid": uid})

    plain = ray_trainer.compute_advantage(batch(), "grpo", config={}).batch["advantages"]
    expected = plain * covariance_weights(log_probs, plain, mask, uid).weights
    sessions = [f"q_{row}_0" for row in range(3)]
    for name, data in (
        ("compute_advantage", ray_trainer.compute_advantage(batch(), "cw_grpo", config={})),
        (
            "compute_advantage_for_multi_trajectories",
            utils.compute_advantage_for_multi_trajectories(batch(), sessions, "cw_grpo", config={}),
        ),
    ):
        if torch.equal(expected, plain) or not torch.allclose(data.batch["advantages"], expected):
            return f"verl's {name} with adv_estimator=cw_grpo does not give grpo's advantages times the weights"

    actor = ActorConfig(strategy="fsdp2", rollout_n=3, ppo_micro_batch_size_per_gpu=3, optim=OptimizerConfig(lr=1e-6))
    losses = [
        core_algos.get_policy_loss_fn(loss)(log_probs, log_probs, given, mask, config=actor)[0]
        for loss, given in ((LOSS, plain), ("vanilla", expected))
    ]
    if not torch.allclose(*losses):
        return f"policy loss {LOSS} is not verl's vanilla loss on weighted advantages"
    return None


CHECKS: tuple[tuple[str, Callable[[], str | None]], ...] = (
    (f"verl is told of {MODULE}", _named),
    ("plugin loaded by `import verl`", _loaded),
    ("hooks in verl's trainers", _hooks),
    ("estimator cw_grpo and policy losses cw_grpo_live, cw_grpo_released registered", _registered),
    ("verl's advantages and losses have the weights", _weighted),
)
