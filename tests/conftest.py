from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

# A slow shared machine must not fail a property, and CI must fail the same way twice.
settings.register_profile("repo", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repo")


@pytest.fixture(autouse=True)
def _lines_reach_caplog(monkeypatch) -> None:
    """Undo what a command that ran in this process set."""
    monkeypatch.setattr(logging.getLogger("cw_grpo"), "propagate", True)
