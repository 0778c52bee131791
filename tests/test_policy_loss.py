# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import reference
import torch
import torch.nn.functional as F
from batches import Batch, make_batch
from hypothesis import given
from strategies import batches
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, compute_policy_loss_vanilla, get_policy_loss_fn
from verl.workers.config import FSDPActorConfig, FSDPOptimizerConfig

from cw_grpo import covariance_weights
from cw_grpo.metrics import PREFIX

AGGREGATION = "seq-mean-token-mean"


def actor(n: int, **kwargs) -> FSDPActorConfig:
    return FSDPActorConfig(
        strategy="fsdp2",
        rollout_n=n,
        ppo_mini_batch_size=n,
        ppo_micro_batch_size_per_gpu=n,
        optim=FSDPOptimizerConfig(lr=1e-6),
        **kwargs,
    )


def advantages_of(batch: Batch) -> torch.Tensor:
    per_row = reference.advantages(batch.rewards.tolist(), batch.index.tolist())
    return torch.tensor(per_row)[:, None] * batch.mask


def loss_of(name: str, batch: Batch, n: int, advantages: torch.Tensor | None = None, old_log_prob=None, **kwargs):
    """(loss, gradient of the log-probs, metrics) of the loss that verl's registry has under ``name``."""
    log_prob = batch.log_probs.clone().requires_grad_()
    loss, metrics = get_policy_loss_fn(name)(
        old_log_prob=batch.log_probs if old_log_prob is None else old_log_prob,
        log_prob=log_prob,
        advantages=advantages_of(batch) if advantages is None else advantages,
        response_mask=batch.mask,
        loss_agg_mode=AGGREGATION,
        config=actor(n),
        **kwargs,
    )
    loss.backward()
    return loss.detach(), log_prob.grad, metrics


def in_order(seed: int, groups: int = 3, n: int = 4, tokens: int = 9) -> Batch:
    return make_batch(seed, groups, n, tokens)


@pytest.mark.parametrize("seed", range(5))
def test_stopped_gradient_is_vanilla_on_weighted_advantages(seed: int) -> None:
    batch = in_order(seed)
    advantages = advantages_of(batch)
    weights = covariance_weights(batch.log_probs, advantages, batch.mask, batch.index).weights
    old = batch.log_probs + 0.3 * torch.randn(batch.log_probs.shape, generator=torch.Generator().manual_seed(seed))
    ours = loss_of("cw_grpo_live", batch, 4, old_log_prob=old)
    vanilla = loss_of("vanilla", batch, 4, advantages=advantages * weights, old_log_prob=old)
    torch.testing.assert_close(ours[:2], vanilla[:2])
    assert {name: ours[2][name] for name in vanilla[2]} == vanilla[2]
    assert (ours[1] - loss_of("vanilla", batch, 4, old_log_prob=old)[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["cw_grpo_live", "cw_grpo_released"])
@pytest.mark.parametrize("log_prob", [float("nan"), -float("inf"), -1.0])
@pytest.mark.parametrize("old_log_prob", [float("nan"), -float("inf"), -1.0])
def test_padding_reaches_no_gradient(name: str, log_prob: float, old_log_prob: float) -> None:
    batch = in_order(2, groups=1)
    batch.mask[1, -2:] = False
    clean = loss_of(name, batch, 4)
    old = batch.log_probs.clone()
    batch.log_probs[1, -2:], old[1, -2:] = log_prob, old_log_prob
    got = loss_of(name, batch, 4, old_log_prob=old)
    torch.testing.assert_close(got[1][batch.mask], clean[1][batch.mask])


def test_on_policy_gradient_is_the_papers() -> None:
    # d loss / d log pi_it = -w~_it A_i / (G |o_i|), with ratio 1, for one group (section 2.3).
    batch = in_order(1, groups=1)
    advantages = reference.advantages(batch.rewards.tolist(), batch.index.tolist())
    weights = reference.weights(
        batch.log_probs.double().tolist(), advantages, batch.mask.tolist(), batch.index.tolist()
    ).weights
    want = torch.tensor(reference.live_gradient(weights, advantages, batch.mask.tolist()))
    torch.testing.assert_close(loss_of("cw_grpo_live", batch, 4)[1], want, rtol=1e-4, atol=1e-6)


def test_released_is_what_the_authors_code_computes() -> None:
    # Their objective for one group, with autograd through everything:
    # w = exp(-c^2 / (2 std(c)^2)) on valid tokens, times (positions / sum w); ratio pi / sg(pi).
    batch = in_order(2, groups=1, n=6)
    a = torch.tensor(reference.advantages(batch.rewards.tolist(), batch.index.tolist()), dtype=torch.float64)
    log_prob = batch.log_probs.double().requires_grad_()
    mask = batch.mask.double()
    mean = (log_prob * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
    c = (log_prob - mean) * mask * (a - a.mean())[:, None]
    sigma = c[batch.mask].std(unbiased=False)
    w = torch.exp(-(c**2) / (2 * sigma**2)) * mask
    width = int(batch.mask.sum(1).max())
    w = w * len(w) * width / w.sum()
    per_token = -w * torch.exp(log_prob - log_prob.detach()) * a[:, None]
    want = ((per_token * mask).sum(1) / mask.sum(1)).mean()
    want.backward()
    loss, gradient, _ = loss_of("cw_grpo_released", batch, 6)
    torch.testing.assert_close(loss, want.detach().float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient, log_prob.grad.float(), rtol=1e-3, atol=1e-6)
    assert (gradient - loss_of("cw_grpo_live", batch, 6)[1]).abs().max() > 1e-3
    by_hand = reference.released_gradient(batch.log_probs.double().tolist(), a.tolist(), batch.mask.tolist(), width)
    torch.testing.assert_close(torch.tensor(by_hand, dtype=torch.float64), log_prob.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["cw_grpo_live", "cw_grpo_released"])
def test_several_groups_are_each_their_own(name: str) -> None:
    batch = in_order(3)
    batch.mask[::4] = True  # the released weights depend on the longest response
    _, whole, _ = loss_of(name, batch, 4)
    parts = []
    for start in range(0, 12, 4):
        rows = slice(start, start + 4)
        part = Batch(batch.log_probs[rows], batch.rewards[rows], batch.mask[rows], batch.index[rows])
        parts.append(loss_of(name, part, 4)[1] / 3)
    torch.testing.assert_close(whole, torch.cat(parts))


@pytest.mark.parametrize("name", ["cw_grpo_live", "cw_grpo_released"])
def test_columns_without_valid_tokens_change_nothing(name: str) -> None:
    """verl's V0 trainers pad every batch to `rollout.response_length`, V1 to its longest response."""
    batch = in_order(7)
    loss, gradient, _ = loss_of(name, batch, 4)
    wide = Batch(F.pad(batch.log_probs, (0, 50)), batch.rewards, F.pad(batch.mask, (0, 50)), batch.index)
    got, wide_gradient, _ = loss_of(name, wide, 4)
    torch.testing.assert_close(got, loss)
    torch.testing.assert_close(wide_gradient[:, : gradient.shape[1]], gradient)
    assert (wide_gradient[:, gradient.shape[1] :] == 0).all()


@pytest.mark.parametrize("name", ["cw_grpo_live", "cw_grpo_released"])
def test_gradients_are_finite_where_all_rewards_are_equal(name: str) -> None:
    batch = in_order(4)
    batch.rewards[:4] = 1.0
    loss, gradient, metrics = loss_of(name, batch, 4)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    assert (gradient[:4] == 0).all()
    assert (gradient[4:] != 0).any()
    assert metrics[PREFIX + "zero_sigma_fraction"] == pytest.approx(1 / 3)


@given(batches)
def test_equal_rewards_that_leave_rounding_errors_are_no_error(batch: Batch) -> None:
    advantages = batch.mask * -0.007
    loss, gradient, _ = loss_of("cw_grpo_live", batch, 1, advantages=advantages)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["cw_grpo_live", "cw_grpo_released"])
@pytest.mark.parametrize("by_std", [True, False])
def test_rewards_that_differ_by_a_rounding_error_are_no_error(name: str, by_std: bool) -> None:
    """As those of a reward model are for equal responses; verl's float32 advantages then do not average to 0."""
    batch = in_order(5, groups=1)
    rewards = torch.full((4,), 80.0)
    rewards[2] = torch.nextafter(rewards[2], torch.tensor(100.0))
    per_token = rewards[:, None] * F.one_hot(torch.tensor(0), batch.mask.shape[1])
    advantages, _ = compute_grpo_outcome_advantage(per_token, batch.mask, batch.index, norm_adv_by_std_in_grpo=by_std)
    assert abs(advantages[:, 0].mean()) > 0.05 * advantages.abs().max()
    loss, gradient, _ = loss_of(name, batch, 4, advantages=advantages)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    assert (gradient[2][batch.mask[2]] != 0).all()


@pytest.mark.parametrize("name", ["cw_grpo_live", "cw_grpo_released"])
def test_metrics_are_there_with_verls_own(name: str) -> None:
    metrics = loss_of(name, in_order(5), 4)[2]
    assert "actor/ppo_kl" in metrics
    assert 0 < metrics[PREFIX + "effective_token_fraction"] < 1
    assert all(isinstance(value, float) for value in metrics.values())


def test_rollout_is_weights_reach_the_objective() -> None:
    batch = in_order(6)
    importance = torch.full_like(batch.log_probs, 0.5)
    torch.testing.assert_close(
        loss_of("cw_grpo_live", batch, 4, rollout_is_weights=importance)[1], loss_of("cw_grpo_live", batch, 4)[1] / 2
    )


SETTINGS = r"use_dynamic_bsz.*ppo_micro_batch_size_per_gpu.*trainer\.balance_batch.*adv_estimator=cw_grpo"


@pytest.mark.parametrize("name", ["cw_grpo_live", "cw_grpo_released"])
class TestRefuses:
    def test_a_part_of_a_group(self, name: str) -> None:
        batch = in_order(7)
        part = Batch(batch.log_probs[:6], batch.rewards[:6], batch.mask[:6], batch.index[:6])
        with pytest.raises(ValueError, match=r"6 rows.*rollout_n=4.*" + SETTINGS):
            loss_of(name, part, 4, advantages=advantages_of(batch)[:6])

    def test_one_response(self, name: str) -> None:
        batch = in_order(7)
        one = Batch(batch.log_probs[:1], batch.rewards[:1], batch.mask[:1], batch.index[:1])
        with pytest.raises(ValueError, match=SETTINGS):
            loss_of(name, one, 4, advantages=advantages_of(batch)[:1])

    def test_weighted_advantages(self, name: str) -> None:
        batch = in_order(9)
        weighted = advantages_of(batch)
        weighted = weighted * covariance_weights(batch.log_probs, weighted, batch.mask, batch.index).weights
        with pytest.raises(ValueError, match="weighted already"):
            loss_of(name, batch, 4, advantages=weighted)


def test_an_empty_response_is_no_error_and_changes_nothing_else() -> None:
    batch = in_order(11, groups=1)
    advantages = advantages_of(batch)
    batch.mask[3] = False
    _, gradient, _ = loss_of("cw_grpo_live", batch, 4, advantages=advantages * batch.mask)
    assert torch.isfinite(gradient).all()
    assert (gradient[3] == 0).all()
    weights = covariance_weights(batch.log_probs[:3], advantages[:3], batch.mask[:3]).weights
    want = -weights * advantages[:3] / (3 * batch.mask[:3].sum(-1, keepdim=True))
    torch.testing.assert_close(gradient[:3], want)


def test_vanilla_is_untouched() -> None:
    assert get_policy_loss_fn("vanilla") is compute_policy_loss_vanilla
