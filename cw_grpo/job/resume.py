# SPDX-License-Identifier: Apache-2.0
"""Resuming a run: from which checkpoint, and with which settings changed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from cw_grpo import run_config, runs
from cw_grpo.job.directory import RunDirectory
from cw_grpo.job.plan import LaunchError, Plan, did_you_mean

RESUME_MODES = ("auto", "disable", "resume_path")
"""verl's."""


@dataclass
class Changes:
    """Settings in which a run's next start differs from its last, as lines `key: before -> now`."""

    free: list[str] = field(default_factory=list)
    """Those that change how the run is executed: resources, checkpoints, logging."""
    training: list[str] = field(default_factory=list)
    """Those that change the training."""


def checkpoints_of(plan: Plan, directory: RunDirectory) -> Path:
    """Where the run's checkpoints go."""
    if plan.sets("trainer.default_local_dir"):
        return Path(plan.config.trainer.default_local_dir)
    return directory.checkpoints


def resume_step(plan: Plan, checkpoints: Path) -> int:
    """The step of the checkpoint that verl will resume from; 0 if it will start from the beginning.

    Raises:
        LaunchError: verl would stop at that checkpoint, or start from the beginning without a word.
    """
    mode = OmegaConf.select(plan.config, "trainer.resume_mode", default="auto")
    if mode not in RESUME_MODES:
        hint = did_you_mean(str(mode), RESUME_MODES) or f"; it is one of {', '.join(RESUME_MODES)}"
        raise LaunchError(f"trainer.resume_mode={mode} does not exist{hint}")
    if mode == "disable":
        return 0
    if mode == "resume_path":
        return _step_of_path(plan, checkpoints)
    try:
        step = runs.last_checkpoint(checkpoints) or 0
    except ValueError as error:
        raise LaunchError(
            f"{error}: write the number of the last complete global_step_N beside it, or start anew with --fresh"
        ) from error
    if step and not _actor(checkpoints / f"global_step_{step}").is_dir():
        raise LaunchError(
            f"{checkpoints / runs.TRACKER} names step {step}, but {checkpoints}/global_step_{step} has no checkpoint, "
            f"and verl would start from the beginning. {_what_there_is(checkpoints)}"
        )
    return step


def _step_of_path(plan: Plan, checkpoints: Path) -> int:
    given = plan.config.trainer.resume_from_path
    found = re.fullmatch(r"global_step_(\d+)", Path(str(given)).name)
    if given is None or not found or str(given).endswith("/"):
        raise LaunchError(
            f"trainer.resume_from_path={given} must end in global_step_N (no slash after it). "
            f"{_what_there_is(checkpoints)}"
        )
    if not _actor(Path(given)).is_dir():
        raise LaunchError(f"trainer.resume_from_path={given} has no checkpoint. {_what_there_is(checkpoints)}")
    return int(found[1])


def _actor(checkpoint: Path) -> Path:
    return checkpoint / "actor"  # verl empties, but keeps, the directory of a checkpoint that it no longer needs


def _what_there_is(checkpoints: Path) -> str:
    steps = runs.checkpoint_steps(checkpoints)
    if not steps:
        return f"There is no checkpoint in {checkpoints}; --fresh starts anew"
    return (
        f"Checkpoints in {checkpoints}: {', '.join(map(str, steps))}. To resume from one: trainer.resume_mode="
        f"resume_path trainer.resume_from_path={checkpoints}/global_step_{steps[-1]}"
    )


def find_changes(directory: RunDirectory, config: DictConfig) -> Changes:
    """What ``config`` changes in the settings that this run was last started with."""
    changes = Changes()
    if not directory.config.is_file():
        return changes
    before, now = (run_config.flatten(OmegaConf.to_container(c)) for c in (OmegaConf.load(directory.config), config))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            line = f"{key}: {before.get(key, '(absent)')} -> {now.get(key, '(absent)')}"
            (changes.free if run_config.is_free_to_change(key, config) else changes.training).append(line)
    return changes


def note_changes(directory: RunDirectory, changes: Changes, attempt: str, step: int) -> None:
    """Add the changes to the run's ``changes.txt``."""
    if not (changes.free or changes.training):
        return
    lines = [f"{attempt}, from step {step}:"]
    lines += [f"  {line}" for line in changes.free]
    lines += [f"  {line}  (changes the training, accepted)" for line in changes.training]
    with directory.changes.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def outlook(plan: Plan, directory: RunDirectory, last_step: int) -> str:
    """What the same command will do after a run was stopped or failed, and what is lost."""
    try:
        step = resume_step(plan, checkpoints_of(plan, directory))
    except LaunchError as error:
        return str(error)
    lost = "" if last_step <= step else f"; steps {step + 1} to {last_step} are lost"
    lost = lost.replace(f"steps {last_step} to {last_step} are", f"step {last_step} is")
    if step:
        return f"the same command resumes from the checkpoint of step {step}{lost}"
    every = OmegaConf.select(plan.config, "trainer.save_freq")
    return f"there is no checkpoint (trainer.save_freq={every}): the same command starts from the beginning{lost}"
