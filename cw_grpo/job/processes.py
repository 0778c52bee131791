# SPDX-License-Identifier: Apache-2.0
"""Running a command whose processes can all be found and stopped, whatever became of their parents.

Ray's processes leave their parents' group and outlive a driver that crashed. Each process of a job inherits an
environment variable with a value of its own job; that is how they are told from those of any other Ray cluster.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

logger = logging.getLogger(__name__)

MARKER = "CW_GRPO_JOB"
PR_SET_PDEATHSIG = 1
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Outcome:
    """How a supervised command ended."""

    status: int | None
    """Its exit status, negative for a signal that killed it; None if it was stopped."""
    received: int | None
    """The signal for which it was stopped."""
    problem: str | None
    """Why ``on_tick`` stopped it."""
    stopped: int
    """How many processes of it were still there, and were stopped."""


def supervise(
    command: Sequence[str],
    env: Mapping[str, str],
    log: Path,
    *,
    marker: str,
    on_tick: Callable[[float], str | None] = lambda seconds: None,
) -> Outcome:
    """Run a command to its end; no process of it is left, whatever happens.

    Args:
        command: what to run.
        env: its whole environment.
        log: takes its output, after what is there.
        marker: unique to this call; marks the command's processes.
        on_tick: called twice a second with the seconds since the start, and once after the end; a text that it
            returns is why to stop.

    Raises:
        RuntimeError: processes that could not be stopped.
    """
    job = Job(marker)
    status = problem = None
    with stop_signals(*STOP_SIGNALS) as received, log.open("ab") as output:
        output.write(f"\n=== {time.strftime('%Y-%m-%d %H:%M:%S')} {list(command)}\n".encode())
        output.flush()
        started = searched = time.monotonic()
        try:
            process = start_marked(command, marker, env, output)
            while status is None and not received and problem is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    status = process.wait(timeout=0.5)
                now = time.monotonic()
                problem = on_tick(now - started)
                if now - searched > 5:
                    job.find_processes()
                    searched = now
            if received and status is None:
                logger.info("stopping: %s", signal.Signals(received[0]).name)
        finally:
            stopped = job.stop()
    return Outcome(status, received[0] if received else None, problem if status is None else None, stopped)


@contextlib.contextmanager
def stop_signals(*numbers: int) -> Iterator[list[int]]:
    """Collect signals instead of dying of them; the list fills as they come in.

    A signal that is ignored stays so: that is how nohup, and a shell's background jobs, protect a command.
    """
    received: list[int] = []
    caught = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda n, _: received.append(n)) for number in caught}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def die_with_this_process() -> Callable[[], None]:
    """A `preexec_fn`: the process that is started is terminated if this one dies, on Linux."""
    parent = os.getpid()
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def die_with_parent() -> None:
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)

    return die_with_parent


def start_marked(command: Sequence[str], marker: str, env: Mapping[str, str], output: IO[bytes]) -> subprocess.Popen:
    """Start a process in a session of its own, marked; it is terminated if this process dies unexpectedly."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**env, MARKER: marker},
        start_new_session=True,  # Ctrl-C reaches the launcher alone, which then stops the job in order
        preexec_fn=die_with_this_process(),
    )


class Job:
    """The processes of a job: those that carry its marker, and whatever these started.

    Some of Ray's processes set a title for themselves and thereby overwrite the environment that others see. They are
    found as children of marked ones, and remembered: call :meth:`find_processes` now and then while the job runs.
    """

    def __init__(self, marker: str) -> None:
        self.marker = marker
        self._seen: set[psutil.Process] = set()

    def find_processes(self) -> list[psutil.Process]:
        """The job's living processes."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(MARKER) == self.marker:
                    self._seen.add(process)
                    self._seen.update(process.children(recursive=True))
        self._seen = {process for process in self._seen if _alive(process)}
        return list(self._seen)

    def stop(self, *, grace_s: float = 5.0) -> int:
        """Stop them all: SIGTERM, and SIGKILL after ``grace_s`` seconds; how many there were.

        Raises:
            RuntimeError: some are still there.
        """
        processes = self.find_processes()
        count = len(processes)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        psutil.wait_procs(processes, timeout=grace_s)
        for _ in range(10):
            processes = self.find_processes()
            if not processes:
                return count
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(processes, timeout=2.0)
        left = ", ".join(str(process.pid) for process in self.find_processes())
        if left:
            raise RuntimeError(f"these processes of the job do not stop: {left}")
        return count


def _alive(process: psutil.Process) -> bool:
    try:
        # is_running compares start times, so that a process that got an old one's id is not taken for it.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def short_temporary_root() -> Path:
    """Where a directory for Ray's session may be made: the paths of sockets in it have a limit of 107 characters."""
    return Path("/tmp") if os.access("/tmp", os.W_OK) else Path(os.environ.get("TMPDIR", "."))
