# SPDX-License-Identifier: Apache-2.0
"""Evaluate models: ``cw-grpo eval``."""

from pathlib import Path
from typing import Annotated

import typer

from ..datasets import EVALUATED
from .errors import USER_ERRORS, user_errors
from .options import DEFAULT_HOME, Home

# As eval.yaml has them; read there, and only shown here.
SAMPLES, MAX_TOKENS, TEMPERATURE = "4", "4096", "0.6"


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="A Hugging Face directory or id, a checkpoint of verl, or a run's directory (its last checkpoint; "
            "RUN@50 another). NAME=MODEL says the method.",
        ),
    ],
    benchmarks: Annotated[
        str, typer.Option(help="Names, or parquet files in verl's schema, separated by commas.")
    ] = ",".join(EVALUATED),
    samples: Annotated[int | None, typer.Option(help="Answers to each question.", show_default=SAMPLES)] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Limit of an answer, in tokens.", show_default=MAX_TOKENS)
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.", show_default=TEMPERATURE)] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|benchmark",
            help="Wording, a YAML file; `benchmark` for that of the benchmarks' files.",
            show_default="that of the run's training",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory; an interrupted evaluation resumes there.", show_default="eval in --home"),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Hydra's, for config/eval.yaml: cluster=1node; repeatable."),
    ] = None,
    config_path: Annotated[
        Path | None, typer.Option(help="Directory of eval.yaml.", show_default="the recipe's config")
    ] = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Sample answers to benchmarks with verl's servers and score them with the recipe's reward (Tables 2 and 3).

    A run is asked with the prompt, and scored with the settings of the reward, that it was trained with.
    """
    from cw_grpo.evaluation.evaluate import Request, evaluate
    from cw_grpo.job.plan import LaunchError

    request = Request(
        models,
        [name.strip() for name in benchmarks.split(",") if name.strip()],
        home,
        out=out,
        samples=samples,
        temperature=temperature,
        max_tokens=max_tokens,
        prompt=prompt,
        config_dir=config_path,
        overrides=overrides or [],
    )
    with user_errors((*USER_ERRORS, LaunchError)):
        evaluate(request)
