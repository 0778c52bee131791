"""The paper's Tables 2 and 3 from what `cw-grpo eval` wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from cw_grpo.evaluation import scores, tables
from cw_grpo.report.parts import Part


def evaluations(paths: Sequence[Path], out: Path) -> Part:
    """The tables of files and folders that `cw-grpo eval` wrote."""
    part = Part(
        "Evaluation (Tables 2 and 3)",
        "pass@1 in percent: mean over samples and questions, with 95% bootstrap intervals over questions. Differences "
        "are to grpo, in points, paired question by question; a method with several checkpoints stands with its last "
        "one in table2, and with all in table3.",
    )
    for name, frame in _frames(paths, part.missing):
        part.table(out, name, frame)
    return part


def _frames(paths: Sequence[Path], missing: list[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """The tables by name, of files and folders of `cw-grpo eval`; what cannot be shown is added to ``missing``."""
    found = []
    for path in paths:
        try:
            found += scores.read([path])
        except (ValueError, OSError) as error:
            missing.append(str(error))
    if not found:
        return
    try:
        levels, differences, lacking = tables.table2(found)
    except ValueError as error:
        missing.append(f"{error}: leave one of them out")
        return
    missing += lacking
    every = {"table2": levels, "table2_differences": differences, "table3": tables.table3(found)}
    every["evaluations"] = tables.long(found)
    yield from ((name, frame) for name, frame in every.items() if len(frame))
