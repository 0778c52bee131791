# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from batches import Batch, make_batch
from hypothesis import given
from hypothesis import strategies as st
from strategies import batches

from cw_grpo import covariance_weights
from cw_grpo.baseline import weighted_baseline
from cw_grpo.metrics import PREFIX, WeightMetrics


def centred(batch: Batch, advantages: torch.Tensor) -> torch.Tensor:
    """(B, T) w~ A - b."""
    result = covariance_weights(batch.log_probs, advantages, batch.mask, batch.index)
    return result.weights * advantages.unsqueeze(-1).float() - weighted_baseline(result, batch.index)


@given(batches)
def test_equals_the_reference(batch: Batch) -> None:
    advantages = reference.advantages(batch.rewards.tolist(), batch.index.tolist())
    want = reference.weighted_advantages(
        batch.log_probs.double().tolist(), advantages, batch.mask.tolist(), batch.index.tolist(), centre=True
    )
    torch.testing.assert_close(centred(batch, torch.tensor(advantages)), torch.tensor(want), rtol=1e-4, atol=1e-5)


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(2, 20), st.booleans())
def test_the_mean_of_a_token_that_all_responses_share_is_zero(seed: int, n: int, tokens: int, binary: bool) -> None:
    """Whatever its log-prob: the rewards say nothing about it. Without the baseline it is not."""
    rng = np.random.default_rng(seed)
    log_probs = torch.tensor(-rng.gamma(0.4, 1.5, size=tokens)).expand(n, tokens)
    rewards = rng.integers(0, 2, n) if binary else rng.random(n)
    advantages = torch.tensor(reference.advantages(rewards.tolist(), [0] * n))
    batch = Batch(log_probs, torch.tensor(rewards), torch.ones(n, tokens, dtype=torch.bool), np.zeros(n, dtype=object))
    value = centred(batch, advantages)
    torch.testing.assert_close(value.mean(0), torch.zeros(tokens), rtol=0, atol=1e-5)


def test_tokens_independent_of_the_reward_do_not_drift() -> None:
    """Synthetic groups of 12, tokens drawn by their probability; docs/method.md has the table without baseline."""
    groups, n, tokens = 200, 12, 100
    probabilities = torch.tensor([0.9, 0.05, 0.03, 0.015, 0.004, 0.001])
    generator = torch.Generator().manual_seed(0)
    token = torch.multinomial(probabilities, groups * n * tokens, True, generator=generator).view(groups * n, tokens)
    index = np.repeat(np.arange(groups), n)
    mask = torch.ones(groups * n, tokens, dtype=torch.bool)
    for correct in (3, 9):
        rewards = (torch.arange(n) < correct).double().repeat(groups)
        advantages = torch.tensor(reference.advantages(rewards[:n].tolist(), [0] * n)).repeat(groups)
        batch = Batch(probabilities.log()[token], rewards, mask, index)
        result = covariance_weights(batch.log_probs, advantages, mask, index)
        weighted = result.weights * advantages.unsqueeze(-1)
        value = centred(batch, advantages)
        for k in range(4):
            assert abs(weighted[token == k].mean()) > 0.04
            assert abs(value[token == k].mean()) < 0.006
        baseline = weighted_baseline(result, index)
        name = PREFIX + ("drift_hard" if correct < 6 else "drift_easy")
        drift = []
        for of in (None, baseline):
            metrics = WeightMetrics(mask.shape)
            metrics.add(result, of)
            drift.append(metrics.values()[name])
        assert abs(drift[0]) > 0.05 > 0.01 > abs(drift[1])
        assert (drift[0] > 0) == (correct > 6)


def test_equal_rewards_and_masked_tokens_have_no_baseline() -> None:
    batch = make_batch(3)
    batch.rewards[batch.index == "uid-1"] = 1.0
    advantages = torch.tensor(reference.advantages(batch.rewards.tolist(), batch.index.tolist()))
    result = covariance_weights(batch.log_probs, advantages, batch.mask, batch.index)
    baseline = weighted_baseline(result, batch.index)
    other = torch.tensor(batch.index == "uid-1")[:, None] | ~batch.mask
    assert (baseline[other] == 0).all() and (baseline[~other] != 0).any()


def test_parts_of_a_response_count_once() -> None:
    """A response cut into two rows has the baseline of the whole."""
    batch = make_batch(7, groups=1, n=4, tokens=8)
    batch.mask[:] = True
    advantages = torch.tensor(reference.advantages(batch.rewards.tolist(), batch.index.tolist()))
    whole = weighted_baseline(covariance_weights(batch.log_probs, advantages, batch.mask))
    cut = [t.reshape(8, 4) for t in (batch.log_probs, batch.mask)]
    response = np.repeat(np.arange(4), 2)
    parts = covariance_weights(cut[0], advantages[response], cut[1], response_index=response)
    torch.testing.assert_close(weighted_baseline(parts).reshape(4, 8), whole, rtol=1e-5, atol=1e-6)


def test_group_ids_that_do_not_fit_are_rejected() -> None:
    batch = make_batch(1)
    result = covariance_weights(batch.log_probs, torch.zeros(len(batch.rewards)), batch.mask, batch.index)
    with pytest.raises(ValueError, match="index must have one id for each of the 12 rows"):
        weighted_baseline(result, batch.index[:-1])
