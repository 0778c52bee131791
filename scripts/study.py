# SPDX-License-Identifier: Apache-2.0
"""The study of docs/study.md.

    .venv/bin/python scripts/study.py run [--jobs 2]    starts what is missing; the same command goes on
    .venv/bin/python scripts/study.py table             what the finished runs show so far

scripts/study.yaml says which runs there are. A run trains in outputs/study/NAME, from where it resumes; when it is
finished, its metrics go to results/study/NAME.jsonl, and what its best checkpoint answers, where that is asked for, to
NAME.json. Both are kept in the repository.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import pandas as pd
import study_results
import typer
from pages import write_table
from study_runs import ENTROPY, OUTPUTS, REWARD, ROOT, Run, choosing, measuring, read_plan

from cw_grpo import runs
from cw_grpo.evaluation import scores

CLI = str(Path(sys.executable).with_name("cw-grpo"))

app = typer.Typer(add_completion=False, help=__doc__)


def command(run: Run, log: str, *arguments: str) -> bool:
    """Run a command of `cw-grpo`, its output in a log of the run's directory; whether it succeeded."""
    run.directory.mkdir(parents=True, exist_ok=True)
    with (run.directory / log).open("a") as output:
        status = subprocess.run([CLI, *arguments], stdout=output, stderr=subprocess.STDOUT, cwd=ROOT).returncode
    if status:
        print(f"{run.name}: stopped with status {status}, see {run.directory / log}", flush=True)
    return status == 0


def train(run: Run) -> None:
    """Start or resume a run; when it is finished, keep its metrics."""
    options = ("--no-report", f"--run-dir={run.directory}")
    overrides = (*run.overrides, f"actor_rollout_ref.actor.optim.lr={run.rate}", f"seed={run.seed}")
    if not command(run, "launcher.log", "train", *options, "cluster=cpu", *overrides):
        return
    metrics = runs.load_metrics(run.directory)[[REWARD, ENTROPY, "response_length/mean"]].dropna()
    run.keep_metrics(metrics)
    print(f"{run.name}: reward {metrics[REWARD].iloc[-8:].mean():.3f}", flush=True)


def best_checkpoint(run: Run, reward: pd.Series) -> int:
    """The step of the checkpoint with the largest reward, as the mean of the 8 steps up to it.

    Raises:
        FileNotFoundError: the run's checkpoints are not on this machine.
    """
    steps = runs.checkpoint_steps(run.directory / "checkpoints")
    if not steps:
        raise FileNotFoundError(f"{run.name}: no checkpoint in {run.directory}; the run was finished elsewhere")
    return max(steps, key=study_results.smooth(reward).loc.__getitem__)


def read_accuracy(step: int, evaluation: Path) -> dict[str, float]:
    """The accuracy of a checkpoint, from the directory of its evaluation."""
    (result,) = scores.read(evaluation.glob(f"*@{step}/sums.json"))
    return {"step": step, "pass@1": result["pass@1"]["mean"], f"pass@{result['samples']}": result["pass@K"]["mean"]}


def evaluate(run: Run, sums: Path, options: list[str]) -> None:
    """Let the best checkpoint of a finished run answer sums that no run saw; keep its accuracy."""
    metrics, out = run.metrics, run.directory / "evaluation"
    if metrics is None:  # it was stopped
        return
    try:
        step = best_checkpoint(run, metrics[REWARD])
    except FileNotFoundError as error:
        print(error, flush=True)
        return
    model = f"{run.directory}@{step}"
    if command(run, "evaluation.log", "eval", model, f"--benchmarks={sums}", f"--out={out}", *options):
        run.keep_accuracy(read_accuracy(step, out))


@app.command("run")
def run_missing(jobs: Annotated[int, typer.Option(help="Runs at a time.")] = 2) -> None:
    """Start what is missing: first the runs that choose the rates, then those at the best rates."""
    plan = read_plan()
    data, options = (list(map(str, plan["evaluation"][key])) for key in ("data", "options"))
    sums = OUTPUTS / "sums.parquet"
    if not sums.exists():
        subprocess.run([CLI, "data", *data, "--out", str(sums)], cwd=ROOT, check=True)

    def measure(run: Run) -> None:
        if run.metrics is None:
            train(run)
        evaluate(run, sums, options)

    with ThreadPoolExecutor(jobs) as pool:
        missing = [run for run in choosing(plan) if run.metrics is None]
        print(f"runs that choose the rates: {len(missing)} to do", flush=True)
        list(pool.map(train, missing))
        missing = [run for run in measuring(plan) if run.accuracy is None]
        print(f"runs at the best rates: {len(missing)} to do", flush=True)
        list(pool.map(measure, missing))


@app.command()
def table(page: Annotated[Path | None, typer.Option(help="Document to write the tables into.")] = None) -> None:
    """The runs that choose the rates, and the runs at the best rates; with a page, also its picture."""
    plan = read_plan()
    for name, text in study_results.tables(plan).items():
        print(text)
        if page is not None:
            write_table(page, name, text)
    if page is not None:
        study_results.draw(plan, page.with_name("study-240.png"))


if __name__ == "__main__":
    app()
