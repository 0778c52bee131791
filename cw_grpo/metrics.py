"""What the weights did in a batch, as a few scalars. Imports torch and numpy alone."""

from __future__ import annotations

import numpy as np
import torch

from cw_grpo.weights import CovarianceWeights

PREFIX = "actor/cw_grpo/"
"""Estimator and losses log under the same names; verl puts `actor/` before every metric of a policy loss."""

TOP_SHARES = {"0.01pct": 1e-4, "1pct": 0.01, "20pct": 0.2, "40pct": 0.4, "100pct": 1.0}
"""The rows of the paper's Table 1."""


# More tokens than this would take longer to sort than to weigh.
_SAMPLE = 1 << 13


def weight_metrics(result: CovarianceWeights) -> dict[str, float]:
    """Scalars that describe the weights of a batch; one transfer from the device, two where a sample is taken.

    Those marked * are taken from evenly spaced tokens of each response where the batch has more than 8,192 tokens.

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
        1 where there is none *.

    None of the names contains min, max, sum or total: verl's reducers treat such names in a way of their own.

    Args:
        result: what :func:`cw_grpo.weights.covariance_weights` returned.
    """
    some = _evenly_spaced(result)
    normaliser = result.normaliser.detach().float()
    w = result.kernel.detach()[:, some] * normaliser.unsqueeze(-1)
    present = (result.tokens > 0).float()
    responses = present.sum().clamp(min=1)
    # Of each response, over all of its tokens.
    a, weighted = result.tokens * result.advantages, result.kernel_sum.detach() * normaliser * result.advantages
    # Masked tokens have a weight and a covariance of 0, which is on neither side.
    c = _sorted(result.covariance_of(some).flatten())
    valid = (result.response_mask[:, some] != 0).sum()
    tokens = valid.clamp(min=1)
    stats = {
        "sigma": (result.sigma * present).sum() / responses,
        "no_signal": ((result.sigma == 0) * present).sum() / responses,
        "weight_below_0.5": (valid - (w >= 0.5).sum()) / tokens,
        "weight_above_1.5": (w > 1.5).sum() / tokens,
        "effective_token_fraction": _ratio(w.sum() ** 2, valid * w.square().sum()),
        "kept_positive": _ratio(weighted.clamp(min=0).sum(), a.clamp(min=0).sum()),
        "kept_negative": _ratio(weighted.clamp(max=0).sum(), a.clamp(max=0).sum()),
    }
    shares = torch.tensor(list(TOP_SHARES.values()), dtype=torch.double, device=c.device)
    positive, negative = _top(c.flip(0), (c > 0).sum(), shares), _top(c, (c < 0).sum(), shares)
    values = torch.cat([torch.stack([value.float() for value in stats.values()]), positive, negative]).tolist()
    names = [*stats, *(f"cov_{side}_top_{name}" for side in ("positive", "negative") for name in TOP_SHARES)]
    return {PREFIX + name: value for name, value in zip(names, values, strict=True)}


def _evenly_spaced(result: CovarianceWeights) -> slice:
    """All of the T tokens, or every so many, for about _SAMPLE of the batch."""
    # Of the valid tokens; but on an accelerator to ask for their number would be a transfer more.
    on_cpu = result.log_probs.device.type == "cpu"
    tokens = int(result.tokens.sum()) if on_cpu else result.log_probs.numel()
    stride = max(1, tokens // _SAMPLE)
    return slice(stride // 2, None, stride)


def _sorted(values: torch.Tensor) -> torch.Tensor:
    # numpy's sort is several times faster than torch's on a CPU.
    return torch.from_numpy(np.sort(values.numpy())) if values.device.type == "cpu" else values.sort().values


def _ratio(kept: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    return torch.where(whole != 0, kept / whole, 1.0)


def _top(ordered: torch.Tensor, count: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """The values at these top shares of the first ``count`` entries; 0 where count is 0."""
    if not len(ordered):
        return torch.zeros_like(shares, dtype=ordered.dtype)
    places = (count * shares).ceil().long().clamp(min=1) - 1
    return torch.where(count > 0, ordered[places], 0.0)
