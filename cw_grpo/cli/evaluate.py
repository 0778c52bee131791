"""Evaluate models: ``cw-grpo eval``."""

import functools
from pathlib import Path
from typing import Annotated

import typer

from ..datasets import EVALUATED
from .errors import user_errors


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="A Hugging Face folder or id, a checkpoint of verl, or a run's folder (its last checkpoint; RUN@50 "
            "another). NAME=MODEL says the method.",
        ),
    ],
    benchmarks: Annotated[
        str, typer.Option(help="Names, or parquet files in verl's schema, separated by commas.")
    ] = ",".join(EVALUATED),
    samples: Annotated[int | None, typer.Option(help="Answers to each question.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Limit of an answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; an interrupted evaluation goes on there.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Hydra's, for config/eval.yaml: cluster=1node; repeatable."),
    ] = None,
    config_path: Annotated[
        Path | None, typer.Option(help="Folder of eval.yaml; by default this checkout's recipe.")
    ] = None,
    home: Annotated[Path, typer.Option(envvar="CW_GRPO_HOME", help="Where models, data and runs are kept.")] = Path(
        "outputs"
    ),
) -> None:
    """Sample answers to benchmarks with verl's servers and score them with the recipe's reward (Tables 2 and 3)."""
    from cw_grpo.evaluation.evaluate import evaluate
    from cw_grpo.job.plan import LaunchError

    try:
        with user_errors():
            evaluate(
                models,
                benchmarks=[name.strip() for name in benchmarks.split(",") if name.strip()],
                samples=samples,
                max_tokens=max_tokens,
                temperature=temperature,
                out=out,
                overrides=overrides or [],
                config_dir=config_path,
                home=home,
                echo=functools.partial(print, flush=True),
            )
    except LaunchError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.status) from None
