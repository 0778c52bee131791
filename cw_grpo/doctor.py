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


def run(echo: Callable[[str], None]) -> bool:
    """Print versions and one line a check, up to the first that fails; True if all hold.

    Imports verl: call it in a fresh process.
    """
    # What verl says about engines and accelerators that are not here is not this command's subject.
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    echo(f"python {platform.python_version()}, " + ", ".join(f"{name} {_version(name)}" for name in DISTRIBUTIONS))
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


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def _entry_point() -> str | None:
    if not any(point.value == "cw_grpo.plugin" for point in entry_points(group="verl.plugins")):
        return "no verl.plugins entry point names cw_grpo.plugin: install the package (pip install -e .) in this Python"
    return None


def _loaded() -> str | None:
    if "cw_grpo.plugin" in sys.modules:
        return "cw_grpo.plugin was imported before verl: this check needs a fresh process"
    importlib.import_module("verl")
    if "cw_grpo.plugin" in sys.modules:
        return None
    plugins = os.environ.get("VERL_USE_EXTERNAL_PLUGINS")
    if plugins is not None:
        return f"verl did not load it: VERL_USE_EXTERNAL_PLUGINS={plugins!r} must be unset, `auto`, or name cw_grpo"
    importlib.import_module("cw_grpo.plugin")
    return "verl did not load it, though it can be imported"


def _hooks() -> str | None:
    from cw_grpo import plugin

    for hook in plugin.HOOKS:
        importlib.import_module(hook.module)
    lacking = [f"{hook}: {state}" for hook, state in plugin.states().items() if state != plugin.IN_PLACE]
    return "; ".join(lacking) or None


def _registered() -> str | None:
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY

    from cw_grpo.config import ESTIMATOR, LOSSES

    missing = [] if ESTIMATOR in ADV_ESTIMATOR_REGISTRY else [f"estimator {ESTIMATOR}"]
    missing += [f"policy loss {loss}" for loss in LOSSES if loss not in POLICY_LOSS_REGISTRY]
    return f"not in verl's registries: {', '.join(missing)}" if missing else None


def _weighted() -> str | None:
    import numpy as np
    import torch
    from verl.protocol import DataProto
    from verl.trainer.ppo import ray_trainer

    from cw_grpo import covariance_weights

    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1]])
    log_probs = torch.tensor([[-0.1, -2.0, -0.5], [-1.0, -0.2, 0.0], [-3.0, -0.1, -0.4]])
    rewards = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    uid = np.array(["q", "q", "q"], dtype=object)

    def advantages(estimator: str) -> torch.Tensor:
        batch = {"token_level_rewards": rewards, "response_mask": mask, "old_log_probs": log_probs}
        data = DataProto.from_dict(tensors=batch, non_tensors={"uid": uid})
        return ray_trainer.compute_advantage(data, adv_estimator=estimator, config={}).batch["advantages"]

    plain = advantages("grpo")
    expected = plain * covariance_weights(log_probs, plain, mask, uid).weights
    if torch.equal(expected, plain) or not torch.allclose(advantages("cw_grpo"), expected):
        return "verl's compute_advantage with adv_estimator=cw_grpo does not give grpo's advantages times the weights"
    return None


CHECKS: tuple[tuple[str, Callable[[], str | None]], ...] = (
    ("entry point verl.plugins -> cw_grpo.plugin", _entry_point),
    ("plugin loaded by `import verl`", _loaded),
    ("hooks in verl's trainers", _hooks),
    ("estimator cw_grpo and policy losses cw_grpo, cw_grpo_released registered", _registered),
    ("verl's compute_advantage applies the weights", _weighted),
)
