"""The parts that verl's metrics give: summary, curves over steps, entropy against reward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

from cw_grpo.intervals import t_interval
from cw_grpo.plot import moving_average
from cw_grpo.report.collect import Run
from cw_grpo.report.parts import Part, write_csv

CURVES = (
    ("actor/entropy", "entropy (nats)"), ("critic/score/mean", "reward"),
    ("response_length/mean", "response length"), ("actor/kl_loss", "KL (actor/kl_loss)"),
)  # fmt: skip


def summary(methods: dict[str, list[Run]], missing: list[str], out: Path) -> Part:
    """Reward and entropy at the start and at the end of each method."""
    part = Part(
        "Summary", "Means over seeds of the first and last tenth of each run's steps, with 95% t intervals.", missing
    )
    rows = []
    for name, members in methods.items():
        lengths = [len(run.metrics) for run in members]
        row = {"method": name, "seeds": len(members), "steps": " ".join(map(str, lengths))}
        for key, label in (("critic/score/mean", "reward"), ("actor/entropy", "entropy")):
            series = [run.metrics[key].dropna().to_numpy() for run in members if key in run.metrics]
            tenths = [(values, max(1, len(values) // 10)) for values in series if len(values)]
            row[f"{label}, first"] = _with_interval([values[:n].mean() for values, n in tenths])
            row[f"{label}, last"] = _with_interval([values[-n:].mean() for values, n in tenths])
        rows.append(row)
    if len({len(run.metrics) for group in methods.values() for run in group}) > 1:
        missing.append(
            "equal lengths: the runs differ in their number of steps; the last tenths are of different steps"
        )
    part.table(out, "summary", pd.DataFrame(rows))
    return part


def over_steps(methods: dict[str, list[Run]], colours: dict, out: Path) -> Part:
    """The paper's Figure 1: entropy, and reward, length and KL beside it."""
    part = Part(
        "Entropy over steps (Figure 1)",
        "Bold: mean over seeds of moving averages, in a band of its 95% t interval where there are two seeds or more. "
        "Thin: the single steps of each seed.",
    )
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.5), layout="constrained")
    rows = []
    for axis, (key, label) in zip(axes.flat, CURVES, strict=True):
        lacking, lows, highs = [], [], []
        for name, members in methods.items():
            seeds = _seeds(members, key)
            if seeds.empty:
                lacking.append(name)
                continue
            smooth = moving_average(seeds)
            mean = smooth.mean(axis=1)
            bounds = np.array([t_interval(row[~np.isnan(row)]) for row in smooth.to_numpy()])
            axis.plot(seeds.index, seeds, color=colours[name], alpha=0.12, linewidth=0.6)
            axis.plot(mean.index, mean, color=colours[name], label=name, linewidth=2)
            axis.fill_between(mean.index, bounds[:, 0], bounds[:, 1], color=colours[name], alpha=0.12, linewidth=0)
            lows.append(seeds.min().min())
            highs.append(seeds.max().max())
            rows.append(pd.DataFrame({"method": name, "metric": key, "step": mean.index, "mean": mean.to_numpy(),
                                      "low": bounds[:, 0], "high": bounds[:, 1]}))  # fmt: skip
        if lacking:
            part.missing.append(f"{label}: no {key} in the metrics of {', '.join(lacking)}")
        if lows:  # an interval of two or three seeds can be far wider than what was measured
            margin = 0.05 * (max(highs) - min(lows) or 1)
            axis.set_ylim(min(lows) - margin, max(highs) + margin)
        axis.set(xlabel="step", ylabel=label)
        axis.set_visible(bool(axis.lines))
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    part.picture(out, "curves", figure)
    if rows:
        write_csv(out, "curves", pd.concat(rows))
    return part


def entropy_against_reward(methods: dict[str, list[Run]], colours: dict, out: Path) -> Part:
    """One path a method, and entropy at equal reward."""
    part = Part("Entropy against reward", "A method that only learns slower moves along the same path. o start, x end.")
    figure, axis = plt.subplots(figsize=(7, 5), layout="constrained")
    rows = []
    for name, members in methods.items():
        both = [_seeds(members, key).mean(axis=1) for key in ("critic/score/mean", "actor/entropy")]
        path = pd.concat(both, axis=1, keys=["reward", "entropy"]).dropna() if all(map(len, both)) else pd.DataFrame()
        if path.empty:
            part.missing.append(f"{name}: reward or entropy is not in its metrics")
            continue
        path = moving_average(path)
        axis.plot(path["reward"], path["entropy"], color=colours[name], label=name)
        axis.plot(*path.iloc[0], "o", color=colours[name])
        axis.plot(*path.iloc[-1], "x", color=colours[name])
        rows.append(path.assign(method=name, step=path.index))
    axis.set(xlabel="reward (smoothed)", ylabel="entropy (nats, smoothed)")
    if rows:
        axis.legend()
        write_csv(out, "entropy_reward", pd.concat(rows))
    part.picture(out, "entropy_reward", figure)
    _equal_reward(methods, part, out)
    return part


def _equal_reward(methods: dict[str, list[Run]], part: Part, out: Path) -> None:
    """Entropy where each run's smoothed reward first reaches a level, for levels that all runs reach from below."""
    paths = {name: [_smoothed(run) for run in members] for name, members in methods.items()}
    every = [path for members in paths.values() for path in members if len(path)]
    if not every:
        return
    low, high = max(path["reward"].iloc[0] for path in every), min(path["reward"].max() for path in every)
    if not high > low:
        part.missing.append("entropy at equal reward: there is no reward that all runs reach")
        return
    rows = []
    for level in np.linspace(low, high, 5)[1:]:
        row = {"reward": level}
        for name, members in paths.items():
            at = [path.loc[(path["reward"] >= level - 1e-12).idxmax(), "entropy"] for path in members if len(path)]
            row[name] = _with_interval(at)
        rows.append(row)
    part.table(out, "entropy_at_equal_reward", pd.DataFrame(rows))


def _smoothed(run: Run) -> pd.DataFrame:
    keys = {"critic/score/mean": "reward", "actor/entropy": "entropy"}
    if not set(keys) <= set(run.metrics):
        return pd.DataFrame(columns=list(keys.values()))
    path = run.metrics[list(keys)].rename(columns=keys).dropna()
    return moving_average(path)


def _seeds(members: list[Run], key: str) -> pd.DataFrame:
    """One column a seed, one row a step."""
    columns = [run.metrics[key].dropna() for run in members if key in run.metrics]
    return pd.concat(columns, axis=1) if columns else pd.DataFrame()


def _with_interval(values: Sequence[float]) -> str:
    """Mean and 95% t interval over seeds, as text; the mean alone of one seed."""
    if not len(values):
        return "-"
    low, high = t_interval(values)
    return f"{np.mean(values):.3f}" + (f" ({low:.3f} to {high:.3f})" if np.isfinite(low) else "")
