# SPDX-License-Identifier: Apache-2.0
"""Errors of a command as one message on standard error."""

import contextlib
from collections.abc import Iterator

import typer

USER_ERRORS = (ValueError, RuntimeError, OSError)
"""What the user got wrong, or what is not there."""


@contextlib.contextmanager
def user_errors(errors: tuple[type[Exception], ...] = USER_ERRORS) -> Iterator[None]:
    """Show an error of these types as one message, and exit with its status, or 2 if it has none."""
    try:
        yield
    except errors as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(getattr(error, "status", 2)) from None
