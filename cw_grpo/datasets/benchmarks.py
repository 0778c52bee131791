# SPDX-License-Identifier: Apache-2.0
"""The paper's training set and benchmarks, as ``recipe/cw_grpo/benchmarks.yaml`` lists them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from cw_grpo.paths import RECIPE


@dataclass(frozen=True)
class Benchmark:
    """An entry of ``benchmarks.yaml``, whose comment explains the fields."""

    name: str
    id: str
    hub_split: str
    size: int
    split: str
    question: Sequence[str]
    answer: Sequence[str]
    solution: Sequence[str]


def benchmarks(path: Path = RECIPE / "benchmarks.yaml") -> dict[str, Benchmark]:
    """The entries of ``benchmarks.yaml`` by name."""
    return {name: Benchmark(name, **entry) for name, entry in yaml.safe_load(path.read_text(encoding="utf-8")).items()}
