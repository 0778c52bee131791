# SPDX-License-Identifier: Apache-2.0
"""Errors of a command as one message on standard error."""

import contextlib
from collections.abc import Iterator

import typer


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """What the user got wrong, or what is not there, as one message and exit status 2."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
