# SPDX-License-Identifier: Apache-2.0
"""Run a job from the command line, or resume it.

The job is ``python -m verl.trainer.main_ppo`` with this configuration, in a separate process; nothing of verl is
replaced. All that it writes is in the run's directory:

    verl.log             everything that verl and Ray print
    metrics/attempt-*    verl's metrics, one file for each start of the run (see :mod:`cw_grpo.runs`)
    checkpoints/         from which the same command resumes
    config.yaml          the composed configuration of the last start
    changes.txt          settings that were changed between starts
    commands.txt         the command of each start
    tensorboard/ wandb/  of these loggers, if the job uses them
    record/              samples of tokens (see :mod:`cw_grpo.hooks.record`), if `prepare.record` asks for them
    report/              report.html and its files
    run.png              reward and entropy over steps
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from cw_grpo import runs
from cw_grpo.job.attempt import run_attempt
from cw_grpo.job.directory import RunDirectory, usable_path
from cw_grpo.job.machine import lacks_optional_flash_attn
from cw_grpo.job.plan import LaunchError, Plan, added_keys_like_others, make_plan
from cw_grpo.job.precision import choose_precision
from cw_grpo.job.preflight import check_job_can_run
from cw_grpo.job.prepare import prepare_inputs
from cw_grpo.job.processes import STOP_SIGNALS
from cw_grpo.job.resume import (
    Changes,
    check_own_checkpoints,
    checkpoints_of,
    find_changes,
    note_changes,
    resume_step,
)
from cw_grpo.job.summary import summarize

logger = logging.getLogger(__name__)


def train(
    overrides: Sequence[str],
    *,
    config_dir: Path | None = None,
    config_name: str = "cw_grpo",
    run_dir: Path | None = None,
    fresh: bool = False,
    accept_changes: bool = False,
    prepare_only: bool = False,
    home: Path,
    command: Sequence[str] = (),
    build_report: Callable[[Path], object] | None = None,
) -> int:
    """Run a job, or resume it; its exit status.

    Args:
        overrides: hydra's, as on verl's own command line.
        config_dir: directory of the primary config.
        config_name: its name.
        run_dir: the run's directory, by default `runs/<scale>-<method>` in ``home``.
        fresh: set the contents of the run's directory aside and start anew.
        accept_changes: resume with settings that change the training.
        prepare_only: make the model and the data, and start nothing; the machine, which may be another, is not checked.
        home: where models, data and runs are kept.
        command: what the user typed, to be noted in the run's directory.
        build_report: makes the report of a run's directory; what it returns is shown.

    Raises:
        LaunchError: what prevents the run, before anything was started.
    """
    plan = make_plan(overrides, config_dir=config_dir, config_name=config_name)
    if lacks_optional_flash_attn(plan):
        logger.info("flash-attn is not installed: attention=sdpa, on padded sequences, slower and with more memory")
        plan = make_plan([*overrides, "attention=sdpa"], config_dir=config_dir, config_name=config_name)
    home = usable_path(home, "--home")
    path = usable_path(run_dir, "--run-dir") if run_dir else home / "runs" / plan.name
    for warning in added_keys_like_others(plan):
        logger.info("%s", warning)
    plan, precision = choose_precision(plan)
    if prepare_only:
        prepare_inputs(plan, home, path)
        return 0
    directory = RunDirectory(path)
    checkpoints = checkpoints_of(plan, directory)
    check_own_checkpoints(plan, directory, checkpoints, fresh)
    for note in check_job_can_run(plan, checkpoints, step=0 if fresh else resume_step(plan, checkpoints)):
        logger.info("%s", note)
    if precision is not None:
        logger.info("%s", precision)
    with directory.lock():
        if fresh and (aside := directory.set_aside()):
            logger.info("the earlier run is kept in %s", aside)
        step = resume_step(plan, checkpoints)
        changes = Changes()
        if step or directory.last_step():
            changes = find_changes(directory, plan.config, step)
            _check_changes(changes, directory, accept_changes)
        steps = plan.config.trainer.total_training_steps
        if step and steps is not None and step >= steps:
            logger.info("this run is finished: %d of %d steps", step, steps)
            _finish(plan, directory, build_report)
            logger.info("to start anew: --fresh (keeps this run beside the new one), or another --run-dir")
            return 0
        if step:
            logger.info("resuming from the checkpoint of step %d", step)
        made = prepare_inputs(plan, home, path)
        metrics = runs.next_attempt_file(path)
        note_changes(directory, changes, metrics.stem, step)
        OmegaConf.save(plan.config, directory.config)
        if command:
            with directory.commands.open("a", encoding="utf-8") as commands:
                commands.write(f"{shlex.join(command)}\n")
        status = run_attempt(plan, directory, made, metrics)
        if status not in {128 + number for number in STOP_SIGNALS}:  # who stops it does not want to wait
            _finish(plan, directory, build_report)
        return status


def _check_changes(changes: Changes, directory: RunDirectory, accept: bool) -> None:
    if changes.unloadable:
        raise LaunchError(
            f"verl cannot load the run's checkpoint with {', '.join(changes.unloadable)}: set it back, or start anew "
            "with --fresh (the earlier run is kept beside it)"
        )
    for line in changes.free:
        logger.info("changed: %s", line)
    if changes.training and not accept:
        listed = "\n  ".join(changes.training)
        raise LaunchError(
            f"{directory.path} holds a run with other settings, which change the training:\n  {listed}\n"
            "choose another --run-dir or --home; start anew with --fresh (the earlier run is kept beside it); or "
            "resume with the new settings with --accept-changes"
        )
    for line in changes.training:
        logger.info("changed, and accepted although it changes the training: %s", line)


def _finish(plan: Plan, directory: RunDirectory, build_report: Callable[[Path], object] | None) -> None:
    """Show what the run did so far."""
    if not summarize(directory, plan.name) or build_report is None:
        return
    try:
        logger.info("report: %s", build_report(directory.path))
    except Exception as error:  # the run itself is complete
        logger.info("no report: %s: %s", type(error).__name__, error)
