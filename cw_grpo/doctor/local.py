# SPDX-License-Identifier: Apache-2.0
"""`cw-grpo doctor`: whether this process, and so every process of a job here, trains what a job says."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import platform
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cw_grpo.doctor.shadowing import shadowing_problem
from cw_grpo.verl_versions import LOSSES_SINCE, PLUGINS_SINCE, installed, is_since, untested, verl_version

if TYPE_CHECKING:
    from cw_grpo.hooks import Hook

DISTRIBUTIONS = ("cw-grpo", "verl", "torch", "ray", "transformers", "TransferQueue", "vllm", "math-verify")
MODULE = "cw_grpo.plugin"
"""What verl loads."""
V0, V1 = "verl.trainer.ppo.ray_trainer", "verl.trainer.ppo.v1.utils"
"""verl's modules that compute the advantages of its V0 and V1 trainers."""


@dataclass(frozen=True)
class Result:
    """What a check found."""

    name: str
    problem: str | None = None
    """What is wrong and what to do; None if nothing is."""
    fatal: bool = True
    """Whether a job with CW-GRPO would not do what it says; else a feature is missing."""

    @property
    def failed(self) -> bool:
        return self.fatal and self.problem is not None

    def __str__(self) -> str:
        if self.problem is None:
            return f"ok     {self.name}"
        return f"{'FAILED' if self.fatal else 'note  '} {self.name}\n       {self.problem}"


def run() -> Iterator[Result]:
    """Check one thing after the other, up to the first that fails.

    Imports verl as a job that is started in the working directory would: call it in a fresh process.
    """
    with _quiet():
        for name, check in CHECKS:
            try:
                result = Result(name, check())
            except Exception:
                result = Result(name, traceback.format_exc().strip())
            yield result
            if result.failed:
                return
        for feature in _missing_features():
            yield Result("a feature that this verl does not allow", feature, fatal=False)
        if (problem := untested()) is not None:
            yield Result("a verl that CW-GRPO was not tested with", problem, fatal=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what verl says about engines and accelerators that are not here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a job uses."""
    return {"python": platform.python_version()} | {name: installed(name) for name in DISTRIBUTIONS}


def _not_shadowed() -> str | None:
    directory = Path.cwd()
    problem = shadowing_problem(directory)
    if problem is None and not {"", str(directory)} & set(sys.path):
        sys.path.insert(0, str(directory))  # as `python -m` does
    return problem


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
    if not is_since(PLUGINS_SINCE):
        return f"verl {verl_version()} loads no plugins: set VERL_USE_EXTERNAL_MODULES={MODULE} in a job's environment"
    return "verl did not load it, though it can be imported"


def _module(name: str) -> ModuleType | None:
    """A module of verl; None if this verl does not have it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("verl."):
            return None
        raise


def _hooks() -> str | None:
    from cw_grpo import hooks, plugin

    for hook in plugin.HOOKS:
        _module(hook.module)
    # verl's default: V1 if it has it.
    trainer: hooks.Trainer = "V0" if _module(V1) is None else "V1"
    return _lacking(hooks.essential(trainer, losses=False))


def _lacking(needed: Sequence[Hook]) -> str | None:
    """Which hooks are not in place, with the reason; None if all are."""
    from cw_grpo import hooks

    states = hooks.states()
    return "; ".join(f"{hook}: {states[hook]}" for hook in needed if states[hook] != hooks.IN_PLACE) or None


def _missing_features() -> Iterator[str]:
    """What this verl does not allow, with the reason."""
    from cw_grpo import hooks
    from cw_grpo.settings import LOSSES

    has_v1 = _module(V1) is not None
    yield from hooks.missing_features()
    if not has_v1:
        yield "the V1 trainers: this verl has none"
    elif problem := _lacking(hooks.essential("V0", losses=False)):
        yield f"the V0 trainers ({problem})"
    if not is_since(LOSSES_SINCE):
        yield f"the policy losses {', '.join(LOSSES)}: they need verl {LOSSES_SINCE} or later"
    elif problem := _lacking(hooks.essential("V1" if has_v1 else "V0", losses=True)):
        yield f"the policy losses {', '.join(LOSSES)} ({problem})"


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
    from verl.trainer.ppo import core_algos
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

    plain, _ = core_algos.compute_grpo_outcome_advantage(rewards, mask, uid)
    expected = plain * covariance_weights(log_probs, plain, mask, uid).weights
    call: dict[str, Any] = {"adv_estimator": "cw_grpo", "config": {}}
    sessions = call | {"batch_keys": [f"q_{row}_0" for row in range(3)]}
    for module, name, arguments in (
        (V0, "compute_advantage", call),
        (V1, "compute_advantage_for_multi_trajectories", sessions),
    ):
        compute = getattr(_module(module), name, None)
        if compute is None:
            continue
        given = compute(batch(), **arguments).batch["advantages"]
        if torch.equal(expected, plain) or not torch.allclose(given, expected):
            return f"verl's {name} with adv_estimator=cw_grpo does not give grpo's advantages times the weights"

    if not is_since(LOSSES_SINCE):
        return None
    actor = ActorConfig(strategy="fsdp2", rollout_n=3, ppo_micro_batch_size_per_gpu=3, optim=OptimizerConfig(lr=1e-6))
    losses = [
        core_algos.get_policy_loss_fn(loss)(log_probs, log_probs, given, mask, config=actor)[0]
        for loss, given in ((LOSS, plain), ("vanilla", expected))
    ]
    if not torch.allclose(*losses):
        return f"policy loss {LOSS} is not verl's vanilla loss on weighted advantages"
    return None


CHECKS: tuple[tuple[str, Callable[[], str | None]], ...] = (
    ("a job started here imports the installed modules", _not_shadowed),
    (f"verl is told of {MODULE}", _named),
    ("plugin loaded by `import verl`", _loaded),
    ("hooks in verl's trainers", _hooks),
    ("estimator cw_grpo and policy losses cw_grpo_live, cw_grpo_released registered", _registered),
    ("verl's advantages and losses have the weights", _weighted),
)
