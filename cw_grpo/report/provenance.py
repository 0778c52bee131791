# SPDX-License-Identifier: Apache-2.0
"""What was run: paths, dates, durations, versions, and in what the runs' settings differ."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pandas as pd
from omegaconf import OmegaConf

from cw_grpo.doctor.local import DISTRIBUTIONS
from cw_grpo.report.collect import Run
from cw_grpo.report.section import ReportSection
from cw_grpo.run_config import FIXED_BY_CHECKPOINT, LENGTH_SETTINGS, SETTINGS_FREE_TO_CHANGE, flatten, is_below, select
from cw_grpo.runs import COMMANDS_FILE
from cw_grpo.verl_versions import installed

_PATHS = ("algorithm.cw_grpo.record", "trainer.default_local_dir")
# In what the seeds of one method may differ, beside the seeds themselves.
_EXECUTION_SETTINGS = (*SETTINGS_FREE_TO_CHANGE, *LENGTH_SETTINGS, *FIXED_BY_CHECKPOINT)
_OF_ONE_METHOD = (*_PATHS, *_EXECUTION_SETTINGS, "trainer.experiment_name", "trainer.project_name")


def what_was_run(runs: Sequence[Run], out: Path) -> ReportSection:
    """Runs, settings that differ, and versions."""
    section = ReportSection("What was run", "Versions are those of the machine that made this report.")
    section.notes += [f"Not there: {note}." for run in runs for note in run.notes]
    section.table(out, "runs", runs_frame(runs), "Runs")
    section.table(out, "commands", commands_frame(runs), "The commands of each run's starts")
    section.table(out, "differences", settings_frame(runs), "Settings in which the runs differ")
    section.table(out, "versions", _versions(), "Versions")
    return section


def runs_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per run: where it is, when it was last written, its steps and the time that verl took for them."""
    rows = []
    for run in runs:
        seconds = run.metrics["timing_s/step"].dropna() if "timing_s/step" in run.metrics else pd.Series(dtype=float)
        rows.append(
            {
                "run": run.name,
                "method": run.method,
                "data.seed": select(run.config, "data.seed"),
                "steps": len(run.metrics),
                "seconds per step (median)": seconds.median(),
                "minutes in steps": seconds.sum() / 60,
                "last written": date(max(file.stat().st_mtime for file in run.source.files)),
                "path": str(run.source.path.resolve()),
            }
        )
    return pd.DataFrame(rows)


def commands_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per start of a run by `cw-grpo train`: the command, as it was typed; empty if none is noted."""
    rows = []
    for run in runs:
        noted = run.source.directory and run.source.directory / COMMANDS_FILE
        if noted and noted.is_file():
            lines = noted.read_text(encoding="utf-8", errors="replace").splitlines()
            rows += [{"run": run.name, "start": n, "command": line} for n, line in enumerate(lines, start=1)]
    return pd.DataFrame(rows)


def date(seconds: float) -> str:
    """A time of this machine's clock, to the minute, with its zone."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(sep=" ", timespec="minutes")


def _versions() -> pd.DataFrame:
    """Of the machine that makes the report."""
    rows = [("python", platform.python_version()), *((name, installed(name)) for name in DISTRIBUTIONS)]
    rows.append(("machine", f"{platform.machine()}, {os.cpu_count()} CPUs"))
    return pd.DataFrame(rows, columns=["what", "here, now"])


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Settings in which runs of one method differ beyond seeds, names, paths and duration."""
    differing = settings_frame(runs)
    return [
        key
        for key in (differing["setting"] if len(differing) else [])
        if not key.endswith("seed") and not is_below(key, _OF_ONE_METHOD)
    ]


def settings_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per setting that is not the same in all runs, one column per run; empty if there is none."""
    flat = {run.name: flatten(OmegaConf.to_container(run.config)) for run in runs if run.config}
    keys = sorted({key for leaves in flat.values() for key in leaves})
    rows = [
        {"setting": key} | {name: str(leaves.get(key, "-")) for name, leaves in flat.items()}
        for key in keys
        if key not in _PATHS and len({str(leaves.get(key, "-")) for leaves in flat.values()}) > 1
    ]
    return pd.DataFrame(rows)
