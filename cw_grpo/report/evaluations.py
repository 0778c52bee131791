# SPDX-License-Identifier: Apache-2.0
"""The paper's Tables 2 and 3 from what `cw-grpo eval` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cw_grpo.evaluation import scores, tables
from cw_grpo.report.section import ReportSection


def evaluations(found: Sequence[dict[str, Any]], out: Path) -> ReportSection:
    """The tables of evaluations that were read."""
    section = ReportSection(
        "Evaluation (Tables 2 and 3)",
        "In percent: pass@1 is the mean over samples and questions, with 95% bootstrap intervals over questions.",
    )
    if not found:
        section.notes.append("Not shown: no evaluation can be read.")
        return section
    try:
        levels, differences, missing = tables.table2(found)
    except ValueError as error:
        section.notes.append(f"Not shown: {error}. Leave one of them out.")
        return section
    section.notes += [f"Not shown: {line}." for line in missing]
    section.table(out, "table2", levels, "pass@1 of each method's last checkpoint")
    section.table(out, "table2_differences", differences,
                  f"Differences to {tables.BASELINE} in points, paired question by question")  # fmt: skip
    section.table(out, "table3", tables.table3(found), "pass@1 by training step")
    section.table(out, "evaluations", tables.scores_frame(found), "All scores")
    return section


def read_evaluations(paths: Sequence[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """The scores in files and directories of `cw-grpo eval`; and what was skipped."""
    found: list[dict[str, Any]] = []
    skipped: list[str] = []
    for path in paths:
        try:
            found += scores.read([path])
        except (ValueError, OSError) as error:
            skipped.append(str(error))
    return found, skipped
