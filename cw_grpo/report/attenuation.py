"""The parts that recorded tokens give: covariance, who is attenuated, the theory of section 2.2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from scipy import stats

from cw_grpo.metrics import TOP_SHARES, at_top_shares
from cw_grpo.report.collect import Run
from cw_grpo.report.parts import Part


def covariance(methods: dict[str, list[Run]], colours: dict, out: Path) -> Part:
    """The paper's Figure 3 and Table 1."""
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
        positive, negative = (at_top_shares(side, none=np.nan) for side in (values[values > 0], values[values < 0]))
        rows += [{"method": name, "Percentile": f"{100 * share:.2f}%", "Positive Covariance": positive[top],
                  "Negative Covariance": negative[top]} for top, share in TOP_SHARES.items()]  # fmt: skip
    axis.set(xscale="log", xlabel="tokens, largest |covariance| first (%)", ylabel="share of |covariance| (%)")
    if rows:
        axis.legend()
        part.picture(out, "covariance", figure)
        part.table(out, "covariance", pd.DataFrame(rows))
    plt.close(figure)
    return part


def quadrants(methods: dict[str, list[Run]], out: Path) -> Part:
    """What the weights leave, by quadrant and by the pass rate of the group."""
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
        pass_rates(_pooled(members)).assign(method=name)
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


def pass_rates(records: pd.DataFrame) -> pd.DataFrame:
    """By the group's share of responses with the highest reward: tokens, and what each side keeps of |advantage|."""
    if not len(records):
        return pd.DataFrame()
    responses = records.groupby(["step", "group", "response"])["reward"].first()
    best = responses.groupby(["step", "group"]).transform("max")
    rate = (responses == best).groupby(["step", "group"]).mean().rename("rate")
    tokens = records[records["advantage"] != 0].join(rate, on=["step", "group"])
    edges = [0, 0.25, 0.5, 0.75, 1.0]
    tokens = tokens.assign(bin=pd.cut(tokens["rate"], edges), size=tokens["advantage"].abs())
    tokens = tokens.assign(left=tokens["size"] * tokens["weight"], positive=tokens["advantage"] > 0)
    rows = []
    for interval, part in tokens.groupby("bin", observed=True):
        row = {"pass rate": f"{interval.left:g} to {interval.right:g}", "share of tokens": len(part) / len(tokens)}
        for side, name in ((True, "positive"), (False, "negative")):
            own = part[part["positive"] == side]
            row[f"kept, {name} advantage"] = own["left"].sum() / own["size"].sum() if len(own) else float("nan")
        rows.append(row)
    return pd.DataFrame(rows)


def theory(methods: dict[str, list[Run]], colours: dict, out: Path) -> Part:
    """Measured change of entropy a step against -eta Cov, with a fitted line."""
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
