# SPDX-License-Identifier: Apache-2.0
"""Make training data: ``cw-grpo data``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..datasets import BENCHMARKS
from .errors import user_errors
from .options import DEFAULT_HOME, Home

app = typer.Typer(no_args_is_help=True, help="Make training data in verl's parquet schema.")


@app.command("reasoning-gym")
def data_reasoning_gym(
    task: Annotated[str, typer.Option(help="A task of reasoning-gym, for instance chain_sum.")],
    size: Annotated[int, typer.Option(help="Number of questions.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    seed: Annotated[int, typer.Option(help="Question i depends on seed + i: keep the ranges of files apart.")] = 0,
    prompt: Annotated[
        Path | None, typer.Option(help="Prompt, a YAML file; by default recipe/cw_grpo/prompts/boxed.yaml.")
    ] = None,
    split: Annotated[str, typer.Option(help="Written to extra_info.split.")] = "train",
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the task; may be repeated.")
    ] = None,
) -> None:
    """Verifiable questions from the package reasoning-gym, which needs no network."""
    from ..datasets.prompts import Prompt, default_prompt
    from ..datasets.reasoning_gym import reasoning_gym_rows
    from ..datasets.rows import write_rows

    with user_errors():
        rows = reasoning_gym_rows(
            task,
            size=size,
            seed=seed,
            split=split,
            prompt=Prompt(prompt or default_prompt()),
            options=parse_options(options or []),
        )
        typer.echo(f"{write_rows(rows, out)} questions in {out}")


@app.command("paper")
def data_paper(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help=f"{', '.join(BENCHMARKS)}, or all.")],
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="A parquet, json, jsonl or csv file, or a directory of such files named open-rs, ...; "
            "by default the Hugging Face hub.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A directory, or the .parquet file of one; by default data in --home.")
    ] = None,
    prompt: Annotated[
        Path | None, typer.Option(help="Prompt, a YAML file; by default recipe/cw_grpo/prompts/paper.yaml.")
    ] = None,
    question_column: Annotated[str | None, typer.Option(help="By default found by its name.")] = None,
    answer_column: Annotated[str | None, typer.Option(help="By default found by its name.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Directory or id; prompts longer than --max-prompt-length are skipped.")
    ] = None,
    max_prompt_length: Annotated[int, typer.Option(min=1, help="In tokens, as data.max_prompt_length.")] = 512,
    allow_size_mismatch: Annotated[
        bool, typer.Option("--allow-size-mismatch", help="Accept another number of rows than the paper's.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail instead of skipping a row or keeping a doubtful reference.")
    ] = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """The paper's training set and benchmarks. One that fails does not stop the others."""
    from ..datasets.conversion import ConversionSettings
    from ..datasets.hub import load_tokenizer
    from ..datasets.paper import make_benchmarks
    from ..datasets.prompts import Prompt, paper_prompt

    with user_errors():
        settings = ConversionSettings(
            prompt=Prompt(prompt or paper_prompt()),
            question_column=question_column,
            answer_column=answer_column,
            tokenizer=None if tokenizer is None else load_tokenizer(tokenizer),
            max_prompt_length=max_prompt_length,
        )
        failures = make_benchmarks(
            list(dict.fromkeys(one for name in names for one in (BENCHMARKS if name == "all" else [name]))),
            out=out or home / "data",
            source=source,
            settings=settings,
            allow_size_mismatch=allow_size_mismatch,
            strict=strict,
        )
    for failure in failures:
        typer.echo(f"error: {failure}", err=True)
    if failures:
        raise typer.Exit(2)


def parse_options(settings: Sequence[str]) -> dict[str, Any]:
    """``["min_terms=2", "operators=[+, -]"]`` as a dict; values are YAML.

    Raises:
        ValueError: an entry without ``=``, a key given twice, or a value that is not YAML.
    """
    import yaml

    options: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise ValueError(f"--set {setting}: write it as key=value")
        if key in options:
            raise ValueError(f"--set {key} is given twice")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--set {key}: {value!r} is not a YAML value") from error
    return options
