"""Columns of the question and the answer: found by name, or given."""

from __future__ import annotations

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
            ["problem", "question", "answer"],
            {},
            "'problem' and 'question' could each be the question: .*--question-col",
        ),
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
