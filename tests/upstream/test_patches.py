# SPDX-License-Identifier: Apache-2.0
"""The patches for verl: a verl that has them passes their tests and needs no hook of ours for the same advantages."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import verl
from advantages import compute
from batches import make_batch
from stock import ROOT, environment

APPLY = str(ROOT / "scripts" / "upstream_patch.sh")
ESTIMATOR, CORE = "verl-estimator.patch", "verl-cw-grpo.patch"

# verl's own function with the package's estimator, its hook on the advantages switched off; the batch of `expected`.
WITHOUT_HOOK = """
import json, sys
sys.path.insert(0, {tests!r})
from cw_grpo import hooks

attach = hooks.attach
hooks.attach = lambda table: attach([hook for hook in table if hook.function.__name__ != "weight_batch"])
import verl
from verl.trainer.ppo import ray_trainer
from verl.trainer.ppo.v1 import utils
from advantages import data_of, job
from batches import make_batch

batch = make_batch(31, groups=4, n=5, tokens=12, shuffle=True)
keys = [f"{{uid}}_{{row}}_0" for row, uid in enumerate(batch.index)]
config = job().algorithm
v0 = ray_trainer.compute_advantage(data_of(batch), adv_estimator="cw_grpo", config=config)
v1 = utils.compute_advantage_for_multi_trajectories(data_of(batch), keys, "cw_grpo", config=config)
print(json.dumps([verl.__file__, v0.batch["advantages"].tolist(), v1.batch["advantages"].tolist()]))
"""
# What verl's pull request 7473 does beyond our patch: whoever takes any keyword gets both.
BY_NAME = "if name in parameters:"
BY_KEYWORD = "if name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the installed verl."""
    shutil.copytree(Path(verl.__file__).parent, tmp_path / "verl", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def apply(checkout: Path, patch: str) -> subprocess.CompletedProcess:
    command = ["bash", APPLY, str(checkout), str(ROOT / "upstream" / patch)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def run(checkout: Path, *arguments: str, **env: str) -> str:
    command = [sys.executable, "-W", "ignore", *arguments]
    env = environment(PYTHONPATH=f"{checkout}:{ROOT}", **env)
    return subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, timeout=600).stdout


@pytest.mark.slow
@pytest.mark.parametrize("patch", [ESTIMATOR, CORE])
def test_it_applies_once_and_its_tests_pass(checkout: Path, patch: str) -> None:
    assert version("verl").startswith("0.9.")
    done = apply(checkout, patch)
    assert done.returncode == 0, done.stderr
    (tests,) = checkout.rglob("test_*_on_cpu.py")
    assert done.stdout.endswith(f"its tests: pytest {tests.relative_to(checkout)} \n")
    pytest_ = ("-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests))
    output = run(checkout, *pytest_, VERL_USE_EXTERNAL_PLUGINS="none")
    assert " passed" in output and "failed" not in output, output
    again = apply(checkout, patch)
    assert again.returncode == 2
    assert f"error: {patch}, made for verl 0.9.1, does not apply to verl {verl.__version__}:" in again.stderr
    assert "nothing was changed" in again.stderr


@pytest.mark.slow
@pytest.mark.parametrize("condition", [BY_NAME, BY_KEYWORD], ids=["the patch", "7473"])
def test_a_verl_that_hands_over_the_batch_needs_no_hook(checkout: Path, condition: str) -> None:
    assert apply(checkout, ESTIMATOR).returncode == 0
    source = checkout / "verl" / "trainer" / "ppo" / "ray_trainer.py"
    assert source.read_text().count(BY_NAME) == 1
    source.write_text(source.read_text().replace(BY_NAME, condition))
    output = run(checkout, "-c", WITHOUT_HOOK.format(tests=str(ROOT / "tests")))
    file, *got = json.loads(output.splitlines()[-1])
    assert Path(file).is_relative_to(checkout)
    hooked = compute(make_batch(31, groups=4, n=5, tokens=12, shuffle=True), "cw_grpo").batch["advantages"]
    for advantages in got:
        assert torch.equal(torch.tensor(advantages), hooked)


def test_what_is_not_a_checkout_is_rejected(tmp_path: Path) -> None:
    done = apply(tmp_path, ESTIMATOR)
    assert (done.returncode, done.stderr) == (2, f"error: {tmp_path} is not a checkout of verl\n")
