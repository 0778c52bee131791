# SPDX-License-Identifier: Apache-2.0
"""What a job that failed leaves behind: the errors in its log, and Ray's own logs."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
from pathlib import Path

_PREFIXES = re.compile(
    r"(\([^)]*pid=[^)]*\)\s*)*"  # of Ray, and of vLLM's own processes
    r"(ERROR \d\d-\d\d \d\d:\d\d:\d\d \[[^]]*\]\s*)?"  # of vLLM's log
)
_ERROR = re.compile(
    r"(ray\.exceptions\.|[\w.]*(Error|Exception|Exit|Interrupt)\b|CRITICAL|FATAL"
    r"|[\w.-]+( [\w-]+)?: error: )"  # of argparse, with which vLLM's server reads its settings
)
# That another error ended the process: hydra's line before it, vLLM's in the process that waited for another.
_SECOND_HAND = re.compile(r"Error executing job with overrides|.*See root cause above")


def error_lines(log: str, limit: int = 6) -> list[str]:
    """The last distinct lines of a log that name an error, without the prefixes and colours of Ray and vLLM."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", log)
    found: dict[str, None] = {}
    for line in plain.splitlines():
        text = _PREFIXES.sub("", line, count=1).strip()
        if _ERROR.match(text) and not _SECOND_HAND.match(text):
            found.pop(text, None)
            found[text] = None
    return [text[:400] for text in list(found)[-limit:]]


def errors_in(log: Path, start: int) -> list[str]:
    """The :func:`error_lines` of a file from a position on."""
    with log.open("rb") as file:
        file.seek(start)
        return error_lines(file.read().decode(errors="replace"))


def describe_failure(status: int, log: Path, start: int) -> list[str]:
    """Lines for the terminal: how the job ended, and the errors in its log."""
    how = f"by signal {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
    return _with_errors(f"the job ended {how}", log, start, found=":", none="; its log names no error")


def describe_stop(problem: str, log: Path, start: int) -> list[str]:
    """Lines for the terminal: why the launcher stopped the job, and the errors in its log."""
    return _with_errors(f"stopped: {problem}", log, start, found=". Errors in its log:", none="")


def _with_errors(text: str, log: Path, start: int, *, found: str, none: str) -> list[str]:
    errors = errors_in(log, start)
    return [text + (found if errors else none), *(f"  {line}" for line in errors)]


def keep_ray_logs(session: Path, target: Path) -> None:
    """Copy Ray's own logs, which are deleted with its session otherwise."""
    logs = session / "session_latest" / "logs"
    if logs.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        with contextlib.suppress(OSError, shutil.Error):
            shutil.copytree(logs, target, ignore_dangling_symlinks=True)
