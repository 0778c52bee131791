# SPDX-License-Identifier: Apache-2.0
"""An ablation that the paper does not have: a baseline that restores the zero mean. Imports torch alone."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch

from .groups import group_numbers
from .weights import CovarianceWeights


def weighted_baseline(
    result: CovarianceWeights, index: Sequence[Hashable] | torch.Tensor | Any | None = None
) -> torch.Tensor:
    """What a token of this log-probability gets on average, whichever response of its group it stands in.

    With x the log-probability less the mean of its response::

        b(x)     = mean over the group's responses j of w~(x, A_j) A_j
        w~(x, A) = exp(-(x (A - mean A))^2 / (2 sigma^2)) * N / sum(w)

    ``w~_it A_i - b(x_it)`` has mean 0 over the group's advantages at every x, as A_i has without weights. For 0/1
    rewards b has two terms, for n distinct advantages n. Not from the paper: see docs/method.md.

    Args:
        result: of :func:`cw_grpo.covariance_weights` with ``log_prob_mean="response"``: about the mean of the group,
            w~(x, A_j) of an advantage that x did not occur with has no bound.
        index: the B group ids that the weights were computed with; None means one group.

    Returns:
        (B, T) float32: b, 0 where masked and in groups with sigma = 0, whose weights are 1. Without a gradient.

    Raises:
        ValueError: not B ids.
        TypeError: ids that are not hashable.
    """
    rows, device = len(result.mask), result.mask.device
    group = group_numbers([0] * rows if index is None else index, rows, device)
    baseline = torch.zeros_like(result.mask, dtype=torch.float32)
    with torch.no_grad():
        for number in torch.unique(group):
            members = ((group == number) & (result.sigma > 0)).nonzero()[:, 0]
            if len(members):
                baseline[members] = _of_group(result, members)
    return baseline


def _of_group(result: CovarianceWeights, members: torch.Tensor) -> torch.Tensor:
    """b of the tokens of one group with spread."""
    mask, share, advantages = result.mask[members], result.response_share[members], result.advantages[members]
    centred = result.centred_advantages[members]
    x = (result.log_probs[members].detach() - _column(result.log_prob_mean[members], mask)).masked_fill(mask == 0, 0)
    exponent_of_square = -0.5 * (centred / result.sigma[members].double()).square()

    w = (x.square() * _column(exponent_of_square, mask)).exp() * mask
    normaliser = mask.sum() / w.sum()

    present = share > 0
    distinct, which = torch.unique(advantages[present], return_inverse=True)
    shares = torch.zeros_like(distinct).index_add_(0, which, share[present]) / share.sum()
    exponents = torch.zeros_like(distinct).index_copy_(0, which, exponent_of_square[present])
    b = torch.zeros_like(x)
    for factor, exponent in zip((shares * distinct).to(x.dtype), exponents.to(x.dtype), strict=True):
        b += factor * (x.square() * exponent).exp()
    return (b * normaliser * mask).float()


def _column(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.to(like.dtype).unsqueeze(-1)
