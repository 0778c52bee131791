# SPDX-License-Identifier: Apache-2.0
"""The recipe as verl-recipe takes it, in a Python with stock verl and without our package."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HIDDEN = ("PYTHONPATH", "VERL_USE_EXTERNAL_MODULES", "VERL_USE_EXTERNAL_PLUGINS")


@pytest.fixture(scope="session")
def verl_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory like verl's root, with the recipe at `recipe/cw_grpo`."""
    root = tmp_path_factory.mktemp("verl")
    command = [sys.executable, str(ROOT / "scripts" / "upstream.py"), str(root / "recipe" / "cw_grpo")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


@pytest.fixture(scope="session")
def stock_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the packages of this one, but for ours."""
    directory = tmp_path_factory.mktemp("stock")
    venv.create(directory)
    (site,) = directory.glob("lib/python*/site-packages")
    for entry in (Path(entry) for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")):
        for package in entry.iterdir():
            ours = package.name.startswith(("cw_grpo", "__editable__")) or package.suffix == ".pth"
            if not ours and not (site / package.name).exists():
                (site / package.name).symlink_to(package)
    return directory / "bin" / "python"


@pytest.fixture(scope="session")
def stock(stock_python: Path, verl_root: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs that Python in verl's root."""

    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess:
        kept = {name: value for name, value in os.environ.items() if name not in HIDDEN}
        command = [str(stock_python), *arguments]
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.run(command, cwd=verl_root, env=kept | env, timeout=600, **output)

    return run
