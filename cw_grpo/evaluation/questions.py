# SPDX-License-Identifier: Apache-2.0
"""Benchmarks in verl's parquet schema, as ``cw-grpo data`` makes them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cw_grpo.datasets import BENCHMARKS, EVALUATED
from cw_grpo.datasets.rows import prompt_values


@dataclass(frozen=True)
class Question:
    """A chat and the reference for its answer."""

    prompt: list[dict[str, str]]
    ground_truth: str | int | float
    data_source: str
    values: Mapping[str, Any]
    """Of verl's ``extra_info``: what another prompt can be made from."""


@dataclass(frozen=True)
class Questions:
    """A benchmark's questions, in the order of its file, with the file's SHA-256."""

    name: str
    path: Path
    sha256: str
    rows: Sequence[Question]


def find(names: Sequence[str], data: Path) -> dict[str, Path]:
    """The file of each benchmark: a known one's in ``data``, or a path that ends in ``.parquet``.

    Raises:
        ValueError: an unknown name, or two of the same name.
        FileNotFoundError: a file is missing; says what makes it.
    """
    found: dict[str, Path] = {}
    for name in names:
        if name.endswith(".parquet"):
            path, how = Path(name), "make it with `cw-grpo data`"
        elif name in BENCHMARKS:
            path = data / f"{name}.parquet"
            how = f"`cw-grpo data paper {name} --out {path}` makes it"
        else:
            raise ValueError(
                f"--benchmarks {name}: no such benchmark; there are {', '.join(EVALUATED)}, "
                "or the path of a .parquet file"
            )
        if not path.is_file():
            raise FileNotFoundError(f"--benchmarks {name}: there is no {path}; {how}")
        if path.stem in found:
            raise ValueError(f"--benchmarks: {path.stem} is named twice")
        found[path.stem] = path
    if not found:
        raise ValueError("--benchmarks names none")
    return found


def read(name: str, path: Path) -> Questions:
    """The questions of a file.

    Raises:
        ValueError: not parquet, without verl's columns, without rows, or a row without a chat or a reference; names it.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a parquet table: {error}") from error
    if lacking := {"data_source", "prompt", "reward_model"} - set(table.column_names):
        raise ValueError(
            f"{path}: no column {', '.join(sorted(lacking))}; it has {', '.join(table.column_names)}. "
            "`cw-grpo data paper NAME --from FILE` makes verl's columns of other ones"
        )
    rows = [_question(row, f"{path}: row {index}") for index, row in enumerate(table.to_pylist())]
    if not rows:
        raise ValueError(f"{path} has no rows")
    return Questions(name, path, hashlib.sha256(path.read_bytes()).hexdigest(), rows)


def _question(row: dict[str, Any], where: str) -> Question:
    prompt, reward_model = row["prompt"], row["reward_model"]
    if not (
        isinstance(prompt, list)
        and prompt
        and all(isinstance(m, dict) and all(isinstance(m.get(key), str) for key in ("role", "content")) for m in prompt)
    ):
        raise ValueError(f"{where}: prompt must be a list of messages with role and content")
    reference = reward_model.get("ground_truth") if isinstance(reward_model, dict) else None
    if reference is None or not str(reference).strip():
        raise ValueError(f"{where}: reward_model has no ground_truth")
    if not isinstance(reference, str | int | float) or isinstance(reference, bool):
        raise ValueError(
            f"{where}: ground_truth must be text or a number for the recipe's reward, not {type(reference).__name__}"
        )
    chat = [{"role": m["role"], "content": m["content"]} for m in prompt]
    extra = row.get("extra_info")
    values = prompt_values(extra) if isinstance(extra, dict) else {}
    return Question(chat, reference, str(row["data_source"]), values)
