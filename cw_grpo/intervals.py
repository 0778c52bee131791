# SPDX-License-Identifier: Apache-2.0
"""Intervals of means: over questions by bootstrap, over seeds by Student's t."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

LEVEL = 0.95


def bootstrap_interval(values: Sequence[float], *, resamples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """The 95% percentile-bootstrap interval of the mean of ``values``, one value a question.

    A paired difference is the interval of the differences, question by question. Equal values give an interval of no
    width, one value gives NaN.
    """
    return average_interval([values], resamples=resamples, seed=seed)


def average_interval(
    samples: Sequence[Sequence[float] | np.ndarray], *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """The 95% percentile-bootstrap interval of the average of the samples' means, each sample resampled by itself.

    With a sample a benchmark, it is the interval of the average over benchmarks, whatever their sizes.
    """
    drawn_from = [np.asarray(values, dtype=float) for values in samples]
    if any(len(values) < 2 for values in drawn_from):
        return float("nan"), float("nan")
    if all((values == values[0]).all() for values in drawn_from):
        average = float(np.mean([values[0] for values in drawn_from]))
        return average, average
    interval = stats.bootstrap(
        drawn_from,
        lambda *drawn, axis: np.mean([values.mean(axis=axis) for values in drawn], axis=0),
        vectorized=True,
        n_resamples=resamples,
        confidence_level=LEVEL,
        method="percentile",
        batch=max(1, 10_000_000 // max(map(len, drawn_from))),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of the mean of ``values``, one a seed, by Student's t; NaN for fewer than two."""
    sample = np.asarray(values, dtype=float)
    if len(sample) < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf((1 + LEVEL) / 2, len(sample) - 1) * sample.std(ddof=1) / np.sqrt(len(sample))
    return float(sample.mean() - half), float(sample.mean() + half)
