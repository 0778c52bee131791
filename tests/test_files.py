# SPDX-License-Identifier: Apache-2.0
"""Files and directories that are whole or absent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cw_grpo.files import new_directory, new_file

ROOT = Path(__file__).parents[1]


def test_a_file_and_a_directory(tmp_path) -> None:
    with new_file(tmp_path / "a" / "file") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "a" / "file").exists()
    with new_directory(tmp_path / "b" / "directory") as temporary:
        (temporary / "inside").write_text("new")
    assert (tmp_path / "a" / "file").read_text() == "new"
    assert (tmp_path / "b" / "directory" / "inside").read_text() == "new"
    assert [len(list((tmp_path / name).iterdir())) for name in "ab"] == [1, 1]


@pytest.mark.parametrize("make", [new_file, new_directory])
def test_an_error_leaves_nothing(tmp_path, make) -> None:
    with pytest.raises(KeyError), make(tmp_path / "out"):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_directory_that_appeared_meanwhile_is_kept(tmp_path) -> None:
    with pytest.raises(FileExistsError, match="out appeared while it was being made"), new_directory(tmp_path / "out"):
        (tmp_path / "out").mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(tmp_path, mask: int) -> None:
    """In a process of its own, whose umask nobody else sees."""
    script = (
        f"import os, pathlib; os.umask({mask})\n"
        "from cw_grpo.files import new_directory, new_file\n"
        f"out = pathlib.Path({str(tmp_path)!r})\n"
        "with new_file(out / 'file'), new_directory(out / 'directory'): pass\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"file": 0o666 & ~mask, "directory": 0o777 & ~mask}


def test_the_umask_is_never_changed(tmp_path, monkeypatch) -> None:
    """Another thread would make its files with it."""
    changed = []
    monkeypatch.setattr(os, "umask", lambda mask: changed.append(mask) or 0o022)
    with new_file(tmp_path / "file"), new_directory(tmp_path / "directory"):
        pass
    assert not changed


@pytest.mark.parametrize("make", [new_file, new_directory])
def test_a_path_that_cannot_be_written_is_named(tmp_path, make) -> None:
    (tmp_path / "file").write_text("in the way")
    file = tmp_path / "file"
    for path, message in (
        (file / "out", f"Not a directory: '{file}'"),
        (file / "a" / "out", f"Not a directory: '{file}/a'"),
        (Path("/proc/out"), "cannot write: .*: '/proc/out'"),
    ):
        with pytest.raises(OSError, match=message), make(path):
            raise AssertionError("the block is not reached")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_directory_in_place_of_the_file_is_kept(tmp_path) -> None:
    path = tmp_path / "directory"
    path.mkdir()
    with pytest.raises(IsADirectoryError, match=f"'{path}'"), new_file(path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["directory"]
