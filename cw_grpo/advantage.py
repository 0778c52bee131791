# SPDX-License-Identifier: Apache-2.0
"""The advantage estimator `cw_grpo`: verl's own GRPO advantage times the weights."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .baseline import weighted_baseline
from .groups import group_ids, group_numbers, is_padding, whole_groups
from .inputs import check_shapes
from .metrics import WeightMetrics
from .settings import ESTIMATOR, LOSSES, Options, estimator_name, job_config, loss_mode, read_options
from .weights import covariance_weights, new_workspace, weights_in_workspace

# Bounded, in case a custom trainer never collects them.
_metrics: deque[dict[str, float]] = deque(maxlen=256)


def compute_cw_grpo_outcome_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray,
    config: Any = None,
    old_log_probs: torch.Tensor | None = None,
    norm_adv_by_std_in_grpo: bool | None = None,
    batch_keys: Sequence[str] | None = None,
    batch: Mapping[str, torch.Tensor] | None = None,
    non_tensor_batch: Mapping[str, Any] | None = None,
    **grpo_kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """w~_it A_i: verl's ``grpo_vectorized`` advantage times the covariance weights (arXiv 2605.11538, section 2.3).

    ``grpo_vectorized`` is ``grpo`` but for rounding, without its Python loop over responses. Equal rewards of a group
    give exactly 0, where verl's functions divide their rounding error by itself.

    Args:
        token_level_rewards: (B, T).
        response_mask: (B, T), non-zero at valid tokens.
        index: (B,) group ids (verl's uid).
        config: verl's `algorithm` node; the keys under `algorithm.cw_grpo` are read from it.
        old_log_probs: (B, T) log-probs of the sampled tokens under the policy that is about to be updated (the
            rollout's in bypass mode), at the rollout temperature; by default those of ``batch``.
        norm_adv_by_std_in_grpo: as in verl's ``grpo``; None takes it from ``config`` (True where that has none).
        batch_keys: (B,) keys of verl's V1 trainer, ``{uid}_{session}_{output}``. As in verl's
            ``compute_advantage_for_multi_trajectories``, the final output of an agent session gives the advantage of
            all its outputs; the session is one response, however many outputs it has.
        batch: the tensors of the batch, from a verl that hands them to estimators.
        non_tensor_batch: accepted from such a verl, not used.
        grpo_kwargs: passed on to verl's ``compute_grpo_vectorized_outcome_advantage``.

    Returns:
        (B, T) weighted advantages and (B, T) returns; returns are the unweighted advantages. Both are unweighted where
        the job's policy loss applies the weights itself.

    Raises:
        ValueError: no ``old_log_probs``, a reward that is not finite, groups of one response in a job that asks for
            more, or what :func:`cw_grpo.covariance_weights` rejects.
    """
    if norm_adv_by_std_in_grpo is None:
        norm_adv_by_std_in_grpo = True if config is None else config.get("norm_adv_by_std_in_grpo", True)
    if old_log_probs is None and batch is not None:
        old_log_probs = batch.get("old_log_probs", None)
    group = group_numbers(index, len(token_level_rewards), token_level_rewards.device)
    _check_group_sizes(group_ids(index, len(token_level_rewards)), config)
    scores = token_level_rewards.sum(dim=-1)
    _check_scores(scores, index)
    if batch_keys is None:
        session = None
        advantages = _grpo(scores, group, norm_adv_by_std_in_grpo, config, grpo_kwargs)
    else:
        session, final = _sessions(batch_keys, group.device)
        advantages = _grpo(scores[final], group[final], norm_adv_by_std_in_grpo, config, grpo_kwargs)
        # verl reads a session's advantage at a valid token of its final output, and 0 if there is none.
        advantages = (advantages * response_mask[final].any(-1))[session]
    if loss_mode(job_config(config)) in LOSSES:
        returns = advantages.unsqueeze(-1) * response_mask
        return returns, returns
    _check_log_probs(old_log_probs, advantages, response_mask)
    assert old_log_probs is not None
    options = read_options(config)
    try:
        return _apply_weights(advantages, old_log_probs, response_mask, group, session, options)
    except ValueError:
        # The error numbers rows within a chunk; on the whole batch it names the row.
        covariance_weights(
            *(old_log_probs, advantages, response_mask, index),
            response_index=session,
            log_prob_mean=options.log_prob_mean,
        )
        raise


def weight_batch(target: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Around verl's `compute_advantage` and `compute_advantage_for_multi_trajectories`: `adv_estimator=cw_grpo`.

    The estimator gets the batch's ``old_log_probs``, which verl does not pass, and the keys of agent sessions. Other
    estimators pass untouched.
    """
    call = inspect.signature(target).bind(*args, **kwargs)
    call.apply_defaults()
    if estimator_name(call.arguments["adv_estimator"]) != ESTIMATOR:
        return target(*args, **kwargs)
    data = call.arguments["data"]
    if "response_mask" not in data.batch:
        from verl.trainer.ppo.ray_trainer import compute_response_mask

        data.batch["response_mask"] = compute_response_mask(data)
    data.batch["advantages"], data.batch["returns"] = compute_cw_grpo_outcome_advantage(
        data.batch["token_level_rewards"],
        data.batch["response_mask"],
        data.non_tensor_batch["uid"],
        config=call.arguments["config"],
        norm_adv_by_std_in_grpo=call.arguments["norm_adv_by_std_in_grpo"],
        batch_keys=call.arguments.get("batch_keys"),
        batch=data.batch,
    )
    return data


def _check_group_sizes(uids: Sequence[Any], config: Any) -> None:
    """Reject a batch without any group in a job that asks for groups: each advantage would be the raw reward."""
    job = job_config(config)
    n = 1 if job is None else job.actor_rollout_ref.rollout.n
    real = [uid for uid in uids if not is_padding(uid)]
    if n > 1 and 1 < len(real) == len(set(real)):
        raise ValueError(
            f"each of the {len(real)} responses has a group id (uid) of its own, so there is nothing to compare a "
            f"response with; actor_rollout_ref.rollout.n={n} asks for groups. Give all responses to a prompt the same "
            "uid"
        )


def _sessions(batch_keys: Sequence[str], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(B,) each row's session, counted from 0, and (sessions,) the row of each one's final output."""
    final: dict[str, tuple[int, int]] = {}
    names = []
    for row, key in enumerate(batch_keys):
        session, _, output = key.rpartition("_")
        names.append(session)
        final[session] = max(final.get(session, (-1, row)), (int(output), row))
    numbers = {session: number for number, session in enumerate(final)}
    return (
        torch.tensor([numbers[name] for name in names], dtype=torch.long, device=device),
        torch.tensor([row for _, row in final.values()], dtype=torch.long, device=device),
    )


def _check_scores(scores: torch.Tensor, index: Any) -> None:
    bad = (~torch.isfinite(scores)).nonzero()  # in an empty response too: it is in the mean of its group
    if len(bad):
        row = int(bad[0])
        raise ValueError(
            f"reward {scores[row].item()} of row {row} (group {group_ids(index, len(scores))[row]!r}), one of "
            f"{len(bad)} that are not finite: check what the reward function returned for it"
        )


def _check_log_probs(old_log_probs: torch.Tensor | None, advantages: torch.Tensor, response_mask: torch.Tensor) -> None:
    if old_log_probs is None:
        raise ValueError(
            f"algorithm.adv_estimator={ESTIMATOR} needs the log-probs of the sampled tokens, and got no old_log_probs: "
            "either the batch has none when the advantages are computed, or verl hands an estimator no batch and the "
            "hook on its compute_advantage is not in place (`cw-grpo doctor` checks it). Compute old_log_probs before "
            "the advantages, or pass old_log_probs= where you call the estimator yourself"
        )
    if old_log_probs.is_nested or response_mask.is_nested:
        raise ValueError("old_log_probs and response_mask must be padded here: call their to_padded_tensor(0)")
    check_shapes(old_log_probs, advantages, response_mask)


def _grpo(
    scores: torch.Tensor,
    group: torch.Tensor,
    norm_adv_by_std_in_grpo: bool,
    config: Any,
    grpo_kwargs: Mapping[str, Any],
) -> torch.Tensor:
    """verl's ``grpo_vectorized`` advantage of each response."""
    # Not at the top: verl's module, once imported, imports this one to register it.
    from verl.trainer.ppo.core_algos import compute_grpo_vectorized_outcome_advantage

    scores = _subtract_first_score(scores, group)
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
    return advantages.squeeze(-1)


def _subtract_first_score(scores: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Scores less that of the group's first response, which changes no advantage but its rounding.

    A response alone in its group keeps its score: verl makes that its advantage.
    """
    rows = torch.arange(len(group), device=group.device)
    first = torch.full((int(group.max()) + 1,) if len(group) else (0,), len(group), device=group.device)
    first = first.scatter_reduce(0, group, rows, "amin")[group]
    alone = torch.bincount(group, minlength=1)[group] == 1
    return torch.where(alone, scores, scores - scores[first])


def _apply_weights(
    advantages: torch.Tensor,
    old_log_probs: torch.Tensor,
    response_mask: torch.Tensor,
    group: torch.Tensor,
    session: torch.Tensor | None,
    options: Options,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) weighted and (B, T) unweighted advantages of (B,) unweighted ones; their metrics are kept."""
    # Not in inference mode: a loss could not save them for its backward.
    weighted, unweighted = (torch.empty_like(response_mask, dtype=torch.float32) for _ in range(2))
    metrics = WeightMetrics(response_mask.shape)
    workspace = new_workspace(old_log_probs[:0]).flatten()
    with torch.inference_mode():
        for rows in whole_groups(group, *response_mask.shape):
            log_probs = old_log_probs[rows]
            if len(workspace) < 2 * log_probs.numel():
                workspace = new_workspace(log_probs).flatten()
            result = weights_in_workspace(
                workspace[: 2 * log_probs.numel()].view(2, *log_probs.shape),
                *(log_probs, advantages[rows], response_mask[rows]),
                _renumber(group[rows]),
                None if session is None else _renumber(session[rows]),
                log_prob_mean=options.log_prob_mean,
            )
            baseline = weighted_baseline(result, group[rows]) if options.centre else None
            metrics.add(result, baseline)
            a = result.advantages.float().unsqueeze(-1)
            _write_product(weighted, rows, result.weights, a)
            if baseline is not None:
                weighted[rows] -= baseline
            _write_product(unweighted, rows, result.mask, a)
    _metrics.append(metrics.values())
    return weighted, unweighted


def _renumber(numbers: torch.Tensor) -> torch.Tensor:
    """The same groups, numbered from 0 without gaps."""
    return torch.unique(numbers, return_inverse=True)[1]


def _write_product(to: torch.Tensor, rows: slice | list[int], x: torch.Tensor, y: torch.Tensor) -> None:
    """``to[rows] = x * y``, without a copy where the rows lie side by side."""
    if isinstance(rows, slice):
        torch.mul(x, y, out=to[rows])
    else:
        to[rows] = (x * y).to(to.dtype)


def add_metrics(_: Mapping[str, Any], metrics: dict[str, Any]) -> None:
    """After verl's `compute_data_metrics`, which every trainer logs once a step: with the metrics of the weights."""
    metrics |= take_metrics()


def take_metrics() -> dict[str, float]:
    """The metrics since the last call, averaged over the batches (one, but for `parameter_sync_step` > 1)."""
    batches = [_metrics.popleft() for _ in range(len(_metrics))]
    return {name: sum(batch[name] for batch in batches) / len(batches) for name in batches[0]} if batches else {}
