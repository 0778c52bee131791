"""The Gaussian-kernel weights of arXiv 2605.11538, section 2.3: tensors in, tensors out. Imports torch alone."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

LOG_PROB_MEANS = ("response", "group")

# Below this share of (largest |log-prob|) * (largest |advantage|) a standard deviation is the rounding of equal
# covariances, not spread.
_RELATIVE_ZERO = {torch.float32: 1e-6, torch.float64: 1e-12}

# Groups are worked on in stacks of about so many tokens, which stay in a processor's cache.
_STACK_TOKENS = 1 << 19


@dataclass(frozen=True)
class CovarianceWeights:
    """What :func:`covariance_weights` returns; B responses of at most T tokens."""

    weights: torch.Tensor
    """(B, T) float32: the normalised weights w~, 0 where masked. Their mean over a group's valid tokens is 1."""
    covariance: torch.Tensor
    """(B, T) float32: c, the centred log-probability times the centred advantage, 0 where masked. Detached."""
    sigma: torch.Tensor
    """(B,) float32: the population standard deviation of c over the row's group; 0 where the group has no spread.
    Detached."""


def covariance_weights(
    log_probs: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    index: Sequence[Hashable] | torch.Tensor | Any | None = None,
    *,
    log_prob_mean: str = "response",
    stop_gradient: bool = True,
) -> CovarianceWeights:
    """Weights that attenuate tokens of extreme covariance, per group of responses to one prompt (section 2.3).

    For valid token t of response i in a group with N valid tokens::

        c_it  = (log pi(o_it) - mean log pi) * (A_i - mean A)
        w_it  = exp(-c_it^2 / (2 sigma^2)),    sigma = population standard deviation of {c_it} over the group
        w~_it = w_it * N / sum(w)

    ``mean A`` is the mean over the group's responses that have a valid token. A group without spread (sigma = 0: equal
    rewards, one response, constant log-probs) gets w~ = 1 exactly. Responses and groups without valid tokens change
    nothing else, so neither does padding.

    Args:
        log_probs: (B, T) log-probabilities of the sampled tokens, any float dtype, any device.
        advantages: (B,) or (B, T) group-relative advantages.
        response_mask: (B, T), non-zero at valid tokens; bool, integer or float.
        index: B hashable group ids (numpy array, list, tensor), rows in any order; None means one group.
        log_prob_mean: mean log pi over each ``response``'s own valid tokens (the default, as in the authors' code) or
            over all valid tokens of the ``group`` (as Cui et al., arXiv 2505.22617, write it).
        stop_gradient: True treats the weights as constants, the paper's "reweighted advantage". False lets the
            gradient flow from the weights into ``log_probs``; it stays finite where sigma = 0.

    Returns:
        :class:`CovarianceWeights`, on the device of ``log_probs``. Statistics are taken in float32, in float64 for
        float64 log-probs.

    Raises:
        ValueError: shapes that do not fit, an unknown ``log_prob_mean``, or a non-finite log-prob or advantage at a
            valid token; the message names the row.
        TypeError: group ids that are not hashable.
    """
    if log_prob_mean not in LOG_PROB_MEANS:
        raise ValueError(f"log_prob_mean must be one of {', '.join(LOG_PROB_MEANS)}; got {log_prob_mean!r}")
    _check_shapes(log_probs, advantages, response_mask)

    advantages = advantages.detach().unsqueeze(-1) if advantages.dim() == 1 else advantages.detach()
    stacks = list(_stacks(index, *log_probs.shape, log_probs.device))
    with torch.set_grad_enabled(torch.is_grad_enabled() and not stop_gradient):
        result = _all_weights(log_probs, advantages, response_mask, stacks, log_prob_mean)
        if not torch.isfinite(result.sigma).all():
            valid = response_mask != 0
            _refuse_non_finite(log_probs.detach(), advantages, valid, index)
            # What is not finite is padding, which must not enter: 0 in its place.
            advantages = advantages.expand(log_probs.shape).masked_fill(~valid, 0)
            result = _all_weights(log_probs.masked_fill(~valid, 0), advantages, response_mask, stacks, log_prob_mean)
            if not torch.isfinite(result.sigma).all():
                raise ValueError("the covariance overflows: log-probs or advantages are too large to be meant")
    return result


def _all_weights(
    log_probs: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    stacks: list[tuple[slice | torch.Tensor, int]],
    log_prob_mean: str,
) -> CovarianceWeights:
    dtype = torch.float64 if log_probs.dtype == torch.float64 else torch.float32
    weights = torch.zeros(log_probs.shape, dtype=torch.float32, device=log_probs.device)
    covariance = torch.zeros_like(weights)
    sigma = torch.zeros(len(weights), dtype=torch.float32, device=log_probs.device)
    for rows, group_size in stacks:
        by_group = (-1, group_size, log_probs.shape[1])
        w, c, s = _group_weights(
            log_probs[rows].to(dtype).view(by_group),
            advantages[rows].to(dtype).view(-1, group_size, advantages.shape[1]),
            (response_mask[rows] != 0).to(dtype).view(by_group),
            log_prob_mean,
        )
        weights[rows] = w.flatten(0, 1).to(torch.float32)
        covariance[rows] = c.detach().flatten(0, 1).to(torch.float32)
        sigma[rows] = s.detach().to(torch.float32).repeat_interleave(group_size)
    return CovarianceWeights(weights, covariance, sigma)


def _group_weights(
    log_probs: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, log_prob_mean: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Section 2.3 for a stack of K groups of G responses.

    Takes (K, G, T) log-probs, (K, G, T) or (K, G, 1) advantages and the (K, G, T) mask of zeros and ones. Returns w~
    and c, (K, G, T), and sigma, (K,), which is not finite where an input is not.
    """
    tokens = mask.sum(-1, keepdim=True)
    n = tokens.sum(1, keepdim=True).clamp(min=1)
    responses = (tokens > 0).sum(1, keepdim=True).clamp(min=1)
    mean_over = (
        (lambda x: x.sum(-1, keepdim=True) / tokens.clamp(min=1))
        if log_prob_mean == "response"
        else (lambda x: x.sum((1, 2), keepdim=True) / n)
    )

    log_probs = log_probs * mask
    centred_log_probs = (log_probs - mean_over(log_probs)) * mask
    # Once more, for what rounding left of the mean: equal log-probs must come out as 0.
    centred_log_probs = centred_log_probs - mean_over(centred_log_probs) * mask
    of_response = (advantages * mask).sum(-1, keepdim=True) / tokens.clamp(min=1)
    c = centred_log_probs * (advantages - of_response.sum(1, keepdim=True) / responses)

    # In units of the group's largest covariance, squares neither overflow nor vanish.
    unit = c.detach().abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(c.dtype).tiny)
    u = c / unit
    variance = ((u - u.sum((1, 2), keepdim=True) / n) * mask).square().sum((1, 2), keepdim=True) / n
    scale = log_probs.detach().abs().amax((1, 2), keepdim=True) * of_response.abs().amax(1, keepdim=True) / unit
    has_spread = ~(variance.detach().sqrt() <= _RELATIVE_ZERO[c.dtype] * scale)
    # Both branches of a `where` are differentiated: 1 in place of a variance of 0 keeps the gradient finite.
    exponent = u.square() * torch.where(has_spread, -0.5 / torch.where(has_spread, variance, 1.0), 0.0)
    # w~ stays the same when every w is scaled: with the largest at 1 their sum can't underflow.
    largest = (exponent.detach() + (mask - 1) * torch.finfo(c.dtype).max).amax((1, 2), keepdim=True)
    w = torch.exp((exponent - largest).clamp(max=0))
    w = w * mask
    w = w * (n / w.sum((1, 2), keepdim=True).clamp(min=torch.finfo(c.dtype).tiny))
    return w, c, (torch.where(has_spread, variance, 0.0).sqrt() * unit).view(-1)


def _check_shapes(log_probs: torch.Tensor, advantages: torch.Tensor, response_mask: torch.Tensor) -> None:
    if log_probs.dim() != 2:
        raise ValueError(f"log_probs must be (B, T), got shape {tuple(log_probs.shape)}")
    if not log_probs.is_floating_point():
        raise ValueError(f"log_probs must be of a float dtype, got {log_probs.dtype}")
    if response_mask.shape != log_probs.shape:
        raise ValueError(
            f"response_mask must have the shape of log_probs {tuple(log_probs.shape)}, got {tuple(response_mask.shape)}"
        )
    if advantages.shape not in (log_probs.shape, log_probs.shape[:1]):
        raise ValueError(
            f"advantages must be (B,) or (B, T) for log_probs of shape {tuple(log_probs.shape)}, "
            f"got {tuple(advantages.shape)}"
        )


def group_ids(index: Any, rows: int) -> list[Hashable]:
    """The B group ids of ``index`` as a list; ``index`` is any sequence of B hashable ids.

    Raises:
        ValueError: ``index`` does not have ``rows`` ids.
        TypeError: an id is not hashable.
    """
    ids = index.tolist() if hasattr(index, "tolist") else list(index)
    # Tensors hash by identity: a list of them would be a group a row.
    ids = [group.item() if isinstance(group, torch.Tensor) and group.dim() == 0 else group for group in ids]
    if not isinstance(ids, list) or len(ids) != rows:
        raise ValueError(f"index must have one group id for each of the {rows} rows, got {index!r:.200}")
    for row, group in enumerate(ids):
        if not isinstance(group, Hashable):
            raise TypeError(f"index must hold hashable group ids; row {row} has {group!r:.200}")
    return ids


def _stacks(index: Any, rows: int, tokens: int, device: torch.device) -> Iterator[tuple[slice | torch.Tensor, int]]:
    """The rows of stacks of groups of one size, and that size: a slice where they are neighbours, else positions."""
    if not rows or not tokens:
        return
    groups: dict[Hashable, list[int]] = {}
    for row, group in enumerate([None] * rows if index is None else group_ids(index, rows)):
        groups.setdefault(group, []).append(row)
    by_size: dict[int, list[int]] = {}
    for members in groups.values():
        by_size.setdefault(len(members), []).extend(members)
    for size, members in by_size.items():
        stack = max(1, _STACK_TOKENS // (size * tokens)) * size
        for start in range(0, len(members), stack):
            part = members[start : start + stack]
            in_a_row = part == list(range(part[0], part[0] + len(part)))
            yield slice(part[0], part[-1] + 1) if in_a_row else torch.tensor(part, device=device), size


def _refuse_non_finite(log_probs: torch.Tensor, advantages: torch.Tensor, valid: torch.Tensor, index: Any) -> None:
    for name, values in (("log-prob", log_probs), ("advantage", advantages.expand(log_probs.shape))):
        bad = (~torch.isfinite(values) & valid).nonzero()
        if len(bad):
            row, token = bad[0].tolist()
            group = "" if index is None else f" (group {group_ids(index, len(values))[row]!r})"
            raise ValueError(
                f"{name} {values[row, token].item()} at valid token {token} of row {row}{group}, one of {len(bad)}. "
                "The weights need finite values: look for an overflow in the model's logits, or for a sampled token "
                "that the policy gives no probability (top_p, top_k or temperature applied on one side only)."
            )
