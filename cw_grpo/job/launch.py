"""``cw-grpo train``: makes what a job needs, runs stock verl, and shows what it does in a line a step.

The job is ``python -m verl.trainer.main_ppo`` with this configuration, as a process of its own; nothing of verl is
replaced. All it writes is in the run's folder:

    verl.log             everything that verl and Ray print
    metrics/attempt-*    verl's metrics, a file for each time the run was started (see :mod:`cw_grpo.runs`)
    checkpoints/         from which the same command goes on
    config.yaml          the composed configuration
    record/              samples of tokens (see :mod:`cw_grpo.hooks.record`), where `prepare.record` asks for them
    report/              report.html and what is behind it (see :mod:`cw_grpo.report`)
    run.png              reward and entropy over steps
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cw_grpo import runs
from cw_grpo.job import preflight
from cw_grpo.job.processes import Job, short_temporary_folder, start_marked, stop_signals
from cw_grpo.paths import RECIPE

Echo = Callable[[str], None]

STAGES = (
    ("Started a local Ray instance|Connected to Ray cluster", "Ray is up"),
    ("dataloader initialized", "data is loaded"),
    ("actor and ref model engine initialized", "the trainer has the model"),
    ("ready to fit", "the rollout server has the model; first step"),
)
"""What verl's log says while it starts (a pattern), in order, and what that means."""

SHOWN = (
    ("reward", "critic/score/mean", "{:.3f}"),
    ("entropy", "actor/entropy", "{:.3f}"),
    ("length", "response_length/mean", "{:.1f}"),
    ("effective tokens", "actor/cw_grpo/effective_token_fraction", "{:.3f}"),
)
"""The columns of a progress line; a metric that the job does not have is left out."""

ACCURACY = re.compile(r"val-core/(.+)/acc/mean@\d+")
"""verl's name for the accuracy on a validation set."""

LOCK = ".lock"
"""Held in a run's folder while a launcher writes there."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class LaunchError(Exception):
    """What stands in the way of a run, for the user to read."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Plan:
    """A composed job."""

    config_dir: Path
    config_name: str
    overrides: tuple[str, ...]
    config: DictConfig
    choices: Mapping[str, str]
    """Which file was chosen of each config group."""

    def sets(self, key: str) -> bool:
        """Whether the user's own overrides set the key."""
        parsed = OverridesParser.create().parse_overrides(list(self.overrides))
        return any(override.key_or_group == key for override in parsed)

    @property
    def private_ray(self) -> bool:
        """Whether the job has a Ray cluster of its own; else the one of RAY_ADDRESS, or that runs on this machine."""
        return OmegaConf.select(self.config, "launcher.private_ray", default=True)

    @property
    def name(self) -> str:
        """`scale-method`, or the primary config's name where it has no such groups."""
        chosen = [self.choices[group] for group in ("scale", "method") if group in self.choices]
        return "-".join(chosen) or self.config_name


def default_config_dir() -> Path:
    """The recipe's config folder in the checkout that this package is installed from.

    Raises:
        LaunchError: there is none.
    """
    folder = RECIPE / "config"
    if not folder.is_dir():
        raise LaunchError(f"there is no {folder}: name the recipe's config folder with --config-path")
    return folder


def make_plan(overrides: Sequence[str], *, config_dir: Path | None = None, config_name: str = "cw_grpo") -> Plan:
    """Compose the job as hydra will in verl's process.

    Raises:
        LaunchError: a group, key or value that does not exist; says which there are.
    """
    config_dir = (config_dir or default_config_dir()).resolve()
    if not config_dir.is_dir():
        raise LaunchError(f"--config-path {config_dir}: no such folder")
    try:
        with initialize_config_dir(str(config_dir), version_base=None):
            config = compose(config_name, overrides=list(overrides), return_hydra_config=True)
        choices = OmegaConf.to_container(config.hydra.runtime.choices)
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        cause = f"\n{error.__cause__}" if error.__cause__ else ""
        raise LaunchError(f"{error}{cause}".split("\nConfig search path:")[0].strip()) from error
    return Plan(config_dir, config_name, tuple(overrides), config, choices)


# --- what the job needs ---------------------------------------------------------------------------------------------


def prepare(plan: Plan, home: Path, run: Path, echo: Echo) -> list[str]:
    """Make the model and the data that the node ``prepare`` names and ``home`` lacks; the overrides that point there.

    ``prepare.record`` has the plugin write samples of tokens to the run's folder.

    Raises:
        LaunchError: what cannot be made, and why.
    """
    node = OmegaConf.to_container(plan.config.get("prepare") or OmegaConf.create(), resolve=True)
    if unknown := sorted(set(node) - {"model", "prompt", "data", "reward", "record"}):
        raise LaunchError(f"prepare.{unknown[0]} is not known; known are model, prompt, data, reward and record")
    overrides = []
    try:
        if "reward" in node and not plan.sets("reward.custom_reward_function.path"):
            reward = (plan.config_dir / node["reward"]).resolve()
            if not reward.is_file():
                raise LaunchError(f"prepare.reward: there is no {reward}")
            overrides.append(f"reward.custom_reward_function.path={_quote(reward)}")
        if "record" in node and not plan.sets("algorithm.cw_grpo.record"):
            settings = {"record": _quote(run / "record")} | {f"record_{key}": v for key, v in node["record"].items()}
            overrides += [f"++algorithm.cw_grpo.{key}={value}" for key, value in settings.items()]
        if "model" in node and not plan.sets("actor_rollout_ref.model.path"):
            overrides.append(f"actor_rollout_ref.model.path={_quote(_prepare_model(node['model'], home, echo))}")
        for split, key in (("train", "data.train_files"), ("val", "data.val_files")):
            if split in node.get("data", {}) and not plan.sets(key):
                prompt = (plan.config_dir / node["prompt"]).resolve()
                overrides.append(f"{key}={_quote(_prepare_data(node['data'][split], split, prompt, home, echo))}")
    except (ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
        raise LaunchError(f"prepare: {error}", status=1) from error
    return overrides


def check_machine(plan: Plan) -> None:
    """Look at how the batch is cut, and for the GPUs, packages, model and data that the job needs and nobody makes.

    Raises:
        LaunchError: what is not there, and what to do.
    """
    prepared = plan.config.get("prepare") or {}
    made = {f"data.{split}_files" for split in prepared.get("data", {})}
    made |= {"actor_rollout_ref.model.path"} if "model" in prepared else set()
    made = {key for key in made if not plan.sets(key)}
    if problem := preflight.problem(plan.config, made, plan.private_ray):
        raise LaunchError(problem)


def _prepare_model(settings: dict[str, Any], home: Path, echo: Echo) -> Path:
    from cw_grpo.job.models import identity, make_model

    folder = home / "models" / f"{settings['name']}-{_digest(identity(**settings))}"
    if not folder.exists():
        make_model(**settings, out=folder, echo=lambda line: echo(f"model: {line}"))
    return folder


def _prepare_data(settings: dict[str, Any], split: str, prompt: Path, home: Path, echo: Echo) -> Path:
    from cw_grpo.datasets.prompts import Prompt
    from cw_grpo.datasets.reasoning_gym import reasoning_gym_rows
    from cw_grpo.datasets.rows import write_rows

    name = f"{settings['task']}-{split}-{_digest([settings, prompt.read_text()])}.parquet"
    out = home / "data" / name
    if not out.exists():
        rows = write_rows(reasoning_gym_rows(**settings, split=split, prompt=Prompt(prompt)), out)
        echo(f"data: {rows} questions of {settings['task']} in {out}")
    return out


def _digest(settings: Any) -> str:
    """Names what was made by how: other settings give another file, never a stale one."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def _quote(value: Path | str) -> str:
    """A string as a value in hydra's grammar."""
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


# --- the run's folder -----------------------------------------------------------------------------------------------


class RunFolder:
    """The folder of a run and what is in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = path / "verl.log"
        self.config = path / "config.yaml"
        self.picture = path / "run.png"
        self.checkpoints = path / "checkpoints"

    @contextlib.contextmanager
    def lock(self, option: str = "--run-dir") -> Iterator[None]:
        """Keep a second launcher out; ``option`` names another folder.

        Raises:
            LaunchError: one is at work here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise LaunchError(f"another run is writing to {self.path}: choose another {option}", 1) from error
            yield

    def set_aside(self) -> Path | None:
        """Move what is here to a folder beside it, so that a run starts anew; None if there was nothing.

        The lock stays: it keeps a run that still goes on from having its folder taken away.
        """
        entries = [entry for entry in self.path.iterdir() if entry.name != LOCK]
        if not entries:
            return None
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.{number}")).exists():
            number += 1
        aside.mkdir()
        for entry in entries:
            entry.rename(aside / entry.name)
        return aside

    def last_checkpoint(self, checkpoints: Path) -> int:
        """The step that verl would go on from; 0 if there is none.

        Raises:
            LaunchError: verl's note of it holds no number, and verl would stop at it.
        """
        try:
            return runs.last_checkpoint(checkpoints) or 0
        except ValueError as error:
            raise LaunchError(
                f"{error}: write that of the last whole global_step_N beside it there, or start anew with --fresh"
            ) from error

    def last_step(self) -> int:
        """The last step with metrics; 0 if there is none."""
        try:
            return int(runs.load_metrics(self.path).index.max())
        except (FileNotFoundError, ValueError):
            return 0

    def differences(self, config: DictConfig) -> list[str]:
        """Settings in which ``config`` differs from the one that this run was started with."""
        if not self.config.is_file():
            return []
        before, now = (runs.flatten(OmegaConf.to_container(c)) for c in (OmegaConf.load(self.config), config))
        return [
            f"{key}: {before.get(key, '(absent)')} -> {now.get(key, '(absent)')}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and not runs.is_below(key, runs.SETTINGS_FREE_TO_CHANGE)
        ]


# --- the run --------------------------------------------------------------------------------------------------------


def train(
    overrides: Sequence[str],
    *,
    config_dir: Path | None = None,
    config_name: str = "cw_grpo",
    run_dir: Path | None = None,
    fresh: bool = False,
    home: Path,
    echo: Echo = print,
) -> int:
    """Run a job, or go on with it; its exit status.

    Args:
        overrides: hydra's, as on verl's own command line.
        config_dir: folder of the primary config.
        config_name: its name.
        run_dir: the run's folder, by default `runs/<scale>-<method>` in ``home``.
        fresh: set what is in the run's folder aside and start anew.
        home: where models, data and runs are kept.
        echo: takes a line for the terminal.

    Raises:
        LaunchError: what stands in the way, before anything was started.
    """
    plan = make_plan(overrides, config_dir=config_dir, config_name=config_name)
    check_machine(plan)
    home = home.resolve()
    folder = RunFolder((run_dir or home / "runs" / plan.name).resolve())
    with folder.lock():
        if fresh and (aside := folder.set_aside()):
            echo(f"the earlier run is kept in {aside}")
        steps = plan.config.trainer.total_training_steps
        checkpoints = folder.checkpoints
        if plan.sets("trainer.default_local_dir"):
            checkpoints = Path(plan.config.trainer.default_local_dir)
        resumed = folder.last_checkpoint(checkpoints) if plan.config.trainer.resume_mode != "disable" else 0
        if (resumed or folder.last_step()) and (differences := folder.differences(plan.config)):
            listed = "\n  ".join(differences)
            raise LaunchError(
                f"{folder.path} holds a run with other settings:\n  {listed}\n"
                "choose another --run-dir, or start anew with --fresh (the earlier run is kept beside it)"
            )
        if resumed:
            if steps is not None and resumed >= steps:
                echo(f"this run is finished: {resumed} of {steps} steps")
                with contextlib.suppress(FileNotFoundError):
                    report(folder, plan, echo)
                echo("to start anew: --fresh (keeps this run beside the new one), or another --run-dir")
                return 0
            echo(f"going on from the checkpoint of step {resumed}")
        made = prepare(plan, home, folder.path, echo)
        OmegaConf.save(plan.config, folder.config)
        return Attempt(plan, folder, made, steps, echo).run()


class Attempt:
    """One start of a run's job, watched to its end."""

    def __init__(self, plan: Plan, folder: RunFolder, made: list[str], steps: int | None, echo: Echo) -> None:
        self.plan, self.folder, self.made, self.steps, self.echo = plan, folder, made, steps, echo
        self.settings = OmegaConf.to_container(plan.config.get("launcher") or OmegaConf.create(), resolve=True)
        self.metrics = runs.next_attempt_file(folder.path)
        self.metrics.parent.mkdir(exist_ok=True)
        # Ray's session; and what its processes are told by, unique to this attempt.
        self.temporary = Path(tempfile.mkdtemp(prefix="cwg-", dir=short_temporary_folder()))
        self.job = Job(str(self.temporary))

    def run(self) -> int:
        """Start the job, show its progress, leave no process of it; its exit status."""
        self.started = time.monotonic()
        self.echo(f"verl's output: {self.folder.log}")
        status = 1
        with stop_signals(*STOP_SIGNALS) as received, self.folder.log.open("ab") as log:
            log.write(f"\n=== {time.strftime('%Y-%m-%d %H:%M:%S')} {self.command()}\n".encode())
            log.flush()
            self.log_start = log.tell()
            try:
                process = start_marked(self.command(), self.job.marker, self.environment(), log)
                status = self.watch(process, received)
            finally:
                stopped = self.job.stop()
                if status != 0:
                    self.keep_ray_logs()
                shutil.rmtree(self.temporary, ignore_errors=True)
        if received:
            self.echo(f"stopped by {signal.Signals(received[0]).name}; {stopped} processes ended")
            self.echo("the same command goes on from the last checkpoint")
            return 128 + received[0]
        if status != 0:
            self.explain(status)
        with contextlib.suppress(FileNotFoundError):
            report(self.folder, self.plan, self.echo)
        return status if status >= 0 else 128 - status  # as a shell says it

    def command(self) -> list[str]:
        """Stock verl; the user's overrides come last and win."""
        plan = self.plan
        own = [
            f"++trainer.default_local_dir={_quote(self.folder.checkpoints)}",
            *self.made,
        ]
        env = {key: _quote(value) for key, value in self.job_env().items()}
        own += [f"++{key}={value}" for key, value in ray_overrides(plan.private_ray, self.temporary, env).items()]
        return [
            *(sys.executable, "-m", "verl.trainer.main_ppo"),
            *(f"--config-path={plan.config_dir}", f"--config-name={plan.config_name}"),
            *own,
            *plan.overrides,
        ]

    def job_env(self) -> dict[str, str]:
        """What every process of the job needs in its environment."""
        return launcher_env(self.settings) | {"VERL_FILE_LOGGER_PATH": str(self.metrics)}

    def environment(self) -> dict[str, str]:
        """The user's environment, and what the job needs beyond it."""
        env = dict(os.environ)
        if self.plan.private_ray:
            env.pop("RAY_ADDRESS", None)
        return env | self.job_env() | {"PYTHONUNBUFFERED": "1", "HYDRA_FULL_ERROR": "1"}

    # --- watching

    def watch(self, process: subprocess.Popen, received: list[int]) -> int:
        """Show stages and steps until the job ends, a signal comes, or starting takes too long; the exit status."""
        start_limit = float(self.settings.get("start_limit_s", 900))
        silence_limit = float(self.settings.get("silence_notice_s", 120))
        log, metrics = Follower(self.folder.log, self.log_start), Follower(self.metrics)
        stages = list(STAGES)
        steps_seen = 0
        last_sign = last_look = time.monotonic()
        notice_after = silence_limit
        while True:
            try:
                status = process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                status = None
            now = time.monotonic()
            lines = log.lines()
            if lines:
                last_sign, notice_after = now, silence_limit
            for index, (text, meaning) in enumerate(stages):
                if any(re.search(text, line) for line in lines):
                    self.echo(f"{now - self.started:5.0f} s  {meaning}")
                    stages = stages[index + 1 :]
                    break
            for line in metrics.lines():
                steps_seen += self.show_step(line)
            if status is not None:
                return status
            if received:
                return 128 + received[0]
            if now - last_look > 5:
                self.job.look()
                last_look = now
            if not steps_seen and now - self.started > start_limit:
                waits = f"; it has yet to say that {stages[0][1]}" if stages else ""
                self.echo(
                    f"stopped: no step after {start_limit:.0f} s{waits}. Ray waits in silence for resources that were "
                    "not declared (ray_kwargs.ray_init.num_cpus, num_gpus), and a loaded machine is slow; the limit "
                    "is launcher.start_limit_s"
                )
                return 1
            if now - last_sign > notice_after:
                self.echo(f"{now - self.started:5.0f} s  no sign of life from verl for {now - last_sign:.0f} s")
                notice_after *= 2

    def show_step(self, line: str) -> int:
        """Print a line's metrics, accuracy where there was a validation; how many training steps it was."""
        try:
            step, data = runs.parse_line(line)
        except ValueError:
            return 0
        shown = [f"{name} {_number(form, data[key])}" for name, key, form in SHOWN if key in data]
        for key, value in data.items():
            if found := ACCURACY.fullmatch(key):
                shown.append(f"{found[1]} {_number('{:.3f}', value)}")
        training = runs.TRAINED in data
        if not (training or shown):
            return 0
        seconds = data.get("timing_s/step")
        if seconds is not None:
            shown.append(_number("{:.1f} s", seconds))
        width = len(str(self.steps or 0))
        of = f"/{self.steps}" if self.steps else ""
        self.echo(f"{time.monotonic() - self.started:5.0f} s  step {step:>{width}}{of}  " + "  ".join(shown))
        return int(training)

    # --- when it fails

    def explain(self, status: int) -> None:
        """Say what the log says of a failure."""
        with self.folder.log.open("rb") as file:
            file.seek(self.log_start)
            errors = error_lines(file.read().decode(errors="replace"))
        how = f"by signal {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
        self.echo(f"the job ended {how}" + (":" if errors else "; its log names no error"))
        for line in errors:
            self.echo(f"  {line}")
        self.echo(f"all of verl's output: {self.folder.log}")

    def keep_ray_logs(self) -> None:
        """Keep Ray's own logs of a job that failed, which go with its session otherwise."""
        session = self.temporary / "session_latest" / "logs"
        if session.is_dir():
            kept = self.folder.path / "ray_logs"
            shutil.rmtree(kept, ignore_errors=True)
            with contextlib.suppress(OSError, shutil.Error):
                shutil.copytree(session, kept, ignore_dangling_symlinks=True)


def launcher_env(settings: Mapping[str, Any]) -> dict[str, str]:
    """What the node ``launcher`` puts into the environment of every process."""
    return {key: str(value) for key, value in (settings.get("env") or {}).items()}


def ray_overrides(private: bool, temporary: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Values by key of verl's config that say which Ray cluster to use; ``env`` is for the nodes of one there is."""
    if private:
        # A cluster of its own: never the one that RAY_ADDRESS names, or that runs on this machine.
        values = {"address": "local", "_temp_dir": str(temporary)}
    else:
        # One that is there, or an error; never a new one. Its nodes do not know this process's environment.
        values = {"address": "auto", **{f"runtime_env.env_vars.{key}": value for key, value in env.items()}}
    return {f"ray_kwargs.ray_init.{key}": value for key, value in values.items()}


class Follower:
    """Reads the whole lines that are added to a file, which need not be there yet."""

    def __init__(self, path: Path, start: int = 0) -> None:
        self.path, self.position = path, start

    def lines(self) -> list[str]:
        """The lines that were finished since the last call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.position)
                added = file.read()
        except FileNotFoundError:
            return []
        whole = added[: added.rfind(b"\n") + 1]
        self.position += len(whole)
        return whole.decode(errors="replace").splitlines()


def _number(form: str, value: Any) -> str:
    """A metric for the terminal: verl's file logger writes a NaN as null."""
    return form.format(value) if isinstance(value, int | float) else "-"


def error_lines(log: str, limit: int = 6) -> list[str]:
    """The last distinct lines of a log that name an error, without Ray's prefixes and colours."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", log)
    found: dict[str, None] = {}
    for line in plain.splitlines():
        text = re.sub(r"^\([^)]*pid=[^)]*\)\s*", "", line).strip()
        if text.startswith("Error executing job with overrides"):  # hydra's, before the error itself
            continue
        if re.match(r"(ray\.exceptions\.|[\w.]*(Error|Exception|Exit|Interrupt)\b|CRITICAL|FATAL)", text):
            found.pop(text, None)
            found[text] = None
    return [text[:400] for text in list(found)[-limit:]]


def report(folder: RunFolder, plan: Plan, echo: Echo) -> None:
    """Say how reward and entropy went, and draw them.

    Raises:
        FileNotFoundError: the run has no metrics.
    """
    from cw_grpo.plot import plot_run

    metrics = runs.load_metrics(folder.path)
    if runs.TRAINED not in metrics:
        return
    metrics = metrics[metrics[runs.TRAINED].notna()]
    window = max(1, len(metrics) // 10)
    echo(f"{len(metrics)} steps, {metrics['timing_s/step'].median():.1f} s a step (median)")
    average = f"mean of {window}" if window > 1 else "step"
    for name, key, form in SHOWN:
        if key in metrics:
            first, last = metrics[key].iloc[:window].mean(), metrics[key].iloc[-window:].mean()
            echo(f"  {name:17} first {average} {form.format(first)}   last {average} {form.format(last)}")
    echo(f"picture: {plot_run(metrics, folder.picture, title=plan.name)}")
    from cw_grpo.report import build

    try:
        echo(f"report: {build([str(folder.path)], folder.path / 'report')}")
    except Exception as error:  # the run itself is done and well
        echo(f"no report: {type(error).__name__}: {error}")
