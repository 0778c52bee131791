# SPDX-License-Identifier: Apache-2.0
"""The directory of a run: what is in it, who writes to it, and setting an earlier run aside."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from cw_grpo import runs
from cw_grpo.job.plan import LaunchError

LOCK = ".lock"
"""Held in a run's directory while a launcher writes there."""


def usable_path(path: Path, option: str) -> Path:
    """The absolute path, with `~` expanded.

    Args:
        path: as the user gave it.
        option: the option to name in an error.

    Raises:
        LaunchError: hydra or verl would read another path.
    """
    try:
        path = path.expanduser().resolve()
    except RuntimeError as error:  # ~nobody
        raise LaunchError(f"{option} {path}: {error}") from error
    if "${" in str(path):
        raise LaunchError(f"{option} {path}: hydra reads ${{...}} as a reference to another key; choose another path")
    return path


class RunDirectory:
    """The directory of a run and what is in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = path / "verl.log"
        self.config = path / "config.yaml"
        self.changes = path / "changes.txt"
        self.commands = path / runs.COMMANDS_FILE
        self.picture = path / "run.png"
        self.checkpoints = path / "checkpoints"

    @contextlib.contextmanager
    def lock(self, option: str = "--run-dir") -> Iterator[None]:
        """Make the directory and keep a second launcher out; ``option`` names another directory.

        Raises:
            LaunchError: another launcher writes here, or the directory cannot be written.
        """
        lock = FileLock(self.path / LOCK, timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise LaunchError(f"another run is writing to {self.path}: choose another {option}", 1) from error
        except OSError as error:
            raise LaunchError(f"cannot write to {self.path} ({error.strerror}): choose another {option}") from error
        try:
            yield
        finally:
            lock.release()

    def set_aside(self) -> Path | None:
        """Move the contents to a new directory beside this one; None if there was nothing.

        The lock stays, so that the directory of a run at work is never taken away.
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

    def last_step(self) -> int:
        """The last step with metrics; 0 if there is none."""
        try:
            return int(runs.load_metrics(self.path).index.max())
        except (FileNotFoundError, ValueError):
            return 0
