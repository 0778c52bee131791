# SPDX-License-Identifier: Apache-2.0
"""Writing files and directories that are either whole or absent."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary file to write to, which becomes ``path`` when the block ends without an error.

    Raises:
        OSError: ``path`` cannot be written; names it.
    """
    temporary = _sibling(path)
    _make_parent(path)
    with _naming(path):
        temporary.open("x").close()  # a new file gets its mode from the umask
    try:
        yield temporary
        with _naming(path):
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary directory to fill, which becomes ``path`` when the block ends without an error.

    Raises:
        FileExistsError: ``path`` appears while the block runs.
        OSError: ``path`` cannot be written; names it.
    """
    temporary = _sibling(path)
    _make_parent(path)
    with _naming(path):
        temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            raise FileExistsError(f"{path} appeared while it was being made")
        with _naming(path):
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent)) from error


def _sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of the temporary path as errors of ``path``."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot write: {error.strerror}", str(path)) from error
