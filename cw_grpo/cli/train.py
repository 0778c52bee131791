# SPDX-License-Identifier: Apache-2.0
"""Run a job: ``cw-grpo train``."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from .errors import user_errors
from .options import DEFAULT_HOME, Home


def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="OVERRIDES...", help="Hydra's, as for verl: method=grpo scale=tiny seed=2"),
    ] = None,
    config_path: Annotated[
        Path | None, typer.Option(help="Directory of the primary config; by default the recipe's.")
    ] = None,
    config_name: Annotated[str, typer.Option(help="Name of the primary config.")] = "cw_grpo",
    run_dir: Annotated[
        Path | None, typer.Option(help="Directory of the run; by default runs/<scale>-<method> in --home.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew; the earlier run is kept beside it.")] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Resume with settings that change the training.")
    ] = False,
    prepare_only: Annotated[
        bool,
        typer.Option("--prepare-only", help="Make or fetch the model and the data; start nothing."),
    ] = False,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Make report/report.html at the end, in about ten seconds.")
    ] = True,
    home: Home = DEFAULT_HOME,
) -> None:
    """Run a job with stock verl, one line per step; the same command resumes from its last checkpoint."""
    from cw_grpo.job.launch import train
    from cw_grpo.job.plan import LaunchError

    def build_report(run: Path) -> object:
        from cw_grpo.report import build

        return build([str(run)], run / "report")

    os.environ["CW_GRPO_HOME"] = str(home.expanduser())  # which paths in the recipe's configuration refer to
    with user_errors((LaunchError,)):
        status = train(
            overrides or [],
            config_dir=config_path,
            config_name=config_name,
            run_dir=run_dir,
            fresh=fresh,
            accept_changes=accept_changes,
            prepare_only=prepare_only,
            home=home,
            command=["cw-grpo", *sys.argv[1:]],
            build_report=build_report if report else None,
        )
    raise typer.Exit(status)
