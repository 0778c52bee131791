"""What the weights did in a batch, as a few scalars. Imports torch and numpy alone."""

from __future__ import annotations

import numpy as np
import torch

from cw_grpo.weights import CovarianceWeights

PREFIX = "actor/cw_grpo/"
"""Estimator and losses log under the same names; verl puts `actor/` before every metric of a policy loss."""

TOP_SHARES = {"0.01pct": 1e-4, "1pct": 0.01, "20pct": 0.2, "40pct": 0.4, "100pct": 1.0}
"""The rows of the paper's Table 1."""


def weight_metrics(result: CovarianceWeights, sample: int = 65_536) -> dict[str, float]:
    """Scalars that describe the weights of a batch; one transfer from the device.

    Those marked * are taken from evenly spaced tokens of each response where the batch has many.

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
        sample: about how many tokens to take.
    """
    some = _evenly_spaced(result, sample)
    normaliser = result.normaliser.detach()
    w = result.kernel.detach()[:, some] * normaliser.float().unsqueeze(-1)
    valid = result.response_mask[:, some].bool().float().sum()
    tokens = valid.clamp(min=1)
    # Over all tokens: of each response's, sum(w A) and sum(A), and these over the responses of either sign.
    advantages = torch.stack([result.kernel_sum.detach() * normaliser, result.tokens]) * result.advantages
    kept, whole = torch.stack([advantages.clamp(min=0), advantages.clamp(max=0)], 1).sum(-1)
    present = (result.tokens > 0).float()
    sigma, no_signal = (torch.stack([result.sigma, result.sigma == 0]) * present).sum(-1) / present.sum().clamp(min=1)
    stats = {
        "sigma": sigma,
        "no_signal": no_signal,
        "weight_below_0.5": (valid - (w >= 0.5).float().sum()) / tokens,
        "weight_above_1.5": (w > 1.5).float().sum() / tokens,
        "effective_token_fraction": _ratio(w.sum().square(), tokens * w.square().sum()),
        **dict(zip(("kept_positive", "kept_negative"), _ratio(kept, whole), strict=True)),
    }
    # Masked tokens have a covariance of 0, which is on neither side.
    c = _sorted(result.covariance_of(some).flatten())
    shares = torch.tensor(list(TOP_SHARES.values()), dtype=torch.double, device=c.device)
    negative, not_positive = torch.searchsorted(c, c.new_zeros(1)), torch.searchsorted(c, c.new_zeros(1), right=True)
    sides = {"positive": _top(c, len(c) - not_positive, shares, from_end=True), "negative": _top(c, negative, shares)}
    names = [*stats, *(f"cov_{side}_top_{name}" for side in sides for name in TOP_SHARES)]
    values = torch.cat([torch.stack([value.float() for value in stats.values()]), *sides.values()]).tolist()
    return {PREFIX + name: value for name, value in zip(names, values, strict=True)}


def _evenly_spaced(result: CovarianceWeights, sample: int) -> slice:
    """All of the T tokens, or every so many."""
    # Of the valid tokens; but on an accelerator to ask for their number would be a transfer more.
    on_cpu = result.log_probs.device.type == "cpu"
    tokens = int(result.tokens.sum()) if on_cpu else result.log_probs.numel()
    stride = max(1, tokens // sample)
    return slice(stride // 2, None, stride)


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
