# SPDX-License-Identifier: Apache-2.0
"""Which verl this is, and whether it was tested."""

from __future__ import annotations

import pytest
import verl

from cw_grpo.verl_versions import is_since, untested, verl_version


@pytest.mark.parametrize(
    ("version", "since"),
    [("0.7.1", False), ("0.8.0", False), ("0.9.0.dev0", True), ("0.9.0", True), ("0.10.0.dev", True), ("mine", True)],
)
def test_is_since(version: str, since: bool, monkeypatch) -> None:
    monkeypatch.setattr(verl, "__version__", version)
    assert verl_version() == version
    assert is_since("0.9.0") is since


@pytest.mark.parametrize("version", ["0.7.1", "0.8.0", "0.9.0", "0.9.1", "0.10.0.dev"])
def test_a_tested_verl(version: str, monkeypatch) -> None:
    monkeypatch.setattr(verl, "__version__", version)
    assert untested() is None


@pytest.mark.parametrize("version", ["0.6.1", "0.9.2", "0.11.0", "mine"])
def test_another_verl_is_told_which_are_tested(version: str, monkeypatch) -> None:
    monkeypatch.setattr(verl, "__version__", version)
    said = untested()
    assert said is not None and said.startswith(
        f"verl {version} is not a tested version. Tested are 0.7.1: the estimator"
    )
    assert "0.9.1: everything" in said
