# SPDX-License-Identifier: Apache-2.0
"""The numbers over training steps, from verl's metrics: a run's, and a method's as means over seeds.

Runs of the same seed are averaged first, so that each seed counts once. Intervals are 95% intervals of the mean over
seeds by Student's t, from three seeds on: those of two are too wide to say anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from cw_grpo.intervals import t_interval
from cw_grpo.plot import moving_average
from cw_grpo.report.collect import Run, seeds

Methods = Mapping[str, Sequence[Run]]
"""Runs by method."""

REWARD, ENTROPY = "critic/score/mean", "actor/entropy"
MIN_SEEDS = 3
"""Seeds that an interval needs."""


def summary(methods: Methods) -> pd.DataFrame:
    """Reward and entropy of each method, over the first and the last tenth of each run's steps."""
    rows = []
    for name, members in methods.items():
        row = {"method": name, "seeds": len(seeds(members)), "runs": len(members),
               "steps": " ".join(map(str, sorted({len(run.metrics) for run in members})))}  # fmt: skip
        for key, label in ((REWARD, "reward"), (ENTROPY, "entropy")):
            for place in ("first", "last"):
                row[f"{label}, {place}"] = mean_over_seeds(
                    [[_tenth_mean(run, key, place) for run in repeats] for repeats in seeds(members)]
                )
        rows.append(row)
    return pd.DataFrame(rows)


def _tenth_mean(run: Run, key: str, place: str) -> float:
    """The mean of the first or last tenth of a metric's steps; NaN if the run does not have it."""
    values = run.metrics[key].dropna() if key in run.metrics else pd.Series(dtype=float)
    tenth = max(1, len(values) // 10)
    return float((values.head(tenth) if place == "first" else values.tail(tenth)).mean())


def mean_over_seeds(values: Sequence[Sequence[float]]) -> str:
    """Mean and interval over seeds, as text; "-" if there are no values.

    Args:
        values: of each seed's runs; NaN for none.
    """
    of_seeds = [float(np.mean(known)) for repeats in values if (known := [v for v in repeats if np.isfinite(v)])]
    if not of_seeds:
        return "-"
    low, high = interval(of_seeds)
    return f"{np.mean(of_seeds):.3f}" + (f" ({low:.3f} to {high:.3f})" if np.isfinite(low) else "")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95% t interval of values, one per seed; NaN for fewer than :data:`MIN_SEEDS`."""
    return t_interval(values) if len(values) >= MIN_SEEDS else (float("nan"), float("nan"))


def of_runs(methods: Methods, key: str) -> pd.DataFrame:
    """A metric of each run: one row per run and step, with its moving average. Empty if no run has it."""
    frames = []
    for name, members in methods.items():
        for seed, repeats in enumerate(seeds(members)):
            for run in repeats:
                values = run.metrics[key].dropna() if key in run.metrics else pd.Series(dtype=float)
                if len(values):
                    frame = pd.DataFrame({"step": values.index, "value": values, "smoothed": moving_average(values)})
                    frames.append(frame.assign(metric=key, method=name, run=run.name, seed=seed))
    columns = ["metric", "method", "run", "seed", "step", "value", "smoothed"]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


def of_methods(curves: pd.DataFrame) -> pd.DataFrame:
    """The mean over seeds of moving averages, with its interval, at the steps that all seeds of a method have.

    Args:
        curves: what :func:`of_runs` returned.
    """
    columns = ["metric", "method", "step", "seeds", "mean", "low", "high"]
    frames = []
    for (metric, method), part in curves.groupby(["metric", "method"], sort=False):
        by_seed = part.pivot_table(index="step", columns="seed", values="smoothed").dropna()
        bounds = np.array([interval(row) for row in by_seed.to_numpy()]).reshape(-1, 2)
        frame = pd.DataFrame({"step": by_seed.index, "mean": by_seed.mean(axis=1).to_numpy(),
                              "low": bounds[:, 0], "high": bounds[:, 1]})  # fmt: skip
        frames.append(frame.assign(metric=metric, method=method, seeds=by_seed.shape[1]))
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


def entropy_reward(methods: Methods) -> pd.DataFrame:
    """Each method's smoothed reward and entropy by step, means over seeds."""
    means = [of_methods(of_runs(methods, key)).set_index(["method", "step"])["mean"] for key in (REWARD, ENTROPY)]
    return pd.concat(means, axis=1, keys=["reward", "entropy"]).dropna().astype(float).reset_index()


def entropy_at_equal_reward(methods: Methods, levels: int = 4) -> pd.DataFrame:
    """Entropy at the step where a run's smoothed reward first reaches a level, as means over seeds.

    Returns:
        one row per level, of rewards that all runs reach from below; empty if there is none.
    """
    paths = {
        name: [[path for run in repeats if len(path := _path(run))] for repeats in seeds(members)]
        for name, members in methods.items()
    }
    every = [path for members in paths.values() for repeats in members for path in repeats]
    if not every:
        return pd.DataFrame()
    low, high = max(path["reward"].iloc[0] for path in every), min(path["reward"].max() for path in every)
    if not high > low:
        return pd.DataFrame()
    rows = []
    for level in np.linspace(low, high, levels + 1)[1:]:
        row: dict[str, object] = {"reward": level}
        for name, members in paths.items():
            row[name] = mean_over_seeds(
                [[path.loc[(path["reward"] >= level - 1e-12).idxmax(), "entropy"] for path in of] for of in members]
            )
        rows.append(row)
    return pd.DataFrame(rows)


def _path(run: Run) -> pd.DataFrame:
    """A run's smoothed reward and entropy."""
    if not {REWARD, ENTROPY} <= set(run.metrics):
        return pd.DataFrame(columns=["reward", "entropy"])
    return moving_average(run.metrics[[REWARD, ENTROPY]].set_axis(["reward", "entropy"], axis=1).dropna())
