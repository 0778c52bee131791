# SPDX-License-Identifier: Apache-2.0
"""One start of a run's job: its command, its environment, and its end."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from cw_grpo.job.directory import RunDirectory
from cw_grpo.job.failure import describe_failure, describe_stop, keep_ray_logs
from cw_grpo.job.plan import LauncherSettings, Plan, environment, quote
from cw_grpo.job.processes import short_temporary_root, supervise
from cw_grpo.job.progress import Progress, size
from cw_grpo.job.resume import outlook

logger = logging.getLogger(__name__)

LOGGER_DIRECTORIES = {"TENSORBOARD_DIR": "tensorboard", "WANDB_DIR": ".", "SWANLAB_LOG_DIR": "swanlab"}
"""Where verl's loggers write, by the environment variable that says so, relative to the run's directory."""


def ray_overrides(start_ray: bool, temporary: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Values by key of verl's config that say which Ray cluster to use; ``env`` is for the nodes of an existing one."""
    if start_ray:
        # A cluster of its own: never the one that RAY_ADDRESS names, or that runs on this machine.
        values = {"address": "local", "_temp_dir": str(temporary)}
    else:
        # An existing one, or an error; never a new one. Its nodes do not know this process's environment.
        given = ray_job_variables(os.environ)
        missing = {key: value for key, value in env.items() if given.get(key) != value}
        values = {"address": "auto", **{f"runtime_env.env_vars.{key}": value for key, value in missing.items()}}
    return {f"ray_kwargs.ray_init.{key}": value for key, value in values.items()}


def ray_job_variables(env: Mapping[str, str]) -> dict[str, str]:
    """The variables that the Ray job of ``env`` has in its runtime environment; none outside a Ray job.

    Ray gives them to the job's processes on every node, and rejects a job that names one of them once more.
    """
    injected = json.loads(env.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))  # Ray's name for it, set by `ray job submit`
    return (injected.get("runtime_env") or {}).get("env_vars") or {}


def launcher_env(settings: LauncherSettings) -> dict[str, str]:
    """The variables that `launcher.env` sets."""
    return settings.environment({})


def job_environment(user: Mapping[str, str], settings: LauncherSettings, own: Mapping[str, str]) -> dict[str, str]:
    """The environment of a job's processes: the user's, what `launcher.env` sets and removes, and ``own``."""
    return settings.environment(user) | dict(own) | {"PYTHONUNBUFFERED": "1", "HYDRA_FULL_ERROR": "1"}


def run_environment(job: Mapping[str, str], run: Path, metrics: Path) -> dict[str, str]:
    """Where verl's loggers write: into the run's directory, unless the job's environment says otherwise."""
    places = {key: job.get(key, str((run / name).resolve())) for key, name in LOGGER_DIRECTORIES.items()}
    return places | {"VERL_FILE_LOGGER_PATH": str(metrics)}


def experiment_name(plan: Plan, run: Path) -> str:
    """The name of a run for verl's loggers: `<scale>-<method>`, and the run directory's own."""
    return run.name if run.name.startswith(plan.name) else f"{plan.name}-{run.name}"


def job_command(
    plan: Plan, run: RunDirectory, made: Sequence[str], temporary: Path, env: Mapping[str, str]
) -> list[str]:
    """The command that starts stock verl; the user's overrides come last and win.

    Args:
        plan: the job.
        run: its directory.
        made: overrides that point to what was made for the job.
        temporary: Ray's directory.
        env: variables for the nodes of a Ray cluster that runs already.
    """
    own = [f"++trainer.default_local_dir={quote(run.checkpoints)}", *made]
    if {"scale", "method"} <= plan.choices.keys():
        own.append(f"++trainer.experiment_name={quote(experiment_name(plan, run.path))}")
    ray = ray_overrides(plan.launcher.start_ray, temporary, env)
    # The user's own `+key` would be an error after `++key`.
    own += [f"++{key}={quote(value)}" for key, value in ray.items() if not plan.sets(key)]
    return [
        *(sys.executable, "-m", "verl.trainer.main_ppo"),
        *(f"--config-path={plan.config_dir}", f"--config-name={plan.config_name}"),
        *own,
        *plan.overrides,
    ]


def run_attempt(plan: Plan, directory: RunDirectory, made: Sequence[str], metrics: Path) -> int:
    """Start the job, show its progress, leave no process of it; its exit status as a shell gives it."""
    metrics.parent.mkdir(exist_ok=True)
    start = size(directory.log)
    progress = Progress(directory.log, start, metrics, plan.config.trainer.total_training_steps, plan.launcher)
    own = run_environment(environment(plan.config), directory.path, metrics)
    # Ray's session; its name also marks the job's processes.
    temporary = Path(tempfile.mkdtemp(prefix="cwg-", dir=short_temporary_root()))
    logger.info("verl's output: %s", directory.log)
    try:
        command = job_command(plan, directory, made, temporary, launcher_env(plan.launcher) | own)
        env = job_environment(os.environ, plan.launcher, own)
        outcome = supervise(command, env, directory.log, marker=str(temporary), on_tick=progress)
        if outcome.status != 0:
            keep_ray_logs(temporary, directory.path / "ray_logs")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if outcome.status == 0:
        return 0
    if outcome.received is not None:
        name = signal.Signals(outcome.received).name
        logger.info("stopped by %s; %d processes ended", name, outcome.stopped)
        status = 128 + outcome.received
    elif outcome.problem is not None:
        for line in describe_stop(outcome.problem, directory.log, start):
            logger.info("%s", line)
        status = 1
    else:
        assert outcome.status is not None
        for line in describe_failure(outcome.status, directory.log, start):
            logger.info("%s", line)
        status = outcome.status if outcome.status > 0 else 128 - outcome.status
    logger.info("%s", outlook(plan, directory, progress.last_step, vllm_died=progress.vllm_died is not None))
    logger.info("all of verl's output: %s", directory.log)
    return status
