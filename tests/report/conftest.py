# SPDX-License-Identifier: Apache-2.0
"""A report."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_runs import make_run

from cw_grpo.report import build


@pytest.fixture(scope="session")
def full(tmp_path_factory) -> Path:
    """A report of two methods, with three seeds and with two."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [
        make_run(folder / f"{method}-{seed}", 30, method, seed, record=True)
        for method, seeds in (("grpo", (1, 2, 3)), ("cw_grpo", (1, 2)))
        for seed in seeds
    ]
    return build(runs, folder / "out")
