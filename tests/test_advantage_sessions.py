# SPDX-License-Identifier: Apache-2.0
"""The estimator through `compute_advantage_for_multi_trajectories`, which verl's V1 trainers call: agent sessions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from advantages import close, compute, data_of, job
from batches import Batch, make_batch
from verl.protocol import DataProto
from verl.trainer.ppo.v1 import utils as v1_utils

from cw_grpo import checks, covariance_weights
from cw_grpo.advantage import compute_cw_grpo_outcome_advantage, take_metrics
from cw_grpo.metrics import PREFIX


@pytest.fixture(autouse=True)
def _no_metrics_of_other_tests() -> None:
    take_metrics()


def sessions(batch: Batch, outputs: list[int]) -> tuple[list[str], DataProto]:
    """V1's rows of agent sessions: session i of a prompt has ``outputs[i]`` rows, keys ``{uid}_{session}_{output}``."""
    rows, keys, number = [], [], dict.fromkeys(batch.index, 0)
    for row, uid in enumerate(batch.index):
        for output in range(outputs[number[uid] % len(outputs)]):
            rows.append(row)
            keys.append(f"{uid}_{number[uid]}_{output}")
        number[uid] += 1
    rng = np.random.default_rng(0)
    order = rng.permutation(len(rows))
    rows, keys = [rows[i] for i in order], [keys[i] for i in order]
    noise = torch.tensor(rng.normal(size=(len(rows), batch.mask.shape[1])), dtype=torch.float32)
    data = data_of(Batch(batch.log_probs[rows] + 0.1 * noise, batch.rewards[rows], batch.mask[rows], batch.index[rows]))
    return keys, data


@pytest.mark.parametrize("n", [2, 8, 12, 16, 64])
@pytest.mark.parametrize("reward", [0.1, 0.7, 1.1, 17.1, 10000.1, 1e6])
def test_equal_rewards_give_exactly_nothing_in_every_trainer(n: int, reward: float) -> None:
    batch = make_batch(20, groups=2, n=n)
    batch.rewards[:] = reward
    keys, data = sessions(batch, [1, 2])
    config = job().algorithm
    _, returns = compute_cw_grpo_outcome_advantage(
        batch.token_level_rewards, batch.mask, batch.index, old_log_probs=batch.log_probs
    )
    v0 = compute(batch, "cw_grpo")
    v1 = v1_utils.compute_advantage_for_multi_trajectories(data, keys, "cw_grpo", config=config)
    for advantages in (returns, v0.batch["advantages"], v1.batch["advantages"], v1.batch["returns"]):
        assert (advantages == 0).all()
    assert take_metrics()[PREFIX + "zero_sigma_fraction"] == 1


def test_without_log_probs_it_stops() -> None:
    keys, data = sessions(make_batch(4), [1])
    del data.batch["old_log_probs"]
    with pytest.raises(ValueError, match="got no old_log_probs"):
        v1_utils.compute_advantage_for_multi_trajectories(data, keys, "cw_grpo", config=job().algorithm)


@pytest.mark.parametrize("loss_mode", ["vanilla", "cw_grpo_live"])
def test_one_line_says_where_the_weights_are_applied(loss_mode: str, capsys, monkeypatch) -> None:
    monkeypatch.setattr(checks, "_announced", set())
    batch = make_batch(6)
    keys, data = [f"{uid}_{row}_0" for row, uid in enumerate(batch.index)], data_of(batch)
    for _ in range(2):
        v1_utils.compute_advantage_for_multi_trajectories(
            data.select(), keys, "cw_grpo", config=job(loss_mode).algorithm
        )
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("CW-GRPO: ")]
    assert len(lines) == 1
    assert (
        "the policy loss cw_grpo_live" if loss_mode == "cw_grpo_live" else "the advantage estimator cw_grpo"
    ) in lines[0]


@pytest.mark.parametrize("outputs", [[1], [1, 3, 2]])
def test_agent_sessions_get_verls_grpo_result_times_the_weights(outputs: list[int]) -> None:
    keys, data = sessions(make_batch(7), outputs)
    config = job().algorithm
    grpo = v1_utils.compute_advantage_for_multi_trajectories(data.select(), keys, "grpo", config=config)
    plain = grpo.batch["advantages"].clone()
    ours = v1_utils.compute_advantage_for_multi_trajectories(data.select(), keys, "cw_grpo", config=config)
    weights = covariance_weights(
        *(data.batch["old_log_probs"], plain, data.batch["response_mask"], data.non_tensor_batch["uid"]),
        response_index=[key.rsplit("_", 1)[0] for key in keys],
    ).weights
    assert close(ours.batch["advantages"], plain * weights)
    torch.testing.assert_close(ours.batch["returns"], plain, rtol=1e-5, atol=1e-6)
    assert not torch.equal(ours.batch["advantages"], plain)


def test_a_session_counts_once_however_often_its_context_was_cut() -> None:
    # Session A in one row, session B cut into five: the centred advantages are those of two responses.
    tokens = torch.tensor([[-2.0, -1.7, -0.1, -0.4, -3.0], [-0.3, -2.5, -0.2, -0.9, -1.1]])
    rows = torch.zeros(6, 5)
    mask = torch.zeros(6, 5, dtype=torch.long)
    rows[0], mask[0] = tokens[0], 1
    rows[1:, 0], mask[1:, 0] = tokens[1], 1
    rewards = torch.zeros(6, 5)
    rewards[0, 0] = 1.0
    config = job().algorithm

    def advantages(keys: list[str], **tensors: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        uid = np.array(["q"] * len(keys), dtype=object)
        data = DataProto.from_dict(tensors=tensors, non_tensors={"uid": uid})
        data = v1_utils.compute_advantage_for_multi_trajectories(data, keys, "cw_grpo", config=config)
        return data.batch["advantages"], take_metrics()

    cut, kept = advantages(
        ["q_0_0", *(f"q_1_{output}" for output in range(5))],
        token_level_rewards=rewards,
        response_mask=mask,
        old_log_probs=rows,
    )
    whole, wanted = advantages(
        ["q_0_0", "q_1_0"],
        token_level_rewards=rewards[:2],
        response_mask=torch.ones(2, 5, dtype=torch.long),
        old_log_probs=tokens,
    )
    torch.testing.assert_close(cut[0], whole[0])
    torch.testing.assert_close(cut[1:, 0], whole[1])
    for name in ("sigma", "kept_positive", "kept_negative", "effective_token_fraction"):
        assert kept[PREFIX + name] == pytest.approx(wanted[PREFIX + name], rel=1e-5)


def test_verls_padding_rows_change_nothing() -> None:
    batch = make_batch(8)
    keys, data = sessions(batch, [1])
    config = job().algorithm
    ours = v1_utils.compute_advantage_for_multi_trajectories(data.select(), keys, "cw_grpo", config=config)
    want, metrics = ours.batch["advantages"].clone(), take_metrics()

    pad = 4
    zeros = torch.zeros(pad, batch.mask.shape[1])
    padded = DataProto.from_dict(
        tensors={
            "token_level_rewards": torch.cat([data.batch["token_level_rewards"], zeros]),
            "response_mask": torch.cat([data.batch["response_mask"], zeros.long()]),
            "old_log_probs": torch.cat([data.batch["old_log_probs"], zeros]),
        },
        non_tensors={"uid": np.append(data.non_tensor_batch["uid"], np.array(["pad0"] * pad, dtype=object))},
    )
    keys = keys + [f"pad0_{i}_0" for i in range(pad)]
    got = v1_utils.compute_advantage_for_multi_trajectories(padded, keys, "cw_grpo", config=config)
    assert close(got.batch["advantages"][:-pad], want)
    assert (got.batch["advantages"][-pad:] == 0).all()
    assert take_metrics() == pytest.approx(metrics)
