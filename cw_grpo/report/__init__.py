"""A self-contained HTML report of runs, with the PNG and CSV behind every part."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from scipy import stats

matplotlib.use("Agg")  # no display needed

from matplotlib import pyplot as plt

from cw_grpo.files import new_file
from cw_grpo.intervals import t_interval
from cw_grpo.metrics import TOP_SHARES
from cw_grpo.plot import moving_average
from cw_grpo.report import evaluations, provenance, tokens
from cw_grpo.report.collect import Run, read_run

# Okabe and Ito's palette, which colour-blind readers can tell apart; one colour a method.
COLOURS = dict(
    grpo="#000000", clip_cov="#E69F00", kl_cov="#56B4E9", cw_grpo="#D55E00", cw_grpo_live="#009E73",
    cw_grpo_released="#CC79A7",
)  # fmt: skip
CURVES = (
    ("actor/entropy", "entropy (nats)"), ("critic/score/mean", "reward"),
    ("response_length/mean", "response length"), ("actor/kl_loss", "KL (actor/kl_loss)"),
)  # fmt: skip


@dataclass
class Part:
    title: str
    text: str
    missing: list[str] = field(default_factory=list)
    pictures: list[tuple[str, str]] = field(default_factory=list)
    tables: list[tuple[str, Markup]] = field(default_factory=list)

    def table(self, out: Path, name: str, frame: pd.DataFrame) -> None:
        _write_csv(out, name, frame)
        html = frame.to_html(index=False, border=0, escape=True, float_format="{:.4g}".format, na_rep="-")
        self.tables.append((f"{name}.csv", Markup(html)))

    def picture(self, out: Path, name: str, figure: plt.Figure) -> None:
        with new_file(out / f"{name}.png") as temporary:
            figure.savefig(temporary, format="png", dpi=130)
        plt.close(figure)
        data = base64.b64encode((out / f"{name}.png").read_bytes()).decode()
        self.pictures.append((f"{name}.png", f"data:image/png;base64,{data}"))


def build(arguments: Sequence[str], out: Path, evaluated: Sequence[Path] = ()) -> Path:
    """Write ``out/report.html`` and its PNG and CSV files; ``evaluated``: files and folders of `cw-grpo eval`.

    Raises:
        ValueError: none of the runs can be read.
    """
    found, missing = [], []
    for argument in arguments:
        try:
            found.append(read_run(argument))
        except (ValueError, OSError) as error:
            missing.append(str(error))
    if not found:
        raise ValueError("no run can be read: " + "; ".join(missing))
    methods: dict[str, list[Run]] = {}
    for run in found:
        methods.setdefault(run.method, []).append(run)
        missing += run.missing
    spare = plt.get_cmap("tab20").colors
    colours = {name: COLOURS.get(name, spare[i % 20]) for i, name in enumerate(methods)}
    parts = [_summary(methods, missing, out), _curves(methods, colours, out), _path(methods, colours, out)]
    parts += [_covariance(methods, colours, out), _quadrants(methods, out), _context(methods)]
    parts += [_theory(methods, colours, out), *([_evaluations(evaluated, out)] if evaluated else [])]
    parts.append(_what_was_run(found, out))
    template = Environment(loader=PackageLoader("cw_grpo.report", "."), autoescape=True).get_template(
        "template.html.j2"
    )
    with new_file(out / "report.html") as temporary:
        temporary.write_text(template.render(parts=parts), encoding="utf-8")
    return out / "report.html"


def _write_csv(out: Path, name: str, frame: pd.DataFrame) -> None:
    with new_file(out / f"{name}.csv") as temporary:
        frame.to_csv(temporary, index=False)


def _seeds(members: list[Run], key: str) -> pd.DataFrame:
    """One column a seed, one row a step."""
    columns = [run.metrics[key].dropna() for run in members if key in run.metrics]
    return pd.concat(columns, axis=1) if columns else pd.DataFrame()


def _summary(methods: dict[str, list[Run]], missing: list[str], out: Path) -> Part:
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


def _with_interval(values: Sequence[float]) -> str:
    """Mean and 95% t interval over seeds, as text; the mean alone of one seed."""
    if not len(values):
        return "-"
    low, high = t_interval(values)
    return f"{np.mean(values):.3f}" + (f" ({low:.3f} to {high:.3f})" if np.isfinite(low) else "")


def _curves(methods: dict[str, list[Run]], colours: dict, out: Path) -> Part:
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
        _write_csv(out, "curves", pd.concat(rows))
    return part


def _path(methods: dict[str, list[Run]], colours: dict, out: Path) -> Part:
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
        _write_csv(out, "entropy_reward", pd.concat(rows))
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


def _context(methods: dict[str, list[Run]]) -> Part:
    part = Part(
        "The most attenuated tokens",
        "In their responses, the prompt in italics: the last recorded step of the first run of a method that applies "
        "the weights, or else of the first one.",
    )
    members = sorted((run for group in methods.values() for run in group), key=lambda run: not run.applies_weights)
    run = next((run for run in members if run.files), None)
    if run is None:
        part.missing.append("recorded tokens")
        return part
    shown, problem = tokens.most_attenuated(run.files[-1])
    part.missing += [problem] if problem else []
    part.tables.append((f"{run.name}, {run.files[-1].stem}", tokens.legend() + shown))
    return part


def _evaluations(paths: Sequence[Path], out: Path) -> Part:
    part = Part(evaluations.TITLE, evaluations.TEXT)
    for name, frame in evaluations.frames(paths, part.missing):
        part.table(out, name, frame)
    return part


def _what_was_run(found: list[Run], out: Path) -> Part:
    part = Part("What was run", "Versions are those of the machine that made this report.")
    part.table(out, "versions", provenance.versions())
    part.table(out, "durations", provenance.durations(found))
    if any(run.config for run in found) and len(found) > 1:
        differing = provenance.differences(found)
        if len(differing):
            part.table(out, "differences", differing)
    return part


def _covariance(methods: dict[str, list[Run]], colours: dict, out: Path) -> Part:
    part = Part("Covariance (Figure 3, Table 1)", "Share of all |covariance| that the largest tokens hold, and the "
                "value that the given share of a side's tokens, largest first, reaches.")  # fmt: skip
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    rows = []
    for name, members in methods.items():
        values = np.concatenate([run.records["covariance"].to_numpy(dtype=float) for run in members])
        values = values[np.isfinite(values)]
        size = np.sort(np.abs(values))[::-1]
        if not size.sum() > 0:
            part.missing.append(f"{name}: no recorded covariance other than zero")
            continue
        at = np.unique(np.geomspace(1, len(size), 400).astype(int))
        axis.plot(100 * at / len(size), 100 * size.cumsum()[at - 1] / size.sum(), color=colours[name], label=name)
        sides = np.sort(values[values > 0])[::-1], np.sort(values[values < 0])
        for percent in (100 * share for share in TOP_SHARES.values()):
            got = [s[max(0, int(np.ceil(len(s) * percent / 100)) - 1)] if len(s) else np.nan for s in sides]
            rows.append({"method": name, "Percentile": f"{percent:.2f}%", "Positive Covariance": got[0],
                         "Negative Covariance": got[1]})  # fmt: skip
    axis.set(xscale="log", xlabel="tokens, largest |covariance| first (%)", ylabel="share of |covariance| (%)")
    if rows:
        axis.legend()
        part.picture(out, "covariance", figure)
        part.table(out, "covariance", pd.DataFrame(rows))
    plt.close(figure)
    return part


def _quadrants(methods: dict[str, list[Run]], out: Path) -> Part:
    part = Part(
        "Who is attenuated",
        "Tokens whose advantage is not 0, by its sign and by log-prob against the response's mean; kept is "
        "sum(w|A|)/sum|A|, with weights as CW-GRPO gives them, applied or not.",
    )
    rows = []
    for name, members in methods.items():
        frames = []
        for run in members:
            frame = run.records[run.records["advantage"].fillna(0) != 0] if len(run.records) else run.records
            if len(frame):
                mean = frame.groupby(["step", "response"])["old_log_prob"].transform("mean")
                frames.append(frame.assign(above=frame["old_log_prob"] > mean, positive=frame["advantage"] > 0))
        if not frames:
            part.missing.append(f"{name}: no recorded token has an advantage other than zero")
            continue
        every = pd.concat(frames)
        for (positive, above), cell in every.groupby(["positive", "above"]):
            size = cell["advantage"].abs()
            rows.append({"method": name, "advantage": "positive" if positive else "negative",
                         "log-prob": "above" if above else "below", "share of tokens": len(cell) / len(every),
                         "mean weight": cell["weight"].mean(),
                         "kept": (cell["weight"] * size).sum() / size.sum()})  # fmt: skip
    if rows:
        part.table(out, "quadrants", pd.DataFrame(rows))
    by_rate = [
        tokens.pass_rates(_pooled(members)).assign(method=name)
        for name, members in methods.items()
        if any(len(run.records) for run in members)
    ]
    by_rate = [frame[["method", *frame.columns[:-1]]] for frame in by_rate if len(frame) and "pass rate" in frame]
    if by_rate:
        part.table(out, "pass_rates", pd.concat(by_rate))
    return part


def _pooled(members: list[Run]) -> pd.DataFrame:
    """The records of several runs; steps and groups of different runs stay apart."""
    frames = [
        run.records.assign(group=f"{i}/" + run.records["group"]) for i, run in enumerate(members) if len(run.records)
    ]
    return pd.concat(frames, ignore_index=True)


def _theory(methods: dict[str, list[Run]], colours: dict, out: Path) -> Part:
    part = Part("The theory checked (section 2.2)", "Change of entropy to the next step against -eta Cov(log pi, w A) "
                "over the recorded tokens, w = 1 where the method applies no weights; only recorded steps count. The "
                "theory is of one plain gradient step, where Adam makes another: what it predicts here is the sign and "
                "the order, not the scale.")  # fmt: skip
    rows = []
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, members in methods.items():
        pairs = []
        for run in members:
            if not len(run.records) or not {"actor/entropy", "actor/lr"} <= set(run.metrics):
                continue
            recorded = run.records.dropna(subset=["old_log_prob", "advantage", "weight"])
            if run.applies_weights:
                recorded = recorded.assign(advantage=recorded["advantage"] * recorded["weight"])
            groups = recorded.groupby("step")
            covariance = groups[["old_log_prob", "advantage"]].apply(
                lambda step: step["old_log_prob"].cov(step["advantage"], ddof=0)
            )
            entropy = run.metrics["actor/entropy"].reindex(range(run.metrics.index.min(), run.metrics.index.max() + 1))
            change = entropy.shift(-1) - entropy
            pairs.append(pd.DataFrame({"x": -run.metrics["actor/lr"] * covariance, "y": change}).dropna())
        points = pd.concat(pairs) if pairs else pd.DataFrame(columns=["x", "y"])
        if points["x"].nunique() < 2:
            part.missing.append(f"{name}: fewer than two recorded steps with entropy and learning rate")
            continue
        fit = stats.linregress(points["x"], points["y"])
        axis.plot(points["x"], points["y"], ".", color=colours[name], alpha=0.35, markersize=4)
        ends = np.array([points["x"].min(), points["x"].max()])
        axis.plot(ends, fit.intercept + fit.slope * ends, color=colours[name], label=name)
        rows.append({"method": name, "slope": fit.slope, "R^2": fit.rvalue**2, "n": len(points)})
    if rows:
        axis.set(xlabel="-eta Cov(log pi, w A)", ylabel="change of entropy to the next step")
        axis.legend()
        part.picture(out, "theory", figure)
        part.table(out, "theory", pd.DataFrame(rows))
    plt.close(figure)
    return part
