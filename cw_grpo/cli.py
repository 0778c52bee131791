"""The `cw-grpo` command. Each subcommand imports what it needs inside, so that `--help` is quick."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from cw_grpo.datasets import BENCHMARKS, EVALUATED

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Covariance-weighted GRPO (arXiv 2605.11538) as a verl plugin."
)


@app.callback()
def _main() -> None:
    pass


@app.command()
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

        with _errors():
            passed &= cluster.run(address, typer.echo, limit_s=limit)
    if not passed:
        raise typer.Exit(1)


@app.command()
def model(
    name: Annotated[str, typer.Argument(help="smollm2 (SmolLM2-135M-Instruct) or tiny (a million parameters).")],
    out: Annotated[Path, typer.Option(help="Folder to make; a finished one is left as it is.")],
    seed: Annotated[int, typer.Option(help="Of tiny's weights and warm start.")] = 0,
) -> None:
    """Make a small model in Hugging Face's format, without a download from a model hub."""
    from cw_grpo.job.models import make_model

    with _errors():
        make_model(name, out, seed=seed, echo=typer.echo)


data = typer.Typer(no_args_is_help=True, help="Make training data in verl's parquet schema.")
app.add_typer(data, name="data")


@data.command("reasoning-gym")
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

    with _errors():
        wording = Prompt(prompt or default_prompt())
        chosen = parse_options(options or [])
        rows = reasoning_gym_rows(task, size=size, seed=seed, split=split, prompt=wording, options=chosen)
        typer.echo(f"{write_rows(rows, out)} questions in {out}")


def _benchmark_command(name: str, names: tuple[str, ...], text: str) -> None:
    @data.command(name, help=text)
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

        with _errors():
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


@app.command(context_settings={"ignore_unknown_options": True})
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


@app.command("eval")
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
    from cw_grpo.job.launch import LaunchError

    try:
        with _errors():
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


@app.command()
def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Folders of `cw-grpo train` or files of verl's loggers; METHOD=PATH names one.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for report.html and the PNG and CSV behind it.")] = Path("report"),
    evaluated: Annotated[
        list[Path] | None, typer.Option("--eval", help="A folder or a file of scores of `cw-grpo eval`; repeatable.")
    ] = None,
) -> None:
    """Draw what runs did: entropy, reward, covariance, who is attenuated; several methods and seeds together."""
    from cw_grpo.report import build

    with _errors():
        typer.echo(build(runs, out, evaluated or []))


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """What the user got wrong, or what is not there, as one message and exit status 2."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
