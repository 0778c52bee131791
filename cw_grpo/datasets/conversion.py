"""From a benchmark's own rows to verl's schema, with a report on every row that is not as it should be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from cw_grpo.datasets.benchmarks import Benchmark
from cw_grpo.datasets.columns import Columns, find_columns
from cw_grpo.datasets.messages import listed
from cw_grpo.datasets.prompts import Prompt
from cw_grpo.datasets.references import load_reward
from cw_grpo.datasets.rows import make_row
from cw_grpo.datasets.values import Unusable, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ConversionSettings:
    """How rows are converted."""

    prompt: Prompt
    question_column: str | None = None
    """By default found by the names in ``benchmarks.yaml``."""
    answer_column: str | None = None
    """By default found by the names in ``benchmarks.yaml``."""
    tokenizer: PreTrainedTokenizerBase | None = None
    """If given, rows are skipped whose prompt in its chat template has more than ``max_prompt_length`` tokens."""
    max_prompt_length: int = 512
    """verl's ``data.max_prompt_length``."""


@dataclass
class ConversionResult:
    """What became of a benchmark's rows. Rows are numbered from 0, and ``extra_info.index`` keeps that number."""

    columns: Columns
    num_read: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Row numbers by reason."""
    repeated: list[tuple[int, int]] = field(default_factory=list)
    """Rows whose question an earlier row has, with that row; they are kept."""

    def report(self) -> Iterator[str]:
        """One line for each thing that a user should know."""
        for reason, numbers in sorted(self.skipped.items()):
            yield f"skipped: {len(numbers)} with {reason}: row {listed(numbers)}"
        if self.repeated:
            pairs = listed([f"{row} (as {first})" for row, first in self.repeated])
            yield f"kept: {len(self.repeated)} with the question of an earlier row: row {pairs}"


def convert(
    benchmark: Benchmark, source: Sequence[Mapping[str, Any]], settings: ConversionSettings
) -> ConversionResult:
    """Rows of verl's schema from a benchmark's own; ``data_source`` is its name.

    Raises:
        ValueError: no rows, no such columns, or not one usable row.
    """
    if not source:
        raise ValueError(f"{benchmark.name}: no rows")
    names = list(dict.fromkeys(name for row in source for name in row))
    columns = find_columns(names, benchmark, question=settings.question_column, answer=settings.answer_column)
    result = ConversionResult(columns, len(source))
    reward = load_reward()  # a reference is read from a box as a response's answer is
    seen: dict[str, int] = {}
    for index, row in enumerate(tqdm(source, desc=benchmark.name, unit="question", disable=None, delay=2)):
        try:
            question = text_of(row.get(columns.question), "question")
            answer = text_of(row.get(columns.answer), "answer")
            if columns.boxed and not (answer := reward.last_box(answer) or ""):
                raise Unusable("no \\boxed{} in the solution")
            if len(answer) > reward.BOX_LIMIT:
                raise Unusable(f"answer longer than the {reward.BOX_LIMIT} characters that the reward reads")
            chat = settings.prompt.render({"question": question})
            if settings.tokenizer is not None and _num_tokens(settings.tokenizer, chat) > settings.max_prompt_length:
                raise Unusable(f"prompt of more than {settings.max_prompt_length} tokens")
        except Unusable as error:
            result.skipped[str(error)].append(index)
            continue
        if (first := seen.setdefault(question, index)) != index:
            result.repeated.append((index, first))
        result.rows.append(
            make_row(benchmark.name, chat, answer, index=index, split=benchmark.split, question=question)
        )
    if not result.rows:
        raise ValueError(f"{benchmark.name}: none of {result.num_read} rows can be used: {'; '.join(result.report())}")
    return result


def _num_tokens(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, str]]) -> int:
    return len(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False))
