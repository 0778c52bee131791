"""Which columns of a table hold the question and the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cw_grpo.datasets.benchmarks import Benchmark


@dataclass(frozen=True)
class Columns:
    """The columns of the question and the answer; ``boxed``: the answer is the last box of that text."""

    question: str
    answer: str
    boxed: bool = False


def find_columns(
    names: Sequence[str], benchmark: Benchmark, *, question: str | None = None, answer: str | None = None
) -> Columns:
    """The columns to read: those given, or those whose names ``benchmarks.yaml`` knows.

    Raises:
        ValueError: a column is missing, or two could be meant; lists the columns and says how to name one.
    """
    here = f"the columns are: {', '.join(map(repr, names)) or 'none'}"

    def choose(what: str, given: str | None, candidates: Sequence[str]) -> str | None:
        if given is not None:
            if given not in names:
                raise ValueError(f"{benchmark.name}: no column {given!r} (--{what}-column); {here}")
            return given
        found = [name for name in candidates if name in names]
        if len(found) > 1:
            raise ValueError(
                f"{benchmark.name}: {' and '.join(map(repr, found))} could each be the {what}: say which with "
                f"--{what}-column; {here}"
            )
        return found[0] if found else None

    ask = choose("question", question, benchmark.question)
    if ask is None:
        raise ValueError(
            f"{benchmark.name}: no column for the question (looked for {', '.join(benchmark.question)}): name it with "
            f"--question-column; {here}"
        )
    reply = choose("answer", answer, benchmark.answer)
    if reply is not None:
        # A column named for solutions holds the answer in a box, also when it was asked for by that name.
        return Columns(ask, reply, boxed=reply in benchmark.solution)
    text = choose("answer", None, benchmark.solution)
    if text is None:
        looked = ", ".join([*benchmark.answer, *benchmark.solution])
        raise ValueError(
            f"{benchmark.name}: no column for the answer (looked for {looked}): name it with --answer-column; {here}"
        )
    return Columns(ask, text, boxed=True)
