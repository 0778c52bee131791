# SPDX-License-Identifier: Apache-2.0
"""The directory of a run: locks, and paths that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from cw_grpo.job.directory import RunDirectory, usable_path
from cw_grpo.job.plan import LaunchError


def test_a_second_launcher_is_kept_out(run, run_dir) -> None:
    with (
        RunDirectory(run_dir).lock(),
        pytest.raises(LaunchError, match="another run is writing to .*choose another --run-dir"),
    ):
        run()


def test_fresh_does_not_take_the_directory_from_a_run_at_work(run, run_dir) -> None:
    directory = RunDirectory(run_dir)
    with directory.lock():
        directory.log.write_text("at work")
        with pytest.raises(LaunchError, match="another run is writing to"):
            run(fresh=True)
        assert directory.log.read_text() == "at work"


def test_a_lock_is_free_again_after_its_run(tmp_path) -> None:
    directory = RunDirectory(tmp_path / "run")
    for _ in range(2):
        with directory.lock():
            pass


@pytest.mark.parametrize("path", ["/proc/x/run", "/dev/null/run", "{file}/run", "{file}"])
def test_a_directory_that_cannot_be_made_is_named(run, tmp_path, path: str) -> None:
    (tmp_path / "file").touch()
    path = path.format(file=tmp_path / "file")
    with pytest.raises(LaunchError, match=f"cannot write to {path} \\(.*: choose another --run-dir"):
        run(run_dir=Path(path))


def test_a_tilde_is_expanded(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert usable_path(Path("~/x"), "--run-dir") == tmp_path / "x"
    assert usable_path(Path("x"), "--run-dir") == Path("x").resolve()
    with pytest.raises(LaunchError, match="--run-dir ~no-such-user/x"):
        usable_path(Path("~no-such-user/x"), "--run-dir")


def test_a_path_that_hydra_would_change_is_rejected(run, tmp_path) -> None:
    for options in ({"run_dir": tmp_path / "${a}"}, {"run_dir": tmp_path / "x${oc.env:HOME}"}):
        with pytest.raises(LaunchError, match=r"--run-dir .*hydra reads \$\{...\} as a reference to another key"):
            run(**options)
    assert not list(tmp_path.glob("*$*"))
