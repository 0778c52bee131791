"""Run a job: ``cw-grpo train``."""

import functools
from pathlib import Path
from typing import Annotated

import typer


def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="OVERRIDES...", help="Hydra's, as for verl: method=grpo scale=tiny data.seed=2"),
    ] = None,
    config_path: Annotated[
        Path | None, typer.Option(help="Folder of the primary config; by default this checkout's recipe.")
    ] = None,
    config_name: Annotated[str, typer.Option(help="Name of the primary config.")] = "cw_grpo",
    run_dir: Annotated[Path | None, typer.Option(help="By default runs/<scale>-<method> in --home.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew; the earlier run is kept beside it.")] = False,
    home: Annotated[Path, typer.Option(envvar="CW_GRPO_HOME", help="Where models, data and runs are kept.")] = Path(
        "outputs"
    ),
) -> None:
    """Run a job with stock verl, a line a step; the same command again goes on from its checkpoint."""
    from cw_grpo.job import launch

    try:
        status = launch.train(
            overrides or [],
            config_dir=config_path,
            config_name=config_name,
            run_dir=run_dir,
            fresh=fresh,
            home=home,
            echo=functools.partial(print, flush=True),
        )
    except launch.LaunchError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.status) from None
    raise typer.Exit(status)
