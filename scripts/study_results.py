# SPDX-License-Identifier: Apache-2.0
"""What the finished runs of the study show: tables in Markdown, and a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from study_runs import ENTROPY, REWARD, Run, baseline, best_rates, choosing, given_up, measuring

from cw_grpo.plot import moving_average, picture, step_axis
from cw_grpo.report import figures
from cw_grpo.report.step_frames import interval

STEPS = (8, 40, 80, 120, 160, 200, 240)
"""Of the table of the runs that choose the rates."""
LEVELS = {"entropy at .7": 0.7, "entropy at .8": 0.8}
"""The rewards at which entropies are compared."""
COLUMNS = ["best reward", "last reward", "area", *LEVELS, "last entropy", "collapsed", "pass@1", "pass@8"]
"""Of the tables of the runs at the best rates."""
OTHER_DIFFERENCES = [("cw_grpo", "slow_grpo"), ("cw_grpo", "clip_cov"), ("cw_grpo_centred", "cw_grpo")]
"""Pairs that are compared beside each method and its baseline."""


def smooth(values: pd.Series | pd.DataFrame) -> pd.Series | pd.DataFrame:
    """The mean of the 8 steps up to each."""
    return values.rolling(8, min_periods=1).mean()


def collapses(reward: pd.Series) -> bool:
    """Whether the smoothed reward falls by a third from its highest value and stays there to the end."""
    means = smooth(reward)
    return bool(means.iloc[-1] < 2 / 3 * means.max())


def summary(metrics: pd.DataFrame) -> dict[str, float]:
    """What the study reports of one run; means over 8 steps."""
    means = smooth(metrics[[REWARD, ENTROPY]])
    reached = {name: means.index[means[REWARD] >= level] for name, level in LEVELS.items()}
    return {
        "best reward": means[REWARD].max(),
        "last reward": means[REWARD].iloc[-1],
        "area": metrics[REWARD].mean(),
        **{name: means.loc[steps[0], ENTROPY] if len(steps) else np.nan for name, steps in reached.items()},
        "last entropy": means[ENTROPY].iloc[-1],
        "collapsed": float(collapses(metrics[REWARD])),
    }


def tables(plan: dict[str, Any]) -> dict[str, str]:
    """The tables of docs/study.md by what they are of."""
    measured = summaries(measuring(plan))
    return {
        "results/study": progress_table(plan),
        "results/study, best rates": levels_table(measured),
        "results/study, differences": differences_table(measured),
    }


def progress_table(plan: dict[str, Any]) -> str:
    """Reward and entropy of the finished runs at all rates: means over 8 steps and over seeds. The best rates bold."""
    finished: dict[tuple[str, float], list[pd.DataFrame]] = {}
    for run in [*choosing(plan), *given_up(plan)]:
        if (metrics := run.metrics) is not None:
            finished.setdefault((run.method, run.rate), []).append(smooth(metrics[[REWARD, ENTROPY]]))
    order, best = list(plan["methods"]), best_rates(plan)
    rows = []
    for (method, rate), of in sorted(finished.items(), key=lambda item: (order.index(item[0][0]), -item[0][1])):
        means = pd.concat(of).groupby(level=0).mean().reindex(STEPS)
        label = f"{method}, {rate:g}, {len(of)}"
        first = f"**{label}**" if best.get(method) == rate else label
        rows += [[first, "reward", *map(number, means[REWARD])], ["", "entropy", *map(number, means[ENTROPY])]]
    return markdown(["method, rate, seeds", "", f"step {STEPS[0]}", *map(str, STEPS[1:])], rows)


def summaries(runs: Iterable[Run]) -> pd.DataFrame:
    """One row per finished run, by method and seed: its rate and what is reported of it."""
    rows = [
        {"method": run.method, "seed": run.seed, "rate": run.rate, **summary(metrics), **(run.accuracy or {})}
        for run in runs
        if (metrics := run.metrics) is not None
    ]
    return pd.DataFrame(rows, columns=["method", "seed", "rate", *COLUMNS]).set_index(["method", "seed"])


def levels_table(measured: pd.DataFrame) -> str:
    """Each method at its best rate: means over seeds, and half the width of their 95% t interval."""
    rows = []
    for method, of in measured.groupby("method", sort=False):
        label = f"{method}, {of['rate'].iloc[0]:g}, {len(of)}"
        rows.append([label, *(with_interval(of[column], number) for column in COLUMNS)])
    return markdown(["method, rate, seeds", *COLUMNS], rows)


def differences_table(measured: pd.DataFrame) -> str:
    """Each method less its baseline, and :data:`OTHER_DIFFERENCES`, paired by seed.

    Bold where the 95% t interval has no 0.
    """
    methods = measured.index.unique("method")
    rows = []
    for method, against in [*((method, baseline(method)) for method in methods), *OTHER_DIFFERENCES]:
        if method == against or not {method, against} <= set(methods):
            continue
        differences = (measured.loc[method, COLUMNS] - measured.loc[against, COLUMNS]).dropna(how="all")
        rows.append([f"{method} less {against}", *(with_interval(differences[c], signed, bold=True) for c in COLUMNS)])
    return markdown(["difference", *COLUMNS], rows)


def with_interval(values: pd.Series, form: Callable[[float], str], bold: bool = False) -> str:
    """Mean and half the width of its 95% t interval over seeds; with how many seeds, if some have no value."""
    known = values.dropna()
    if known.empty:
        return ""
    low, high = interval(known.to_list())
    half = (high - low) / 2
    text = form(known.mean()) + ("" if np.isnan(half) else f" ± {number(half)}")
    text = f"**{text}**" if bold and abs(known.mean()) > half else text
    return text if len(known) == len(values) else f"{text} ({len(known)})"


def number(value: float) -> str:
    """Three digits without the leading 0; nothing for NaN."""
    return "" if np.isnan(value) else f"{value:.3f}".removeprefix("0")


def signed(value: float) -> str:
    """As :func:`number`, with the sign."""
    return f"{value:+.3f}"[0] + number(abs(value))


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def fresh_paths(plan: dict[str, Any]) -> dict[str, list[pd.DataFrame]]:
    """Smoothed reward and entropy by step of each fresh run, by method; without several updates a rollout."""
    paths: dict[str, list[pd.DataFrame]] = {}
    for run in measuring(plan):
        if baseline(run.method) == "grpo" and (metrics := run.metrics) is not None:
            path = moving_average(metrics[[REWARD, ENTROPY]].set_axis(["reward", "entropy"], axis=1))
            paths.setdefault(run.method, []).append(path)
    return paths


def draw(plan: dict[str, Any], out: Path) -> None:
    """The methods at their best rates: reward and entropy over steps, entropy against reward; means over fresh seeds.

    Nothing is drawn while no fresh run is finished.
    """
    finished = fresh_paths(plan)
    if not finished:
        return
    means = {name: pd.concat(of).groupby(level="step").mean() for name, of in finished.items()}
    paths = pd.concat(means, names=["method"]).reset_index()
    colours = figures.colours_of(list(finished))
    with picture(out, 3) as (figure, axes):
        for axis, column in ((axes[0], "reward"), (axes[1], "entropy")):
            for name, path in means.items():
                axis.plot(path.index, path[column], color=colours[name], label=name)
            step_axis(axis, column)
        figures.entropy_reward(axes[2], paths, colours)
        axes[0].legend()
        seeds = sorted({len(of) for of in finished.values()})
        figure.suptitle(
            f"moving averages over a tenth of the steps, means of {' or '.join(map(str, seeds))} seeds", fontsize=11
        )
