# SPDX-License-Identifier: Apache-2.0
"""What the weights did in a batch, as a few scalars. Imports torch and numpy alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch

from .weights import CovarianceWeights

PREFIX = "actor/cw_grpo/"
"""Estimator and losses log under the same names; verl puts `actor/` before every metric of a policy loss."""

TOP_SHARES = {"0.01pct": 1e-4, "1pct": 0.01, "20pct": 0.2, "40pct": 0.4, "100pct": 1.0}
"""The rows of the paper's Table 1."""


def weight_metrics(result: CovarianceWeights, min_samples: int = 4_096) -> dict[str, float]:
    """Scalars that describe the weights of a batch; one transfer from the device.

    Those marked * are taken from positions drawn all over the batch, by a fixed seed: one in 256, but at least
    ``min_samples`` and at most about 16,384.

    ``sigma``
        mean over responses of their group's sigma (section 2.3).
    ``zero_sigma_fraction``
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
    ``drift_hard``, ``drift_easy``
        sum(w A - b) / sum(w |A|) over the tokens of groups in which less, and more, than half of the responses have a
        positive advantage; b is the baseline of ``centre``, else 0. With responses of equal length it is 0 without
        weights; 0 where there is none.

    None of the names contains min, max, sum or total: verl's reducers treat such names in a way of their own.

    Args:
        result: what :func:`cw_grpo.weights.covariance_weights` returned.
        min_samples: positions to take at least, where the batch has as many.
    """
    metrics = WeightMetrics(result.weights.shape, min_samples)
    metrics.add(result)
    return metrics.values()


class WeightMetrics:
    """The metrics of a batch that comes in parts (see :func:`weight_metrics`): ``add`` each, then take ``values``."""

    def __init__(self, shape: Sequence[int], min_samples: int = 4_096) -> None:
        """``shape``: (B, T) of the whole batch; ``min_samples``: positions to take at least."""
        positions = math.prod(shape)
        self._stride = max(1, positions // min(max(positions // 256, min_samples), 16_384))
        self._responses: list[np.ndarray] = []
        self._tokens: list[np.ndarray] = []

    def add(self, result: CovarianceWeights, baseline: torch.Tensor | None = None) -> None:
        """Keep each response's sums, and some tokens' weights and covariances; one transfer from the device.

        Args:
            result: the weights of a part of the batch.
            baseline: (B, T) what was subtracted from its weighted advantages (:mod:`cw_grpo.baseline`), if anything.
        """
        rows, width = result.mask.shape
        of_responses = (
            *(result.tokens, result.response_share, result.sigma, result.advantages, result.weight_sum),
            result.pass_rate,
            torch.zeros_like(result.advantages) if baseline is None else baseline.sum(-1).double(),
            *(result.log_prob_mean, result.centred_advantages),
        )
        place = _sample_positions(rows * width, self._stride, seed=len(self._tokens))
        row, at = place // max(1, width), torch.from_numpy(place).to(result.mask.device)
        of_tokens = (values.reshape(-1)[at] for values in (result.weights, result.log_probs, result.mask))
        packed = torch.cat([*of_responses, *of_tokens]).detach().cpu().numpy()
        *responses, mean, centred = packed[: 9 * rows].reshape(9, rows)
        w, log_probs, mask = packed[9 * rows :].reshape(3, -1)
        # Masked tokens get a covariance of 0, which is on neither side.
        c = (log_probs - mean[row]) * centred[row] * mask
        self._responses.append(np.stack(responses))
        self._tokens.append(np.stack([w, mask, c]))

    def values(self) -> dict[str, float]:
        """The metrics by name."""
        tokens, share, sigma, advantages, weight_sum, pass_rate, baseline_sum = np.concatenate(self._responses, axis=1)
        w, mask, c = np.concatenate(self._tokens, axis=1)
        responses, count = max(1, share.sum()), max(1, mask.sum())
        # Sums of products without `@`: BLAS would wake threads of its own beside torch's.
        stats = {
            "sigma": (sigma * share).sum() / responses,
            "zero_sigma_fraction": ((sigma == 0) * share).sum() / responses,
            "weight_below_0.5": ((w < 0.5) * mask).sum() / count,
            "weight_above_1.5": (w > 1.5).sum() / count,
            "effective_token_fraction": _ratio(w.sum() ** 2, count * np.square(w).sum()),
        }
        for side, a, of_side in (
            ("positive", advantages.clip(min=0), c[c > 0]),
            ("negative", advantages.clip(max=0), c[c < 0]),
        ):
            stats[f"kept_{side}"] = _ratio((weight_sum * a).sum(), (tokens * a).sum())
            stats |= {f"cov_{side}_top_{name}": value for name, value in at_top_shares(of_side).items()}
        drift, size = weight_sum * advantages - baseline_sum, weight_sum * np.abs(advantages)
        for name, chosen in (("hard", pass_rate < 0.5), ("easy", pass_rate > 0.5)):
            stats[f"drift_{name}"] = _ratio(drift[chosen].sum(), size[chosen].sum(), none=0.0)
        return {PREFIX + name: float(value) for name, value in stats.items()}


@functools.lru_cache(maxsize=64)
def _sample_positions(positions: int, stride: int, seed: int) -> np.ndarray:
    """One position of each ``stride``, at random: at equal distances they could all be of the same few columns."""
    first = np.arange(0, positions, stride)
    place = first + np.random.default_rng(seed).integers(stride, size=len(first))
    return place[place < positions]


def _ratio(part: float, whole: float, none: float = 1.0) -> float:
    return part / whole if whole else none


def at_top_shares(side: np.ndarray, none: float = 0.0) -> dict[str, float]:
    """The covariance that each of :data:`TOP_SHARES` of a side's tokens, outermost first, reaches (Table 1).

    Args:
        side: covariances of one sign, in any order.
        none: the value where there are none.
    """
    if not len(side):
        return dict.fromkeys(TOP_SHARES, none)
    ranks = [len(side) - math.ceil(len(side) * share) for share in TOP_SHARES.values()]
    sizes = np.partition(np.abs(side), ranks)[ranks]
    return dict(zip(TOP_SHARES, np.copysign(sizes, side[0]), strict=True))
