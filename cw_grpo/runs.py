# SPDX-License-Identifier: Apache-2.0
"""What a run wrote: the files of verl's `file` and `tensorboard` loggers, and its checkpoints.

A run of `cw-grpo train` that was resumed has one metrics file per attempt in ``<run-dir>/metrics``.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

METRICS_DIRECTORY = "metrics"
EVENTS_DIRECTORY = "tensorboard"
COMMANDS_FILE = "commands.txt"
"""In a run's directory: the command of each of its starts, one line each."""
ATTEMPTS, EVENTS = "attempt-*.jsonl", "events.out.tfevents.*"
_ATTEMPT = re.compile(r"attempt-\d+\.jsonl")

TRACKER = "latest_checkpointed_iteration.txt"
"""verl's note of the last checkpoint, beside the checkpoints."""

TRAINED = "training/global_step"
"""A metric of every training step; a validation before training has none."""


def last_checkpoint(checkpoints: Path) -> int | None:
    """The step of the checkpoint that verl would resume from, of those in a directory; None if verl has noted none.

    Raises:
        ValueError: the note holds no number; names the file.
    """
    tracker = checkpoints / TRACKER
    if not tracker.is_file():
        return None
    try:
        return int(tracker.read_text())
    except ValueError as error:
        raise ValueError(f"{tracker} holds no step number") from error


def checkpoint_steps(checkpoints: Path) -> list[int]:
    """The steps of the checkpoints in a directory, in order.

    verl keeps the directory, without the actor, of a checkpoint that it no longer needs.
    """
    found = (re.fullmatch(r"global_step_(\d+)", actor.parent.name) for actor in checkpoints.glob("*/actor"))
    return sorted(int(match[1]) for match in found if match)


def attempt_files(run_dir: Path) -> list[Path]:
    """The metrics files of a run's attempts, oldest first."""
    return _attempts_in(run_dir / METRICS_DIRECTORY)


def _attempts_in(directory: Path) -> list[Path]:
    """The metrics files of attempts in a directory, oldest first, without the copies that somebody made of them."""
    return sorted((path for path in directory.glob(ATTEMPTS) if _ATTEMPT.fullmatch(path.name)), key=_attempt_number)


def _attempt_number(file: Path) -> int:
    return int(file.stem.removeprefix("attempt-"))


def next_attempt_file(run_dir: Path) -> Path:
    """Where the next attempt's metrics go; verl's file logger truncates an existing file."""
    files = attempt_files(run_dir)
    number = _attempt_number(files[-1]) + 1 if files else 1
    return run_dir / METRICS_DIRECTORY / f"attempt-{number:03d}.jsonl"


def _integer(digits: str) -> int | float:
    """An integer that fits into 64 bits, else a float."""
    return int(digits) if len(digits) < 19 else float(digits)


def parse_line(line: str) -> tuple[int, dict[str, Any]]:
    """Step and metrics of a line that verl's file logger wrote.

    Raises:
        ValueError: the line is something else.
    """
    record = json.loads(line, parse_int=_integer)
    if not (isinstance(record, dict) and isinstance(record.get("step"), int) and isinstance(record.get("data"), dict)):
        raise ValueError("not a record of verl's file logger")
    return record["step"], record["data"]


def read_metrics_file(path: Path) -> dict[int, dict[str, Any]]:
    """Metrics by step. A last line that was cut off is skipped with a warning.

    Raises:
        ValueError: another line is not a record of verl's file logger.
    """
    steps: dict[int, dict[str, Any]] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            step, data = parse_line(line)
        except ValueError as error:
            if number == len(lines):
                warnings.warn(f"{path}:{number}: the last line is cut off and skipped", stacklevel=2)
                break
            raise ValueError(f"{path}:{number}: {error}") from error
        # verl logs a step's validation apart from its training.
        steps.setdefault(step, {}).update(data)
    return steps


def read_event_file(path: Path) -> dict[int, dict[str, Any]]:
    """Scalars by step from an event file of TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path), size_guidance={"scalars": 0})
    events.Reload()
    steps: dict[int, dict[str, Any]] = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            steps.setdefault(event.step, {})[name] = event.value
    return steps


@dataclass(frozen=True)
class MetricsSource:
    """Where the metrics of one run are."""

    path: Path
    """What names the run: its directory, or its one metrics file."""
    files: tuple[Path, ...]
    """One per attempt, oldest first."""
    directory: Path | None
    """Where its configuration and its recorded tokens may lie; None if several runs share the directory."""

    def read(self) -> pd.DataFrame:
        """All metrics of the run: one row per step (the index), one column per metric.

        A resumed attempt replaces earlier attempts from its first training step on: it went back to the checkpoint
        before it, whose validation it may have repeated. Text and values that are not finite in float32 are NaN; the
        latter with a warning.

        Raises:
            ValueError: a line is not a record of verl's file logger, or the event files are of several runs.
        """
        frame = _merge(self._attempts()).apply(pd.to_numeric, errors="coerce").astype(float)
        infinite = frame.abs() > np.finfo(np.float32).max
        for name in frame.columns[infinite.any()]:
            steps = ", ".join(map(str, frame.index[infinite[name]][:5]))
            warnings.warn(f"{self.path}: {name} is not finite at step {steps}; skipped there", stacklevel=2)
        return frame.mask(infinite)

    def _attempts(self) -> Iterable[dict[int, dict[str, Any]]]:
        """Metrics by step of each attempt."""
        if ".tfevents." not in self.files[0].name:
            return map(read_metrics_file, self.files)
        attempts = {file: steps for file in self.files if (steps := read_event_file(file))}
        starts = {file: _first_step(steps) for file, steps in attempts.items()}
        first = [file.name for file, start in starts.items() if start == min(starts.values())]
        if len(first) > 1:
            raise ValueError(
                f"{self.files[0].parent} holds event files of several runs, which all start at step "
                f"{min(starts.values())}: {', '.join(first)}. Name one of the files; TENSORBOARD_DIR gives each run "
                "a directory of its own"
            )
        return attempts.values()


def find_metrics(path: Path | str) -> list[MetricsSource]:
    """The runs whose metrics a path names.

    Args:
        path: a run's directory; a JSONL file of verl's `file` logger; a directory of such files, each of which is a run
            (verl's default is ``<project>/<experiment>.jsonl``); an event file of TensorBoard or a directory of them.

    Raises:
        FileNotFoundError: there are no metrics; names directories below that have some.
    """
    path = Path(path)
    if path.is_file():
        alone = path.parent.name == METRICS_DIRECTORY or len(_metrics_files(path.parent)) == 1
        return [MetricsSource(path, (path,), _owner(path.parent) if alone else None)]
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or directory")
    files = _metrics_files(path)
    if not files:
        below = sorted(child.name for child in path.iterdir() if child.is_dir() and _metrics_files(child))
        if below:
            raise FileNotFoundError(
                f"{path} is not a run; it holds runs ({', '.join(below[:3])}{', ...' if len(below) > 3 else ''}): "
                f"name them with {path}/*"
            )
        raise FileNotFoundError(
            f"no metrics in {path}: it has neither {METRICS_DIRECTORY}/{ATTEMPTS} of `cw-grpo train` nor *.jsonl or "
            f"{EVENTS} of verl's loggers"
        )
    several = len(files) > 1 and files[0].suffix == ".jsonl" and not _ATTEMPT.fullmatch(files[0].name)
    if several:
        return [MetricsSource(file, (file,), None) for file in files]
    return [MetricsSource(path, tuple(files), _owner(path))]


def load_metrics(run: Path | str) -> pd.DataFrame:
    """All metrics of the one run that a path names (see :func:`find_metrics` and :meth:`MetricsSource.read`).

    Raises:
        FileNotFoundError: there are no metrics.
        ValueError: they are of several runs, or cannot be read.
    """
    sources = find_metrics(run)
    if len(sources) > 1:
        raise ValueError(f"{run} holds {len(sources)} runs: name one, for instance {sources[0].path}")
    return sources[0].read()


def _metrics_files(directory: Path) -> list[Path]:
    """The metrics files of a directory: of `cw-grpo train`, else of verl's `file` logger, else of TensorBoard."""
    if attempts := _attempts_in(directory / METRICS_DIRECTORY) or _attempts_in(directory):
        return attempts
    for pattern in ("*.jsonl", EVENTS, f"{EVENTS_DIRECTORY}/{EVENTS}"):
        if files := sorted(file for file in directory.glob(pattern) if file.is_file()):
            return files
    return []


def _owner(directory: Path) -> Path:
    """The run's directory, of the one that holds its metrics."""
    return directory.parent if directory.name in (METRICS_DIRECTORY, EVENTS_DIRECTORY) else directory


def _first_step(attempt: dict[int, dict[str, Any]]) -> int:
    """The first training step; without any, the first step."""
    return min((step for step, data in attempt.items() if TRAINED in data), default=min(attempt))


def _merge(attempts: Iterable[dict[int, dict[str, Any]]]) -> pd.DataFrame:
    merged: dict[int, dict[str, Any]] = {}
    for attempt in attempts:
        if attempt:
            first = _first_step(attempt)
            merged = {step: data for step, data in merged.items() if step < first}
            for step, data in attempt.items():
                merged.setdefault(step, {}).update(data)
    frame = pd.DataFrame.from_dict(merged, orient="index").sort_index()
    frame.index.name = "step"
    return frame


def split_name(argument: str) -> tuple[str, str]:
    """NAME and PATH of ``NAME=PATH``; an empty NAME if the argument is a path that has a ``=`` itself."""
    name, equals, path = argument.partition("=")
    if not equals or Path(argument).exists() or ("/" in name and not Path(path).exists()):
        return "", argument
    return name, path
