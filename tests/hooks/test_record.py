# SPDX-License-Identifier: Apache-2.0
"""Per-token samples: what is chosen, what is written, and that it is the paper's covariance and weight."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import reference
import torch
from batches import make_batch
from hypothesis import given
from hypothesis import strategies as st
from jobs import make_job
from omegaconf import OmegaConf
from verl.protocol import DataProto
from verl.trainer.ppo import ray_trainer

from cw_grpo import hooks
from cw_grpo.hooks import record as recording
from cw_grpo.hooks.record import choose_groups, is_due
from cw_grpo.settings import check_job, describe_record, read_options


def job(folder, estimator: str = "cw_grpo", loss: str = "vanilla", **options):
    config = make_job(estimator, loss, record=str(folder), **options)
    OmegaConf.set_struct(config, False)
    return config


def data_of(batch, step: int | None) -> DataProto:
    rows, tokens = batch.log_probs.shape
    data = DataProto.from_dict(
        tensors={
            "token_level_rewards": batch.token_level_rewards,
            "token_level_scores": batch.token_level_rewards,
            "response_mask": batch.mask.long(),
            "old_log_probs": batch.log_probs,
            "responses": torch.arange(rows * tokens).view(rows, tokens),
            "prompts": torch.arange(rows * 3).view(rows, 3),
            "attention_mask": torch.cat([torch.tensor([[0, 1, 1]] * rows), batch.mask.long()], 1),
        },
        non_tensors={"uid": batch.index},
    )
    recording.note_step({"self": SimpleNamespace(global_steps=step)}, None)
    return data


def record(job, batch, step: int | None = 1):
    """What verl's own `compute_advantage`, hooked, leaves in the folder; the advantages too."""
    data = ray_trainer.compute_advantage(
        data_of(batch, step), job.algorithm.adv_estimator, num_repeat=4, config=job.algorithm
    )
    return data.batch["advantages"], sorted(Path(job.algorithm.cw_grpo.record).glob("*"))


@pytest.mark.parametrize(
    ("estimator", "loss", "applied"),
    [("cw_grpo", "vanilla", "estimator"), ("grpo", "vanilla", "none"), ("grpo", "cw_grpo_live", "loss")],
)
def test_every_valid_token_is_written_with_the_papers_covariance_and_weight(
    tmp_path, estimator: str, loss: str, applied: str
) -> None:
    batch = make_batch(3)
    _, [file] = record(job(tmp_path / "r", estimator, loss), batch)
    assert file.name == "step-000001.parquet"
    table = pq.read_table(file)
    frame = table.to_pandas()
    assert len(frame) == int(batch.mask.sum())
    groups = batch.index.tolist()
    advantages = reference.advantages(batch.rewards.tolist(), groups)
    expected = reference.weights(batch.log_probs.tolist(), advantages, batch.mask.tolist(), groups)
    for row in frame.itertuples():
        i, t = row.response, row.position
        assert row.group == groups[i] and row.step == 1
        assert row.token_id == i * batch.mask.shape[1] + t
        assert row.old_log_prob == pytest.approx(batch.log_probs[i, t].item())
        assert row.advantage == pytest.approx(advantages[i], abs=1e-5)
        assert row.covariance == pytest.approx(expected.covariance[i][t], abs=1e-5)
        assert row.weight == pytest.approx(expected.weights[i][t], abs=1e-4)
        assert row.reward == batch.rewards[i]
    about = json.loads(table.schema.metadata[b"cw_grpo"])
    assert about["applied"] == applied and about["model"] == "/models/some"
    assert about["groups_in_batch"] == about["groups_recorded"] == 3
    assert about["prompts"]["uid-0"] == [1, 2]


def test_recording_changes_no_advantage(tmp_path) -> None:
    batch = make_batch(5)
    recorded, files = record(job(tmp_path / "r"), batch)
    without = job(tmp_path)
    del without.algorithm.cw_grpo
    plain = ray_trainer.compute_advantage(data_of(batch, 1), "cw_grpo", num_repeat=4, config=without.algorithm)
    assert files and torch.equal(recorded, plain.batch["advantages"])


def test_only_due_steps_and_no_more_tokens_than_asked(tmp_path) -> None:
    batch = make_batch(7, groups=6)
    settings = job(tmp_path / "r", record_every=3, record_tokens=20)
    for step in range(1, 8):
        _, files = record(settings, batch, step)
    assert [file.stem for file in files] == ["step-000001", "step-000003", "step-000006"]
    for file in files:
        frame = pq.read_table(file).to_pandas()
        assert 0 < len(frame) <= 20
        # Whole groups, unless the first one alone is too large.
        if frame.group.nunique() > 1:
            for uid, part in frame.groupby("group"):
                assert len(part) == int(batch.mask[batch.index == uid].sum())


def test_a_group_larger_than_the_bound_is_cut_to_it(tmp_path) -> None:
    _, [file] = record(job(tmp_path / "r", record_tokens=3), make_batch(1, tokens=30))
    assert pq.read_table(file).num_rows == 3


def test_padding_rows_of_verl_are_left_out(tmp_path) -> None:
    batch = make_batch(11)
    batch.index[-4:], batch.mask[-4:] = "pad-uid", False
    _, [file] = record(job(tmp_path / "r"), batch)
    assert set(pq.read_table(file).to_pandas().group) == {"uid-0", "uid-1"}


@given(st.dictionaries(st.text(min_size=1), st.integers(0, 50), min_size=1), st.integers(1, 200), st.integers(1, 9))
def test_groups_are_chosen_within_the_bound_and_as_many_as_fit(lengths, budget: int, step: int) -> None:
    chosen = choose_groups(lengths, budget, step)
    assert len(set(chosen)) == len(chosen) >= 1 and set(chosen) <= set(lengths)
    assert len(chosen) == 1 or sum(lengths[uid] for uid in chosen) <= budget
    assert choose_groups(dict(reversed(lengths.items())), budget, step) == chosen


def test_a_trainer_that_does_not_say_its_step_is_not_recorded(tmp_path, caplog, monkeypatch) -> None:
    monkeypatch.setattr(hooks, "_warned", set())
    _, files = record(job(tmp_path / "r"), make_batch(1), step=None)
    assert files == []
    assert re.search(r"no recording in V0 .*algorithm\.cw_grpo\.record.*does not call", caplog.text)


def test_it_is_off_by_default_and_said_when_on(tmp_path) -> None:
    settings = job(tmp_path / "r", "grpo", record_every=5)
    check_job(settings)
    assert f"every 5 steps in {tmp_path}" in describe_record(settings.algorithm)
    del settings.algorithm.cw_grpo
    assert describe_record(settings.algorithm) is None
    assert not is_due(read_options(settings.algorithm), 1)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"record": "relative/folder"}, r"record=relative/folder must be an absolute path"),
        ({"record": "/r", "record_every": 0}, r"record_every=0 must be at least 1"),
        (
            {"record": "/r", "record_tokens": "many"},
            r"record_tokens: Value 'many' .* could not be converted to Integer",
        ),
        ({"record": "/r", "record_every": True}, r"record_every: Value 'True' .* could not be converted to Integer"),
        ({"record_every": 2}, r"need algorithm\.cw_grpo\.record=DIRECTORY"),
    ],
)
def test_settings_that_can_not_be_meant_are_named(options, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        read_options({"cw_grpo": options})


def test_an_option_of_the_weights_without_the_weights_is_refused(tmp_path) -> None:
    settings = job(tmp_path / "r", "grpo", log_prob_mean="group")
    with pytest.raises(ValueError, match=r"algorithm\.cw_grpo\.log_prob_mean is set but has no effect"):
        check_job(settings)


def test_what_is_recorded_has_numpy_ids_too(tmp_path) -> None:
    batch = make_batch(2)
    batch.index = np.array([f"{uid}" for uid in batch.index])
    _, [file] = record(job(tmp_path / "r"), batch)
    assert pq.read_table(file).num_rows == int(batch.mask.sum())
