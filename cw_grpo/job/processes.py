"""Running a job whose processes can all be found again, whatever became of their parents.

Ray's processes leave their parents' group and outlive a driver that crashed. Each process of a job inherits an
environment variable with a value of its own job; that is how they are told from those of any other Ray cluster.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

MARKER = "CW_GRPO_JOB"
PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def stop_signals(*numbers: int) -> Iterator[list[int]]:
    """Collect signals instead of dying of them; the list fills as they come in."""
    received: list[int] = []
    before = {number: signal.signal(number, lambda n, _: received.append(n)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start_marked(command: Sequence[str], marker: str, env: Mapping[str, str], output: IO[bytes]) -> subprocess.Popen:
    """Start a process in a session of its own, marked; it is terminated if this process dies without a word."""
    parent = os.getpid()
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def die_with_parent() -> None:
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)

    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**env, MARKER: marker},
        start_new_session=True,  # Ctrl-C reaches the launcher alone, which then stops the job in order
        preexec_fn=die_with_parent,
    )


class Job:
    """The processes of a job: those that carry its marker, and whatever these started.

    Some of Ray's processes set a title for themselves and thereby overwrite the environment that others see. They are
    found as children of marked ones, and remembered: call :meth:`look` now and then while the job runs.
    """

    def __init__(self, marker: str) -> None:
        self.marker = marker
        self._seen: set[psutil.Process] = set()

    def look(self) -> list[psutil.Process]:
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
        processes = self.look()
        count = len(processes)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        psutil.wait_procs(processes, timeout=grace_s)
        for _ in range(10):
            processes = self.look()
            if not processes:
                return count
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(processes, timeout=2.0)
        left = ", ".join(str(process.pid) for process in self.look())
        if left:
            raise RuntimeError(f"processes of the job that would not stop: {left}")
        return count


def _alive(process: psutil.Process) -> bool:
    try:
        # is_running compares start times, so that a process that got an old one's id is not taken for it.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def short_temporary_folder() -> Path:
    """Where Ray may put its session: Unix sockets below it must stay under about 100 characters."""
    return Path("/tmp") if os.access("/tmp", os.W_OK) else Path(os.environ.get("TMPDIR", "."))
