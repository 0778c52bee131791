# SPDX-License-Identifier: Apache-2.0
"""Columns of the question and the answer: found by name, or given."""

from __future__ import annotations

import logging

import pytest

from cw_grpo.datasets.benchmarks import benchmarks
from cw_grpo.datasets.columns import Columns, find_columns


@pytest.mark.parametrize(
    ("names", "given", "columns"),
    [
        (["id", "problem", "solution", "answer", "url"], {}, Columns("problem", "answer")),
        (["question", "final_answer", "solution"], {}, Columns("question", "final_answer")),
        (["problem", "solution"], {}, Columns("problem", "solution", boxed=True)),
        (["problem", "answer", "solution"], {"answer": "solution"}, Columns("problem", "solution", boxed=True)),
        (["ID", "Problem", "Solution", "Answer"], {}, Columns("Problem", "Answer")),
        (["ID", "Problem", "Solution"], {}, Columns("Problem", "Solution", boxed=True)),
        (["problem", "question", "a"], {"question": "question", "answer": "a"}, Columns("question", "a")),
    ],
)
def test_columns_are_found_or_given(names, given, columns) -> None:
    assert find_columns(names, benchmarks()["minerva"], **given) == columns


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        (["text", "answer"], {}, "no column for the question .*--question-column; the columns are: 'text', 'answer'"),
        (["problem", "gold"], {}, "no column for the answer .*--answer-column; the columns are: 'problem', 'gold'"),
        (
            ["problem", "answer", "final_answer"],
            {},
            "'answer' and 'final_answer' could each be the answer: .*--answer-",
        ),
        (["problem", "answer"], {"answer": "gold"}, "no column 'gold' .--answer-column.; the columns are: 'problem'"),
    ],
)
def test_a_wrong_guess_is_an_error_that_lists_the_columns(names, given, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_columns(names, benchmarks()["minerva"], **given)


@pytest.mark.parametrize(
    ("name", "first"),
    [("aime24", "problem"), ("amc23", "problem"), ("minerva", "problem"), ("olympiadbench", "question")],
)
def test_of_two_columns_for_the_question_the_first_in_the_list_is_read(name: str, first: str, caplog) -> None:
    caplog.set_level(logging.INFO, logger="cw_grpo")
    assert find_columns(["question", "problem", "answer"], benchmarks()[name]) == Columns(first, "answer")
    assert f"{name}: " in caplog.text and f"could each be the question; '{first}' is first in benchm" in caplog.text
    caplog.clear()
    find_columns(["question", "problem", "answer"], benchmarks()[name], question="question")
    find_columns(["question", "answer"], benchmarks()[name])
    assert not caplog.records
