# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from batches import Batch, make_batch
from hypothesis import given
from strategies import batches

from cw_grpo import CovarianceWeights, covariance_weights
from cw_grpo.metrics import PREFIX, WeightMetrics, weight_metrics


def made_up(weights, covariance, sigma, advantages, mask, pass_rate=None) -> CovarianceWeights:
    """Made-up weights and covariances: log-probs that are the covariance, about 0, of a centred advantage of 1."""
    weights, mask = torch.as_tensor(weights), torch.as_tensor(mask)
    ones = torch.ones(len(mask), dtype=torch.float64)
    return CovarianceWeights(
        weights=weights,
        weight_sum=weights.double().sum(-1),
        sigma=torch.as_tensor(sigma),
        tokens=mask.sum(-1).double(),
        response_share=mask.any(-1).double(),
        advantages=torch.as_tensor(advantages).double(),
        pass_rate=torch.full_like(ones, 0.5) if pass_rate is None else torch.as_tensor(pass_rate).double(),
        centred_advantages=ones,
        log_prob_mean=0 * ones,
        log_probs=torch.as_tensor(covariance),
        mask=mask.float(),
    )


def metrics_of(weights, covariance, sigma, advantages, mask, pass_rate=None) -> dict[str, float]:
    metrics = weight_metrics(made_up(weights, covariance, sigma, advantages, mask, pass_rate))
    assert all(name.startswith(PREFIX) for name in metrics)
    return {name.removeprefix(PREFIX): value for name, value in metrics.items()}


def test_a_case_by_hand() -> None:
    got = metrics_of(
        weights=[[2.0, 0.4, 0.0], [1.2, 0.4, 0.0]],
        covariance=[[0.1, 3.0, 9.0], [-0.2, -4.0, 9.0]],
        sigma=[2.0, 0.0],
        advantages=[1.0, -2.0],
        mask=[[1, 1, 0], [1, 1, 0]],
        pass_rate=[0.25, 0.25],
    )
    want = {
        "sigma": 1.0,
        "zero_sigma_fraction": 0.5,
        "weight_below_0.5": 0.5,
        "weight_above_1.5": 0.25,
        "effective_token_fraction": 16 / (4 * (4 + 0.16 + 1.44 + 0.16)),
        "kept_positive": 1.2,
        "kept_negative": 0.8,
        "drift_hard": (2.4 - 2 * 1.6) / (2.4 + 2 * 1.6),
        "drift_easy": 0.0,
        "cov_positive_top_0.01pct": 3.0,
        "cov_positive_top_1pct": 3.0,
        "cov_positive_top_20pct": 3.0,
        "cov_positive_top_40pct": 3.0,
        "cov_positive_top_100pct": 0.1,
        "cov_negative_top_0.01pct": -4.0,
        "cov_negative_top_1pct": -4.0,
        "cov_negative_top_20pct": -4.0,
        "cov_negative_top_40pct": -4.0,
        "cov_negative_top_100pct": -0.2,
    }
    assert got == pytest.approx(want, rel=1e-6)


def test_percentiles_are_those_of_table_1() -> None:
    values = torch.arange(1, 1_001) / 10  # 0.1 ... 100
    covariance = torch.cat([values, -2 * values])[torch.randperm(2_000)].tolist()
    got = metrics_of([[1.0] * 2_000], [covariance], [1.0], [1.0], [[1] * 2_000])
    # The k-th largest of 1,000 is 100 - (k - 1) / 10.
    want = {"0.01pct": 100.0, "1pct": 99.1, "20pct": 80.1, "40pct": 60.1, "100pct": 0.1}
    for name, value in want.items():
        assert got[f"cov_positive_top_{name}"] == pytest.approx(value, rel=1e-5)
        assert got[f"cov_negative_top_{name}"] == pytest.approx(-2 * value, rel=1e-5)


@given(batches)
def test_bounds(batch: Batch) -> None:
    advantages = batch.rewards - batch.rewards.mean()
    result = covariance_weights(batch.log_probs, advantages, batch.mask, batch.index)
    got = {k.removeprefix(PREFIX): v for k, v in weight_metrics(result).items()}
    assert 0 < got["effective_token_fraction"] <= 1 + 1e-6
    assert 0 <= got["weight_below_0.5"] + got["weight_above_1.5"] <= 1
    assert got["cov_positive_top_0.01pct"] >= got["cov_positive_top_100pct"] >= 0
    assert got["cov_negative_top_0.01pct"] <= got["cov_negative_top_100pct"] <= 0


def test_nothing_valid_gives_finite_values() -> None:
    got = metrics_of([[0.0, 0.0]], [[0.0, 0.0]], [0.0], [1.0], [[0, 0]])
    assert all(value == value and abs(value) <= 1 for value in got.values())


def test_percentiles_of_a_large_batch_come_from_tokens_all_over_it() -> None:
    # Responses of 100 tokens in a width of 1,000, the covariance growing along each.
    rows, length = 2_000, 100
    mask = torch.zeros(rows, 1_000, dtype=torch.long)
    mask[:, :length] = 1
    covariance = mask * torch.arange(1.0, 1_001.0)
    got = metrics_of(mask.float().tolist(), covariance.tolist(), [1.0] * rows, [1.0] * rows, mask.tolist())
    assert got["cov_positive_top_1pct"] == pytest.approx(length, rel=0.02)
    assert got["cov_positive_top_20pct"] == pytest.approx(0.8 * length, rel=0.02)


@pytest.mark.parametrize(("rows", "width"), [(256, 4096), (512, 4096), (512, 8192), (300, 3000), (4096, 256)])
def test_a_large_batch_in_parts_is_looked_at_everywhere(rows: int, width: int) -> None:
    parts, share = 8, 1 / 16
    covariance = torch.zeros(rows, width)
    covariance[:, : round(width * share)] = -1.0  # only here is a weight below 0.5
    weights, ones = torch.where(covariance < 0, 0.1, 1.0), torch.ones(rows)
    result = made_up(weights, covariance, sigma=ones, advantages=ones, mask=torch.ones(rows, width))
    metrics = WeightMetrics((parts * rows, width))
    for _ in range(parts):
        metrics.add(result)
    got = metrics.values()[PREFIX + "weight_below_0.5"]
    assert got == pytest.approx(share, rel=0.15)
    assert metrics.values()[PREFIX + "cov_negative_top_100pct"] == -1


def test_names_are_safe_from_verls_reducers() -> None:
    batch = make_batch(0)
    result = covariance_weights(batch.log_probs, batch.rewards, batch.mask, batch.index)
    for name in weight_metrics(result):
        assert not any(part in name.lower() for part in ("min", "max", "sum", "total", "_lr", "/lr", "timing")), name
