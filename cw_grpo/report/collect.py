"""Reading what the report needs from runs, and saying what is not there."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import yaml

from cw_grpo import runs
from cw_grpo.hooks.samples import SCHEMA, read_about


@dataclass
class Run:
    """A run: its metrics by step, its method, its recorded tokens, its resolved config, and what is not there."""

    path: Path
    name: str
    method: str
    metrics: pd.DataFrame
    records: pd.DataFrame
    config: dict
    missing: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    """The records' files that can be read."""

    @property
    def applies_weights(self) -> bool:
        """Whether the job applied the weights, as its records say; whatever the run is called."""
        return any(read_about(file).get("applied", "none") != "none" for file in self.files[:1])


def read_run(argument: str) -> Run:
    """The run that ``PATH`` or ``NAME=PATH`` names; NAME is its method, and so is the path of one without a config.

    Recorded tokens are looked for in `record` in the run's folder or beside its metrics file, and else where its config
    has them written.

    Raises:
        ValueError, OSError: there are no metrics that can be read.
    """
    label, _, rest = argument.partition("=")
    path = Path(rest if rest and not Path(argument).exists() else argument)
    named = label if path != Path(argument) else ""
    missing: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metrics = runs.load_metrics(path)
    missing += [str(item.message) for item in caught]
    metrics = metrics.apply(pd.to_numeric, errors="coerce")
    if runs.TRAINED in metrics:  # the others are validations apart
        metrics = metrics[metrics[runs.TRAINED].notna()]
    if metrics.empty:
        raise ValueError(f"{path}: no whole step in its metrics")
    config: dict = {}
    try:
        loaded = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        config = loaded if isinstance(loaded, dict) else {}
    except (OSError, yaml.YAMLError) as error:
        missing.append(f"config of {path}: {error}")
    frames, usable = [], []
    folder = (path if path.is_dir() else path.parent) / "record"
    elsewhere = ((config.get("algorithm") or {}).get("cw_grpo") or {}).get("record")
    if elsewhere and not folder.is_dir():
        folder = Path(elsewhere)
    files = sorted(folder.glob("step-*.parquet"))
    for file in files:
        try:
            frame = pd.read_parquet(file)
        except (OSError, ValueError) as error:
            missing.append(f"{file}: cannot be read: {error}")
            continue
        if lacking := set(SCHEMA.names) - set(frame):
            missing.append(f"{file}: no column {', '.join(sorted(lacking))}")
        else:
            frames.append(frame)
            usable.append(file)
    if not files:
        missing.append(
            f"recorded tokens: no {folder}/step-*.parquet; a job writes them with "
            f"+algorithm.cw_grpo.record={folder.absolute()}"
        )
    records = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=SCHEMA.names)
    return Run(
        path,
        path.name if config else str(path),
        named or (runs.method_of(config) if config else str(path)),
        metrics,
        records,
        config,
        missing,
        usable,
    )
