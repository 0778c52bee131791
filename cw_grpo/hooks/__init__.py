# SPDX-License-Identifier: Apache-2.0
"""The mechanism of the hooks: a function of verl is wrapped right after verl's own module was imported.

A :class:`Hook` decides what is trained: it raises what it must. An :class:`Observer` only watches: it never raises into
a trainer.

verl swallows the errors of a plugin, so a hook whose target is missing does not raise. Its state says so
(:func:`states`), `cw-grpo doctor` shows it, and a job that needs the hook stops (:func:`check_in_place`).
"""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import wrapt

IN_PLACE = "in place"
WAITING = "its module has not been imported"

_V1 = "verl.trainer.ppo.v1"


@dataclass(frozen=True)
class Hook:
    """``function(target, args, kwargs)`` in place of ``module.name``, which must have ``parameters``."""

    module: str
    name: str
    function: Callable[..., Any]
    parameters: tuple[str, ...] = ()
    for_losses: bool = False
    """Whether only the policy losses need it."""

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"

    def call(self, target: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        return self.function(target, args, kwargs)


@dataclass(frozen=True)
class Observer(Hook):
    """``function(arguments, result)`` after ``module.name``; ``feature`` names what is missing without it."""

    feature: str = ""

    def call(self, target: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        result = target(*args, **kwargs)
        try:
            self.function(inspect.signature(target).bind(*args, **kwargs).arguments, result)
        except Exception as error:  # whatever it is, the training is not to end of it
            message = f"CW-GRPO: no {self.feature} ({type(error).__name__}: {error}); the job is not affected"
            # Once, whatever the filters of the process: the same failure comes back at every step.
            if message not in _warned:
                _warned.add(message)
                warnings.warn(message, RuntimeWarning, stacklevel=2)
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
    return f"hooks: {lacking or 'all in place'}; verl {_version('verl')}, cw-grpo {_version('cw-grpo')}"


def missing() -> dict[Hook, str]:
    """The hooks whose target this verl does not have, and what it lacks."""
    # verl's V1 package imports all of its modules: one that still waits is not part of this verl.
    v1 = _V1 in sys.modules
    return {
        hook: state
        for hook, state in _states.items()
        if state not in (IN_PLACE, WAITING) or (state == WAITING and v1 and hook.module.startswith(_V1))
    }


def check_in_place(*, losses: bool) -> None:
    """Check the hooks that a job with CW-GRPO needs; ``losses``: whether a policy loss applies its weights.

    Raises:
        RuntimeError: the target of one is missing; names it and the versions.
    """
    needed = [hook for hook in missing() if not isinstance(hook, Observer) and (losses or not hook.for_losses)]
    if needed:
        raise RuntimeError(
            f"this verl lacks what CW-GRPO holds on to, so the job would not do what it says ({explain()}). "
            "Install a verl>=0.9,<0.10 that `cw-grpo doctor` accepts"
        )


def missing_features() -> list[str]:
    """The features that this verl does not allow, with the reason."""
    return [f"{hook.feature} ({hook}: {state})" for hook, state in missing().items() if isinstance(hook, Observer)]


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed as a distribution"


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
