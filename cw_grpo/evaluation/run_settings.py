# SPDX-License-Identifier: Apache-2.0
"""What a run was trained with that its evaluation must share: the prompt, the chat template's settings, the reward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cw_grpo.datasets.prompts import Prompt
from cw_grpo.run_config import read_config, select

FUNCTION = "reward.custom_reward_function"
TEMPLATE = "data.apply_chat_template_kwargs"


class Wording(Protocol):
    """How a question is put to a model."""

    path: Path

    def render(self, values: Mapping[str, Any]) -> list[dict[str, str]]:
        """The chat about a question's ``values``; ValueError if they do not make one."""


class TrainingPrompt:
    """The wording of a file of training data: its first chat, with another question in the place of its own."""

    def __init__(self, path: Path, key: str) -> None:
        """``key``: the column of the chats (`data.prompt_key`).

        Raises:
            ValueError: the file is not in verl's schema, or its first chat does not quote its question once.
        """
        self.path = path
        try:
            row = next(pq.ParquetFile(path).iter_batches(1, columns=[key, "extra_info"])).to_pylist()[0]
            self._chat = [(str(message["role"]), str(message["content"])) for message in row[key]]
            self._question = str(row["extra_info"]["question"]).strip()
        except (pa.ArrowException, OSError, StopIteration, LookupError, TypeError) as error:
            raise ValueError(f"{path}: no chat ({key}) and question (extra_info.question) in its first row") from error
        if not self._question or sum(content.count(self._question) for _, content in self._chat) != 1:
            raise ValueError(f"{path}: its first chat does not quote extra_info.question once")

    def render(self, values: Mapping[str, Any]) -> list[dict[str, str]]:
        """The chat about ``values["question"]``."""
        if not isinstance(values.get("question"), str):
            raise ValueError(f"prompt of {self.path}: the benchmark has no extra_info.question")
        return [
            {"role": role, "content": content.replace(self._question, values["question"])}
            for role, content in self._chat
        ]


@dataclass(frozen=True)
class RunSettings:
    """What a run was trained with; None where its configuration does not say."""

    prompt: Wording | None = None
    chat_template: dict[str, Any] | None = None
    reward_kwargs: dict[str, Any] | None = None
    problems: list[str] = field(default_factory=list)
    """What could not be taken from it, and why."""


def read_run_settings(run: Path, config: DictConfig, config_dir: Path) -> RunSettings:
    """The settings of a run, from its ``config.yaml``.

    The prompt is that of the training data that the job named (`data.train_files`), else of the data that
    `cw-grpo train` made for it (`prepare.prompt`).

    Args:
        run: its directory.
        config: the evaluation's, which has verl's defaults.
        config_dir: what `prepare.prompt` and `prepare.reward` are relative to.
    """
    try:
        trained = read_config(run)
    except FileNotFoundError:
        return RunSettings()
    except ValueError as error:
        return RunSettings(problems=[str(error)])
    found: dict[str, Any] = {}
    problems: list[str] = []
    for name, read in (("prompt", _prompt), ("chat_template", _chat_template), ("reward_kwargs", _reward_kwargs)):
        try:
            found[name] = read(trained, config, config_dir)
        except ValueError as error:
            problems.append(str(error))
    return RunSettings(**found, problems=problems)


def _prompt(trained: DictConfig, config: DictConfig, config_dir: Path) -> Wording | None:
    try:
        files = select(trained, "data.train_files")
        if files and files != select(config, "data.train_files"):
            first = Path(str(files[0] if isinstance(files, ListConfig) else files)).expanduser()
            return TrainingPrompt(first, str(select(trained, "data.prompt_key") or "prompt"))
        prepared = select(trained, "prepare.prompt")
        return Prompt((config_dir / str(prepared)).resolve()) if prepared else None
    except ValueError as error:
        raise ValueError(f"the prompt of its training is not known: {error}") from error


def _chat_template(trained: DictConfig, config: DictConfig, config_dir: Path) -> dict[str, Any] | None:
    return _container(trained, TEMPLATE)


def _reward_kwargs(trained: DictConfig, config: DictConfig, config_dir: Path) -> dict[str, Any] | None:
    if select(trained, FUNCTION) is None:
        return None
    recipe = (config_dir / config.prepare.reward).resolve()
    prepared = select(trained, "prepare.reward")
    path = select(trained, f"{FUNCTION}.path") or (config_dir / str(prepared) if prepared else None)
    if path is None or not _same_file(Path(str(path)).expanduser(), recipe):
        raise ValueError(
            f"it was trained with another reward ({path or 'one of verl'}); its answers are scored with {recipe}"
        )
    return _container(trained, f"{FUNCTION}.reward_kwargs")


def _same_file(path: Path, other: Path) -> bool:
    """Whether two paths have the same content; a run may have been trained in another checkout."""
    return path.is_file() and path.read_bytes() == other.read_bytes()


def _container(config: DictConfig, key: str) -> dict[str, Any] | None:
    node = select(config, key)
    try:
        container: Any = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else None
        return container
    except OmegaConfBaseException as error:
        raise ValueError(f"{key} of its training is not known: {str(error).splitlines()[0]}") from error
