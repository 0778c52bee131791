# SPDX-License-Identifier: Apache-2.0
"""Tables 2 and 3 in the report."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from made_runs import make_run
from made_scores import FOUND

from cw_grpo.evaluation import scores
from cw_grpo.report import build


def test_the_report_has_the_tables_and_says_what_it_cannot_read(tmp_path: Path) -> None:
    for entry in FOUND:
        scores.write(tmp_path / f"eval/{entry['method']}@{entry['step']}/{entry['benchmark']}.json", entry)
    (tmp_path / "eval/data").mkdir()
    (tmp_path / "eval/data/aime24.json").write_text("[]")  # of somebody else
    (tmp_path / "eval/data/more.json").write_text("{}")
    assert len(scores.read([tmp_path / "eval"])) == len(FOUND)
    (tmp_path / "eval/grpo@100/own.answers.jsonl").touch()
    (tmp_path / "eval/grpo@100/own.json").rename(tmp_path / "own.json")
    (tmp_path / "eval/grpo@100/own.json").write_text("{}")
    with pytest.raises(ValueError, match="own.json does not hold scores"):
        scores.read([tmp_path / "eval"])
    (tmp_path / "own.json").rename(tmp_path / "eval/grpo@100/own.json")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    unreadable = [tmp_path / name for name in ("broken.json", "other.json", "empty", "none")]
    out = tmp_path / "out"
    html = build([make_run(tmp_path / "run", 3)], out, [tmp_path / "eval", *unreadable]).read_text()
    for text in ("Tables 2 and 3", "broken.json cannot be read as JSON", "other.json does not hold scores",
                 "empty: no scores", "none: there is no evaluation"):  # fmt: skip
        assert text in html
    table = pd.read_csv(out / "table2.csv").set_index("method")
    assert table["own"]["cw_grpo"] == "100.0 (100.0 to 100.0)"
    assert {path.name for path in out.glob("table*.csv")} == {"table2.csv", "table2_differences.csv", "table3.csv"}
    every = pd.read_csv(out / "evaluations.csv")
    assert len(every) == len(FOUND) and (every["pass@1"] == 50).all() and (every["pass@1 high"] == 75).all()
    assert "Tables 2 and 3" not in build([str(tmp_path / "run")], out).read_text()
