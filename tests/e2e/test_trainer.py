# SPDX-License-Identifier: Apache-2.0
"""verl's own trainer, end to end on the CPU with `scale=tiny`, started by the command that a user types."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from main_job import ACTOR, COMPARABLE, Run, assert_same_updates, micro, relative

from cw_grpo import runs
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


def test_grpos_update_differs_and_so_do_its_metrics_and_its_log(recipe_run, home, tmp_path) -> None:
    plain = Run(tmp_path / "run", home, *COMPARABLE, "method=grpo", micro(12))
    plain.finish()
    assert plain.metrics.loc[1, "critic/score/mean"] == recipe_run.metrics.loc[1, "critic/score/mean"]
    assert relative(recipe_run.parameters(1), plain.parameters(1)) > 1e-4
    assert relative(recipe_run.update(), plain.update()) > 0.05
    assert not [name for name in plain.metrics if name.startswith(PREFIX)]
    assert "applies the weights" not in plain.log
    assert recorded(plain)["applied"] == "none"


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
            f"{ACTOR}.ppo_mini_batch_size=3",
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


def test_the_main_job_killed_and_resumed_is_the_recipe_without_the_package(recipe_run, home, tmp_path) -> None:
    """And micro-batches of one make the update of whole groups."""
    everything = f"{ACTOR}.checkpoint.save_contents=[model,optimizer,extra,hf_model]"
    job = (tmp_path / "run", home, *COMPARABLE, "method=cw_grpo", micro(1), everything)
    run = Run(*job)
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
    assert run.processes() == []
    assert tracker.read_text() == "1"
    before = run.metrics

    output = run.finish(process := Run(*job, report=True).start())
    assert process.returncode == 0, output
    assert "checkpoint of step 1" in output
    assert list(run.metrics.index) == [1, 2]
    assert run.metrics.loc[1, "actor/grad_norm"] == before.loc[1, "actor/grad_norm"]
    assert run.finished() and (run.folder / "report/report.html").exists()
    assert run.processes() == []

    assert_same_updates(run, recipe_run)
    names = [name for name in run.metrics if name.startswith(PREFIX)]
    assert len(names) == 19 and run.metrics[names].notna().all(axis=None)
    assert (run.metrics[PREFIX + "effective_token_fraction"] < 1).all()
    # Means of covariances are small sums of what is as large as sigma, drifts of what sums to one without its signs:
    # they differ by the rounding of that.
    rounding = {"cov": 1e-5 * run.metrics.loc[2, PREFIX + "sigma"], "drift": 1e-6}
    for name in names:
        of_sums = rounding.get(name.removeprefix(PREFIX).split("_")[0])
        expected = pytest.approx(run.metrics.loc[2, name], rel=1e-5, abs=of_sums)
        assert recipe_run.metrics.loc[2, name] == expected, name
    for log, starts in ((run.log, 2), (recipe_run.log, 1)):
        assert log.count("CW-GRPO: the advantage estimator cw_grpo applies the weights") == starts
