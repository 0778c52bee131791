# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import os
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from cw_grpo.job.launch import train

HEAD = """
import json, os, signal, subprocess, sys, time

def log(step, **data):
    data |= {"training/global_step": step, "timing_s/step": 0.1}
    with open(os.environ["VERL_FILE_LOGGER_PATH"], "a") as file:
        file.write(json.dumps({"step": step, "data": data}) + "\\n")
"""


@pytest.fixture(autouse=True)
def lines_for_the_terminal(caplog) -> None:
    caplog.set_level(logging.INFO, "cw_grpo")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A config directory of a small job, whose `main_ppo` is made by ``fake_verl``."""
    directory = tmp_path / "config"
    directory.mkdir()
    (directory / "job.yaml").write_text(
        textwrap.dedent("""
        trainer: {total_training_steps: 3, save_freq: 2, resume_mode: auto, resume_from_path: null,
                  default_local_dir: x, logger: [console, file]}
        actor_rollout_ref:
          actor: {strategy: none, ppo_micro_batch_size_per_gpu: 4, policy_loss: {loss_mode: vanilla}}
          rollout: {gpu_memory_utilization: 0.5}
        launcher: {startup_timeout_s: 60, idle_warning_s: 120}
        lr: 1
        """)
    )
    return directory


@pytest.fixture
def fake_verl(tmp_path: Path, monkeypatch) -> Callable[[str], None]:
    """Stand in for `python -m verl.trainer.main_ppo`, whose start takes half a minute; takes the code of its body."""

    path = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]

    def make(body: str) -> None:
        package = tmp_path / "fake" / "verl" / "trainer"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").touch()
        (package.parent / "__init__.py").touch()
        (package / "main_ppo.py").write_text(HEAD + textwrap.dedent(body))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "fake"), *path]))

    return make


@pytest.fixture
def run(recipe: Path, tmp_path: Path, caplog) -> Callable[..., tuple[int, list[str]]]:
    """Runs the small job with overrides and options of ``train``; its status, and the lines on the terminal."""

    def start(*overrides: str, **options) -> tuple[int, list[str]]:
        caplog.clear()
        status = train(overrides, config_dir=recipe, config_name="job", home=tmp_path / "home", **options)
        return status, list(caplog.messages)

    return start


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """The directory of the small job's run."""
    return tmp_path / "home" / "runs" / "job"


@pytest.fixture
def checkpoint(run_dir: Path) -> Callable[..., None]:
    """Writes checkpoints as verl leaves them, by default of the small job; the last one is in its tracker."""

    def write(*steps: int, to: Path = run_dir / "checkpoints") -> None:
        for step in steps:
            (to / f"global_step_{step}/actor").mkdir(parents=True, exist_ok=True)
        (to / "latest_checkpointed_iteration.txt").write_text(str(steps[-1]))

    return write
