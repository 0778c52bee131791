# SPDX-License-Identifier: Apache-2.0
"""The tables and warnings on the terminal."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from made_scores import FOUND, HALF, RIGHT, WRONG, evaluation

from cw_grpo.evaluation import scores, tables
from cw_grpo.evaluation.terminal import WIDTH, render, show


def test_answers_that_could_not_be_compared_or_have_no_box_are_said(tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO", "cw_grpo")
    entry = {**FOUND[3], "bad_reference": 0.5, "timeout": 0.25, "no_answer": 0.9}
    scores.write(tmp_path / "grpo@100/own.json", entry)
    scores.write(tmp_path / "cw_grpo@100/own.json", {**FOUND[1], "no_answer": 0.5})
    show(tmp_path)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [
        "grpo@100 on own: 90.0% of the answers have no box that the reward reads: check the prompt (--prompt) and "
        "reward.custom_reward_function.reward_kwargs.require_think",
        "grpo@100 on own: 50.0% of the answers count as wrong: their reference cannot be read",
        "grpo@100 on own: 25.0% of the answers count as wrong: comparing took too long",
    ]


def test_the_tables_fit_a_terminal_and_have_one_unit(tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO", "cw_grpo")
    names = ["aime24", "amc23", "math500", "minerva", "olympiadbench"]
    models = [("base", None), ("grpo", 100), ("cw_grpo_released", 50), ("cw_grpo_released", 100)]
    for method, step in models:
        for name in names:
            entry = evaluation(method, step, name, [RIGHT, HALF, WRONG])
            scores.write(tmp_path / f"{tables.label(method, step)}/{name}.json", entry)
    show(tmp_path)
    text = "\n".join(record.getMessage() for record in caplog.records)
    tabular = [line for line in text.splitlines() if not line.startswith("scores:")]
    assert max(map(len, tabular)) <= WIDTH == 100
    assert "<NA>" not in text and "nan" not in text and "None" not in text
    first = render(tables.table2(scores.read([tmp_path]))[0]).splitlines()
    assert [line.split()[0] for line in first if " to " in line][:3] == ["base", "grpo@100", "cw_grpo_released@100"]
    assert len(render(tables.scores_summary(scores.read([tmp_path]))).splitlines()) == 1 + 4 * len(names)
    every = pd.read_csv(tmp_path / "scores.csv")
    assert (every["pass@1"] == 50).all() and "<NA>" not in (tmp_path / "scores.csv").read_text()
