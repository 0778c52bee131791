"""The `cw-grpo` command."""

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Covariance-weighted GRPO (arXiv 2605.11538) on verl.")


@app.callback()
def _main() -> None:
    pass
