# SPDX-License-Identifier: Apache-2.0
"""Errors of a command as one message on standard error."""

import contextlib
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperGroup

USER_ERRORS = (ValueError, RuntimeError, OSError)
"""What the user got wrong, or what is not there."""


class Commands(TyperGroup):
    """The commands; a package that one of them lacks is one message on standard error, and exit status 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            typer.echo(
                f'error: {package} is not installed. What the commands need: pip install ".[vllm]" in the checkout, or '
                '".[cpu]" without a GPU',
                err=True,
            )
            raise typer.Exit(2) from None


@contextlib.contextmanager
def user_errors(errors: tuple[type[Exception], ...] = USER_ERRORS) -> Iterator[None]:
    """Show an error of these types as one message, and exit with its status, or 2 if it has none."""
    try:
        yield
    except errors as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(getattr(error, "status", 2)) from None
