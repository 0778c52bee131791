# SPDX-License-Identifier: Apache-2.0
"""Whether the settings of a job fit each other: the hooks that check them before anything is started."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ..hooks import check_in_place, missing_features
from ..settings import (
    ESTIMATOR,
    LOSSES,
    check_job,
    describe,
    describe_record,
    estimator_name,
    is_v1,
    job_config,
    loss_mode,
    notes,
)
from .layout import check_layout
from .reward import check_reward

_announced: set[str] = set()


def check_settings(target: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Around verl's `validate_config`: rejects settings that conflict before anything is started.

    Raises:
        ValueError: settings that conflict, or a batch that the workers could not cut.
        RuntimeError: this verl lacks what the job needs.
    """
    result = target(*args, **kwargs)
    job = inspect.signature(target).bind(*args, **kwargs).arguments["config"]
    check_plugin(job)
    check_layout(job)
    check_reward(job)
    return result


def check_plugin(job: Any) -> None:
    """Check the settings of CW-GRPO in a job, and the hooks that the job needs.

    Raises:
        ValueError: see :func:`cw_grpo.settings.check_job`.
        RuntimeError: see :func:`cw_grpo.hooks.check_in_place`.
    """
    check_job(job)
    if describe(job, job.algorithm.adv_estimator) is not None:
        check_in_place("V1" if is_v1(job) else "V0", losses=loss_mode(job) in LOSSES)


def announce(target: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Around verl's computation of advantages: at a job's first step, print where the weights are applied, and how.

    The settings are checked once more: not every trainer calls `validate_config`.
    """
    call = inspect.signature(target).bind(*args, **kwargs)
    call.apply_defaults()
    algorithm, estimator = call.arguments["config"], estimator_name(call.arguments["adv_estimator"])
    job = job_config(algorithm)
    # verl may compute grpo's advantages within those of cw_grpo: that says nothing about the job.
    if job is not None and not (estimator != ESTIMATOR == job.algorithm.adv_estimator):
        for line in (describe(job, estimator), describe_record(algorithm)):
            if line is not None and line not in _announced:
                check_plugin(job)
                _announced.add(line)
                print(line, flush=True)
                for note in notes(job) + [f"CW-GRPO: not with this verl: {feature}" for feature in missing_features()]:
                    print(note, flush=True)
    return target(*args, **kwargs)
