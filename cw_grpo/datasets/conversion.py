# SPDX-License-Identifier: Apache-2.0
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
from cw_grpo.datasets.references import IN_JSON, doubts, has_lost_backslash, has_several_boxes, recipe_reward
from cw_grpo.datasets.rows import make_row
from cw_grpo.datasets.values import Unusable, answer_of, question_of

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
    doubtful: dict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    """Rows that may not be what was meant, with the text in doubt, by reason; they are kept."""
    repeated: list[tuple[int, int]] = field(default_factory=list)
    """Rows whose question an earlier row has, with that row; they are kept."""

    def report(self) -> Iterator[str]:
        """One line for each thing that a user should know."""
        for reason, numbers in sorted(self.skipped.items()):
            yield f"skipped {len(numbers)}: {reason} (row {listed(numbers)})"
        for reason, references in sorted(self.doubtful.items()):
            examples = listed([f"{row}: {_shortened(reference)}" for row, reference in references])
            yield f"kept {len(references)} in doubt: {reason} (row {examples})"
        if self.repeated:
            pairs = listed([f"{row} as {first}" for row, first in self.repeated])
            yield f"kept {len(self.repeated)}: the same question as an earlier row (row {pairs})"


def convert(
    benchmark: Benchmark, source: Sequence[Mapping[str, Any]], settings: ConversionSettings
) -> ConversionResult:
    """Rows of verl's schema from a benchmark's own; ``data_source`` is its name.

    Raises:
        ValueError: no rows, no such columns, or not one usable row.
        RuntimeError: the reward does not start, so that it cannot be asked about the references.
    """
    if not source:
        raise ValueError(f"{benchmark.name}: no rows")
    names = list(dict.fromkeys(name for row in source for name in row))
    columns = find_columns(names, benchmark, question=settings.question_column, answer=settings.answer_column)
    result = ConversionResult(columns, len(source))
    reward = recipe_reward()  # a reference is read from a box as a response's answer is
    seen: dict[str, int] = {}
    for index, row in enumerate(tqdm(source, desc=benchmark.name, unit="question", disable=None, delay=2)):
        try:
            question = question_of(row.get(columns.question))
            answer = solution = answer_of(row.get(columns.answer))
            if columns.boxed and not (answer := reward.last_box(solution) or ""):
                raise Unusable("no \\boxed{} in the solution")
            if len(answer) > reward.BOX_LIMIT:
                raise Unusable(f"the answer is longer than the {reward.BOX_LIMIT} characters that the reward reads")
            chat = settings.prompt.render({"question": question})
            if settings.tokenizer is not None and _num_tokens(settings.tokenizer, chat) > settings.max_prompt_length:
                raise Unusable(f"the prompt has more than {settings.max_prompt_length} tokens")
        except Unusable as error:
            result.skipped[str(error)].append(index)
            continue
        if has_lost_backslash(question):
            result.doubtful["the question has a control character" + IN_JSON].append((index, question))
        if columns.boxed and has_several_boxes(solution):
            result.doubtful["the solution has different boxes, and the last is taken"].append((index, answer))
        if (first := seen.setdefault(question, index)) != index:
            result.repeated.append((index, first))
        result.rows.append(
            make_row(benchmark.name, chat, answer, index=index, split=benchmark.split, question=question)
        )
    if not result.rows:
        raise ValueError(
            f"{benchmark.name}: none of {result.num_read} rows can be used ({columns}): {'; '.join(result.report())}"
        )
    references = {row["extra_info"]["index"]: row["reward_model"]["ground_truth"] for row in result.rows}
    reasons = doubts(references.values())
    for index, reference in references.items():
        if reference in reasons:
            result.doubtful[reasons[reference]].append((index, reference))
    return result


def _shortened(reference: str) -> str:
    return repr(reference if len(reference) <= 40 else reference[:40] + " ...")


def _num_tokens(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, str]]) -> int:
    return len(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False))
