# SPDX-License-Identifier: Apache-2.0
"""Check an installation: ``cw-grpo doctor``."""

from typing import Annotated

import typer

from .errors import user_errors


def doctor(
    address: Annotated[
        str | None,
        typer.Option(help="Check every node of this Ray cluster too; auto: the one of RAY_ADDRESS or of this machine."),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for the nodes to answer.")] = 300.0,
) -> None:
    """Check that verl, as a job started in this directory imports it, trains with CW-GRPO; exit 1 if not."""
    from cw_grpo.doctor import cluster, local

    typer.echo(", ".join(f"{name} {version}" for name, version in local.versions().items()))
    failed = False
    for result in local.run():
        typer.echo(result)
        failed |= result.failed
    if address is not None:
        with user_errors():
            for result in cluster.run(address, timeout=timeout):
                typer.echo(result)
                failed |= result.failed
    if failed:
        raise typer.Exit(1)
