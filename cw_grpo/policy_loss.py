# SPDX-License-Identifier: Apache-2.0
"""The losses `cw_grpo_live` and `cw_grpo_released`: weights from the policy being updated, verl's own objective."""

from __future__ import annotations

from typing import Any

import torch

from .metrics import weight_metrics
from .settings import ESTIMATOR, LOSS, LOSS_RELEASED
from .weights import covariance_weights


def compute_policy_loss_cw_grpo(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """verl's clipped objective on w~ A, w~ from ``log_prob``, the gradient stopped at w~ (section 2.3).

    It differs from the estimator `cw_grpo` only in which policy gives the weights: here the one being updated,
    there the one before the step. Strictly on-policy they are the same.

    The micro-batch must hold whole groups in order: blocks of `actor.rollout_n` rows. A policy loss gets no group ids,
    so it can check the number of rows alone; the order is checked where the ids are (:mod:`cw_grpo.group_order`).

    Args:
        old_log_prob, log_prob, advantages, response_mask: (B, T) of one micro-batch, ``advantages`` unweighted and the
            same at every token of a response.
        loss_agg_mode, config, rollout_is_weights: as in verl's ``compute_policy_loss_vanilla``.

    Returns:
        The loss, and verl's own metrics with those of :func:`cw_grpo.metrics.weight_metrics`.

    Raises:
        ValueError: the micro-batch does not hold whole groups, or the advantages of a response differ from token to
            token; the message names the settings.
    """
    return _weighted_loss(
        LOSS, old_log_prob, log_prob, advantages, response_mask, loss_agg_mode, config, rollout_is_weights
    )


def compute_policy_loss_cw_grpo_released(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """What the authors' released code computes (github.com/WangCheng0116/CW-GRPO), on verl's clipped objective.

    It differs from :func:`compute_policy_loss_cw_grpo` in two ways: the gradient flows through the weights, sigma and
    the mean log-prob included; and the weights are normalised by the positions of the micro-batch, padded to its
    longest response, so that their mean over a group's valid tokens is (positions / valid tokens), not 1. Arguments,
    result and errors are the same.
    """
    return _weighted_loss(
        LOSS_RELEASED, old_log_prob, log_prob, advantages, response_mask, loss_agg_mode, config, rollout_is_weights
    )


def _weighted_loss(
    name: str,
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str,
    config: Any,
    rollout_is_weights: torch.Tensor | None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    # Not at the top: verl's module, once imported, has this one imported to register it.
    from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla

    n = config.rollout_n
    settings = (
        "Set actor_rollout_ref.actor.use_dynamic_bsz=False, actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu to a "
        f"multiple of {n} and, in the V0 trainer, trainer.balance_batch=False; or set "
        f"algorithm.adv_estimator={ESTIMATOR} with loss_mode=vanilla: the estimator has no such limits."
    )
    rows = len(log_prob)
    if rows % n:
        raise ValueError(
            f"policy loss {name} needs micro-batches of whole groups: {rows} rows are not a multiple of "
            f"actor.rollout_n={n}. {settings}"
        )
    index = [row // n for row in range(rows)]
    result = covariance_weights(log_prob, advantages, response_mask, index, stop_gradient=name != LOSS_RELEASED)
    per_response = result.advantages
    if name == LOSS_RELEASED:
        # Up to the last valid token: verl's V0 trainers pad every batch to rollout.response_length.
        width = (result.mask.amax(0) * torch.arange(1, log_prob.shape[-1] + 1, device=log_prob.device)).amax()
        valid_tokens = result.tokens.view(-1, n).sum(-1).clamp(min=1)
        per_response = per_response * (n * width / valid_tokens).repeat_interleave(n)
    weighted = result.weights * per_response.float().unsqueeze(-1)
    if name == LOSS_RELEASED:
        # verl's ratio may be NaN in padding, and through the normalisation would reach every gradient.
        weighted = weighted.masked_fill(result.mask == 0, 0)
    loss, metrics = compute_policy_loss_vanilla(
        old_log_prob=old_log_prob,
        log_prob=log_prob,
        advantages=weighted,
        # verl multiplies by the mask again and again, which takes longer in another dtype.
        response_mask=result.mask.float(),
        loss_agg_mode=loss_agg_mode,
        config=config,
        rollout_is_weights=rollout_is_weights,
    )
    # A few tokens of each micro-batch: verl averages them over a step.
    return loss, metrics | weight_metrics(result, min_samples=1_024)
