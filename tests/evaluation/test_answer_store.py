# SPDX-License-Identifier: Apache-2.0
"""Answers on disk: cut off, broken, of other settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cw_grpo.evaluation import answer_store


def line(question: int, sample: int, text: str = "", tokens: int = 1, cut_off: bool = False) -> str:
    return json.dumps(dict(question=question, sample=sample, text=text, tokens=tokens, cut_off=cut_off)) + "\n"


def test_a_last_line_that_was_cut_off_is_asked_for_again(tmp_path: Path) -> None:
    path = tmp_path / "b.answers.jsonl"
    assert answer_store.read_answers(path) == {}
    path.write_text(line(0, 0, "é\u2028") + line(1, 0)[:-5])
    assert list(answer_store.read_answers(path)) == [(0, 0)]
    with path.open("a") as file:  # what goes on from there is read whole
        file.write(line(1, 0, "again"))
    assert {key: answer["text"] for key, answer in answer_store.read_answers(path).items()} == {
        (0, 0): "é\u2028",
        (1, 0): "again",
    }


@pytest.mark.parametrize("broken", ["{", "[]", '{"question": 0}', line(0, 0).replace('""', "null").strip()])
def test_another_line_that_is_not_an_answer_is_named(tmp_path: Path, broken: str) -> None:
    (tmp_path / "x").write_text(line(0, 0) + broken + "\n" + line(1, 0))
    with pytest.raises(ValueError, match="x:2 is not a valid answer: .*Delete the line to regenerate it"):
        answer_store.read_answers(tmp_path / "x")


def test_answers_with_other_settings_are_rejected_by_name(tmp_path: Path) -> None:
    shared = dict(sampling={"temperature": 0.6, "seed": 0}, benchmarks={"a": "1"}, models={"m": "1"})
    answer_store.check_settings(tmp_path, **{**shared, "sampling": {"temperature": 1.0}})
    answer_store.check_settings(tmp_path, **shared)  # nothing was answered yet
    path = answer_store.answers_file(tmp_path, "m", "a")
    path.parent.mkdir()
    path.write_text(line(0, 0))
    answer_store.check_settings(tmp_path, sampling=shared["sampling"], benchmarks={"b": "2"}, models={"n": "2"})
    changed = dict(sampling={"temperature": 1.0, "seed": 0}, benchmarks={"a": "x"}, models={"n": "x"})
    with pytest.raises(ValueError) as error:
        answer_store.check_settings(tmp_path, **changed)
    text = str(error.value)
    for named in ("sampling temperature: 0.6 there, 1.0 now", "benchmarks a: 1 there", "models n: 2 there", "--out"):
        assert named in text
    assert "seed" not in text
    answer_store.check_settings(tmp_path, **shared)  # as it was


def test_seeds_differ_and_stay() -> None:
    seeds = {
        answer_store.request_seed(s, b, q, k) for s in (0, 1) for b in ("a", "b") for q in range(3) for k in range(3)
    }
    assert len(seeds) == 36 and all(0 <= seed < 2**63 for seed in seeds)
    assert answer_store.request_seed(0, "aime24", 3, 1) == 2667031266958031674
