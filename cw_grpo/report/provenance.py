"""What was run: versions, machine, duration, and in what the runs' settings differ."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pandas as pd

from cw_grpo.doctor.local import DISTRIBUTIONS, installed
from cw_grpo.report.collect import Run
from cw_grpo.report.parts import Part
from cw_grpo.runs import SETTINGS_FREE_TO_CHANGE, flatten, is_below

_PATHS = ("algorithm.cw_grpo.record", "trainer.default_local_dir")
# In what the seeds of one method may differ, beside the seeds themselves.
_OF_ONE_METHOD = (*_PATHS, *SETTINGS_FREE_TO_CHANGE, "trainer.experiment_name", "trainer.project_name")


def what_was_run(found: list[Run], out: Path) -> Part:
    """Versions, durations, and the settings that differ."""
    part = Part("What was run", "Versions are those of the machine that made this report.")
    part.table(out, "versions", _versions())
    part.table(out, "durations", _durations(found))
    if any(run.config for run in found) and len(found) > 1:
        differing = _differences(found)
        if len(differing):
            part.table(out, "differences", differing)
    return part


def _versions() -> pd.DataFrame:
    """Of the machine that makes the report."""
    rows = [("python", platform.python_version()), *((name, installed(name)) for name in DISTRIBUTIONS)]
    rows.append(("machine", f"{platform.machine()}, {os.cpu_count()} CPUs"))
    return pd.DataFrame(rows, columns=["what", "here, now"])


def _durations(runs: list[Run]) -> pd.DataFrame:
    """Steps of each run and the seconds that verl took for them."""
    rows = []
    for run in runs:
        seconds = run.metrics.get("timing_s/step", pd.Series(dtype=float)).dropna()
        rows.append(
            {
                "run": run.name,
                "method": run.method,
                "steps": len(run.metrics),
                "seconds a step (median)": seconds.median() if len(seconds) else float("nan"),
                "minutes in steps": seconds.sum() / 60,
            }
        )
    return pd.DataFrame(rows)


def unlike(runs: list[Run]) -> list[str]:
    """Settings in which runs of one method differ beyond seeds, names, paths and duration."""
    differing = _differences(runs)
    return [
        key
        for key in (differing["setting"] if len(differing) else [])
        if not key.endswith("seed") and not is_below(key, _OF_ONE_METHOD)
    ]


def _differences(runs: list[Run]) -> pd.DataFrame:
    """Settings that are not the same in all runs, a row a setting; empty where there are none."""
    flat = {run.name: flatten(run.config) for run in runs if run.config}
    keys = sorted({key for leaves in flat.values() for key in leaves})
    rows = [
        {"setting": key} | {name: str(leaves.get(key, "-")) for name, leaves in flat.items()}
        for key in keys
        if key not in _PATHS and len({str(leaves.get(key, "-")) for leaves in flat.values()}) > 1
    ]
    return pd.DataFrame(rows)
