# SPDX-License-Identifier: Apache-2.0
"""The answers of an evaluation on disk: a JSONL file for each model and benchmark, and what they all share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cw_grpo.files import new_file

Key = tuple[int, int]
"""Question (the row of its file) and sample, both from 0."""


def answers_file(directory: Path, label: str, benchmark: str) -> Path:
    """Where the answers of a model to a benchmark are."""
    return directory / label / f"{benchmark}.answers.jsonl"


def check_settings(directory: Path, **shared: Mapping[str, Any]) -> None:
    """Check what this evaluation's answers depend on against ``settings.json``, and note there what is new.

    Args:
        directory: the evaluation's.
        shared: ``sampling`` settings; SHA-256 of ``benchmarks``, ``models`` and ``prompts`` by name.

    Raises:
        ValueError: the directory has answers with other settings, of another file or other weights; names each.
    """
    path = directory / "settings.json"
    any_answer = any(file.stat().st_size for file in directory.glob("*/*.answers.jsonl"))
    known = read_json(path) if any_answer and path.is_file() else {}
    differences = [
        f"{kind} {name}: {known[kind][name]} there, {value} now"
        for kind, values in shared.items()
        for name, value in values.items()
        if kind in known and name in known[kind] and known[kind][name] != value
    ]
    if differences:
        listed = "\n  ".join(differences)
        raise ValueError(f"{directory} holds an evaluation with other settings:\n  {listed}\nchoose another --out")
    merged = known | {kind: {**known.get(kind, {}), **values} for kind, values in shared.items()}
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        ValueError: it does not; names the file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return value


def read_answers(path: Path) -> dict[Key, dict[str, Any]]:
    """The answers of a file. A last line that was cut off is deleted from the file: its answer is generated again.

    Raises:
        ValueError: another line is not a valid answer; names it.
    """
    if not path.is_file():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    answers: dict[Key, dict[str, Any]] = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            answer = json.loads(line)
            key = answer["question"], answer["sample"]
            if not (isinstance(answer["text"], str) and isinstance(answer["tokens"], int)):
                raise TypeError("text and tokens")
            answer["cut_off"] = bool(answer["cut_off"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path}:{number} is not a valid answer: {error}. Delete the line to regenerate it"
            ) from error
        answers.setdefault(key, answer)
    return answers


def request_seed(seed: int, benchmark: str, question: int, sample: int) -> int:
    """The seed of one answer: below 2^63, the same in every process."""
    digest = hashlib.sha256(f"{seed}/{benchmark}/{question}/{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
