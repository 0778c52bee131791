# SPDX-License-Identifier: Apache-2.0
"""Questions from the package ``reasoning-gym``, which generates them and can check any answer."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from tqdm import tqdm

from cw_grpo.datasets.prompts import Prompt
from cw_grpo.datasets.rows import make_row


def reasoning_gym_rows(
    task: str, *, size: int, seed: int, split: str, prompt: Prompt, options: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of verl's schema from a task of ``reasoning-gym``.

    Question ``i`` of most tasks depends on ``seed + i`` alone: two files whose ranges of seeds overlap share questions.

    Args:
        task: its name, for instance ``chain_sum``.
        size: number of questions.
        seed: of the task's random numbers.
        split: written to ``extra_info.split``.
        prompt: may use ``question`` and the task's metadata, for instance ``expression``.
        options: settings of the task.

    Raises:
        ValueError: an unknown task, option or value; lists the known ones.
    """
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    options = dict(options or {})
    if task not in DATASETS:
        close = difflib.get_close_matches(task, DATASETS, n=5) or sorted(DATASETS)
        raise ValueError(f"reasoning-gym has no task {task!r}; for instance: {', '.join(close)}")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    known = [name for name in inspect.signature(DATASETS[task][1]).parameters if name not in ("seed", "size")]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"task {task} has no option {', '.join(unknown)}; its options are: {', '.join(known)}")
    try:
        dataset = reasoning_gym.create_dataset(task, size=size, seed=seed, **options)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"task {task} rejects {options}: {error}") from error
    for index in tqdm(range(size), desc=task, unit="question", disable=None, delay=2):
        entry = dataset[index]
        chat = prompt.render({**entry["metadata"], "question": entry["question"]})
        yield make_row(
            f"reasoning_gym/{task}",
            chat,
            str(entry["answer"]),
            index=index,
            split=split,
            question=entry["question"],
            values=entry["metadata"],
        )
