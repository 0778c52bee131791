"""The advantage estimator `cw_grpo`: verl's own GRPO advantage times the weights."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from .hooks import explain
from .metrics import WeightMetrics
from .settings import ESTIMATOR, LOSSES, estimator_name, job_config, loss_mode, read_options
from .weights import check_shapes, covariance_weights, group_numbers, whole_groups

# Bounded, in case a trainer of one's own never takes them.
_metrics: deque[dict[str, float]] = deque(maxlen=256)


def compute_cw_grpo_outcome_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray,
    config: Any = None,
    old_log_probs: torch.Tensor | None = None,
    norm_adv_by_std_in_grpo: bool | None = None,
    **grpo_kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """w~_it A_i: verl's ``grpo_vectorized`` advantage times the covariance weights (arXiv 2605.11538, section 2.3).

    ``grpo_vectorized`` is ``grpo`` but for rounding, and has no Python loop over responses, which takes longer than the
    weights. Equal rewards of a group give exactly 0, where the rounding of both would be divided by itself.

    Args:
        token_level_rewards: (B, T).
        response_mask: (B, T), non-zero at valid tokens.
        index: (B,) group ids (verl's uid).
        config: verl's `algorithm` node; `algorithm.cw_grpo.log_prob_mean` is read from it.
        old_log_probs: (B, T) log-probs of the sampled tokens under the policy that is about to be updated (the
            rollout's in bypass mode), at the rollout temperature.
        norm_adv_by_std_in_grpo: as in verl's ``grpo``; None takes it from ``config`` (True where that has none).
        grpo_kwargs: passed on to verl's ``compute_grpo_vectorized_outcome_advantage``.

    Returns:
        (B, T) weighted advantages and (B, T) returns; returns are the unweighted advantages. Both are unweighted where
        the job's policy loss applies the weights itself.

    Raises:
        ValueError: no ``old_log_probs``, or what :func:`cw_grpo.covariance_weights` refuses.
    """
    # Not at the top: verl's module, once imported, has this one imported to register it.
    from verl.trainer.ppo.core_algos import compute_grpo_vectorized_outcome_advantage

    if norm_adv_by_std_in_grpo is None:
        norm_adv_by_std_in_grpo = True if config is None else config.get("norm_adv_by_std_in_grpo", True)
    group = group_numbers(index, len(token_level_rewards), token_level_rewards.device)
    scores = _subtract_first_score(token_level_rewards.sum(dim=-1), group)
    # As responses of one token: verl would multiply all of (B, T), and the weights need one value a response. And with
    # groups numbered here: verl takes ids that look like numbers for integers, so that 1.2 and 1.7 would be one group.
    advantages, _ = compute_grpo_vectorized_outcome_advantage(
        token_level_rewards=scores.unsqueeze(-1),
        response_mask=torch.ones_like(scores).unsqueeze(-1),
        index=group,
        norm_adv_by_std_in_grpo=norm_adv_by_std_in_grpo,
        config=config,
        **grpo_kwargs,
    )
    if loss_mode(job_config(config)) in LOSSES:
        returns = advantages * response_mask
        return returns, returns
    returns = torch.empty_like(response_mask, dtype=torch.float32)
    return _apply_weights(advantages.squeeze(-1), old_log_probs, response_mask, index, config, returns), returns


def _subtract_first_score(scores: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """(B,) scores less that of the group's first response, which changes no advantage but its rounding.

    A response alone in its group keeps its score: verl makes that its advantage.
    """
    rows = torch.arange(len(group), device=group.device)
    first = torch.full_like(group, len(group)).scatter_reduce(0, group, rows, "amin")[group]
    alone = torch.bincount(group, minlength=len(group))[group] == 1
    return torch.where(alone, scores, scores - scores[first])


def weight_batch(target: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Around verl's `compute_advantage` and `compute_advantage_for_multi_trajectories`.

    For `adv_estimator=cw_grpo`: verl's own computation for `grpo`, agent sessions included, then its advantages times
    the weights from the batch's ``old_log_probs``; ``returns`` stay unweighted. Other estimators pass untouched.
    """
    from verl.trainer.ppo.core_algos import AdvantageEstimator

    call = inspect.signature(target).bind(*args, **kwargs)
    if estimator_name(call.arguments["adv_estimator"]) != ESTIMATOR:
        return target(*args, **kwargs)
    call.arguments["adv_estimator"] = AdvantageEstimator.GRPO
    data = target(*call.args, **call.kwargs)
    data.batch["advantages"] = weight_advantages(
        data.batch["advantages"],
        data.batch.get("old_log_probs", None),
        data.batch["response_mask"],
        data.non_tensor_batch["uid"],
        call.arguments.get("config"),
    )
    return data


def add_metrics(_: Mapping[str, Any], metrics: dict[str, Any]) -> None:
    """After verl's `compute_data_metrics`, which every trainer logs once a step: with the metrics of the weights."""
    metrics |= take_metrics()


def weight_advantages(
    advantages: torch.Tensor,
    old_log_probs: torch.Tensor | None,
    response_mask: torch.Tensor,
    index: np.ndarray,
    config: Any,
) -> torch.Tensor:
    """Group-relative advantages (B, T) times the covariance weights; the step's metrics are kept for the logger.

    The advantages come back as they are where the job's policy loss applies the weights: they are applied once.
    """
    if loss_mode(job_config(config)) in LOSSES:
        return advantages
    return _apply_weights(advantages, old_log_probs, response_mask, index, config)


def _apply_weights(
    advantages: torch.Tensor,
    old_log_probs: torch.Tensor | None,
    response_mask: torch.Tensor,
    index: np.ndarray,
    config: Any,
    unweighted: torch.Tensor | None = None,
) -> torch.Tensor:
    """(B, T) weighted advantages, of (B,) or (B, T) unweighted ones, which ``unweighted`` (B, T) is filled with."""
    if old_log_probs is None:
        raise ValueError(
            f"algorithm.adv_estimator={ESTIMATOR} needs the log-probs of the sampled tokens, and got no old_log_probs: "
            "verl passes none to an estimator, so cw_grpo's hook on compute_advantage takes them from the batch. "
            "Compute old_log_probs before the advantages, or pass old_log_probs= where you call the estimator "
            f"yourself; `cw-grpo doctor` checks the installation ({explain()})"
        )
    if old_log_probs.is_nested or advantages.is_nested or response_mask.is_nested:
        raise ValueError("log_probs, advantages and response_mask must be padded here: call their to_padded_tensor(0)")
    check_shapes(old_log_probs, advantages, response_mask)
    log_prob_mean = read_options(config).log_prob_mean
    group = group_numbers(index, len(response_mask), response_mask.device)
    # Not in inference mode: a loss could not save it for its backward.
    weighted = torch.empty_like(response_mask, dtype=torch.float32)
    metrics = WeightMetrics(response_mask.shape)
    scratch = old_log_probs.new_empty(0, dtype=torch.promote_types(old_log_probs.dtype, torch.float32))
    try:
        with torch.inference_mode():
            for rows in whole_groups(group, *response_mask.shape):
                log_probs = old_log_probs[rows]
                if len(scratch) < 2 * log_probs.numel():
                    scratch = scratch.new_empty(2 * log_probs.numel())
                result = covariance_weights(
                    *(log_probs, advantages[rows], response_mask[rows], group[rows]),
                    log_prob_mean=log_prob_mean,
                    out=scratch[: 2 * log_probs.numel()].view(2, *log_probs.shape),
                )
                metrics.add(result)
                a = result.advantages.float().unsqueeze(-1)
                _write_product(weighted, rows, result.weights, a)
                if unweighted is not None:
                    _write_product(unweighted, rows, result.mask, a)
    except ValueError:
        # The error names a row of the few: the same of all names the batch's.
        covariance_weights(old_log_probs, advantages, response_mask, index, log_prob_mean=log_prob_mean)
        raise
    _metrics.append(metrics.values())
    return weighted


def _write_product(to: torch.Tensor, rows: slice | list[int], x: torch.Tensor, y: torch.Tensor) -> None:
    """``to[rows] = x * y``, without a copy where the rows lie side by side."""
    if isinstance(rows, slice):
        torch.mul(x, y, out=to[rows])
    else:
        to[rows] = (x * y).to(to.dtype)


def take_metrics() -> dict[str, float]:
    """The metrics since the last call, averaged over the batches (one, but for `parameter_sync_step` > 1)."""
    batches = [_metrics.popleft() for _ in range(len(_metrics))]
    return {name: sum(batch[name] for batch in batches) / len(batches) for name in batches[0]} if batches else {}
