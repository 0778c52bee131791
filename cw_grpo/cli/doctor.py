"""Check an installation: ``cw-grpo doctor``."""

from typing import Annotated

import typer

from .errors import user_errors


def doctor(
    address: Annotated[
        str | None,
        typer.Option(help="Check every node of this Ray cluster too; auto: the one of RAY_ADDRESS or of this machine."),
    ] = None,
    limit: Annotated[float, typer.Option(help="Seconds for the nodes to answer.")] = 300.0,
) -> None:
    """Check that verl in this Python trains with CW-GRPO when a job asks for it; exit 1 if not."""
    from cw_grpo.doctor.local import run

    passed = run(typer.echo)
    if address is not None:
        from cw_grpo.doctor import cluster

        with user_errors():
            passed &= cluster.run(address, typer.echo, limit_s=limit)
    if not passed:
        raise typer.Exit(1)
