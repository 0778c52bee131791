# SPDX-License-Identifier: Apache-2.0
"""What `prepare` makes for a job."""

from __future__ import annotations

import pytest

from cw_grpo.job.plan import LaunchError, make_plan
from cw_grpo.job.prepare import prepare_inputs


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
