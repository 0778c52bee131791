# SPDX-License-Identifier: Apache-2.0
"""Draw runs: ``cw-grpo report``."""

from pathlib import Path
from typing import Annotated

import typer

from .errors import user_errors


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Directories of `cw-grpo train`, or files or directories of verl's `file` and `tensorboard` loggers; "
            "METHOD=PATH names the method.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Directory for report.html and the PNG and CSV behind it.")] = Path(
        "report"
    ),
    evaluated: Annotated[
        list[Path] | None,
        typer.Option("--eval", help="A directory or a file of scores of `cw-grpo eval`; repeatable."),
    ] = None,
) -> None:
    """Draw what runs did: entropy, reward, covariance, who is attenuated; several methods and seeds together."""
    from cw_grpo.report import build

    with user_errors():
        typer.echo(build(runs, out, evaluated or []))
