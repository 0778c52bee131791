# SPDX-License-Identifier: Apache-2.0
"""The command itself: it says its version, and answers without importing what only a subcommand needs."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest


def test_a_package_that_a_command_lacks_is_one_line() -> None:
    code = "import sys; sys.modules['matplotlib'] = None; from cw_grpo.cli import app; app(['report', 'run'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: matplotlib is not installed.") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_an_answer_needs_neither_torch_nor_verl(option: str) -> None:
    code = (
        "import sys\n"
        "from cw_grpo.cli import app\n"
        f"try: app([{option!r}])\n"
        "except SystemExit as end: assert not end.code\n"
        "print([name for name in ('torch', 'verl', 'ray', 'hydra', 'pandas', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    *said, imported = done.stdout.splitlines()
    assert imported == "[]"
    assert said == [f"cw-grpo {version('cw-grpo')}"] if option == "--version" else "Usage: " in done.stdout
