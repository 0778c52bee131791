# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: what is found, read and rejected."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_scores import CHAT, benchmark

from cw_grpo.datasets.rows import make_row
from cw_grpo.evaluation import questions


def test_benchmarks_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    known, own = benchmark(tmp_path / "aime24.parquet", ["1"]), benchmark(tmp_path / "own.parquet", ["2", "3"])
    found = questions.find(["aime24", str(own)], tmp_path)
    assert found == {"aime24": known, "own": own}
    read = questions.read("own", own)
    assert [(q.prompt, q.ground_truth, q.data_source) for q in read.rows] == [(CHAT, "2", "own"), (CHAT, "3", "own")]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["aime25"], "no such benchmark; there are aime24, amc23, math500, minerva, olympiadbench, or the path"),
        (["amc23"], "there is no .*amc23.parquet; `cw-grpo data paper amc23 --out .*amc23.parquet` makes it"),
        (["x/none.parquet"], "there is no x/none.parquet"),
        (["aime24", "aime24"], "aime24 is named twice"),
        ([], "names none"),
    ],
)
def test_benchmarks_that_are_not_there(tmp_path: Path, names: list[str], message: str) -> None:
    benchmark(tmp_path / "aime24.parquet", ["1"])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        questions.find(names, tmp_path)


def row(**changed: object) -> dict:
    return {**make_row("x", CHAT, "1", index=0, split="test", question="?"), **changed}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"problem": "?", "answer": "1"}], "no column data_source, prompt, reward_model; it has problem, answer"),
        ([row(), row(prompt=[])], "row 1: prompt must be a list of messages"),
        ([row(prompt="What?")], "row 0: prompt must be a list of messages"),
        ([row(), row(reward_model={"style": "rule", "ground_truth": " "})], "row 1: reward_model has no ground_truth"),
        ([row(reward_model="1")], "row 0: reward_model has no ground_truth"),
        ([row(reward_model={"ground_truth": ["1", "one"]})], "row 0: ground_truth must be text or a number.*not list"),
    ],
)
def test_a_file_with_other_columns_or_a_broken_row_is_rejected(tmp_path: Path, rows: list[dict], message: str) -> None:
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=message):
        questions.read("b", tmp_path / "b.parquet")


def test_a_file_that_is_not_parquet_or_empty_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("question,answer\n")
    with pytest.raises(ValueError, match="text.parquet is not a parquet table"):
        questions.read("text", tmp_path / "text.parquet")
    with pytest.raises(ValueError, match="no rows"):
        questions.read("none", benchmark(tmp_path / "none.parquet", []))
