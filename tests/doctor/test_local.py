# SPDX-License-Identifier: Apache-2.0
"""The doctor, in fresh processes: whether verl, as a job imports it, has the plugin."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

CLI = str(Path(sys.executable).with_name("cw-grpo"))


def doctor(cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [CLI, "doctor"], cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=300, check=False
    )


def test_all_is_well_here() -> None:
    done = doctor()
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"verl {version('verl')}, " in done.stdout
    assert [line[:6] for line in done.stdout.splitlines()[1:]] == ["ok    "] * 6


def test_verl_does_not_load_the_plugin() -> None:
    done = doctor(VERL_USE_EXTERNAL_PLUGINS="none")
    assert done.returncode == 1
    assert "VERL_USE_EXTERNAL_PLUGINS='none'" in done.stdout


def test_a_plugin_named_in_the_environment_and_a_module_of_the_working_directory(tmp_path: Path) -> None:
    """`python -m` would find the module there, so the doctor must."""
    (tmp_path / "mine.py").write_text("print('mine is imported')")
    modules = "cw_grpo.plugin,mine"
    done = doctor(tmp_path, VERL_USE_EXTERNAL_PLUGINS="none", VERL_USE_EXTERNAL_MODULES=modules)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mine is imported" in done.stdout


def test_the_error_that_verl_swallows_is_shown(tmp_path: Path) -> None:
    (tmp_path / "wrapt.py").write_text("raise ImportError('wrapt is broken')")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = doctor(PYTHONPATH=path)
    assert done.returncode == 1
    assert "wrapt is broken" in done.stdout


# Another verl: not a tested version, and without the targets of hooks that an estimator's job does not need.
LACKING = """
import wrapt

def change(module):
    del module.RayPPOTrainer._get_gen_batch

def change_v1(module):
    del module.PPOTrainer._balance_batch

wrapt.register_post_import_hook(change, "verl.trainer.ppo.ray_trainer")
wrapt.register_post_import_hook(change_v1, "verl.trainer.ppo.v1.trainer_base")
wrapt.register_post_import_hook(lambda verl: setattr(verl, "__version__", "0.9.9"), "verl")
from cw_grpo.cli import app
app(["doctor"])
"""


def test_a_missing_feature_is_named_and_nothing_fails() -> None:
    done = subprocess.run([sys.executable, "-c", LACKING], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok     ") == 6
    assert "note   a feature that this verl does not allow\n       recording in V0 (verl." in done.stdout
    assert "has no RayPPOTrainer._get_gen_batch" in done.stdout
    assert (
        "the policy losses cw_grpo_live, cw_grpo_released (verl.trainer.ppo.v1.trainer_base.PPOTrainer" in done.stdout
    )
    assert "verl 0.9.9 is not a tested version" in done.stdout
