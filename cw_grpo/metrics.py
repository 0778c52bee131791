"""What the weights did in a batch, as a few scalars. Imports torch and numpy alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from cw_grpo.weights import CovarianceWeights

PREFIX = "actor/cw_grpo/"
"""Estimator and losses log under the same names; verl puts `actor/` before every metric of a policy loss."""

TOP_SHARES = {"0.01pct": 1e-4, "1pct": 0.01, "20pct": 0.2, "40pct": 0.4, "100pct": 1.0}
"""The rows of the paper's Table 1."""


def weight_metrics(result: CovarianceWeights, sample: int = 32_768) -> dict[str, float]:
    """Scalars that describe the weights of a batch; one transfer from the device.

    Those marked * are taken from evenly spaced positions where the batch has many.

    ``sigma``
        mean over responses of their group's sigma (section 2.3).
    ``no_signal``
        share of responses whose group has sigma = 0, where every weight is 1.
    ``weight_below_0.5``, ``weight_above_1.5``
        share of valid tokens with such a weight *.
    ``effective_token_fraction``
        (sum w)^2 / (N sum w^2): 1 when all weights are equal, 1/N when one token has all the weight *.
    ``cov_positive_top_X``, ``cov_negative_top_X``
        the covariance at the top X percent of the positive covariances, and at the bottom X percent of the negative
        ones (Table 1); 0 where there is none *.
    ``kept_positive``, ``kept_negative``
        sum(w |A|) / sum(|A|) over the tokens of positive and of negative advantage: below 1, that side is attenuated;
        1 where there is none.

    None of the names contains min, max, sum or total: verl's reducers treat such names in a way of their own.

    Args:
        result: what :func:`cw_grpo.weights.covariance_weights` returned.
        sample: about how many positions to take.
    """
    metrics = WeightMetrics(result.weights.shape, sample)
    metrics.add(result)
    return metrics.values()


class WeightMetrics:
    """The metrics of a batch that comes in parts: ``add`` each, and take the ``values``; see :func:`weight_metrics`."""

    def __init__(self, shape: Sequence[int], sample: int = 32_768) -> None:
        """``shape``: (B, T) of the whole batch; ``sample``: about how many positions to take."""
        rows, width = shape
        self._stride = max(1, rows * width // sample)
        # A stride that shares a factor with the width would take the same places of every response.
        while self._stride > 1 and math.gcd(self._stride, width) > 1:
            self._stride += 1
        self._responses: list[torch.Tensor] = []
        self._tokens: list[torch.Tensor] = []

    def add(self, result: CovarianceWeights) -> None:
        """Keep each response's sums, and some tokens' weights and covariances."""
        self._responses.append(
            torch.stack([result.tokens, result.sigma.double(), result.advantages, result.weight_sum.detach()])
        )
        start, end, width = self._stride // 2, result.mask.numel(), max(1, result.mask.shape[1])
        w, log_probs, mask = (
            values.detach().reshape(-1)[start :: self._stride]
            for values in (result.weights, result.log_probs, result.mask)
        )
        row = torch.arange(start, end, self._stride, device=mask.device) // width
        c = (log_probs - result.log_prob_mean[row]) * result.centred_advantages[row]
        self._tokens.append(torch.stack([w, c.float().masked_fill(mask == 0, 0), mask.float()]))

    def values(self) -> dict[str, float]:
        """The metrics by name; one transfer from the device."""
        tokens, sigma, advantages, weight_sum = torch.cat(self._responses, 1)
        w, c, mask = torch.cat(self._tokens, 1)
        valid = mask.sum()
        count = valid.clamp(min=1)
        present = (tokens > 0).double()
        responses = present.sum().clamp(min=1)
        # Over the responses of either sign: sum(w A) and sum(A).
        kept, whole = (
            torch.stack([sums.clamp(min=0).sum(), sums.clamp(max=0).sum()])
            for sums in (weight_sum * advantages, tokens * advantages)
        )
        stats = {
            "sigma": (sigma * present).sum() / responses,
            "no_signal": ((sigma == 0) * present).sum() / responses,
            "weight_below_0.5": (valid - (w >= 0.5).sum()) / count,
            "weight_above_1.5": (w > 1.5).sum() / count,
            "effective_token_fraction": _ratio(w.sum().square(), count * w.square().sum()),
            **dict(zip(("kept_positive", "kept_negative"), _ratio(kept, whole), strict=True)),
        }
        # Masked tokens have a covariance of 0, which is on neither side.
        c = _sorted(c)
        shares = torch.tensor(list(TOP_SHARES.values()), dtype=torch.double, device=c.device)
        negative, not_positive = (
            torch.searchsorted(c, c.new_zeros(1)),
            torch.searchsorted(c, c.new_zeros(1), right=True),
        )
        sides = {
            "positive": _top(c, len(c) - not_positive, shares, from_end=True),
            "negative": _top(c, negative, shares),
        }
        names = [*stats, *(f"cov_{side}_top_{name}" for side in sides for name in TOP_SHARES)]
        values = torch.cat([torch.stack([value.float() for value in stats.values()]), *sides.values()]).tolist()
        return {PREFIX + name: value for name, value in zip(names, values, strict=True)}


def _sorted(values: torch.Tensor) -> torch.Tensor:
    # numpy's sort is several times faster than torch's on a CPU.
    return torch.from_numpy(np.sort(values.numpy())) if values.device.type == "cpu" else values.sort().values


def _ratio(kept: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    return torch.where(whole != 0, kept / whole, 1.0)


def _top(ordered: torch.Tensor, count: torch.Tensor, shares: torch.Tensor, from_end: bool = False) -> torch.Tensor:
    """The values at these top shares of the first, or the last, ``count`` entries; 0 where count is 0."""
    if not len(ordered):
        return torch.zeros_like(shares, dtype=ordered.dtype)
    places = (count * shares).ceil().long().clamp(min=1) - 1
    return torch.where(count > 0, ordered[len(ordered) - 1 - places if from_end else places], 0.0)
