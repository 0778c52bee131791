# SPDX-License-Identifier: Apache-2.0
"""What `prepare` makes for a job."""

from __future__ import annotations

import sys

import pytest

from cw_grpo.job.launch import train
from cw_grpo.job.plan import LaunchError, make_plan
from cw_grpo.job.prepare import is_hub_id, prepare_inputs


def test_prepare_makes_what_is_missing_once_and_leaves_the_users_own_alone(tmp_path, caplog) -> None:
    own = ["actor_rollout_ref.model.path=/my/model", "prepare.data.train.size=5", "prepare.data.val.size=3"]
    plan = make_plan(["scale=tiny", *own])
    made = dict(override.split("=", 1) for override in prepare_inputs(plan, tmp_path, tmp_path / "run"))
    record = {"++algorithm.cw_grpo.record": f"'{tmp_path}/run/record'", "++algorithm.cw_grpo.record_every": "5"}
    assert record.items() <= made.items()
    assert set(made) - set(record) == {"reward.custom_reward_function.path", "data.train_files", "data.val_files"}
    assert len(caplog.messages) == 2 and caplog.messages[0].startswith("data: 5 questions of chain_sum in ")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()}
    assert len(files) == 2
    assert prepare_inputs(plan, tmp_path, tmp_path / "run") == [f"{key}={value}" for key, value in made.items()]
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()}
    # Other settings are another file.
    prepare_inputs(make_plan(["scale=tiny", *own, "prepare.data.train.seed=7"]), tmp_path, tmp_path / "run")
    assert len(list((tmp_path / "data").iterdir())) == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+prepare.models=1", "prepare.models does not exist; did you mean model"),
        ("prepare.reward=../nothing.py", "prepare.reward: .*nothing.py does not exist"),
        ("prepare.model.name=huge", "unknown model 'huge'; the models are: smollm2, tiny"),
        ("prepare.data.train.task=sums", "no task 'sums'"),
        ("prepare.prompt=nothing.yaml", "nothing.yaml"),
    ],
)
def test_what_cannot_be_prepared_is_named(tmp_path, override: str, message: str) -> None:
    own = [] if "model.name" in override else ["actor_rollout_ref.model.path=/my/model"]
    with pytest.raises(LaunchError, match=message):
        prepare_inputs(make_plan(["scale=tiny", *own, override]), tmp_path, tmp_path / "run")


def test_inputs_can_be_made_for_another_machine(tmp_path) -> None:
    """This one may lack GPUs, vLLM and CPUs; no run is started."""
    own = ["actor_rollout_ref.model.path=/my/model", "prepare.data.train.size=5", "prepare.data.val.size=3"]
    assert train(["scale=smollm2", "cluster=1gpu", *own], prepare_only=True, home=tmp_path) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert len(list((tmp_path / "data").glob("chain_sum-*.parquet"))) == 2


@pytest.mark.parametrize(
    ("path", "expected"),
    [("Qwen/Qwen2.5-0.5B", True), ("/a/b", False), ("./a", False), ("a", False), ("hdfs://a/b", False)],
)
def test_names_on_the_hub(path: str, expected: bool) -> None:
    assert is_hub_id(path) == expected


def test_a_model_of_the_hub_is_fetched_before_the_job(tmp_path, caplog) -> None:
    """From the cache that the job's environment names."""
    model = tmp_path / "hub" / "models--me--small"
    (model / "snapshots" / "0123").mkdir(parents=True)
    (model / "snapshots" / "0123" / "config.json").write_text("{}")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0123")
    own = ("+launcher.env.HF_HUB_OFFLINE=1", f"+launcher.env.HF_HOME={tmp_path}")

    def prepare(name: str) -> list[str]:
        plan = make_plan(["scale=paper", f"actor_rollout_ref.model.path={name}", *own])
        return prepare_inputs(plan, tmp_path, tmp_path / "run")

    caplog.set_level("INFO", "cw_grpo")
    assert len(prepare("me/small")) == 1  # the reward
    assert caplog.messages == ["model: fetching me/small from the Hugging Face hub, unless its cache has it"]
    with pytest.raises(LaunchError, match="prepare: me/large cannot be fetched: LocalEntryNotFoundError"):
        prepare("me/large")


def test_without_reasoning_gym_the_message_says_what_to_do(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(LaunchError, match="reasoning_gym.* pip install reasoning-gym, or copy .*chain_sum-train-"):
        prepare_inputs(make_plan(["scale=tiny", "actor_rollout_ref.model.path=x"]), tmp_path, tmp_path)
