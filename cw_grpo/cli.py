"""The `cw-grpo` command. Each subcommand imports what it needs inside, so that `--help` is quick."""

import typer

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Covariance-weighted GRPO (arXiv 2605.11538) as a verl plugin."
)


@app.callback()
def _main() -> None:
    pass


@app.command()
def doctor() -> None:
    """Check that verl in this Python trains with CW-GRPO when a job asks for it; exit 1 if not."""
    from cw_grpo.doctor import run

    if not run(typer.echo):
        raise typer.Exit(1)
