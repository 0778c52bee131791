# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from main_job import COMPARABLE, Run

from cw_grpo.datasets.prompts import Prompt
from cw_grpo.datasets.reasoning_gym import reasoning_gym_rows
from cw_grpo.datasets.rows import write_rows
from cw_grpo.job.plan import default_config_dir


@pytest.fixture(scope="session")
def write_sums() -> Callable[[Path, int], None]:
    """Writes a benchmark of so many sums of two digits."""

    def write(path: Path, size: int) -> None:
        prompt = Prompt(default_config_dir().parent / "prompts/expression.yaml")
        options = dict(min_terms=2, max_terms=2, min_digits=1, max_digits=1)
        write_rows(
            reasoning_gym_rows("chain_sum", size=size, seed=7, split="test", prompt=prompt, options=options), path
        )

    return write


@pytest.fixture(scope="session")
def comparable(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Runs by what sets them apart; each is made once."""
    made: dict[tuple[str, ...], Run] = {}

    def run(*overrides: str) -> Run:
        if overrides not in made:
            made[overrides] = Run(tmp_path_factory.mktemp("run") / "run", home, *COMPARABLE, *overrides)
            made[overrides].finish()
        return made[overrides]

    return run
