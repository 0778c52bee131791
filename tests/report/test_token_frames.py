# SPDX-License-Identifier: Apache-2.0
"""The numbers from recorded tokens."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from cw_grpo.report.token_frames import entropy_fits, pass_rates


def test_the_quadrants_share_all_tokens_with_an_advantage(full: Path) -> None:
    table = pd.read_csv(full.parent / "quadrants.csv")
    for _, part in table.groupby("method"):
        assert part["share of tokens"].sum() == pytest.approx(1)
        assert (part["mean weight"] * part["share of tokens"]).sum() == pytest.approx(1, abs=0.1)


def test_what_is_kept_by_pass_rate_by_hand() -> None:
    records = pd.DataFrame(
        {
            "run": 0, "step": 1, "group": "g", "response": [0, 1, 2, 3, 4], "reward": [1.0, 0.0, 0.0, 0.0, 0.0],
            "advantage": [4.0, -1.0, -1.0, -1.0, -1.0], "weight": [0.5, 1.0, 1.0, 1.0, 2.0],
        }
    )  # fmt: skip
    [row] = pass_rates(records).to_dict("records")
    assert row["pass rate"] == "0 to 0.25" and row["share of tokens"] == 1
    assert row["kept, positive advantage"] == 0.5 and row["kept, negative advantage"] == 1.25


def test_no_line_goes_through_two_points() -> None:
    points = pd.DataFrame(
        {"method": list("aabbb"), "predicted": [1.0, 2.0, 1.0, 2.0, 3.0], "change": [0, 1, 2, 4, 6.0]}
    )
    [fit] = entropy_fits(points).to_dict("records")
    assert fit["method"] == "b" and fit["slope"] == pytest.approx(2) and fit["R^2"] == pytest.approx(1)
