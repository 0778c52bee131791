# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gc
import logging
import os
import sys
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "scripts"))  # for what these share

# A slow shared machine must not fail a property, and CI must fail the same way twice.
settings.register_profile("repo", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repo")

# Four hundred tests compose a job, and hydra parses verl's files anew each time: with libyaml in three quarters of
# the time. The processes that the tests start have what users have.
yaml.SafeLoader = yaml.CSafeLoader

SHARED = {"home", "tiny_model"}
"""Fixtures that the workers of pytest-xdist share."""


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For pytest-xdist: tests that share a fixture stay together; the longest tests come first."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    sharing, groups = [], {}
    for item in items:
        shared = [
            fixture.baseid
            for name, definitions in item._fixtureinfo.name2fixturedefs.items()
            for fixture in definitions
            if fixture.scope in ("module", "session") and fixture.baseid and name not in SHARED
        ]
        if shared:  # a file with a fixture of its directory goes there with all it shares
            sharing.append(item)
            groups[item.path] = min(*shared, groups.get(item.path, shared[0]), key=len)
    for item in sharing:
        item.add_marker(pytest.mark.xdist_group(groups[item.path]))
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    marks = {mark.name for mark in item.iter_markers()}
    if {"e2e", "xdist_group"} <= marks:
        return 0
    if "slow" in marks and "home" not in item.fixturenames:
        return 1  # beside the first, which makes `home` in a minute
    return 2 if {"e2e", "slow"} & marks else 3


def pytest_collection_finish() -> None:
    """Garbage collection would look through all of torch and verl again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _lines_reach_caplog(monkeypatch) -> None:
    """Undo what a command that ran in this process set."""
    monkeypatch.setattr(logging.getLogger("cw_grpo"), "propagate", True)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny model and its data are, made once for all workers."""
    from cw_grpo.job.plan import make_plan
    from cw_grpo.job.prepare import prepare_inputs

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    home = Path(os.environ.get("CW_GRPO_TEST_HOME") or shared / "home")
    with FileLock(f"{home}.lock"):
        prepare_inputs(make_plan(["scale=tiny"]), home, tmp_path_factory.mktemp("run"))
    return home


@pytest.fixture(scope="session")
def tiny_model(home: Path) -> str:
    """The directory of the tiny model."""
    (model,) = (home / "models").glob("tiny-*")
    return str(model)
