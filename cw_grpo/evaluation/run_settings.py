"""What a run was trained with that its evaluation must share: the prompt, the chat template's settings, the reward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf

from cw_grpo.datasets.rows import Prompt
from cw_grpo.runs import read_config, select

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
            ValueError: the file is not in verl's schema, or its first chat does not quote its question.
        """
        self.path = path
        try:
            row = next(pq.ParquetFile(path).iter_batches(1, columns=[key, "extra_info"])).to_pylist()[0]
            self._chat = [(str(message["role"]), str(message["content"])) for message in row[key]]
            self._question = str(row["extra_info"]["question"]).strip()
        except (pa.ArrowException, OSError, StopIteration, LookupError, TypeError) as error:
            raise ValueError(f"{path}: no chat ({key}) and question (extra_info.question) in its first row") from error
        if not self._question or not any(self._question in content for _, content in self._chat):
            raise ValueError(f"{path}: its first chat does not quote extra_info.question")

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
    problems: list[str] = []
    prompt = None
    try:
        prompt = _prompt(trained, config, config_dir)
    except ValueError as error:
        problems.append(f"its prompt is not known: {error}")
    kwargs = None
    if (node := select(trained, FUNCTION)) is not None:
        recipe = (config_dir / config.prepare.reward).resolve()
        prepared = select(trained, "prepare.reward")
        path = node.get("path") or (config_dir / prepared if prepared else None)
        if path is None or Path(path).expanduser().resolve() != recipe:
            problems.append(
                f"it was trained with another reward ({path or 'of verl'}); its answers are scored with {recipe}"
            )
        else:
            kwargs = _container(trained, f"{FUNCTION}.reward_kwargs")
    return RunSettings(prompt, _container(trained, TEMPLATE), kwargs, problems)


def _prompt(trained: DictConfig, config: DictConfig, config_dir: Path) -> Wording | None:
    files = select(trained, "data.train_files")
    if files and files != select(config, "data.train_files"):
        first = Path(str(files if isinstance(files, str) else files[0])).expanduser()
        return TrainingPrompt(first, str(select(trained, "data.prompt_key") or "prompt"))
    prepared = select(trained, "prepare.prompt")
    return Prompt((config_dir / str(prepared)).resolve()) if prepared else None


def _container(config: DictConfig, key: str) -> dict[str, Any] | None:
    node = select(config, key)
    return OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else None
