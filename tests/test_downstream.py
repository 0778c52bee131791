# SPDX-License-Identifier: Apache-2.0
"""`make downstream` without its downloads: what it rejects, and its table."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import verl
from pages import with_table

from cw_grpo.verl_versions import TESTED

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "downstream.py"


@pytest.fixture(scope="module")
def downstream() -> ModuleType:
    spec = importlib.util.spec_from_file_location("downstream", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_verl_outside_the_matrix_is_rejected_and_the_known_ones_named(tmp_path: Path) -> None:
    for unknown in ("0.6.1", str(tmp_path)):
        command = [sys.executable, str(SCRIPT), unknown]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 2
        assert done.stderr.startswith(
            f"error: {unknown} is neither a checkout of verl nor a tested release. Tested are "
        )
        assert all(version in done.stderr for version in TESTED)


def test_a_checkout_is_used_as_it_is(downstream) -> None:
    root = Path(verl.__file__).parents[1]
    assert downstream.find(str(root)) == (verl.__version__, root)


def test_the_releases_are_those_that_are_supported(downstream) -> None:
    assert downstream.releases() == ["0.7.1", "0.8.0", "0.9.0", "0.9.1"]


def test_the_table_of_the_page_is_that_of_the_csv(downstream) -> None:
    page = (ROOT / "docs" / "upstream.md").read_text(encoding="utf-8")
    rows = pd.read_csv(ROOT / "results" / "downstream.csv")
    assert with_table(page, "results/downstream.csv", downstream.table(rows)) == page
    assert set(rows.verl) == set(TESTED) and not rows.failed.any() and (rows.doctor == "ok").all()
