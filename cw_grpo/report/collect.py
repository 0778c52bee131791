# SPDX-License-Identifier: Apache-2.0
"""Reading what the report needs from runs, and saying what is not there."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from cw_grpo import run_config, runs
from cw_grpo.hooks.samples import SCHEMA, read_about
from cw_grpo.metrics import PREFIX

MEASURED = ["old_log_prob", "advantage", "covariance", "weight", "reward"]
"""Columns of recorded tokens that must be finite."""

RENAMED = {PREFIX + "no_signal": PREFIX + "zero_sigma_fraction"}
"""Metrics that earlier versions of this package logged under another name."""


@dataclass
class Run:
    """A run: its metrics by step, its method, its recorded tokens and its configuration."""

    source: runs.MetricsSource
    name: str
    method: str
    metrics: pd.DataFrame
    records: pd.DataFrame
    config: DictConfig
    """As it was composed; empty if there is none."""
    skipped: list[str] = field(default_factory=list)
    """What is there and cannot be used."""
    notes: list[str] = field(default_factory=list)
    """What is not there."""
    record_files: list[Path] = field(default_factory=list)
    """The files of ``records``."""

    @property
    def applies_weights(self) -> bool:
        """Whether the job applied the weights, as its records say; whatever the run is called."""
        return any(read_about(file).get("applied", "none") != "none" for file in self.record_files[:1])

    @property
    def seed(self) -> tuple[tuple[str, str], ...] | None:
        """All seeds in the configuration by key; None if `data.seed` is not known."""
        if run_config.select(self.config, "data.seed") is None:
            return None
        leaves = run_config.flatten(OmegaConf.to_container(self.config))
        return tuple((key, str(run_config.select(self.config, key))) for key in sorted(leaves) if key.endswith("seed"))


def seeds(members: Sequence[Run]) -> list[list[Run]]:
    """A method's runs by seed: two runs of the same seed are a repeat. A run whose seed is not known has its own."""
    by_seed: dict[object, list[Run]] = {}
    for run in members:
        by_seed.setdefault(run.seed or id(run), []).append(run)
    return list(by_seed.values())


def read_runs(arguments: Sequence[str]) -> tuple[list[Run], list[str]]:
    """The runs that the arguments name (:func:`read_run`), each once and with a name of its own; and what was skipped.

    Raises:
        ValueError: none can be read.
    """
    found: dict[Path, Run] = {}
    skipped: list[str] = []
    for argument in arguments:
        name, path = runs.split_name(argument)
        try:
            sources = runs.find_metrics(path if Path(path).exists() else argument)
        except OSError as error:
            skipped.append(str(error))
            continue
        for source in sources:
            if known := [file for file in source.files if file.resolve() in found]:
                skipped.append(f"{argument}: {known[0]} is named twice, and read once")
                continue
            try:
                run = read_run(source, name)
            except (ValueError, OSError) as error:
                skipped.append(str(error))
                continue
            found |= {file.resolve(): run for file in source.files}
            skipped += run.skipped
    if not found:
        raise ValueError("no run can be read: " + "; ".join(skipped))
    every = list({id(run): run for run in found.values()}.values())
    names = Counter(run.name for run in every)
    for run in every:
        if names[run.name] > 1:
            run.name = str(run.source.path)
    return every, skipped


def read_run(source: runs.MetricsSource, method: str = "") -> Run:
    """A run with its configuration and its recorded tokens.

    Recorded tokens are read from `record` in the run's directory or beside its metrics, else from where the
    configuration has them written.

    Args:
        source: where its metrics are.
        method: what to call its method; by default what its configuration asks for, else its path.

    Raises:
        ValueError: the metrics cannot be read, or have no training step; names the file.
    """
    skipped: list[str] = []
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metrics = source.read().rename(columns=RENAMED)
    skipped += [str(item.message) for item in caught]
    if runs.TRAINED in metrics:  # the others are validations apart
        metrics = metrics[metrics[runs.TRAINED].notna()]
    if metrics.empty:
        raise ValueError(f"{source.path}: no whole step in its metrics")
    config = OmegaConf.create()
    if source.directory is not None:
        try:
            config = run_config.read_config(source.directory)
        except FileNotFoundError as error:
            notes.append(f"configuration of {source.path}: {error}")
        except ValueError as error:
            skipped.append(str(error))
    files, directory = _record_files(source, config)
    if not files:
        notes.append(
            f"recorded tokens of {source.path}: no {directory}/step-*.parquet; a job writes them with "
            f"+algorithm.cw_grpo.record={directory.absolute()}"
        )
    frames = {}
    for file in files:
        try:
            frames[file] = _read_records(file, skipped)
        except (OSError, ValueError) as error:
            skipped.append(f"{file} cannot be read: {error}")
    return Run(
        source,
        source.directory.name if config and source.directory else str(source.path),
        method or (run_config.method_of(config) if config else str(source.path)),
        metrics,
        pd.concat(frames.values(), ignore_index=True) if frames else pd.DataFrame(columns=SCHEMA.names),
        config,
        skipped,
        notes,
        list(frames),
    )


def _record_files(source: runs.MetricsSource, config: DictConfig) -> tuple[list[Path], Path]:
    """The files of recorded tokens, and where they are or should be."""
    beside = source.files[0].parent
    places = [] if source.directory is None else [source.directory / "record", beside / "record"]
    if written := run_config.select(config, "algorithm.cw_grpo.record"):
        places.append(Path(str(written)))
    place = next((place for place in places if place.is_dir()), places[0] if places else beside / source.path.stem)
    return sorted(place.glob("step-*.parquet")), place


def _read_records(file: Path, skipped: list[str]) -> pd.DataFrame:
    """A file of recorded tokens, without those that have a value that is not finite.

    Raises:
        ValueError: it is not a parquet table, lacks a column, or its metadata cannot be read.
    """
    frame = pd.read_parquet(file)
    if not isinstance(read_about(file), dict):
        raise ValueError("its metadata is not a mapping")
    if lacking := set(SCHEMA.names) - set(frame):
        raise ValueError(f"no column {', '.join(sorted(lacking))}")
    finite = np.isfinite(frame[MEASURED].to_numpy(dtype=float)).all(axis=1)
    if not finite.all():
        skipped.append(f"{file}: {(~finite).sum()} of {len(frame)} tokens have a value that is not finite")
    return frame[finite]
