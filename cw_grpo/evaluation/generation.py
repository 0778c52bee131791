# SPDX-License-Identifier: Apache-2.0
"""Running verl's servers (and its merger of checkpoints) as processes that are always stopped, and their progress."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from cw_grpo.doctor.shadowing import shadowing_problem
from cw_grpo.evaluation.questions import Questions
from cw_grpo.job import machine
from cw_grpo.job.attempt import job_environment, launcher_env, ray_overrides
from cw_grpo.job.failure import errors_in
from cw_grpo.job.plan import LaunchError, LauncherSettings, launcher_settings
from cw_grpo.job.processes import short_temporary_root, supervise
from cw_grpo.job.progress import Follower, size


def check_machine(config: DictConfig) -> None:
    """Check the working directory's modules; and GPUs and the rollout's package, unless a Ray cluster runs already.

    Raises:
        LaunchError: what is missing, and what to do.
    """
    if problem := shadowing_problem(Path.cwd()):
        raise LaunchError(problem)
    if not launcher_settings(config).start_ray:
        return
    if problem := machine.missing_gpus(config) or machine.missing_rollout(config):
        raise LaunchError(problem)


def run(
    command: Sequence[str],
    settings: LauncherSettings,
    log: Path,
    *,
    temporary: Path,
    on_tick: Callable[[float], str | None] = lambda seconds: None,
) -> None:
    """Run a command to its end with the environment of a job; see :func:`cw_grpo.job.processes.supervise`.

    Args:
        command: what to run.
        settings: the node ``launcher``.
        log: takes the output.
        temporary: marks the processes, and is Ray's directory.
        on_tick: called twice a second with the seconds since the start; a text that it returns is why to stop.

    Raises:
        LaunchError: the command failed, or was stopped by a signal or by ``on_tick``.
    """
    start = size(log)
    env = job_environment(os.environ, settings, {})
    outcome = supervise(command, env, log, marker=str(temporary), on_tick=on_tick)
    if outcome.status == 0:
        return
    if outcome.received is not None:
        name = signal.Signals(outcome.received).name
        raise LaunchError(f"stopped by {name}; the same command resumes where it was", 128 + outcome.received)
    if outcome.problem is not None:
        raise LaunchError(f"stopped: {outcome.problem}; all output: {log}", 1)
    listed = "".join(f"\n  {line}" for line in errors_in(log, start))
    what = " ".join(command[1:3])
    raise LaunchError(f"{what} ended with exit status {outcome.status}{listed}\nall output: {log}", 1)


def generate(
    config: DictConfig,
    model: Path,
    questions: Mapping[str, Questions],
    pending: Sequence[tuple[str, int, int, int]],
    files: Mapping[str, Path],
    *,
    label: str,
    log: Path,
) -> None:
    """Have verl's servers answer what is pending; each answer is added to its benchmark's file when it is finished.

    Args:
        config: of the job; its model is set here.
        model: directory in Hugging Face's format.
        questions: by benchmark.
        pending: benchmark, question, sample and seed of each answer.
        files: by benchmark, where the answers go.
        label: the model's, for the progress bar.
        log: takes the servers' output.

    Raises:
        LaunchError: the servers failed, were stopped, or gave no answer within `launcher.startup_timeout_s`.
    """
    settings = launcher_settings(config)
    limit = settings.startup_timeout_s
    config = config.copy()
    OmegaConf.update(config, "actor_rollout_ref.model.path", str(model))
    temporary = Path(tempfile.mkdtemp(prefix="cwg-", dir=short_temporary_root()))
    for key, value in ray_overrides(settings.start_ray, temporary, launcher_env(settings)).items():
        OmegaConf.update(config, key, value, force_add=True)
    prompts: dict[str, dict[int, Any]] = {name: {} for name in files}
    for benchmark, question, _, _ in pending:
        prompts[benchmark][question] = questions[benchmark].rows[question].prompt
    try:
        OmegaConf.save(config, temporary / "config.yaml", resolve=True)
        request = {
            "config": str(temporary / "config.yaml"),
            "prompts": prompts,
            "pending": pending,
            "files": {name: str(path) for name, path in files.items()},
        }
        (temporary / "request.json").write_text(json.dumps(request), encoding="utf-8")
        followers = [Follower(path, size(path)) for path in files.values()]
        with tqdm(total=len(pending), desc=f"{label}: starting", unit="answer") as bar:

            def on_tick(seconds: float) -> str | None:
                added = sum(len(follower.lines()) for follower in followers)
                if added:
                    bar.set_description(label, refresh=False)
                    bar.update(added)
                if limit is not None and not bar.n and seconds > limit:
                    return (
                        f"no answer after {seconds:.0f} s. Ray waits in silence for resources that were not declared "
                        "(ray_kwargs.ray_init.num_cpus, num_gpus); the limit is launcher.startup_timeout_s"
                    )
                return None

            command = [sys.executable, "-m", "cw_grpo.evaluation.servers", str(temporary / "request.json")]
            run(command, settings, log, temporary=temporary, on_tick=on_tick)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
