# SPDX-License-Identifier: Apache-2.0
"""Which columns of a table hold the question and the answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from cw_grpo.datasets.benchmarks import Benchmark

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Columns:
    """The columns of the question and the answer; ``boxed``: the answer is the last box of that text."""

    question: str
    answer: str
    boxed: bool = False

    def __str__(self) -> str:
        return f"columns {self.question!r}, {self.answer!r}{', its last box' if self.boxed else ''}"


def find_columns(
    names: Sequence[str], benchmark: Benchmark, *, question: str | None = None, answer: str | None = None
) -> Columns:
    """The columns to read: those given, or those found by the rule in the comment of ``benchmarks.yaml``.

    Args:
        names: the table's columns.
        benchmark: has the names to look for.
        question: a column's name, instead of looking.
        answer: a column's name, instead of looking.

    Raises:
        ValueError: a column is missing, or two could hold the answer; lists the columns and says how to name one.
    """
    here = f"the columns are: {', '.join(map(repr, names)) or 'none'}"
    for option, given in (("question", question), ("answer", answer)):
        if given is not None and given not in names:
            raise ValueError(f"{benchmark.name}: no column {given!r} (--{option}-column); {here}")

    def find(candidates: Sequence[str]) -> list[str]:
        return [name for candidate in candidates for name in names if name.casefold() == candidate]

    if question is None:
        questions = find(benchmark.question)
        if not questions:
            raise ValueError(
                f"{benchmark.name}: no column for the question (looked for {', '.join(benchmark.question)}): "
                f"name it with --question-column; {here}"
            )
        question = questions[0]
        if len(questions) > 1:
            logger.info(
                f"{benchmark.name}: {' and '.join(map(repr, questions))} could each be the question; {question!r} is "
                "first in benchmarks.yaml and is read (--question-column names another)"
            )
    if answer is None:
        answers = find(benchmark.answer) or find(benchmark.solution)
        if len(answers) > 1:
            raise ValueError(
                f"{benchmark.name}: {' and '.join(map(repr, answers))} could each be the answer: name one with "
                f"--answer-column; {here}"
            )
        if not answers:
            looked = ", ".join([*benchmark.answer, *benchmark.solution])
            raise ValueError(
                f"{benchmark.name}: no column for the answer (looked for {looked}): name it with --answer-column; "
                f"{here}"
            )
        answer = answers[0]
    # A column named for solutions holds the answer in a box, also if it was given by name.
    return Columns(question, answer, boxed=answer.casefold() in benchmark.solution)
