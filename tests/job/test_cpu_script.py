# SPDX-License-Identifier: Apache-2.0
"""`scripts/run_cw_grpo_cpu.sh` with a stand-in for `cw-grpo`, which notes how it is called."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CW_GRPO = """#!/usr/bin/env bash
echo "$*" >>"$CALLS"
[ "$1" != "${FAILS-}" ] || exit 3
"""

SETUP = """[ $# = 0 ] || echo "setup $*" >>"$CALLS"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose environment is up to date."""
    root = tmp_path / "checkout"
    (root / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/run_cw_grpo_cpu.sh", root / "scripts")
    (root / "scripts/setup.sh").write_text(SETUP)
    make_environment(root / ".venv")
    return root


def make_environment(venv: Path) -> None:
    (venv / "bin").mkdir(parents=True)
    (venv / "lib/python3.11/site-packages").mkdir(parents=True)
    (venv / "bin/cw-grpo").write_text(CW_GRPO)
    (venv / "bin/cw-grpo").chmod(0o755)


def run(checkout: Path, *arguments: str, **env: str) -> tuple[int, list[str], str]:
    """Its exit status, the calls of `cw-grpo` without their common beginning, and its output."""
    calls = checkout.parent / "calls"
    calls.write_text("")
    done = subprocess.run(
        ["bash", str(checkout / "scripts/run_cw_grpo_cpu.sh"), *arguments],
        env=os.environ | {"CALLS": str(calls), "CW_GRPO_HOME": "/home"} | env,
        capture_output=True,
        text=True,
    )
    common = f"train --config-path {checkout}/recipe/cw_grpo/config cluster=cpu"
    return done.returncode, calls.read_text().replace(common, "train").splitlines(), done.stdout + done.stderr


def test_the_doctor_comes_once_for_what_is_installed(checkout: Path) -> None:
    assert run(checkout, "seed=2")[:2] == (0, ["doctor", "train seed=2"])
    assert run(checkout, "seed=2")[:2] == (0, ["train seed=2"])
    (checkout / ".venv/lib/python3.11/site-packages/another").mkdir()
    assert run(checkout)[:2] == (0, ["doctor", "train"])


def test_vllm_is_in_an_environment_of_its_own(checkout: Path) -> None:
    (checkout / ".venv/bin/cw-grpo").unlink()
    make_environment(checkout / ".venv-vllm")
    expected = ["setup vllm", "doctor", "train cluster=cpu_vllm scale=tiny"]
    assert run(checkout, "cluster=cpu_vllm", "scale=tiny")[:2] == (0, expected)


def test_a_doctor_that_finds_something_stops_it_each_time(checkout: Path) -> None:
    for _ in range(2):
        assert run(checkout, FAILS="doctor")[:2] == (3, ["doctor"])


def test_compare_trains_both_methods_and_reports_them_together(checkout: Path) -> None:
    status, calls, output = run(checkout, "compare", "scale=tiny", "seed=2", "--fresh")
    assert (status, calls[1:]) == (
        0,
        [
            "train scale=tiny seed=2 --fresh method=grpo",
            "train scale=tiny seed=2 --fresh method=cw_grpo",
            "report /home/runs/tiny-grpo /home/runs/tiny-cw_grpo --out /home/runs/tiny-compare",
        ],
    )
    assert output.endswith("picture: /home/runs/tiny-compare/entropy_reward.png\n")
    assert run(checkout, "compare")[1][-1].startswith("report /home/runs/smollm2-grpo ")


@pytest.mark.parametrize(
    ("options", "home"),
    [(("--home", "/else where"), "/else where"), (("--home=/other",), "/other"), (("--home=~/other",), "/me/other")],
)
def test_compare_reports_the_runs_of_the_home_that_it_trained_in(
    checkout: Path, options: tuple[str, ...], home: str
) -> None:
    status, calls, output = run(checkout, "compare", *options, "scale=tiny", HOME="/me")
    assert status == 0
    assert calls[1] == " ".join(["train", *options, "scale=tiny", "method=grpo"])
    assert calls[-1] == f"report {home}/runs/tiny-grpo {home}/runs/tiny-cw_grpo --out {home}/runs/tiny-compare"
    assert output.endswith(f"picture: {home}/runs/tiny-compare/entropy_reward.png\n")


def test_compare_ends_with_a_run_that_fails(checkout: Path) -> None:
    status, calls, _ = run(checkout, "compare", FAILS="train")
    assert (status, calls) == (3, ["doctor", "train method=grpo"])


@pytest.mark.parametrize("argument", ["method=grpo", "--run-dir=/elsewhere"])
def test_compare_rejects_what_it_sets_itself(checkout: Path, argument: str) -> None:
    status, calls, output = run(checkout, "compare", argument)
    assert status == 2 and f"error: compare sets {argument.partition('=')[0]} itself" in output
    assert ("--home DIR" in output) == argument.startswith("--run-dir")
    assert not any(call.startswith("train") for call in calls)
