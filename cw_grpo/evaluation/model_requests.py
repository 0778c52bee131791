# SPDX-License-Identifier: Apache-2.0
"""What is asked of each model of an evaluation: the benchmarks in its wording, and how its answers are scored."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cw_grpo.datasets.prompts import Prompt
from cw_grpo.evaluation import checkpoints, questions
from cw_grpo.evaluation.run_settings import FUNCTION, TEMPLATE, RunSettings, Wording, read_run_settings

logger = logging.getLogger(__name__)

OWN_PROMPT = "benchmark"
"""A ``prompt`` that stands for the chats of the benchmark's file."""


@dataclass(frozen=True)
class ModelRequest:
    """What is asked of one model: the benchmarks in its wording, the chat template's settings, the reward's."""

    source: checkpoints.Source
    asked: Mapping[str, questions.Questions]
    chat_template: dict[str, Any]
    reward_kwargs: dict[str, Any]

    def prompt_digest(self, benchmark: str) -> str:
        """The SHA-256 of all chats of a benchmark and of the chat template's settings."""
        chats = [row.prompt for row in self.asked[benchmark].rows]
        return hashlib.sha256(json.dumps([chats, self.chat_template], sort_keys=True).encode()).hexdigest()


def model_requests(
    sources: Sequence[checkpoints.Source],
    benchmarks: Mapping[str, questions.Questions],
    config: DictConfig,
    config_dir: Path,
    prompt: str | None,
) -> list[ModelRequest]:
    """What is asked of each model: as its run was trained, unless the user says otherwise.

    A model without a run is asked as the runs are, if they agree.

    Args:
        sources: the models.
        benchmarks: by name.
        config: the evaluation's; the settings of reward and chat template that it has win over a run's.
        config_dir: its directory.
        prompt: a YAML file of a wording, or :data:`OWN_PROMPT`; None for that of a run's training.

    Raises:
        ValueError: ``prompt`` does not fit a benchmark.
    """
    trained = {
        source.label: read_run_settings(source.run, config, config_dir) if source.run else None for source in sources
    }
    of_runs = [settings for settings in trained.values() if settings is not None]
    alike = len({_wording_key(settings) for settings in of_runs}) == 1
    shared = of_runs[0] if alike else RunSettings()
    explicit: dict[str, Any] = {key: OmegaConf.to_container(OmegaConf.select(config, key), resolve=True)
                for key in (TEMPLATE, f"{FUNCTION}.reward_kwargs")}  # fmt: skip
    requests = []
    for source in sources:
        settings = trained[source.label] or replace(shared, problems=[])
        for problem in settings.problems:
            logger.warning(f"{source.label}: {problem}")
        kwargs = (settings.reward_kwargs or {}) | explicit[f"{FUNCTION}.reward_kwargs"]
        asked = {
            name: _worded(source.label, benchmark, prompt, settings.prompt) for name, benchmark in benchmarks.items()
        }
        requests.append(ModelRequest(source, asked, (settings.chat_template or {}) | explicit[TEMPLATE], kwargs))
        if settings.reward_kwargs:
            listed = ", ".join(f"{key}={value}" for key, value in kwargs.items())
            logger.info(f"{source.label}: scored as {'it was' if source.run else 'the runs were'} trained: {listed}")
    return requests


def _wording_key(settings: RunSettings) -> str:
    path = settings.prompt.path if settings.prompt else None
    return json.dumps([str(path), settings.chat_template, settings.reward_kwargs], sort_keys=True)


def _worded(
    label: str, benchmark: questions.Questions, chosen: str | None, trained: Wording | None
) -> questions.Questions:
    """A benchmark in the wording that the user chose, else in that of the training, else in its own."""
    if chosen == OWN_PROMPT:
        return benchmark
    wording = trained if chosen is None else Prompt(Path(chosen))
    if wording is None:
        return benchmark
    try:
        rows = [replace(row, prompt=wording.render(row.values)) for row in benchmark.rows]
    except ValueError as error:
        if chosen is not None:
            raise
        logger.warning(
            f"{label} on {benchmark.name}: in the benchmark's own prompt, not that of its training: {error}. "
            f"`cw-grpo data` with --prompt {wording.path} makes a benchmark in it"
        )
        return benchmark
    logger.info(f"{label} on {benchmark.name}: prompt of {wording.path}")
    return replace(benchmark, rows=rows)
