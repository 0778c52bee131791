# SPDX-License-Identifier: Apache-2.0
"""A Python with stock verl and without our package, and a directory like verl's root with the recipe of upstream/."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]


def write_recipe(root: Path) -> Path:
    """The recipe at ``root``/recipe/cw_grpo, as `make upstream` writes it."""
    recipe = root / "recipe" / "cw_grpo"
    command = [sys.executable, str(ROOT / "scripts" / "upstream.py"), str(recipe)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return recipe


def make_python(directory: Path) -> str:
    """A virtual environment with the packages of this one, but for ours."""
    venv.create(directory)
    (site,) = directory.glob("lib/python*/site-packages")
    for entry in (Path(entry) for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")):
        for package in entry.iterdir():
            ours = package.name.startswith(("cw_grpo", "__editable__")) or package.suffix == ".pth"
            if not ours and not (site / package.name).exists():
                (site / package.name).symlink_to(package)
    return str(directory / "bin" / "python")


def environment(**env: str) -> dict[str, str]:
    """This process's environment without what points to our package."""
    hidden = ("PYTHONPATH", "VERL_USE_EXTERNAL_MODULES", "VERL_USE_EXTERNAL_PLUGINS")
    return {name: value for name, value in os.environ.items() if name not in hidden} | env
