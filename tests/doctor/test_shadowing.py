# SPDX-License-Identifier: Apache-2.0
"""What a job started in a directory would import, against what `python -m` does import there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from cw_grpo.cli import app
from cw_grpo.doctor.shadowing import shadowing_problem

ROW = {
    "data_source": "sums",
    "prompt": [{"role": "user", "content": "1 + 1"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"index": 0, "split": "test"},
}


def imported(directory: Path, module: str) -> str:
    """Where a program that is started in the directory with `python -m` finds a module."""
    (directory / "a_job.py").write_text(f"import {module}\nprint({module}.__path__[0], {module}.__file__)")
    done = subprocess.run([sys.executable, "-m", "a_job"], cwd=directory, capture_output=True, text=True, timeout=300)
    (directory / "a_job.py").unlink()
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", ["verl", "ray", "torch", "queue", "cw_grpo", "megatron"])
def test_a_package_of_the_directory_hides_an_installed_one(module: str, tmp_path: Path) -> None:
    (tmp_path / module).mkdir()
    (tmp_path / module / "__init__.py").touch()
    assert str(tmp_path) in imported(tmp_path, module)
    problem = shadowing_problem(tmp_path)
    if module == "megatron":  # not installed here: a job takes the one of the directory, and nothing is hidden
        assert problem is None
    else:
        assert problem is not None and "\n" not in problem
        assert f"{module} would be {tmp_path / module / '__init__.py'}, not " in problem


@pytest.mark.parametrize("name", ["yaml", "data", "tests", "outputs"])
def test_a_directory_that_is_not_a_package_hides_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "file.txt").touch()
    assert str(tmp_path) not in imported(tmp_path, "yaml")
    assert shadowing_problem(tmp_path) is None


def test_all_of_them_are_named_and_a_module_that_breaks_the_interpreter_too(tmp_path: Path) -> None:
    for name in ("ast.py", "json.py", "importlib.py", "transformers.py", "os.py"):
        (tmp_path / name).write_text("raise SystemExit('not this one')")
    problem = shadowing_problem(tmp_path)
    assert problem is not None
    for module in ("ast", "json", "transformers"):
        assert f"{module} would be {tmp_path / module}.py, not " in problem
    assert "os would be" not in problem  # imported before the working directory counts


def test_a_directory_that_cannot_be_read_hides_nothing(tmp_path: Path) -> None:
    assert shadowing_problem(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    "arguments",
    [
        ("doctor",),
        ("train", "scale=tiny", "cluster=cpu"),
        ("eval", "base=model", "--benchmarks=sums.parquet"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_in_a_clone_of_verl_says_what_the_job_would_import(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "verl").mkdir()
    (tmp_path / "verl" / "__init__.py").touch()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    pd.DataFrame([ROW]).to_parquet(tmp_path / "sums.parquet")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code != 0
    assert f"verl would be {tmp_path / 'verl/__init__.py'}, not " in done.output
    assert not (tmp_path / "outputs").exists()
