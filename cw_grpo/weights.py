"""The Gaussian-kernel weights of arXiv 2605.11538, section 2.3: tensors in, tensors out. Imports torch alone."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

LOG_PROB_MEANS = ("response", "group")

# Below this share of (largest |log-prob|) * (largest |centred advantage|) a standard deviation is float64 rounding of
# equal covariances, not spread.
_RELATIVE_ZERO = 1e-12


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
        :class:`CovarianceWeights`, on the device of ``log_probs``. Statistics are taken in float64 (float32 on devices
        that lack it).

    Raises:
        ValueError: shapes that do not fit, an unknown ``log_prob_mean``, or a non-finite log-prob or advantage at a
            valid token; the message names the row.
        TypeError: group ids that are not hashable.
    """
    if log_prob_mean not in LOG_PROB_MEANS:
        raise ValueError(f"log_prob_mean must be one of {', '.join(LOG_PROB_MEANS)}; got {log_prob_mean!r}")
    _check_shapes(log_probs, advantages, response_mask)

    stat_dtype = torch.float32 if log_probs.device.type == "mps" else torch.float64
    advantages = advantages.detach().unsqueeze(-1) if advantages.dim() == 1 else advantages.detach()
    size = log_probs.shape
    with torch.set_grad_enabled(torch.is_grad_enabled() and not stop_gradient):
        weights = torch.zeros(size, dtype=torch.float32, device=log_probs.device)
        covariance = torch.zeros_like(weights)
        sigma = torch.zeros(size[0], dtype=torch.float32, device=log_probs.device)
        for rows in _groups(index, size[0]) if log_probs.numel() else ():
            valid = response_mask[rows] != 0
            weights[rows], covariance[rows], sigma[rows] = _group_weights(
                log_probs[rows].to(stat_dtype).masked_fill(~valid, 0),
                advantages[rows].to(stat_dtype).masked_fill(~valid, 0),
                valid,
                log_prob_mean,
            )
    if not torch.isfinite(sigma).all():
        _raise_non_finite(log_probs.detach(), advantages, response_mask != 0, index)
    return CovarianceWeights(weights, covariance.detach(), sigma.detach())


def _group_weights(
    log_probs: torch.Tensor, advantages: torch.Tensor, valid: torch.Tensor, log_prob_mean: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Section 2.3 for one group: (w~, c, sigma) from (G, T) log-probs, advantages (0 where masked) and valid tokens.

    sigma is not finite where an input is not.
    """
    tokens = valid.sum(-1, keepdim=True).to(log_probs.dtype)
    n = tokens.sum().clamp(min=1)
    responses = (tokens > 0).sum().clamp(min=1)

    if log_prob_mean == "response":
        mean_log_prob = log_probs.sum(-1, keepdim=True) / tokens.clamp(min=1)
    else:
        mean_log_prob = log_probs.sum() / n
    mean_advantage = (advantages.sum(-1, keepdim=True) / tokens.clamp(min=1)).sum() / responses
    centred_advantage = (advantages - mean_advantage) * valid
    c = (log_probs - mean_log_prob) * centred_advantage

    variance = (((c - c.sum() / n) ** 2) * valid).sum() / n
    zero = _RELATIVE_ZERO * log_probs.detach().abs().max() * centred_advantage.abs().max()
    has_spread = ~(variance.detach() <= zero**2)
    # Both branches of a `where` are differentiated: 1 in place of a variance of 0 keeps the gradient finite.
    exponent = torch.where(has_spread, -(c**2) / (2 * torch.where(has_spread, variance, 1.0)), 0.0)
    # w~ does not change when all w are scaled, so the largest is set to 1: their sum can't underflow.
    largest = exponent.detach().masked_fill(~valid, -torch.inf).max()
    w = torch.exp(exponent - torch.where(largest.isfinite(), largest, 0.0)) * valid
    w = w * (n / w.sum().clamp(min=torch.finfo(w.dtype).tiny))
    return w.to(torch.float32), c.to(torch.float32), torch.where(has_spread, variance.sqrt(), 0.0).to(torch.float32)


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
    if not isinstance(ids, list) or len(ids) != rows:
        raise ValueError(f"index must have one group id for each of the {rows} rows, got {index!r:.200}")
    for row, group in enumerate(ids):
        if not isinstance(group, Hashable):
            raise TypeError(f"index must hold hashable group ids; row {row} has {group!r:.200}")
    return ids


def _groups(index: Any, rows: int) -> Iterator[slice | torch.Tensor]:
    """The rows of each group: a slice where they are neighbours (no copy), else their positions."""
    if index is None:
        if rows:
            yield slice(0, rows)
        return
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(group_ids(index, rows)):
        members.setdefault(group, []).append(row)
    for positions in members.values():
        first, last = positions[0], positions[-1]
        yield slice(first, last + 1) if last - first + 1 == len(positions) else torch.tensor(positions)


def _raise_non_finite(log_probs: torch.Tensor, advantages: torch.Tensor, valid: torch.Tensor, index: Any) -> None:
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
    raise ValueError("the covariance overflows: log-probs or advantages are too large to be meant")
