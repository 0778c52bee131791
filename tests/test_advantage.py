# SPDX-License-Identifier: Apache-2.0
"""The estimator, through verl's own `compute_advantage`. Nothing here needs verl's V1 trainers."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from advantages import close, compute, data_of, job
from batches import Batch, make_batch
from hypothesis import given
from hypothesis import strategies as st
from strategies import batches
from verl.trainer.ppo import core_algos, metric_utils, ray_trainer

from cw_grpo import covariance_weights
from cw_grpo.advantage import compute_cw_grpo_outcome_advantage, take_metrics
from cw_grpo.metrics import PREFIX

OURS = [pytest.param(name, marks=pytest.mark.losses) for name in ("cw_grpo_live", "cw_grpo_released")]


@pytest.fixture(autouse=True)
def _no_metrics_of_other_tests() -> None:
    take_metrics()


@given(batches, st.booleans())
def test_compute_advantage_gives_the_papers_advantage(batch: Batch, normalise: bool) -> None:
    data = compute(batch, "cw_grpo", norm_adv_by_std_in_grpo=normalise)
    advantages = reference.advantages(batch.rewards.tolist(), batch.index.tolist(), normalise)
    weights = reference.weights(
        batch.log_probs.double().tolist(), advantages, batch.mask.tolist(), batch.index.tolist()
    ).weights
    want = torch.tensor(weights) * torch.tensor(advantages)[:, None]
    torch.testing.assert_close(data.batch["advantages"], want, rtol=1e-4, atol=1e-5)


@given(batches)
def test_compute_advantage_gives_grpo_times_the_weights_and_grpos_returns(batch: Batch) -> None:
    ours, grpo = compute(batch, "cw_grpo"), compute(batch, "grpo")
    weights = covariance_weights(batch.log_probs, grpo.batch["advantages"], batch.mask, batch.index).weights
    assert close(ours.batch["advantages"], grpo.batch["advantages"] * weights)
    torch.testing.assert_close(ours.batch["returns"], grpo.batch["returns"], rtol=1e-5, atol=1e-6)
    assert not torch.equal(ours.batch["returns"], ours.batch["advantages"]) or (weights[batch.mask] == 1).all()


@given(batches)
def test_the_registered_estimator_is_the_same_without_the_hook(batch: Batch) -> None:
    estimator = core_algos.get_adv_estimator_fn("cw_grpo")
    assert estimator is compute_cw_grpo_outcome_advantage
    advantages, returns = estimator(
        token_level_rewards=batch.token_level_rewards,
        response_mask=batch.mask.long(),
        index=batch.index,
        config=job().algorithm,
        old_log_probs=batch.log_probs,
    )
    data = compute(batch, "cw_grpo")
    assert close(advantages, data.batch["advantages"])
    assert close(returns, data.batch["returns"])


@pytest.mark.parametrize("kwargs", [{}, {"epsilon": 0.1}, {"norm_adv_by_std_in_grpo": False}])
@pytest.mark.parametrize("chunk", [100, 500, 1 << 18])
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64, torch.bfloat16])
def test_returns_match_verl(monkeypatch, kwargs: dict, chunk: int, mask_dtype) -> None:
    monkeypatch.setattr("cw_grpo.groups._CHUNK_POSITIONS", chunk)
    batch = make_batch(12, groups=7, n=5, tokens=40, shuffle=True)
    batch.index[3] = "alone"
    rewards = torch.randn(batch.log_probs.shape, generator=torch.Generator().manual_seed(0))
    batch.mask[4, 9:11], batch.mask[5] = False, False
    mask = batch.mask.to(mask_dtype)
    advantages, returns = compute_cw_grpo_outcome_advantage(
        rewards, mask, batch.index, old_log_probs=batch.log_probs, **kwargs
    )
    verls, _ = core_algos.compute_grpo_outcome_advantage(rewards, batch.mask, batch.index, **kwargs)
    torch.testing.assert_close(returns, verls)
    weights = covariance_weights(batch.log_probs, returns, batch.mask, batch.index).weights
    assert close(advantages, returns * weights)


@pytest.mark.parametrize("loss", ["vanilla", "cw_grpo_live"])
def test_a_loss_can_go_back_through_its_result(loss: str) -> None:
    batch = make_batch(14)
    advantages, returns = compute_cw_grpo_outcome_advantage(
        *(batch.token_level_rewards, batch.mask, batch.index),
        config=job(loss).algorithm,
        old_log_probs=batch.log_probs,
    )
    log_probs = batch.log_probs.clone().requires_grad_()
    (log_probs * advantages + log_probs * returns).sum().backward()  # not possible with tensors of inference mode
    torch.testing.assert_close(log_probs.grad, advantages + returns)
    advantages += 1


def test_float64_log_probs_of_shuffled_rows(monkeypatch) -> None:
    batch = make_batch(15, groups=7, n=5, tokens=40, shuffle=True)
    arguments = batch.token_level_rewards, batch.mask, batch.index
    want, _ = compute_cw_grpo_outcome_advantage(*arguments, old_log_probs=batch.log_probs)
    monkeypatch.setattr("cw_grpo.groups._CHUNK_POSITIONS", 100)
    got, returns = compute_cw_grpo_outcome_advantage(*arguments, old_log_probs=batch.log_probs.double())
    assert got.dtype == returns.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_rows_that_do_not_fit_are_refused() -> None:
    batch = make_batch(16)
    more = torch.cat([batch.log_probs, batch.log_probs])
    with pytest.raises(ValueError, match="response_mask must have the shape of log_probs"):
        compute_cw_grpo_outcome_advantage(batch.token_level_rewards, batch.mask, batch.index, old_log_probs=more)
    nested = torch.nested.as_nested_tensor(list(batch.log_probs), layout=torch.jagged)
    with pytest.raises(ValueError, match=r"must be padded here: call their to_padded_tensor\(0\)"):
        compute_cw_grpo_outcome_advantage(batch.token_level_rewards, batch.mask, batch.index, old_log_probs=nested)


def test_an_error_names_the_row_of_the_batch(monkeypatch) -> None:
    monkeypatch.setattr("cw_grpo.groups._CHUNK_POSITIONS", 1)
    batch = make_batch(13)
    batch.log_probs[6, 0] = torch.nan
    with pytest.raises(ValueError, match=r"log-prob nan at valid token 0 of row 6 \(group 'uid-1'\)"):
        compute(batch, "cw_grpo")
    assert not take_metrics()


def test_the_registered_estimator_reads_norm_adv_by_std_from_the_config() -> None:
    batch, config = make_batch(1), job()
    config.algorithm.norm_adv_by_std_in_grpo = False
    _, returns = compute_cw_grpo_outcome_advantage(
        batch.token_level_rewards,
        batch.mask.long(),
        batch.index,
        config=config.algorithm,
        old_log_probs=batch.log_probs,
    )
    assert close(returns, compute(batch, "grpo", norm_adv_by_std_in_grpo=False).batch["advantages"])


def test_a_reward_that_is_not_finite_names_its_row() -> None:
    batch = make_batch(22)
    batch.rewards[6] = torch.nan
    with pytest.raises(ValueError, match=r"reward nan of row 6 \(group 'uid-1'\), one of 1 .*reward function"):
        compute(batch, "cw_grpo")
    batch.mask[6] = False
    with pytest.raises(ValueError, match=r"reward nan of row 6 \(group 'uid-1'\)"):  # it is in its group's mean
        compute(batch, "cw_grpo")
    batch.rewards[6] = 0.0
    assert torch.isfinite(compute(batch, "cw_grpo").batch["advantages"]).all()


def test_a_batch_without_groups_stops_where_the_job_asks_for_some() -> None:
    batch = make_batch(23)
    batch.index = np.array([f"own-{row}" for row in range(len(batch.index))], dtype=object)
    with pytest.raises(ValueError, match=r"each of the 12 responses has a group id .*rollout\.n=4 asks for groups"):
        compute(batch, "cw_grpo")
    batch.index[-2:] = "pad0"  # verl's padding rows are no group
    with pytest.raises(ValueError, match=r"each of the 10 responses has a group id"):
        compute(batch, "cw_grpo")
    batch.index[1] = batch.index[0]
    assert torch.isfinite(compute(batch, "cw_grpo").batch["advantages"]).all()


def test_groups_of_which_rejection_sampling_leaves_one_response_are_groups() -> None:
    batch = make_batch(25)
    batch.mask[:] &= (torch.arange(12) % 4 == 0)[:, None]
    assert torch.isfinite(compute(batch, "cw_grpo").batch["advantages"]).all()


def test_a_verl_that_hands_the_batch_to_estimators_needs_no_hook() -> None:
    batch = make_batch(24)
    tensors = {"old_log_probs": batch.log_probs}
    arguments = {"token_level_rewards": batch.token_level_rewards, "response_mask": batch.mask.long()}
    advantages, returns = compute_cw_grpo_outcome_advantage(
        **arguments, index=batch.index, config=job().algorithm, batch=tensors, non_tensor_batch={"uid": batch.index}
    )
    data = compute(batch, "cw_grpo")
    assert torch.equal(advantages, data.batch["advantages"]) and torch.equal(returns, data.batch["returns"])


def test_rewards_of_large_size_lose_nothing() -> None:
    batch = make_batch(21)
    far = batch.token_level_rewards.double() / 128
    far[:, 0] += 1e6
    arguments = {"old_log_probs": batch.log_probs, "epsilon": 0.0}
    got, _ = compute_cw_grpo_outcome_advantage(far, batch.mask, batch.index, **arguments)
    want, _ = compute_cw_grpo_outcome_advantage(batch.token_level_rewards, batch.mask, batch.index, **arguments)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("ids", [[1.2, 1.7, -1.0], ["1", "01", "1.0"], [-3, 5, 10**12]])
def test_group_ids_that_look_like_numbers_stay_apart(ids: list) -> None:
    batch = make_batch(17)
    index = np.repeat(np.array(ids, dtype=object), 4)
    arguments = {"old_log_probs": batch.log_probs}
    got, _ = compute_cw_grpo_outcome_advantage(batch.token_level_rewards, batch.mask, index, **arguments)
    want, _ = compute_cw_grpo_outcome_advantage(batch.token_level_rewards, batch.mask, batch.index, **arguments)
    assert torch.equal(got, want)
    listed, _ = compute_cw_grpo_outcome_advantage(batch.token_level_rewards, batch.mask, list(index), **arguments)
    assert torch.equal(listed, want)


def test_without_group_ids_it_stops() -> None:
    batch = make_batch(19)
    with pytest.raises(ValueError, match="one group id .*uid.* for each of the 12 rows, got None"):
        compute_cw_grpo_outcome_advantage(batch.token_level_rewards, batch.mask, None, old_log_probs=batch.log_probs)


def test_the_reading_of_the_log_prob_mean_is_an_option() -> None:
    batch = make_batch(2)
    advantages = compute(batch, "grpo").batch["advantages"]
    got = {
        mean: compute(batch, "cw_grpo", job(log_prob_mean=mean)).batch["advantages"] for mean in ("response", "group")
    }
    for mean, value in got.items():
        weights = covariance_weights(batch.log_probs, advantages, batch.mask, batch.index, log_prob_mean=mean).weights
        assert close(value, advantages * weights)
    assert not torch.allclose(got["response"], got["group"])
    assert close(compute(batch, "cw_grpo").batch["advantages"], got["response"])


@given(batches, st.booleans())
def test_centred_advantages_are_those_of_the_reference(batch: Batch, centre: bool) -> None:
    got = compute(batch, "cw_grpo", job(centre=centre)).batch["advantages"]
    advantages = reference.advantages(batch.rewards.tolist(), batch.index.tolist())
    want = reference.weighted_advantages(
        batch.log_probs.double().tolist(), advantages, batch.mask.tolist(), batch.index.tolist(), centre
    )
    torch.testing.assert_close(got, torch.tensor(want), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"log_prob_means": "group"}, "log_prob_means.*log_prob_mean"), ({"log_prob_mean": "batch"}, "batch.*group")],
)
def test_a_mistyped_option_is_refused_by_name(options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        compute(make_batch(3), "cw_grpo", job(**options))


@pytest.mark.parametrize("function", ["compute_advantage", "estimator"])
def test_without_log_probs_it_stops_and_says_what_to_do(function: str) -> None:
    batch, config = make_batch(4), job().algorithm
    with pytest.raises(ValueError, match=r"got no old_log_probs: .*doctor.*Compute old_log_probs before"):
        if function == "compute_advantage":
            ray_trainer.compute_advantage(data_of(batch, with_log_probs=False), adv_estimator="cw_grpo", config=config)
        else:
            core_algos.get_adv_estimator_fn("cw_grpo")(
                batch.token_level_rewards, batch.mask.long(), batch.index, config=config
            )


def test_other_estimators_are_verls_own() -> None:
    batch = make_batch(5)
    plain, _ = core_algos.compute_grpo_outcome_advantage(batch.token_level_rewards, batch.mask.long(), batch.index)
    assert torch.equal(compute(batch, "grpo").batch["advantages"], plain)
    rloo, _ = core_algos.compute_rloo_outcome_advantage(batch.token_level_rewards, batch.mask.long(), batch.index)
    assert torch.equal(compute(batch, "rloo").batch["advantages"], rloo)


@pytest.mark.parametrize("estimator", ["cw_grpo", "grpo", "rloo"])
@pytest.mark.parametrize("loss_mode", ["vanilla", "gspo", "clip_cov", *OURS])
def test_the_weights_are_applied_once(estimator: str, loss_mode: str) -> None:
    batch = make_batch(6)
    got = compute(batch, estimator, job(loss_mode)).batch["advantages"]
    unweighted = compute(batch, "rloo" if estimator == "rloo" else "grpo").batch["advantages"]
    weights = covariance_weights(batch.log_probs, unweighted, batch.mask, batch.index).weights
    by_the_loss = loss_mode.startswith("cw_grpo")
    expected = unweighted * weights if estimator == "cw_grpo" and not by_the_loss else unweighted
    assert close(got, expected)


@pytest.mark.losses
@pytest.mark.parametrize("estimator", ["cw_grpo", "grpo"])
def test_a_loss_with_groups_out_of_order_is_refused_where_the_group_ids_are(estimator: str) -> None:
    batch = make_batch(6, groups=2, n=4)
    batch.rewards[:] = torch.tensor([0.0, 1.0] * 4)
    order = [0, 3, 5, 6, 1, 2, 4, 7]  # the advantages of each block still average to 0
    mixed = Batch(batch.log_probs[order], batch.rewards[order], batch.mask[order], batch.index[order])
    assert torch.equal(compute(mixed, "cw_grpo").batch["returns"], compute(mixed, "grpo").batch["returns"])
    with pytest.raises(
        ValueError, match="loss cw_grpo_live needs groups in order.*balance_batch=False.*adv_estimator=cw_grpo"
    ):
        compute(mixed, estimator, job("cw_grpo_live"))


def test_metrics_reach_what_every_trainer_logs_and_are_taken_once() -> None:
    batch = make_batch(9)
    data = compute(batch, "cw_grpo")
    tokens = torch.ones(len(batch.index), 5, dtype=torch.long)
    data.batch["prompts"], data.batch["responses"] = tokens, torch.ones_like(batch.mask, dtype=torch.long)
    data.batch["attention_mask"] = torch.cat([tokens, batch.mask.long()], 1)
    data.batch["token_level_scores"] = data.batch["token_level_rewards"]
    logged = metric_utils.compute_data_metrics(data, use_critic=False)
    assert "critic/score/mean" in logged
    assert 0 < logged[PREFIX + "effective_token_fraction"] < 1
    assert logged[PREFIX + "sigma"] > 0
    assert not any(name.startswith(PREFIX) for name in metric_utils.compute_data_metrics(data, use_critic=False))


def test_metrics_of_several_batches_of_a_step_are_averaged() -> None:
    single = []
    for seed in (10, 11):
        compute(make_batch(seed), "cw_grpo")
        single.append(take_metrics())
    for seed in (10, 11):
        compute(make_batch(seed), "cw_grpo")
    assert take_metrics() == pytest.approx({k: (single[0][k] + single[1][k]) / 2 for k in single[0]})
