# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from main_job import COMPARABLE, Run, micro
from stock import ROOT, environment, make_python, write_recipe
from two_nodes import Cluster

from cw_grpo.job.attempt import job_command, job_environment
from cw_grpo.job.directory import RunDirectory
from cw_grpo.job.plan import make_plan
from cw_grpo.job.prepare import prepare_inputs
from cw_grpo.job.processes import Job, supervise


@pytest.fixture(scope="session")
def recipe_run(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """CW-GRPO from the recipe for verl, in a Python without the package: what other runs are compared to."""
    folder = tmp_path_factory.mktemp("recipe")
    recipe, python = write_recipe(folder / "verl"), make_python(folder / "stock")
    # Of the package, the CPU backend alone: without it verl's trainer does not run here.
    backend = folder / "backend" / "cw_grpo"
    shutil.copytree(ROOT / "cw_grpo" / "cpu", backend / "cpu", ignore=shutil.ignore_patterns("__pycache__"))
    for module in ("stopping.py", "worker_setup.py"):
        shutil.copy(ROOT / "cw_grpo" / module, backend)

    run = Run(folder / "run", home)
    (run.folder / "metrics").mkdir(parents=True)
    plan = make_plan(["scale=tiny", "cluster=cpu", *COMPARABLE, "method=cw_grpo", micro(12)])
    made = [text for text in prepare_inputs(plan, home, run.folder) if "cw_grpo.record" not in text]
    made.append(f"reward.custom_reward_function.path={recipe / 'reward.py'}")
    own = {
        "VERL_USE_EXTERNAL_MODULES": "cw_grpo.cpu,recipe.cw_grpo.register",
        "PYTHONPATH": f"{backend.parent}{os.pathsep}{folder / 'verl'}",
        "VERL_FILE_LOGGER_PATH": str(run.folder / "metrics" / "attempt-001.jsonl"),
    }
    with tempfile.TemporaryDirectory(prefix="cwg-", dir="/tmp") as ray, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "verl")  # not where `python -m` finds the package
        command = [python, *job_command(plan, RunDirectory(run.folder), made, Path(ray), {})[1:]]
        env = job_environment(environment(), plan.launcher, own)
        outcome = supervise(command, env, run.folder / "verl.log", marker=ray, on_tick=lambda *_: None)
        assert outcome.status == 0, run.log[-3000:]
        found = "from importlib.util import find_spec; print(find_spec('cw_grpo.plugin'), find_spec('cw_grpo.weights'))"
        done = subprocess.run([python, "-c", found], env=environment(**own), capture_output=True, text=True)
        assert done.stdout == "None None\n"
    return run


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    # Not below pytest's folder, whose path is too long for Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="cwn-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        made = None
        try:
            made = Cluster(Path(folder))
            yield made
        finally:
            (made.job if made else Job(folder)).stop()
