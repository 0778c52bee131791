# SPDX-License-Identifier: Apache-2.0
"""The paper's Tables 2 and 3."""

from __future__ import annotations

import pytest
from made_scores import FOUND, HALF, RIGHT, evaluation

from cw_grpo.evaluation import tables


def test_table_2_has_the_last_steps_and_paired_differences_to_grpo() -> None:
    levels, differences, missing = tables.table2(FOUND)
    assert list(levels.columns) == ["method", "step", "aime24", "own", "Avg."]
    assert levels["method"].tolist() == ["base", "grpo", "cw_grpo"]
    assert levels["step"].tolist() == [None, 100, 100]
    base, grpo, cw = levels.to_dict("records")
    assert cw["own"] == "100.0 (100.0 to 100.0)" and cw["aime24"].startswith("50.0 (")
    assert cw["Avg."].startswith("75.0 (") and grpo["Avg."].startswith("31.2 (")
    assert (base["aime24"], base["Avg."]) == ("-", "-")
    # Question by question: own +0.5, +0.5; aime24 +0.5, +0.5, +0.5, 0.
    assert differences["method"].tolist() == ["base", "cw_grpo"]
    assert differences["own"].tolist() == ["-50.0 (-50.0 to -50.0)", "+50.0 (+50.0 to +50.0)"]
    assert differences["aime24"][1].startswith("+37.5 (+12.5 to +50.0)")
    assert differences["Avg."][1].startswith("+43.8 (")
    assert missing == []


def test_table_3_has_all_steps_of_methods_with_several() -> None:
    table = tables.table3(FOUND)
    assert list(table.columns) == ["method", "step", "aime24", "own"]
    assert table[["method", "step"]].to_numpy().tolist() == [["cw_grpo", 50], ["cw_grpo", 100]]
    assert table["aime24"][0] == "-" and table["own"][0].startswith("75.0 (")
    assert tables.table3(FOUND[3:]).empty


def test_evaluations_that_differ_are_not_paired() -> None:
    other = evaluation("cw_grpo", 100, "own", [RIGHT, RIGHT], temperature=1.0)
    elsewhere = {**evaluation("kl_cov", 100, "own", [RIGHT, RIGHT]), "benchmark_sha256": "x"}
    _, differences, missing = tables.table2([FOUND[3], other, elsewhere])
    assert (differences[["own", "Avg."]] == "-").all(axis=None)
    assert missing == [
        "cw_grpo against grpo on own: made with different settings (temperature 1.0 and 0.6)",
        "kl_cov against grpo on own: of different files",
    ]
    assert "no model of that name" in tables.table2(FOUND[:1])[2][0]
    _, differences, missing = tables.table2([*FOUND[:4], evaluation("grpo", 50, "aime24", [HALF] * 4)])
    assert differences["aime24"].tolist() == ["-"] and differences["own"][0].startswith("+50.0")
    assert missing == ["cw_grpo against grpo on aime24: grpo has no evaluation there at its last step 100"]
    with pytest.raises(ValueError, match="two evaluations of grpo, step 100, on own"):
        tables.table2([FOUND[3], FOUND[3]])
