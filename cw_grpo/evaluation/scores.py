# SPDX-License-Identifier: Apache-2.0
"""Scoring answers with the recipe's reward, and the statistics of a benchmark."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tqdm import tqdm

from cw_grpo.evaluation.answer_store import Key, answers_file, read_json
from cw_grpo.evaluation.questions import Questions
from cw_grpo.files import new_file
from cw_grpo.intervals import bootstrap_interval

KIND = "cw-grpo evaluation"
"""The value of ``kind`` in a file of scores."""
COUNTED = ("format", "no_answer", "timeout", "bad_reference")
"""Parts of the reward beside ``acc`` whose shares are kept."""


def score(
    reward: ModuleType,
    kwargs: Mapping[str, Any],
    questions: Questions,
    answers: Mapping[Key, Mapping[str, Any]],
    samples: int,
    *,
    label: str,
) -> dict[str, Any]:
    """Accuracies by question and their statistics; shares and accuracies are fractions.

    ``pass@1`` is the mean accuracy over samples and questions; ``pass@K`` the share of questions that one of the K
    samples answers: with K samples in all it needs no estimator. Intervals are bootstrap ones over questions, None
    for a single question. ``mean_tokens`` counts the end token.

    Args:
        reward: the recipe's.
        kwargs: its settings (`reward.custom_reward_function.reward_kwargs`).
        questions: of the benchmark.
        answers: every question's samples 0 to ``samples`` - 1.
        samples: K.
        label: the model's, for the progress bar.
    """

    def one(key: Key) -> dict[str, Any]:
        question = questions.rows[key[0]]
        return reward.compute_score(question.data_source, answers[key]["text"], question.ground_truth, **kwargs)

    keys = [(question, sample) for question in range(len(questions.rows)) for sample in range(samples)]
    with ThreadPoolExecutor(reward.Settings(**kwargs).processes) as pool:
        results = list(tqdm(pool.map(one, keys), total=len(keys), desc=f"{label}: scoring {questions.name}", delay=2))
    by_question = [
        {
            "question": question,
            "acc": [result["acc"] for result in results[start : start + samples]],
            "tokens": [answers[question, sample]["tokens"] for sample in range(samples)],
            "cut_off": [answers[question, sample]["cut_off"] for sample in range(samples)],
        }
        for question, start in enumerate(range(0, len(keys), samples))
    ]
    accuracies = np.array([row["acc"] for row in by_question])
    return {
        "samples": samples,
        "pass@1": _with_interval(accuracies.mean(axis=1)),
        "pass@K": _with_interval(accuracies.max(axis=1)),
        "mean_tokens": float(np.mean([row["tokens"] for row in by_question])),
        "cut_off": float(np.mean([row["cut_off"] for row in by_question])),
        **{name: float(np.mean([result[name] for result in results])) for name in COUNTED},
        "questions": by_question,
    }


def _with_interval(values: Sequence[float]) -> dict[str, float | None]:
    low, high = (None if math.isnan(end) else end for end in bootstrap_interval(values))
    return {"mean": float(np.mean(values)), "low": low, "high": high}


def write(path: Path, scores: Mapping[str, Any]) -> None:
    """Write a file of scores, whole or not at all."""
    with new_file(path) as temporary:
        temporary.write_text(json.dumps({"kind": KIND, **scores}, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The scores in files, and in the directories of `cw-grpo eval`.

    Raises:
        ValueError: a file does not hold scores, or a directory has none; names it.
        FileNotFoundError: there is no such file or directory.
    """
    scores = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: there is no evaluation")
        files = sorted(path.glob("*/*.json")) if path.is_dir() else [path]
        found = [value for file in files if (value := _read(file, named=file == path)) is not None]
        if not found:
            raise ValueError(f"{path}: no scores of `cw-grpo eval` in it (no MODEL/BENCHMARK.json)")
        scores += found
    return scores


def _read(file: Path, *, named: bool) -> dict[str, Any] | None:
    """The scores in a file; None for another JSON file in a directory, which neither was ``named`` nor has answers."""
    foreign = not named and not answers_file(file.parents[1], file.parent.name, file.stem).exists()
    try:
        value = read_json(file)
        if value.get("kind") != KIND:
            raise ValueError(f"{file} does not hold scores of `cw-grpo eval`")
        _check(value, file)
    except ValueError:
        if foreign:
            return None
        raise
    return value


def _check(scores: Mapping[str, Any], file: Path) -> None:
    """Check that a file of scores has what the tables need.

    Raises:
        ValueError: it does not; names the file and what it lacks.
    """
    needed = {"method", "step", "benchmark", "benchmark_sha256", "samples", "pass@1", "pass@K", "mean_tokens",
              "cut_off", "questions", "settings", *COUNTED}  # fmt: skip
    if lacking := sorted(needed - scores.keys()):
        raise ValueError(f"{file} does not hold whole scores: no {', '.join(lacking)}")
    try:
        values = [value for row in scores["questions"] for value in row["acc"]]
        values += [scores[name] for name in ("mean_tokens", "cut_off", *COUNTED)]
        whole = bool(scores["questions"]) and all(map(math.isfinite, values))
    except (TypeError, LookupError):
        whole = False
    if not whole:
        raise ValueError(f"{file}: its accuracies and shares must be finite numbers")
