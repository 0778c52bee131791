# SPDX-License-Identifier: Apache-2.0
"""What a job's processes will find: asked in a process of its own, with their environment.

Libraries read the environment when they are imported, and torch keeps memory of a GPU that it has used.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

from cw_grpo.job.processes import die_with_this_process

_RUN = """
import os, sys
try:
    exec(sys.argv.pop(1))
    sys.stdout.flush()
    os._exit(0)  # what libraries print when they end is no answer
except Exception as error:
    print(type(error).__name__ + ":", str(error).strip().partition("\\n")[0])
    sys.exit(1)
"""


class ProbeError(Exception):
    """The error of a probe, in one line."""


def probe(code: str, *arguments: str, env: Mapping[str, str], show_stderr: bool = False) -> str:
    """Run Python code, which finds ``arguments`` in `sys.argv[1:]`; the last line that it prints.

    Args:
        code: the code.
        arguments: for the code.
        env: the job's environment; see :func:`cw_grpo.job.plan.environment`.
        show_stderr: whether its stderr, with progress bars, goes to the terminal.

    Raises:
        ProbeError: the code failed.
    """
    done = subprocess.run(
        [sys.executable, "-c", _RUN, code, *arguments],
        env=dict(env),
        stdin=subprocess.DEVNULL,  # nobody answers a question
        stdout=subprocess.PIPE,
        stderr=None if show_stderr else subprocess.PIPE,
        text=True,
        preexec_fn=die_with_this_process(),  # a fetch would go on for hours
    )
    last = (done.stdout.strip() or (done.stderr or "").strip()).rpartition("\n")[2]
    if done.returncode != 0:
        raise ProbeError(last or f"exit status {done.returncode}")
    return last
