"""Running verl's servers (and its merger of checkpoints) as processes that are always stopped, and their progress."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from cw_grpo.evaluation.questions import Questions
from cw_grpo.job import preflight
from cw_grpo.job.launch import STOP_SIGNALS, Follower, LaunchError, error_lines, launcher_env, ray_overrides
from cw_grpo.job.processes import Job, short_temporary_folder, start_marked, stop_signals


def check_machine(config: DictConfig) -> None:
    """Look for the GPUs and the rollout's package, unless the servers run in a Ray cluster that is there.

    Raises:
        LaunchError: what is not there, and what to do.
    """
    if not launcher_settings(config).get("private_ray", True):
        return
    if problem := preflight.missing_gpus(config):
        raise LaunchError(problem)
    name = config.actor_rollout_ref.rollout.name
    if name in ("vllm", "sglang") and importlib.util.find_spec(name) is None:
        raise LaunchError(
            f"actor_rollout_ref.rollout.name={name}, and {name} is not installed: pip install verl[{name}]"
        )


def launcher_settings(config: DictConfig) -> dict[str, Any]:
    """The node ``launcher``, which the config groups of `cluster` fill."""
    return OmegaConf.to_container(config.get("launcher") or OmegaConf.create(), resolve=True)


def run(
    command: Sequence[str],
    settings: Mapping[str, Any],
    log: Path,
    *,
    temporary: Path,
    look: Callable[[float], str | None] = lambda seconds: None,
) -> None:
    """Run a command to its end, its output added to ``log``; no process of it is left, whatever happens.

    Args:
        command: what to run.
        settings: the node ``launcher``.
        log: takes the output.
        temporary: marks the processes, and is Ray's folder.
        look: called twice a second with the seconds since the start; a text it returns is why to stop.

    Raises:
        LaunchError: the command failed, was stopped by a signal, or by ``look``.
    """
    env = {**os.environ, **launcher_env(settings)}
    if settings.get("private_ray", True):
        env.pop("RAY_ADDRESS", None)
    job = Job(str(temporary))
    started = looked = time.monotonic()
    problem = None
    with stop_signals(*STOP_SIGNALS) as received, log.open("ab") as output:
        output.write(f"\n=== {time.strftime('%Y-%m-%d %H:%M:%S')} {list(command)}\n".encode())
        output.flush()
        start = output.tell()
        try:
            process = start_marked(command, job.marker, {**env, "PYTHONUNBUFFERED": "1"}, output)
            status = None
            while status is None and not received and problem is None:
                try:
                    status = process.wait(timeout=0.5)
                except subprocess.TimeoutExpired:
                    status = None
                now = time.monotonic()
                problem = look(now - started)
                if now - looked > 5:
                    job.look()
                    looked = now
        finally:
            job.stop()
    if received:
        name = signal.Signals(received[0]).name
        raise LaunchError(f"stopped by {name}; the same command goes on where it was", 128 + received[0])
    if problem is not None and status != 0:
        raise LaunchError(f"stopped: {problem}; all output: {log}", 1)
    if status != 0:
        with log.open("rb") as file:
            file.seek(start)
            errors = error_lines(file.read().decode(errors="replace"))
        listed = "".join(f"\n  {line}" for line in errors)
        raise LaunchError(f"{' '.join(command[1:3])} ended with exit status {status}{listed}\nall output: {log}", 1)


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
        model: folder in Hugging Face's format.
        questions: by benchmark.
        pending: benchmark, question, sample and seed of each answer.
        files: by benchmark, where the answers go.
        label: the model's, for the progress bar.
        log: takes the servers' output.

    Raises:
        LaunchError: the servers failed, were stopped, or gave no answer within `launcher.start_limit_s`.
    """
    settings = launcher_settings(config)
    limit = float(settings.get("start_limit_s", 900))
    config = config.copy()
    OmegaConf.update(config, "actor_rollout_ref.model.path", str(model))
    temporary = Path(tempfile.mkdtemp(prefix="cwg-", dir=short_temporary_folder()))
    for key, value in ray_overrides(settings.get("private_ray", True), temporary, launcher_env(settings)).items():
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
        followers = [Follower(path, path.stat().st_size if path.exists() else 0) for path in files.values()]
        with tqdm(total=len(pending), desc=f"{label}: starting", unit="answer") as bar:

            def look(seconds: float) -> str | None:
                added = sum(len(follower.lines()) for follower in followers)
                if added:
                    bar.set_description(label, refresh=False)
                    bar.update(added)
                if not bar.n and seconds > limit:
                    return (
                        f"no answer after {seconds:.0f} s. Ray waits in silence for resources that were not declared "
                        "(ray_kwargs.ray_init.num_cpus, num_gpus); the limit is launcher.start_limit_s"
                    )
                return None

            command = [sys.executable, "-m", "cw_grpo.evaluation.servers", str(temporary / "request.json")]
            run(command, settings, log, temporary=temporary, look=look)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
