"""What the weights did in a batch, as a few scalars. Imports torch alone."""

from __future__ import annotations

import torch

from cw_grpo.weights import CovarianceWeights

PREFIX = "actor/cw_grpo/"
"""Estimator and losses log under the same names; verl puts `actor/` before every metric of a policy loss."""

TOP_SHARES = {"0.01pct": 1e-4, "1pct": 0.01, "20pct": 0.2, "40pct": 0.4, "100pct": 1.0}
"""The rows of the paper's Table 1."""


# Percentiles come from evenly spaced tokens, at most so many: sorting all of a large batch would take longer than the
# weights.
_SAMPLE = 1 << 17


def weight_metrics(
    result: CovarianceWeights, advantages: torch.Tensor, response_mask: torch.Tensor
) -> dict[str, float]:
    """Scalars that describe the weights of a batch; one transfer from the device.

    ``sigma``
        mean over responses of their group's sigma (section 2.3).
    ``no_signal``
        share of responses whose group has sigma = 0, where every weight is 1.
    ``weight_below_0.5``, ``weight_above_1.5``
        share of valid tokens with such a weight.
    ``effective_token_fraction``
        (sum w)^2 / (N sum w^2): 1 when all weights are equal, 1/N when one token has all the weight.
    ``cov_positive_top_X``, ``cov_negative_top_X``
        the covariance at the top X percent of the positive covariances, and at the bottom X percent of the negative
        ones (Table 1); 0 where there is none. Of more than 131,072 valid tokens, from evenly spaced ones.
    ``kept_positive``, ``kept_negative``
        sum(w |A|) / sum(|A|) over the tokens of positive and of negative advantage: below 1, that side is attenuated;
        1 where there is none.

    None of the names contains min, max, sum or total: verl's reducers treat such names in a way of their own.

    Args:
        result: what :func:`cw_grpo.weights.covariance_weights` returned.
        advantages: (B,) or (B, T), the advantages it was given.
        response_mask: (B, T).
    """
    w = result.weights.detach()
    mask = (response_mask != 0).to(w.dtype)
    a = (advantages.unsqueeze(-1) if advantages.dim() == 1 else advantages).to(w.dtype) * mask
    tokens = mask.sum().clamp(min=1)
    responses = (mask.sum(-1) > 0).to(w.dtype)
    magnitude = a.abs()
    # Twice the sums over one sign: |a| + a is 2a where a > 0, else 0; |a| - a likewise.
    signed, unsigned = (w * a).sum(), (w * magnitude).sum()
    signed_whole, unsigned_whole = a.sum(), magnitude.sum()

    stats = {
        "sigma": (result.sigma * responses).sum() / responses.sum().clamp(min=1),
        "no_signal": ((result.sigma == 0) * responses).sum() / responses.sum().clamp(min=1),
        "weight_below_0.5": ((w < 0.5) * mask).sum() / tokens,
        "weight_above_1.5": ((w > 1.5) * mask).sum() / tokens,
        "effective_token_fraction": _ratio(w.sum() ** 2, tokens * w.square().sum()),
        "kept_positive": _ratio(unsigned + signed, unsigned_whole + signed_whole),
        "kept_negative": _ratio(unsigned - signed, unsigned_whole - signed_whole),
    }
    covariances = result.covariance[response_mask != 0]
    ordered = covariances[:: max(1, -(-len(covariances) // _SAMPLE))].sort().values
    for name, share in TOP_SHARES.items():
        stats[f"cov_positive_top_{name}"] = _top(ordered.flip(0), (ordered > 0).sum(), share)
        stats[f"cov_negative_top_{name}"] = _top(ordered, (ordered < 0).sum(), share)
    values = torch.stack([value.to(w.dtype) for value in stats.values()]).tolist()
    return {PREFIX + name: value for name, value in zip(stats, values, strict=True)}


def _ratio(kept: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    return torch.where(whole > 0, kept / torch.where(whole > 0, whole, 1.0), 1.0)


def _top(ordered: torch.Tensor, count: torch.Tensor, share: float) -> torch.Tensor:
    """The value at the top ``share`` of the first ``count`` entries; 0 where count is 0."""
    if not len(ordered):
        return ordered.new_zeros(())
    position = (count * share).ceil().long().minimum(count).clamp(min=1) - 1
    return torch.where(count > 0, ordered[position], 0.0)
