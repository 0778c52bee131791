# SPDX-License-Identifier: Apache-2.0
"""Resuming a run: from which checkpoint, and with which settings changed."""

from __future__ import annotations

import math
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
    unloadable: list[str] = field(default_factory=list)
    """Those with which verl cannot load the checkpoint."""


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
        step = _step_of_path(plan, checkpoints)
        _check_ranks(plan, Path(plan.config.trainer.resume_from_path))
        return step
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
    if step:
        _check_ranks(plan, checkpoints / f"global_step_{step}")
    return step


def check_own_checkpoints(plan: Plan, directory: RunDirectory, checkpoints: Path, fresh: bool) -> None:
    """Check that a start without an earlier one does not resume, as from a `trainer.default_local_dir` of another run.

    It has no settings to compare. Who names a checkpoint with `trainer.resume_from_path` wants that one.

    Raises:
        LaunchError: it would resume.
    """
    is_set_aside = fresh and (checkpoints.parent.resolve() / checkpoints.name).is_relative_to(directory.path.resolve())
    has_earlier_start = directory.config.is_file() and not fresh
    is_named = OmegaConf.select(plan.config, "trainer.resume_mode") == "resume_path"
    if not (is_set_aside or has_earlier_start or is_named) and (step := resume_step(plan, checkpoints)):
        checkpoint = checkpoints / f"global_step_{step}"
        raise LaunchError(
            f"verl would resume from {checkpoint}, which no earlier start of this run made: set another trainer."
            "default_local_dir; or, to start there, trainer.resume_mode=resume_path and trainer.resume_from_path="
            f"{checkpoint}; or, to ignore it, trainer.resume_mode=disable"
        )


def _check_ranks(plan: Plan, checkpoint: Path) -> None:
    """Each rank of verl's FSDP loads the file that has its own number, and the number of ranks, in its name."""
    files = (re.search(r"_world_size_(\d+)_rank_", file.name) for file in _actor(checkpoint).glob("*_world_size_*.pt"))
    saved = {int(found[1]) for found in files if found}
    numbers = [OmegaConf.select(plan.config, f"trainer.{key}") for key in ("nnodes", "n_gpus_per_node")]
    if saved and all(isinstance(number, int) for number in numbers) and math.prod(numbers) not in saved:
        ranks = " or ".join(map(str, sorted(saved)))
        raise LaunchError(
            f"{checkpoint} is of {ranks} ranks and cannot be resumed with {math.prod(numbers)}: trainer.nnodes x "
            f"trainer.n_gpus_per_node must be {ranks}, or start anew with --fresh"
        )


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


def find_changes(directory: RunDirectory, config: DictConfig, step: int) -> Changes:
    """What ``config`` changes in the settings that this run was last started with.

    Args:
        directory: the run's.
        config: of the next start.
        step: of the checkpoint from which it resumes; 0 if there is none.
    """
    changes = Changes()
    if not directory.config.is_file():
        return changes
    configs = (OmegaConf.load(directory.config), config)
    before, now = (run_config.flatten(OmegaConf.to_container(c)) for c in configs)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) == now.get(key):
            continue
        line = f"{key}: {before.get(key, '(absent)')} -> {now.get(key, '(absent)')}"
        if all(run_config.is_free_to_change(key, c, step) for c in configs):
            changes.free.append(line)
        elif key in run_config.FIXED_BY_CHECKPOINT:
            changes.unloadable.append(line)
        elif key in run_config.LENGTH_SETTINGS:
            changes.training.append(f"{line} (the learning rate depends on it, and would jump on resuming)")
        else:
            changes.training.append(line)
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


def outlook(plan: Plan, directory: RunDirectory, last_step: int, *, vllm_died: bool = False) -> str:
    """What the same command will do after a run was stopped or failed, and what is lost.

    Args:
        plan: the job.
        directory: the run's.
        last_step: of this start, the last step with metrics.
        vllm_died: whether verl went on without it, so that a step that was saved since may lack responses.
    """
    try:
        step = resume_step(plan, checkpoints_of(plan, directory))
    except LaunchError as error:
        return str(error)
    lost = "" if last_step <= step else f"; steps {step + 1} to {last_step} are lost"
    lost = lost.replace(f"steps {last_step} to {last_step} are", f"step {last_step} is")
    if step:
        doubtful = ""
        if vllm_died and step > directory.last_step():
            had = "it may have had only the responses that were finished"
            doubtful = f"; step {step} was saved, but its metrics were not: {had}"
        return f"the same command resumes from the checkpoint of step {step}{lost}{doubtful}"
    every = OmegaConf.select(plan.config, "trainer.save_freq")
    return f"there is no checkpoint (trainer.save_freq={every}): the same command starts from the beginning{lost}"
