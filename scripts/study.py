# SPDX-License-Identifier: Apache-2.0
"""The study of docs/study.md: its runs, and what they show.

    .venv/bin/python scripts/study.py run [--jobs 2]    starts what is missing; the same command goes on
    .venv/bin/python scripts/study.py table             what the finished runs show so far

scripts/study.yaml says which runs there are. A run trains in outputs/study/NAME, from where it resumes; when it is
finished, its metrics go to results/study/NAME.jsonl, and what its best checkpoint answers, where that is asked for, to
NAME.json. Both are kept in the repository.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
import yaml
from pages import write_table

from cw_grpo import runs
from cw_grpo.evaluation import scores
from cw_grpo.intervals import t_interval

ROOT = Path(__file__).parents[1]
PLAN = ROOT / "scripts" / "study.yaml"
RESULTS = ROOT / "results" / "study"
OUTPUTS = ROOT / "outputs" / "study"
CLI = str(Path(sys.executable).with_name("cw-grpo"))
REWARD, ENTROPY = "critic/score/mean", "actor/entropy"

app = typer.Typer(add_completion=False, help=__doc__)


@dataclass(frozen=True)
class Run:
    """A run of the study."""

    method: str
    overrides: tuple[str, ...]
    rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.rate:g}-s{self.seed}"

    @property
    def directory(self) -> Path:
        return OUTPUTS / self.name

    @property
    def accuracy(self) -> dict[str, float] | None:
        """What the best checkpoint answers: `step`, `pass@1` and `pass@8`; None while it is not evaluated."""
        path = RESULTS / f"{self.name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    @property
    def metrics(self) -> pd.DataFrame | None:
        """Reward and entropy by step; None while the run is not finished."""
        path = RESULTS / f"{self.name}.jsonl"
        return pd.read_json(path, lines=True).set_index("step") if path.exists() else None


def choosing(plan: dict[str, Any]) -> list[Run]:
    """The runs that choose each method's rate."""
    return of_every_method(plan, plan["rates"], plan["choosing_seeds"])


def of_every_method(plan: dict[str, Any], rates: list[float], seeds: list[int]) -> list[Run]:
    """A run of each method at each rate with each seed."""
    return [
        Run(method, (*plan["common"], *overrides), rate, seed)
        for seed in seeds
        for rate in rates
        for method, overrides in plan["methods"].items()
    ]


def best_rates(plan: dict[str, Any]) -> dict[str, float]:
    """Each method's rate with the largest mean area under the reward curve; only of methods with all their runs."""
    areas: dict[str, dict[float, list[float]]] = {}
    for run in choosing(plan):
        metrics = run.metrics
        if metrics is not None:
            areas.setdefault(run.method, {}).setdefault(run.rate, []).append(metrics[REWARD].mean())
    seeds, rates = len(plan["choosing_seeds"]), len(plan["rates"])
    complete = {m: of for m, of in areas.items() if len(of) == rates and all(len(v) == seeds for v in of.values())}
    return {method: max(of, key=lambda rate: np.mean(of[rate])) for method, of in complete.items()}


def measuring(plan: dict[str, Any]) -> Iterator[Run]:
    """The runs at the best rates, as far as these are known."""
    best = best_rates(plan)
    for seed in plan["seeds"]:
        for method, rate in best.items():
            yield Run(method, (*plan["common"], *plan["methods"][method]), rate, seed)
        if "grpo" in best:
            common = (*plan["common"], *plan["off_policy"]["overrides"])
            yield Run(
                "slow_grpo",
                (*plan["common"], *plan["methods"]["grpo"]),
                best["grpo"] * plan["slow_grpo"],
                seed,
            )
            for method, overrides in plan["off_policy"]["methods"].items():
                yield Run(f"off_policy_{method}", (*common, *overrides), best["grpo"], seed)


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
    RESULTS.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": int(step), **row}) for step, row in metrics.round(5).to_dict("index").items()]
    (RESULTS / f"{run.name}.jsonl").write_text("\n".join(lines) + "\n")
    print(f"{run.name}: reward {metrics[REWARD].iloc[-8:].mean():.3f}", flush=True)


def smooth(values: pd.Series | pd.DataFrame) -> pd.Series | pd.DataFrame:
    """The mean of the 8 steps up to each."""
    return values.rolling(8, min_periods=1).mean()


def best_checkpoint(run: Run, reward: pd.Series) -> int:
    """The step of the checkpoint with the largest reward, as the mean of the 8 steps up to it.

    Raises:
        FileNotFoundError: the run's checkpoints are not on this machine.
    """
    steps = runs.checkpoint_steps(run.directory / "checkpoints")
    if not steps:
        raise FileNotFoundError(f"{run.name}: no checkpoint in {run.directory}; the run was finished elsewhere")
    return max(steps, key=smooth(reward).loc.__getitem__)


def keep_accuracy(run: Run, step: int, evaluation: Path) -> None:
    """Keep the accuracy of a checkpoint from the directory of its evaluation, with 8 samples a question."""
    (result,) = scores.read(evaluation.glob(f"*@{step}/sums.json"))
    accuracy = {"step": step, "pass@1": result["pass@1"]["mean"], f"pass@{result['samples']}": result["pass@K"]["mean"]}
    (RESULTS / f"{run.name}.json").write_text(json.dumps(accuracy) + "\n")


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
        keep_accuracy(run, step, out)


@app.command("run")
def run_missing(jobs: Annotated[int, typer.Option(help="Runs at a time.")] = 2) -> None:
    """Start what is missing: first the runs that choose the rates, then those at the best rates."""
    plan = yaml.safe_load(PLAN.read_text())
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


def collapses(reward: pd.Series) -> bool:
    """Whether the smoothed reward falls by a third from its highest value and stays there to the end."""
    means = smooth(reward)
    return bool(means.iloc[-1] < 2 / 3 * means.max())


def summary(metrics: pd.DataFrame) -> dict[str, float]:
    """What the study reports of one run; means over 8 steps."""
    means = smooth(metrics[[REWARD, ENTROPY]])
    reached = means.index[means[REWARD] >= 0.7]
    return {
        "best reward": means[REWARD].max(),
        "last reward": means[REWARD].iloc[-1],
        "area": metrics[REWARD].mean(),
        "entropy at reward .7": means.loc[reached[0], ENTROPY] if len(reached) else np.nan,
        "last entropy": means[ENTROPY].iloc[-1],
        "collapsed": float(collapses(metrics[REWARD])),
    }


STEPS = (8, 40, 80, 120, 160, 200, 240)
"""Of the table of the runs that choose the rates."""


def progress_table(plan: dict[str, Any]) -> str:
    """Reward and entropy of the finished runs at all rates, in Markdown: means over 8 steps and over seeds."""
    finished: dict[tuple[str, float], list[pd.DataFrame]] = {}
    for run in [*choosing(plan), *of_every_method(plan, **plan["given_up"])]:
        if (metrics := run.metrics) is not None:
            finished.setdefault((run.method, run.rate), []).append(smooth(metrics[[REWARD, ENTROPY]]))
    lines = [f"| method, rate, seeds | | step {' | '.join(map(str, STEPS))} |", "|---" * (len(STEPS) + 2) + "|"]
    for (method, rate), of in sorted(
        finished.items(), key=lambda item: (list(plan["methods"]).index(item[0][0]), -item[0][1])
    ):
        means = pd.concat(of).groupby(level=0).mean().reindex(STEPS)
        for first, column, name in ((f"{method}, {rate:g}, {len(of)}", REWARD, "reward"), ("", ENTROPY, "entropy")):
            cells = ["" if np.isnan(value) else f"{value:.3f}".removeprefix("0") for value in means[column]]
            lines.append(f"| {first} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def against(method: str) -> str:
    """The method that a method is compared to: GRPO with as many updates a rollout."""
    return "off_policy_grpo" if method.startswith("off_policy") else "grpo"


@app.command()
def table(page: Annotated[Path | None, typer.Option(help="Document to write the first table into.")] = None) -> None:
    """The runs that choose the rates; then means with 95% t intervals over the fresh seeds, and differences to grpo."""
    plan = yaml.safe_load(PLAN.read_text())
    so_far = progress_table(plan)
    print(so_far)
    if page is not None:
        write_table(page, "results/study", so_far)
    print("best rates:", best_rates(plan) or "not known yet")
    rows = [
        {"method": run.method, "rate": run.rate, "seed": run.seed, **summary(metrics), **(run.accuracy or {})}
        for run in measuring(plan)
        if (metrics := run.metrics) is not None
    ]
    if not rows:
        return
    frame = pd.DataFrame(rows).set_index(["method", "seed"])
    values = frame.drop(columns=["rate", "step"], errors="ignore")
    for method, of in values.groupby("method", sort=False):
        of = of.droplevel("method")
        print(method, f"({len(of)} seeds)")
        for column in values:
            own = of[column].dropna()
            paired = (of[column] - values.xs(against(method))[column]).dropna()
            shown = [f"{x.mean():+.3f} ({', '.join(f'{end:+.3f}' for end in t_interval(x))})" for x in (own, paired)]
            print(f"  {column:22} {shown[0]}   less {against(method)}'s: {shown[1]}")


if __name__ == "__main__":
    app()
