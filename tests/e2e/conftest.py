from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """Where the tiny model and its data are made, once."""
    return Path(os.environ.get("CW_GRPO_TEST_HOME") or tmp_path_factory.mktemp("home"))
