# SPDX-License-Identifier: Apache-2.0
"""The contracts on imports in pyproject.toml hold, and a forbidden import breaks them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def lint_imports(tree: Path) -> subprocess.CompletedProcess:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--no-logo", "--no-cache"]
    return subprocess.run(command, cwd=tree, env={}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the package to change."""
    shutil.copytree(ROOT / "cw_grpo", tmp_path / "cw_grpo", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_hold(tree: Path) -> None:
    done = lint_imports(tree)
    assert done.returncode == 0 and "0 broken" in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("module", "forbidden", "says"),
    [
        ("runs", "from cw_grpo.cli import app", "cw_grpo.runs is not allowed to import cw_grpo.cli"),
        ("job/preflight", "from cw_grpo.report import build", "cw_grpo.job is not allowed to import cw_grpo.report"),
        ("datasets/rows", "from cw_grpo import doctor", "cw_grpo.datasets is not allowed to import cw_grpo.doctor"),
        ("hooks/record", "from .. import plugin", "cw_grpo.hooks is not allowed to import cw_grpo.plugin"),
        ("settings", "from .advantage import weight_batch", "cw_grpo.settings is not allowed to import cw_grpo.adv"),
        ("cpu/decode", "from cw_grpo import settings", "cw_grpo.cpu is not allowed to import cw_grpo.settings"),
        ("plugin", "from . import cpu", "cw_grpo.plugin -> cw_grpo.cpu"),
        ("weights", "import verl", "cw_grpo.weights is not allowed to import verl"),
        ("unplaced", "import os", "unplaced"),
    ],
)
def test_a_forbidden_import_breaks_them(tree: Path, module: str, forbidden: str, says: str) -> None:
    path = tree / "cw_grpo" / f"{module}.py"
    with path.open("a") as file:
        file.write(f"\n\ndef late() -> None:\n    {forbidden}\n")
    done = lint_imports(tree)
    assert done.returncode != 0
    assert says in " ".join(done.stdout.split()), done.stdout
