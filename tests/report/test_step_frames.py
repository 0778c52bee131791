# SPDX-License-Identifier: Apache-2.0
"""The numbers over steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cw_grpo.runs import load_metrics


def test_intervals_from_three_seeds_on(full: Path) -> None:
    summary = pd.read_csv(full.parent / "summary.csv").set_index("method")
    assert " to " in summary.loc["grpo", "entropy, last"] and " to " not in summary.loc["cw_grpo", "entropy, last"]
    curves = pd.read_csv(full.parent / "curves.csv")
    entropy = curves[curves["metric"] == "actor/entropy"].groupby("method")[["mean", "low", "high"]].count()
    assert entropy.loc["grpo"].tolist() == [30, 30, 30] and entropy.loc["cw_grpo"].tolist() == [30, 0, 0]


def test_a_curve_is_the_mean_of_the_seeds_moving_averages(full: Path) -> None:
    curves = pd.read_csv(full.parent / "curves.csv")
    means = curves[(curves["metric"] == "actor/entropy") & (curves["method"] == "cw_grpo")].set_index("step")["mean"]
    raw = [load_metrics(full.parents[1] / f"cw_grpo-{seed}")["actor/entropy"] for seed in (1, 2)]
    # 30 steps: a window of three, of which two are there at the ends.
    assert means[1] == pytest.approx(np.mean([values[[1, 2]].mean() for values in raw]))
    assert means[17] == pytest.approx(np.mean([values[[16, 17, 18]].mean() for values in raw]))
    assert "Moving averages are over 3 steps" in full.read_text()


def test_entropy_at_equal_reward_is_that_of_the_step_that_reaches_it(full: Path) -> None:
    table = pd.read_csv(full.parent / "entropy_at_equal_reward.csv")
    entropy = table["grpo"].str.split().str[0].astype(float)
    assert (table["reward"].diff().dropna() > 0).all() and (entropy.diff().dropna() <= 0).all()
