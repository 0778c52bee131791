# SPDX-License-Identifier: Apache-2.0
"""Scores against numbers by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_scores import FOUND, benchmark

from cw_grpo.datasets.references import load_reward
from cw_grpo.evaluation import questions, scores
from cw_grpo.report.evaluations import read_evaluations


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> dict:
    """Four questions, two samples each: both right, one right, none right, none right and cut off."""
    path = benchmark(tmp_path_factory.mktemp("b") / "amc23.parquet", ["1/2", "2", "3", "4"])
    texts = [r"\boxed{0.5}", r"\boxed{\frac{1}{2}}", r"\boxed{2}", r"\boxed{5}", "3", r"\boxed{1}", "", "4" * 9]
    there = {
        (i // 2, i % 2): {"text": f"<think>a</think>{text}", "tokens": 10 * i, "cut_off": i > 5}
        for i, text in enumerate(texts)
    }
    reward = load_reward()
    result = scores.score(reward, {}, questions.read("amc23", path), there, 2, label="m")
    reward.close_pools()
    return result


def test_scores_against_numbers_by_hand(scored: dict) -> None:
    assert [row["acc"] for row in scored["questions"]] == [[1, 1], [1, 0], [0, 0], [0, 0]]
    assert scored["pass@1"]["mean"] == 3 / 8 and scored["pass@K"]["mean"] == 2 / 4
    assert scored["pass@1"]["low"] < 3 / 8 < scored["pass@1"]["high"]
    assert (scored["mean_tokens"], scored["cut_off"]) == (35, 2 / 8)
    assert (scored["format"], scored["no_answer"]) == (7 / 8, 3 / 8)
    assert scored["timeout"] == scored["bad_reference"] == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pass@K": None}, "whole scores: no pass@K"),
        ({"settings": None, "questions": None}, "whole scores: no questions, settings"),
        ({"cut_off": float("inf")}, "finite numbers"),
        ({"questions": [{"acc": [1.0, float("nan")]}]}, "finite numbers"),
        ({"questions": []}, "finite numbers"),
        ({"questions": [1]}, "finite numbers"),
        ({"format": "boxed"}, "finite numbers"),
    ],
)
def test_broken_scores_are_named_and_leave_the_report(tmp_path: Path, changed: dict, message: str) -> None:
    entry = {key: value for key, value in {**FOUND[0], **changed}.items() if value is not None}
    (tmp_path / "own.json").write_text(json.dumps(entry))
    with pytest.raises(ValueError, match=f"own.json.*{message}"):
        scores.read([tmp_path / "own.json"])
    found, skipped = read_evaluations([tmp_path / "own.json"])
    assert found == [] and len(skipped) == 1
