# SPDX-License-Identifier: Apache-2.0
"""The paper's Tables 2 and 3 from files of scores (:mod:`cw_grpo.evaluation.scores`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cw_grpo.datasets import EVALUATED
from cw_grpo.intervals import average_interval

BASELINE = "grpo"
Scores = Sequence[dict[str, Any]]
SHARES = ("cut_off", "format", "no_answer", "timeout", "bad_reference")
"""Shares of the answers in a file of scores."""


def scores_frame(scores: Scores) -> pd.DataFrame:
    """One row per model and benchmark: shares in percent, lengths in tokens."""
    rows = []
    for entry in _ordered(scores):
        row = {"method": entry["method"], "step": entry["step"], "benchmark": entry["benchmark"],
               "questions": len(entry["questions"]), "samples": entry["samples"]}  # fmt: skip
        for name in ("pass@1", "pass@K"):
            row[name] = _percent(entry[name]["mean"])
            row |= {f"{name} {end}": _percent(entry[name][end]) for end in ("low", "high")}
        row["mean_tokens"] = entry["mean_tokens"]
        row |= {name: _percent(entry[name]) for name in SHARES}
        row |= {name: entry["settings"][name] for name in ("temperature", "max_tokens")}
        rows.append(row)
    return _frame(rows)


def scores_summary(scores: Scores) -> pd.DataFrame:
    """The part of :func:`scores_frame` for a terminal, as text; Table 2 has pass@1."""
    rows = []
    for entry in _ordered(scores):
        rows.append({"method": entry["method"], "step": entry["step"], "benchmark": entry["benchmark"],
                     "questions": len(entry["questions"]), "samples": entry["samples"],
                     "pass@K": f"{100 * entry['pass@K']['mean']:.1f}", "tokens": f"{entry['mean_tokens']:.0f}",
                     **{name: f"{100 * entry[name]:.1f}" for name in ("cut_off", "format", "no_answer")}})  # fmt: skip
    return _frame(rows)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def label(method: str, step: int | None) -> str:
    """A model's, as `cw-grpo eval` names its directory."""
    return method if step is None else f"{method}@{step}"


def table2(scores: Scores) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Table 2: one row per method, of its last step if it has several; pass@1 in percent with 95% intervals.

    Returns:
        the table; the same differences to the method ``grpo``, paired question by question, in points; and why some
        are missing.
    """
    last: dict[str, tuple[int, dict[str, dict[str, Any]]]] = {}
    for (method, step), found in _by_model(scores).items():
        if method not in last or step > last[method][0]:
            last[method] = step, found
    names = _benchmarks(scores)
    levels, differences, missing = [], [], []
    baseline_step, baseline = last.get(BASELINE, (-1, {}))
    if not baseline:
        missing.append(f"differences to {BASELINE}: no model of that name (NAME=PATH names one)")
    for method, (step, found) in last.items():
        first: dict[str, Any] = {"method": method, "step": step if step >= 0 else None}
        values = {name: _accuracies(found[name]) for name in found}
        levels.append(first | _row(values, names))
        if not baseline or method == BASELINE:
            continue
        paired = {}
        for name in (name for name in names if name in found):
            if name not in baseline:
                at = f" at its last step {baseline_step}" if baseline_step >= 0 else ""
                missing.append(f"{method} against {BASELINE} on {name}: {BASELINE} has no evaluation there{at}")
            elif why := _why_unpaired(found[name], baseline[name]):
                missing.append(f"{method} against {BASELINE} on {name}: {why}")
            else:
                paired[name] = values[name] - _accuracies(baseline[name])
        differences.append(first | _row(paired, names, sign="+"))
    return _frame(levels), _frame(differences), missing


def table3(scores: Scores) -> pd.DataFrame:
    """Table 3: one row per method and step, of the methods that have several; empty if there is none."""
    models = _by_model(scores)
    methods = [method for method, _ in models]
    names = _benchmarks(scores)
    return _frame(
        [
            {"method": method, "step": step} | _row({n: _accuracies(s) for n, s in found.items()}, names, average=False)
            for (method, step), found in models.items()
            if methods.count(method) > 1
        ]
    )


def _by_model(scores: Scores) -> dict[tuple[str, int], dict[str, dict[str, Any]]]:
    """Scores by benchmark of each method and step; no step is -1.

    Raises:
        ValueError: two of the same method, step and benchmark.
    """
    models: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for entry in _ordered(scores):
        model = entry["method"], -1 if entry["step"] is None else entry["step"]
        found = models.setdefault(model, {})
        if entry["benchmark"] in found:
            raise ValueError(f"two evaluations of {entry['method']}, step {entry['step']}, on {entry['benchmark']}")
        found[entry["benchmark"]] = entry
    return models


def _ordered(scores: Scores) -> Scores:
    """Models without a training step first, then grpo, then the other methods; steps and benchmarks in order."""
    methods = list(dict.fromkeys(entry["method"] for entry in scores))
    names = _benchmarks(scores)
    return sorted(
        scores,
        key=lambda entry: (
            entry["step"] is not None,
            entry["method"] != BASELINE,
            methods.index(entry["method"]),
            -1 if entry["step"] is None else entry["step"],
            names.index(entry["benchmark"]),
        ),
    )


def _benchmarks(scores: Scores) -> list[str]:
    """The names that occur, the paper's first."""
    names = dict.fromkeys(entry["benchmark"] for entry in scores)
    return [*(name for name in EVALUATED if name in names), *(name for name in names if name not in EVALUATED)]


def _accuracies(entry: dict[str, Any]) -> np.ndarray:
    """Mean accuracy of each question over its samples."""
    return np.array([np.mean(row["acc"]) for row in entry["questions"]])


def _why_unpaired(entry: dict[str, Any], other: dict[str, Any]) -> str | None:
    """Why two evaluations cannot be paired; None if they can."""
    if entry["benchmark_sha256"] != other["benchmark_sha256"]:
        return "of different files"
    settings, others = entry["settings"], other["settings"]
    differing = [
        f"{key} {settings.get(key)} and {others.get(key)}"
        for key in sorted(settings.keys() | others.keys())
        if settings.get(key) != others.get(key)
    ]
    return f"made with different settings ({'; '.join(differing)})" if differing else None


def _row(
    values: dict[str, np.ndarray], names: Sequence[str], *, sign: str = "", average: bool = True
) -> dict[str, str]:
    row = {name: _cell([values[name]], sign) if name in values else "-" for name in names}
    if average:
        row["Avg."] = _cell([values[name] for name in names], sign) if set(names) <= set(values) else "-"
    return row


def _cell(samples: Sequence[np.ndarray], sign: str) -> str:
    low, high = average_interval(samples)
    interval = "" if math.isnan(low) else f" ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"
    return f"{100 * np.mean([values.mean() for values in samples]):{sign}.1f}{interval}"


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    if "step" in frame:
        steps = [None if pd.isna(step) else int(step) for step in frame["step"]]
        frame["step"] = pd.Series(steps, dtype=object)  # an integer or nothing, without pandas' <NA>
        frame = frame.drop(columns="step") if frame["step"].isna().all() else frame
    return frame
