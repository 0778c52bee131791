# SPDX-License-Identifier: Apache-2.0
"""The tables of an evaluation on the terminal, and as CSV."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd

from cw_grpo.evaluation import scores, tables
from cw_grpo.files import new_file

logger = logging.getLogger(__name__)

WIDTH = 100
"""Columns of the terminal that a table takes at most; what does not fit goes below, in another block of rows."""

SHARES = {
    "no_answer": "have no box that the reward reads: check the prompt (--prompt) and "
    "reward.custom_reward_function.reward_kwargs.require_think",
    "bad_reference": "count as wrong: their reference cannot be read",
    "timeout": "count as wrong: comparing took too long",
}
"""What it means if answers have a part of the reward."""
MOST = {"no_answer": 0.5}
"""Shares that are worth a warning only above this."""


def show(out: Path) -> None:
    """Log the tables of all that a directory holds, and write ``scores.csv``."""
    found = scores.read([out])
    every = tables.scores_frame(found)
    with new_file(out / "scores.csv") as temporary:
        every.to_csv(temporary, index=False)
    logger.info("\nshares in percent\n%s", render(tables.scores_summary(found)))
    levels, differences, missing = tables.table2(found)
    logger.info("\npass@1 in percent, 95%% intervals over questions (Table 2)\n%s", render(levels))
    if len(differences):
        logger.info("\nagainst %s, in points, question by question\n%s", tables.BASELINE, render(differences))
    if len(steps := tables.table3(found)):
        logger.info("\npass@1 in percent by training step (Table 3)\n%s", render(steps))
    for line in missing:
        logger.info(f"not shown: {line}")
    for entry in found:
        for part, meaning in SHARES.items():
            if entry[part] > MOST.get(part, 0):
                label = tables.label(entry["method"], entry["step"])
                logger.warning(f"{label} on {entry['benchmark']}: {entry[part]:.1%} of the answers {meaning}")
    logger.info(f"\nscores: {out}")


def render(frame: pd.DataFrame) -> str:
    """A table in text; the model's name stands at the left of every block."""
    steps = frame["step"] if "step" in frame else [None] * len(frame)
    models = [tables.label(method, step) for method, step in zip(frame["method"], steps, strict=True)]
    cells = frame.drop(columns=["method", "step"], errors="ignore").astype(object)
    return cells.where(cells.notna(), "-").set_axis(models).to_string(line_width=WIDTH)
