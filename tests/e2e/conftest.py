# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from main_job import COMPARABLE, Run
from two_nodes import Cluster

from cw_grpo.job.processes import Job


@pytest.fixture(scope="session")
def comparable(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Runs by what sets them apart; each is made once."""
    made: dict[tuple[str, ...], Run] = {}

    def run(*overrides: str) -> Run:
        if overrides not in made:
            made[overrides] = Run(tmp_path_factory.mktemp("run") / "run", home, *COMPARABLE, *overrides, report=True)
            made[overrides].finish()
        return made[overrides]

    return run


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    # Not below pytest's folder, whose path is too long for Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="cwn-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        made = None
        try:
            made = Cluster(Path(folder))
            yield made
        finally:
            (made.job if made else Job(folder)).stop()
