# SPDX-License-Identifier: Apache-2.0
"""A run to evaluate."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run of `cw-grpo train` with two checkpoints without weights."""
    run = tmp_path / "my-run"
    for step in (50, 100):
        (run / f"checkpoints/global_step_{step}/actor").mkdir(parents=True)
    (run / "checkpoints/latest_checkpointed_iteration.txt").write_text("100")
    (run / "config.yaml").write_text("algorithm: {adv_estimator: cw_grpo}\n")
    return run
