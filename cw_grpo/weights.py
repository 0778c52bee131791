# SPDX-License-Identifier: Apache-2.0
"""The Gaussian-kernel weights of arXiv 2605.11538, section 2.3: tensors in, tensors out. Imports torch alone."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from .groups import group_numbers
from .inputs import (
    ADVANTAGE_RTOL,
    check_shapes,
    equal_within,
    raise_for_invalid_inputs,
    raise_for_unequal_parts,
)

LOG_PROB_MEANS = ("response", "group")

# Below this share of (root mean square of the log-probs) * (largest |advantage|) a standard deviation is the rounding
# of equal covariances, not spread.
_SPREAD_RTOL = {torch.float32: 1e-6, torch.float64: 1e-12}

# The smallest sum of squares of a response's log-probs in that comparison: smaller ones would overflow 1 / sigma^2.
_MIN_SUM_SQUARES = 1e-18


@dataclass(frozen=True)
class CovarianceWeights:
    """What :func:`covariance_weights` returns, for B rows of at most T tokens.

    Only ``weights`` and ``weight_sum`` can carry a gradient.
    """

    weights: torch.Tensor
    """(B, T) float32: the normalised weights w~, 0 where masked. Their mean over a group's valid tokens is 1."""
    weight_sum: torch.Tensor
    """(B,) sum(w~) of the row."""
    sigma: torch.Tensor
    """(B,) float32: the population standard deviation of c over the row's group; 0 where the group has no spread."""
    tokens: torch.Tensor
    """(B,) valid tokens of the row."""
    response_share: torch.Tensor
    """(B,) 1 / (rows of its response with valid tokens), 0 without: each response counts once in a sum over rows."""
    advantages: torch.Tensor
    """(B,) A_i."""
    centred_advantages: torch.Tensor
    """(B,) A_i - mean A."""
    pass_rate: torch.Tensor
    """(B,) share of the responses of the row's group whose advantage is positive."""
    log_prob_mean: torch.Tensor
    """(B,) mean log pi: what the row's log-probs are centred about."""
    log_probs: torch.Tensor
    """(B, T) as given."""
    mask: torch.Tensor
    """(B, T) float: 1 at valid tokens, 0 elsewhere."""

    @property
    def covariance(self) -> torch.Tensor:
        """(B, T) float32: c, the centred log-probability times the centred advantage, 0 where masked. Detached."""
        mean, advantage = (of.to(self.mask.dtype).unsqueeze(-1) for of in (self.log_prob_mean, self.centred_advantages))
        return ((self.log_probs.detach() - mean) * advantage).float().masked_fill(self.mask == 0, 0)


def covariance_weights(
    log_probs: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    index: Sequence[Hashable] | torch.Tensor | Any | None = None,
    *,
    response_index: Sequence[Hashable] | torch.Tensor | Any | None = None,
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
    nothing else, so neither does padding. Any (B, T) input may be a nested tensor, as in verl's V1: it is padded to
    its longest row, and so is the result.

    Args:
        log_probs: (B, T) log-probabilities of the sampled tokens, any float dtype, any device.
        advantages: (B,) group-relative advantages, or (B, T), the same at every valid token of a response.
        response_mask: (B, T), non-zero at valid tokens; bool, integer or float.
        index: B hashable group ids (numpy array, list, tensor), rows in any order; None means one group.
        response_index: B hashable ids of the responses of which the rows are parts, such as an agent session with
            several outputs; None means that each row is a response. The weights do not depend on where a response is
            cut into rows.
        log_prob_mean: mean log pi over each ``response``'s own valid tokens (the default, as in the authors' code) or
            over all valid tokens of the ``group`` (as Cui et al., arXiv 2505.22617, write it).
        stop_gradient: True treats the weights as constants, the paper's "reweighted advantage". False lets the
            gradient flow from the weights into ``log_probs``; it stays finite where sigma = 0.

    Returns:
        :class:`CovarianceWeights`, on the device of ``log_probs``. Token values are computed in float32 (float64 for
        float64 log-probs), values of a response or a group in float64.

    Raises:
        ValueError: shapes that do not fit, an unknown ``log_prob_mean``, advantages that vary within a response, a
            response in two groups, or a non-finite log-prob or advantage at a valid token; the message names the row.
        TypeError: ids that are not hashable.
    """
    log_probs, advantages, response_mask = map(_padded, (log_probs, advantages, response_mask))
    check_shapes(log_probs, advantages, response_mask)
    rows, device = len(log_probs), log_probs.device
    group = group_numbers([0] * rows if index is None else index, rows, device)
    response = None if response_index is None else group_numbers(response_index, rows, device, "response_index")
    if response is not None and len(torch.unique(torch.stack([response, group]), dim=1).T) > response.max() + 1:
        raise ValueError("response_index must name a response of one group only; some response has rows of two groups")
    return weights_in_workspace(
        *(new_workspace(log_probs), log_probs, advantages, response_mask, group, response),
        log_prob_mean=log_prob_mean,
        stop_gradient=stop_gradient,
        index=index,
    )


def new_workspace(log_probs: torch.Tensor) -> torch.Tensor:
    """The memory that :func:`weights_in_workspace` needs for these: (2, B, T), uninitialised."""
    return torch.empty((2, *log_probs.shape), dtype=_dtype(log_probs), device=log_probs.device)


def weights_in_workspace(
    workspace: torch.Tensor,
    log_probs: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    group: torch.Tensor,
    response: torch.Tensor | None,
    *,
    log_prob_mean: str,
    stop_gradient: bool = True,
    index: Any = None,
) -> CovarianceWeights:
    """:func:`covariance_weights` of padded tensors and numbered groups, in memory that chunks of a batch can share.

    Args:
        workspace: from :func:`new_workspace`. The result's ``mask`` and, without a gradient, its ``weights`` lie there.
        group, response: (B,) from :func:`group_numbers`.
        index: the group ids as given, for messages.
    """
    if log_prob_mean not in LOG_PROB_MEANS:
        raise ValueError(f"log_prob_mean must be one of {', '.join(LOG_PROB_MEANS)}; got {log_prob_mean!r}")
    advantages = advantages.detach()
    if not log_probs.numel():  # nothing to take the largest of
        advantages, log_prob_mean = log_probs.new_zeros(len(log_probs)), "response"
    with torch.set_grad_enabled(torch.is_grad_enabled() and not stop_gradient):
        try:
            return _weights(log_probs, advantages, response_mask, group, response, log_prob_mean, workspace)
        except _NotFinite:
            valid = response_mask != 0
            raise_for_invalid_inputs(log_probs.detach(), advantages, valid, index)
            # What is not finite is padding, which must not enter: 0 in its place.
            advantages = advantages.masked_fill(~(valid if advantages.dim() == 2 else valid.any(-1)), 0)
            log_probs = log_probs.masked_fill(~valid, 0)
        try:
            return _weights(log_probs, advantages, response_mask, group, response, log_prob_mean, workspace)
        except _NotFinite:
            pass
    if response is not None:
        raise_for_unequal_parts(advantages, response_mask != 0, response)
    raise ValueError("the covariance overflows: log-probs or advantages are too large to be meant")


def _padded(values: torch.Tensor) -> torch.Tensor:
    """A nested tensor padded with 0 to its longest row; another as it is."""
    return pad_sequence(list(values.unbind()), batch_first=True) if values.is_nested else values


def _dtype(log_probs: torch.Tensor) -> torch.dtype:
    """Compute dtype for token values."""
    return torch.float64 if log_probs.dtype == torch.float64 else torch.float32


class _NotFinite(Exception):
    """Some result is not finite, or advantages vary within a response."""


def _weights(
    log_probs: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    group: torch.Tensor,
    response: torch.Tensor | None,
    log_prob_mean: str,
    workspace: torch.Tensor,
) -> CovarianceWeights:
    """Section 2.3.

    Within a response c_it is the centred log-prob times one number, A_i - mean A, so sums over a group are sums over
    its rows. Tokens are masked by multiplication and, where no gradient flows, computed in place: both are several
    times faster than the alternatives.

    Raises:
        _NotFinite: see there.
    """
    mask, work = workspace
    mask.copy_(response_mask.bool().view(torch.uint8))  # a bool to float takes five times as long
    out = None if log_probs.requires_grad and torch.is_grad_enabled() else work

    # Rows and responses: tokens, A_i, mean log pi, and the sum of squares about it.
    tokens = mask.sum(-1).double()
    present = tokens.clamp(max=1)
    advantage, equal = _row_advantages(advantages, mask, present, work)
    x = torch.mul(log_probs, mask, out=out)
    total = x.sum(-1).double()
    share, response_tokens, response_total = present, tokens, total
    if response is not None:
        rows, response_tokens = _group_sums(response, present, tokens)
        response_total = _group_sums(response, total)[0]
        share = present / rows.clamp(min=1)
        equal = equal & equal_within(advantage, present > 0, response)
    mean = response_total / response_tokens.clamp(min=1)
    x = torch.addcmul(x, mask, _column(mean, x), value=-1, out=out)
    squares = torch.linalg.vector_norm(x, dim=-1).double().square()

    # The group: N, mean A and mean log pi.
    sums = _group_sums(group, tokens, share, advantage * share, (advantage > 0) * share)
    n, responses = sums[:2].clamp(min=1)
    mean_advantage, pass_rate = sums[2:] / responses
    centred = advantage - mean_advantage
    centre = _group_sums(group, total)[0] / n if log_prob_mean == "group" else mean

    # N sigma^2: the squares of c within the responses, and between them, which is 0 for log_prob_mean=response.
    mean_c = centred * (mean - centre)
    group_mean_c = _group_sums(group, tokens * mean_c)[0] / n
    sum_squares = centred.square() * squares + tokens * (mean_c - group_mean_c).square()
    size = (squares + tokens * mean.square()).clamp(min=_MIN_SUM_SQUARES)
    n_variance, scale = _group_sums(group, sum_squares, (centred.square() + advantage.square()) * size)
    if not ((n_variance < torch.inf) & equal).all():
        raise _NotFinite
    has_spread = n_variance > _SPREAD_RTOL[x.dtype] ** 2 * scale

    # w = exp(-c^2 / (2 sigma^2)) as a power of 2, which takes a third of exp's time on a CPU.
    exponent_of_square = centred.square() * n / torch.where(has_spread, -2 * math.log(2) * n_variance, -torch.inf)
    if log_prob_mean == "group":
        x = torch.addcmul(x, mask, _column(mean - centre, x), out=out)
    exponent = torch.mul(torch.square(x, out=out), _column(exponent_of_square, x), out=out)
    if log_prob_mean == "group":
        # About the response's mean some c^2 is at most sigma^2. About the group's all may be far larger: the largest w
        # is made 1, so that their sum does not vanish.
        exponent = (exponent - _column(_largest(exponent.detach(), mask, group), x)).clamp(max=0)
    w = torch.mul(torch.exp2(exponent, out=out), mask, out=out)

    # w~ = w N / sum(w). Some w is at least exp(-1/2), so the clamp affects only empty groups.
    w_sum = w.sum(-1).double()
    normaliser = n / _group_sums(group, w_sum)[0].clamp(min=0.5)
    return CovarianceWeights(
        weights=torch.mul(w, _column(normaliser, x), out=out).float(),
        weight_sum=w_sum * normaliser,
        sigma=(n_variance.detach() / n).where(has_spread, 0.0).sqrt().float(),
        tokens=tokens,
        response_share=share,
        advantages=advantage,
        centred_advantages=centred,
        pass_rate=pass_rate,
        log_prob_mean=centre.detach(),
        log_probs=log_probs,
        mask=mask,
    )


def _group_sums(group: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
    """(len(values), B): each of the (B,) values summed over the row's group."""
    rows = torch.stack(values)
    return torch.zeros_like(rows).index_add_(1, group, rows)[:, group]


def _column(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.to(like.dtype).unsqueeze(-1)


def _row_advantages(
    advantages: torch.Tensor, mask: torch.Tensor, present: torch.Tensor, work: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B,) A_i in float64, 0 for a row without valid tokens, and (B,) whether it is the same at every valid token."""
    if advantages.dim() == 1:
        return advantages.double() * present, torch.ones_like(advantages, dtype=torch.bool)
    each = torch.mul(advantages, mask, out=work)
    high, low = each.amax(-1), each.amin(-1)
    advantage = torch.where(high > -low, high, low).double()
    deviation = torch.addcmul(each, mask, _column(advantage, mask), value=-1, out=work)
    return advantage, deviation.abs_().amax(-1) <= ADVANTAGE_RTOL * advantage.abs()


def _largest(exponent: torch.Tensor, mask: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """(B,) the largest exponent over the valid tokens of the response's group; 0 where it has none."""
    of_response = exponent.masked_fill(mask == 0, -torch.inf).amax(-1)
    largest = torch.full_like(of_response, -torch.inf).scatter_reduce(0, group, of_response, "amax")[group]
    return torch.where(torch.isfinite(largest), largest, 0.0)
