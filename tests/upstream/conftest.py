# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from stock import environment, make_python, write_recipe


@pytest.fixture(scope="session")
def verl_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory like verl's root, with the recipe at `recipe/cw_grpo`."""
    root = tmp_path_factory.mktemp("verl")
    write_recipe(root)
    return root


@pytest.fixture(scope="session")
def stock_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_python(tmp_path_factory.mktemp("stock"))


@pytest.fixture(scope="session")
def stock(stock_python: str, verl_root: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs that Python in verl's root."""

    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess:
        command, env = [stock_python, *arguments], environment(**env)
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.run(command, cwd=verl_root, env=env, timeout=600, **output)

    return run
