"""Make training data: ``cw-grpo data``."""

from pathlib import Path
from typing import Annotated

import typer

from ..datasets import BENCHMARKS
from .errors import user_errors

app = typer.Typer(no_args_is_help=True, help="Make training data in verl's parquet schema.")


@app.command("reasoning-gym")
def data_reasoning_gym(
    task: Annotated[str, typer.Option(help="A task of reasoning-gym, for instance chain_sum.")],
    size: Annotated[int, typer.Option(help="Number of questions.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    seed: Annotated[int, typer.Option(help="Question i depends on seed + i: keep the ranges of files apart.")] = 0,
    prompt: Annotated[
        Path | None, typer.Option(help="Wording, a YAML file; by default recipe/cw_grpo/prompts/boxed.yaml.")
    ] = None,
    split: Annotated[str, typer.Option(help="What extra_info.split says.")] = "train",
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the task; may be repeated.")
    ] = None,
) -> None:
    """Verifiable questions from the package reasoning-gym, which needs no network."""
    from cw_grpo.datasets.rows import Prompt, default_prompt, parse_options, reasoning_gym_rows, write_rows

    with user_errors():
        wording = Prompt(prompt or default_prompt())
        chosen = parse_options(options or [])
        rows = reasoning_gym_rows(task, size=size, seed=seed, split=split, prompt=wording, options=chosen)
        typer.echo(f"{write_rows(rows, out)} questions in {out}")


def _benchmark_command(name: str, names: tuple[str, ...], text: str) -> None:
    @app.command(name, help=text)
    def command(
        source: Annotated[
            Path | None,
            typer.Option(
                "--from", help="A parquet, json, jsonl or csv file, or a folder of such files named open-rs, ..."
            ),
        ] = None,
        out: Annotated[
            Path | None, typer.Option(help="A folder, or the .parquet file of one; by default data in --home.")
        ] = None,
        prompt: Annotated[
            Path | None, typer.Option(help="Wording, a YAML file; by default recipe/cw_grpo/prompts/paper.yaml.")
        ] = None,
        question_column: Annotated[str | None, typer.Option(help="If it is not found by itself.")] = None,
        answer_column: Annotated[str | None, typer.Option(help="If it is not found by itself.")] = None,
        tokenizer: Annotated[
            str | None, typer.Option(help="Folder or id; leaves out prompts longer than --max-prompt-length.")
        ] = None,
        max_prompt_length: Annotated[int, typer.Option(min=1, help="In tokens, as data.max_prompt_length.")] = 512,
        any_size: Annotated[bool, typer.Option("--any-size", help="Not only the paper's number of rows.")] = False,
        strict: Annotated[bool, typer.Option("--strict", help="Fail rather than leave a row out.")] = False,
        home: Annotated[Path, typer.Option(envvar="CW_GRPO_HOME", help="Where models, data and runs are kept.")] = Path(
            "outputs"
        ),
    ) -> None:
        from cw_grpo.datasets.benchmarks import make_benchmarks

        with user_errors():
            failures = make_benchmarks(
                names,
                out=out or home / "data",
                source=source,
                prompt=prompt,
                tokenizer=tokenizer,
                echo=typer.echo,
                question_column=question_column,
                answer_column=answer_column,
                max_prompt_length=max_prompt_length,
                any_size=any_size,
                strict=strict,
            )
        for failure in failures:
            typer.echo(f"error: {failure}", err=True)
        if failures:
            raise typer.Exit(2)


for _name in BENCHMARKS:
    _benchmark_command(_name, (_name,), f"The paper's {_name}, from the Hugging Face hub or a local file.")
_benchmark_command("all", BENCHMARKS, "All of them; one that fails does not stop the others.")
