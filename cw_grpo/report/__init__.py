# SPDX-License-Identifier: Apache-2.0
"""A self-contained HTML report of runs, with the PNG and CSV behind every picture and table.

:mod:`collect` reads the runs, :mod:`step_frames` and :mod:`token_frames` compute the numbers, :mod:`figures` draws
them, and :mod:`sections` puts them under headings.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader

from cw_grpo.files import new_file
from cw_grpo.report import provenance, sections
from cw_grpo.report.collect import Run, read_runs, seeds
from cw_grpo.report.evaluations import evaluations, read_evaluations
from cw_grpo.report.figures import colours_of
from cw_grpo.report.tokens import most_attenuated_section

logger = logging.getLogger(__name__)


def build(arguments: Sequence[str], out: Path, evaluated: Sequence[Path] = ()) -> Path:
    """Write ``out/report.html`` and its PNG and CSV files. What cannot be read is skipped, and logged.

    Args:
        arguments: runs, each ``PATH`` or ``METHOD=PATH`` (see :func:`cw_grpo.runs.find_metrics`).
        out: a directory.
        evaluated: files and directories of `cw-grpo eval`.

    Raises:
        ValueError: none of the runs can be read.
    """
    runs, skipped = read_runs(arguments)
    scores, skipped_scores = read_evaluations(evaluated)
    methods: dict[str, list[Run]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
    notes = [f"Skipped: {line}" for line in (*skipped, *skipped_scores)]
    notes += [note for name, members in methods.items() for note in _caveats(name, members)]
    for note in notes:
        logger.warning(note)
    colours = colours_of(list(methods))
    page = {
        "title": f"CW-GRPO report: {', '.join(methods)}",
        "date": provenance.date(time.time()),
        "command": shlex.join(
            ["cw-grpo", "report", *arguments, *(f"--eval={path}" for path in evaluated), "--out", str(out)]
        ),
        "directory": str(Path.cwd()),
        "sections": [
            sections.summary(methods, notes, out),
            sections.entropy_against_reward(methods, colours, out),
            sections.over_steps(methods, colours, out),
            sections.covariance(methods, colours, out),
            sections.who_is_attenuated(methods, out),
            most_attenuated_section(methods),
            sections.theory(methods, colours, out),
            *([evaluations(scores, out)] if evaluated else []),
            provenance.what_was_run(runs, out),
        ],
    }
    template = Environment(loader=PackageLoader("cw_grpo.report", "."), autoescape=True).get_template(
        "template.html.j2"
    )
    with new_file(out / "report.html") as temporary:
        temporary.write_text(template.render(page), encoding="utf-8")
    return out / "report.html"


def _caveats(method: str, members: Sequence[Run]) -> list[str]:
    """What a reader must know before taking a method's runs for seeds of one experiment."""
    caveats = [
        f"{method}: {' and '.join(run.name for run in repeats)} have the same seeds, and count as one seed, repeated."
        for repeats in seeds(members)
        if len(repeats) > 1
    ]
    if differing := provenance.differing_settings(members):
        shown = ", ".join(differing[:10]) + (f" and {len(differing) - 10} more" if len(differing) > 10 else "")
        caveats.append(f"{method}: its runs are shown as seeds of one method, and differ in {shown}.")
    return caveats
