# SPDX-License-Identifier: Apache-2.0
"""verl's own trainer, end to end on the CPU with `scale=tiny`, started by the command that a user types."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from main_job import ACTOR, COMPARABLE, WHOLE_GROUP, Run, assert_same_updates, micro, relative
from stock import ROOT, environment, make_python, write_recipe

from cw_grpo import runs
from cw_grpo.job.attempt import job_command, job_environment
from cw_grpo.job.directory import RunDirectory
from cw_grpo.job.plan import make_plan
from cw_grpo.job.prepare import prepare_inputs
from cw_grpo.job.processes import supervise
from cw_grpo.metrics import PREFIX

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

HERE = Path(__file__).parent


def recorded(run: Run) -> dict:
    """What the sample of the first step says of itself; it must fit the step's metrics."""
    table = pq.read_table(run.folder / "record" / "step-000001.parquet")
    sample = table.to_pandas()
    responses = sample.groupby("response")
    assert (sample.position == responses.cumcount()).all() and (sample.weight > 0).any()
    about = json.loads(table.schema.metadata[b"cw_grpo"])
    if about["groups_recorded"] == about["groups_in_batch"]:
        assert responses.reward.first().mean() == pytest.approx(run.metrics.loc[1, "critic/score/mean"], abs=1e-5)
        assert responses.size().mean() == pytest.approx(run.metrics.loc[1, "response_length/mean"])
    return about


def test_the_update_differs_from_grpos_and_so_do_metrics_and_log(comparable) -> None:
    weighted, plain = comparable(*WHOLE_GROUP), comparable("method=grpo", micro(12))
    assert weighted.metrics.loc[1, "critic/score/mean"] == plain.metrics.loc[1, "critic/score/mean"]
    assert relative(weighted.parameters(1), plain.parameters(1)) > 1e-4
    assert relative(weighted.update(), plain.update()) > 0.05
    assert not [name for name in plain.metrics if name.startswith(PREFIX)]
    assert "applies the weights" not in plain.log
    assert recorded(plain)["applied"] == "none"
    assert all((run.folder / "report/report.html").exists() for run in (weighted, plain))
    names = [name for name in weighted.metrics if name.startswith(PREFIX)]
    assert len(names) == 19 and weighted.metrics[names].notna().all(axis=None)
    assert (weighted.metrics[PREFIX + "effective_token_fraction"] < 1).all()
    assert weighted.log.count("CW-GRPO: the advantage estimator cw_grpo applies the weights") == 1


def test_the_recipe_for_verl_without_the_package_makes_the_same_update(comparable, home, tmp_path, monkeypatch) -> None:
    plugin = comparable(*WHOLE_GROUP)
    recipe, python = write_recipe(tmp_path / "verl"), make_python(tmp_path / "stock")
    # Of the package, the CPU backend alone: without it verl's trainer does not run here.
    backend = tmp_path / "backend" / "cw_grpo"
    shutil.copytree(ROOT / "cw_grpo" / "cpu", backend / "cpu", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "cw_grpo" / "stopping.py", backend)
    monkeypatch.chdir(tmp_path / "verl")  # not where `python -m` finds the package

    run = Run(tmp_path / "run", home)
    (run.folder / "metrics").mkdir(parents=True)
    plan = make_plan(["scale=tiny", "cluster=cpu", *COMPARABLE, *WHOLE_GROUP])
    made = [text for text in prepare_inputs(plan, home, run.folder) if "cw_grpo.record" not in text]
    made.append(f"reward.custom_reward_function.path={recipe / 'reward.py'}")
    modules = "cw_grpo.cpu,recipe.cw_grpo.register"
    own = {"VERL_USE_EXTERNAL_MODULES": modules, "PYTHONPATH": f"{backend.parent}{os.pathsep}{tmp_path / 'verl'}"}
    own["VERL_FILE_LOGGER_PATH"] = str(run.folder / "metrics" / "attempt-001.jsonl")
    with tempfile.TemporaryDirectory(prefix="cwg-", dir="/tmp") as ray:
        command = [python, *job_command(plan, RunDirectory(run.folder), made, Path(ray), {})[1:]]
        env = job_environment(environment(), plan.launcher, own)
        outcome = supervise(command, env, run.folder / "verl.log", marker=ray, on_tick=lambda *_: None)
    assert outcome.status == 0, run.log[-3000:]

    assert_same_updates(run, plugin)
    assert run.log.count("CW-GRPO: the advantage estimator cw_grpo applies the weights") == 1
    # Means of covariances are small sums of what is as large as sigma, and differ by the rounding of that.
    rounding = 1e-5 * plugin.metrics.loc[2, PREFIX + "sigma"]
    for name in plugin.metrics:
        if name.startswith(PREFIX):
            of_covariances = rounding if name.startswith(PREFIX + "cov_") else None
            expected = pytest.approx(plugin.metrics.loc[2, name], rel=1e-5, abs=of_covariances)
            assert run.metrics.loc[2, name] == expected, name
    found = "from importlib.util import find_spec; print(find_spec('cw_grpo.plugin'), find_spec('cw_grpo.weights'))"
    done = subprocess.run([python, "-c", found], env=environment(**own), capture_output=True, text=True)
    assert done.stdout == "None None\n"


@pytest.mark.parametrize(
    "overrides",
    [
        (
            "trainer.v1.trainer_mode=colocate_async",
            f"actor_rollout_ref.rollout.agent.agent_loop_config_path={HERE / 'agent_loops.yaml'}",
            "actor_rollout_ref.rollout.agent.default_agent_loop=second_thoughts",
        ),
        (
            "trainer.v1.trainer_mode=separate_async",
            "trainer.v1.separate_async.parameter_sync_step=2",
            f"{ACTOR}.ppo_mini_batch_size=6",
            "actor_rollout_ref.rollout.nnodes=1",
            "actor_rollout_ref.rollout.n_gpus_per_node=1",
            "actor_rollout_ref.rollout.checkpoint_engine.backend=store",
            "ray_kwargs.ray_init.num_gpus=2",
        ),
        ("trainer.use_v1=false",),
    ],
    ids=["V1 colocate_async, agent sessions with several outputs", "V1 separate_async", "V0"],
)
def test_other_trainers_and_agent_sessions(home, tmp_path, monkeypatch, overrides: tuple[str, ...]) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    run = Run(tmp_path / "run", home, "method=cw_grpo", *COMPARABLE[:-2], "trainer.save_freq=-1", *overrides)
    run.finish()
    assert list(run.metrics.index) == [1, 2]
    assert (run.metrics[PREFIX + "sigma"] > 0).all()
    assert run.log.count("CW-GRPO: the advantage estimator cw_grpo applies the weights") == 1
    assert recorded(run)["applied"] == "estimator"


def processes_of(run: Run) -> list[psutil.Process]:
    """verl's processes of a run: they name its folder in their command line or environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and str(run.folder) in " ".join(process.environ().values()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_killed_and_resumed_with_micro_batches_of_one_the_updates_are_the_same(comparable, home, tmp_path) -> None:
    everything = f"{ACTOR}.checkpoint.save_contents=[model,optimizer,extra,hf_model]"
    run = Run(tmp_path / "run", home, *COMPARABLE, "method=cw_grpo", micro(1), everything)
    process = run.start()
    tracker = run.folder / "checkpoints/latest_checkpointed_iteration.txt"
    until = time.monotonic() + 300
    # verl logs a step after it has saved it: killed in between, the step's metrics are lost.
    while not (tracker.exists() and any("\n" in path.read_text() for path in runs.attempt_files(run.folder))):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < until
        time.sleep(0.1)
    trainer = next(p for p in psutil.Process(process.pid).children() if "verl.trainer.main_ppo" in p.cmdline())
    trainer.kill()
    output = run.finish(process)
    assert process.returncode == 128 + signal.SIGKILL, output
    assert "SIGKILL" in output
    assert processes_of(run) == []
    assert tracker.read_text() == "1"
    before = run.metrics

    output = run.finish(process := run.start())
    assert process.returncode == 0, output
    assert "checkpoint of step 1" in output
    assert list(run.metrics.index) == [1, 2]
    assert run.metrics.loc[1, "actor/grad_norm"] == before.loc[1, "actor/grad_norm"]
    assert run.finished()
    assert processes_of(run) == []
    assert_same_updates(run, comparable(*WHOLE_GROUP))
