# SPDX-License-Identifier: Apache-2.0
"""The mechanism of the hooks: a function of verl is wrapped right after verl's own module was imported.

A :class:`Hook` decides what is trained: it raises what it must. An :class:`Observer` only watches: it never raises into
a trainer.

A hook is essential, or it adds a feature. verl swallows the errors of a plugin, so a hook whose target is missing does
not raise. Its state says so (:func:`states`), and `cw-grpo doctor` shows it. A job that needs an essential hook stops
(:func:`check_in_place`); without a feature's hook the job runs, and its log says what is missing
(:func:`missing_features`).
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import wrapt

from ..verl_versions import LOSSES_SINCE, installed, is_since, verl_version

logger = logging.getLogger(__name__)

IN_PLACE = "in place"
WAITING = "its module has not been imported"

_V1 = "verl.trainer.ppo.v1"

Trainer = Literal["V0", "V1"]


@dataclass(frozen=True)
class Hook:
    """``function(target, args, kwargs)`` in place of ``module.name``, which must have ``parameters``."""

    module: str
    name: str
    function: Callable[..., Any]
    parameters: tuple[str, ...] = ()
    feature: str = ""
    """What is missing without it; empty for an essential hook, without which the weights would not be applied."""
    trainer: Trainer | None = None
    """The only trainers that call the target; None for all."""
    for_losses: bool = False
    """Whether only the policy losses need it."""

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"

    def call(self, target: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        return self.function(target, args, kwargs)


@dataclass(frozen=True)
class Observer(Hook):
    """``function(arguments, result)`` after ``module.name``."""

    def call(self, target: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        result = target(*args, **kwargs)
        try:
            self.function(inspect.signature(target).bind(*args, **kwargs).arguments, result)
        except Exception as error:  # whatever it is, the training is not to end of it
            message = f"CW-GRPO: no {self.feature} ({type(error).__name__}: {error}); the job is not affected"
            # Once, for the same failure comes back at every step; logged, for a filter may make a warning an error.
            if message not in _warned:
                _warned.add(message)
                logger.warning(message)
        return result


_states: dict[Hook, str] = {}
_warned: set[str] = set()


def attach(hooks: Sequence[Hook]) -> None:
    """Wrap each hook's target as soon as its module is imported; of two on one target, the later is outside."""
    for hook in hooks:
        _states[hook] = WAITING
        wrapt.register_post_import_hook(functools.partial(_wrap, hook), hook.module)


def states() -> dict[Hook, str]:
    """For each hook: :data:`IN_PLACE`, :data:`WAITING`, or what verl lacks."""
    return dict(_states)


def explain() -> str:
    """The hooks that are not in place and the versions, for error messages."""
    lacking = "; ".join(f"{hook}: {state}" for hook, state in _states.items() if state != IN_PLACE)
    return f"hooks: {lacking or 'all in place'}; verl {verl_version()}, cw-grpo {installed('cw-grpo')}"


def missing() -> dict[Hook, str]:
    """The hooks whose target this verl does not have, and what it lacks."""
    # verl's V1 package imports all of its modules: one that still waits is not part of this verl.
    v1 = _V1 in sys.modules
    return {
        hook: state
        for hook, state in _states.items()
        if state not in (IN_PLACE, WAITING) or (state == WAITING and v1 and hook.module.startswith(_V1))
    }


def essential(trainer: Trainer, *, losses: bool) -> list[Hook]:
    """The hooks without which a job of these trainers would not have the weights.

    Args:
        trainer: which of verl's trainers.
        losses: whether a policy loss applies the weights.
    """
    return [
        hook
        for hook in _states
        if not hook.feature and hook.trainer in (None, trainer) and (losses or not hook.for_losses)
    ]


def check_in_place(trainer: Trainer, *, losses: bool) -> None:
    """Check the hooks that a job with CW-GRPO needs; arguments as for :func:`essential`.

    Raises:
        RuntimeError: the target of one is missing, or this verl is too old for the losses; names it and the versions.
    """
    if losses and not is_since(LOSSES_SINCE):
        raise RuntimeError(
            f"the policy losses of CW-GRPO need verl {LOSSES_SINCE} or later, this is verl {verl_version()}. Set "
            "algorithm.adv_estimator=cw_grpo and actor_rollout_ref.actor.policy_loss.loss_mode=vanilla"
        )
    lacking = missing()
    if any(hook in lacking for hook in essential(trainer, losses=losses)):
        raise RuntimeError(
            "this verl lacks a function that CW-GRPO replaces, so the job would not do what it says "
            f"({explain()}). Install a verl that `cw-grpo doctor` accepts"
        )


def missing_features() -> list[str]:
    """The features that this verl does not allow, with the reason."""
    return [f"{hook.feature} ({hook}: {state})" for hook, state in missing().items() if hook.feature]


def _wrap(hook: Hook, module: ModuleType) -> None:
    try:
        parent, attribute, target = wrapt.resolve_path(module, hook.name)
    except AttributeError:
        _states[hook] = f"{module.__name__} has no {hook.name}"
        return
    absent = [name for name in hook.parameters if name not in inspect.signature(target).parameters]
    if absent:
        _states[hook] = f"it has no parameter {', '.join(absent)}"
        return

    # A plain function, not a proxy: Ray pickles the globals of actors that are defined in a __main__.
    @functools.wraps(target)
    def hooked(*args: Any, **kwargs: Any) -> Any:
        return hook.call(target, args, kwargs)

    setattr(parent, attribute, hooked)
    _states[hook] = IN_PLACE
