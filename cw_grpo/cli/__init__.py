# SPDX-License-Identifier: Apache-2.0
"""The `cw-grpo` command. Each subcommand imports what it needs inside, so that `--help` is quick."""

import logging
import sys
from typing import Annotated

import typer

from . import data, doctor, evaluate, model, report, train
from .errors import Commands

app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    help="Covariance-weighted GRPO (arXiv 2605.11538) as a verl plugin.",
)


class _Terminal(logging.StreamHandler):
    """Progress of every module of the package, as plain lines on standard output."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout  # the one of now; setStream would flush the last one, which may be closed
        super().emit(record)


def _print_version(wanted: bool) -> None:
    if wanted:
        from cw_grpo import __version__

        typer.echo(f"cw-grpo {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    logger = logging.getLogger("cw_grpo")
    if not any(isinstance(handler, _Terminal) for handler in logger.handlers):
        logger.addHandler(_Terminal())
        logger.setLevel(logging.INFO)
        logger.propagate = False  # verl, once imported, has a handler of the root logger print each line again


app.command("doctor")(doctor.doctor)
app.command("model")(model.model)
app.add_typer(data.app, name="data")
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("report")(report.report)
