# SPDX-License-Identifier: Apache-2.0
"""The numbers from recorded tokens: covariances, who is attenuated, the theory of section 2.2."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from cw_grpo.metrics import TOP_SHARES, at_top_shares
from cw_grpo.report.collect import Run

Methods = Mapping[str, Sequence[Run]]
"""Runs by method."""

MIN_POINTS = 3
"""Points that a fitted line needs: through two it is always perfect."""


def pooled(members: Sequence[Run]) -> pd.DataFrame:
    """The recorded tokens of several runs; steps, groups and responses of different runs stay apart."""
    frames = [run.records.assign(run=i) for i, run in enumerate(members) if len(run.records)]
    return pd.concat(frames, ignore_index=True) if frames else members[0].records.assign(run=0)


def covariance_shares(methods: Methods, points: int = 400) -> pd.DataFrame:
    """Figure 3: the share in percent of all |covariance| that the largest tokens hold, by the share of tokens."""
    frames = []
    for name, members in methods.items():
        size = np.sort(np.abs(pooled(members)["covariance"].to_numpy(dtype=float)))[::-1]
        if size.sum() > 0:
            at = np.unique(np.geomspace(1, len(size), points).astype(int))
            share = 100 * size.cumsum()[at - 1] / size.sum()
            frames.append(pd.DataFrame({"method": name, "tokens": 100 * at / len(size), "share": share}))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["method", "tokens", "share"])


def covariance_percentiles(methods: Methods) -> pd.DataFrame:
    """Table 1: the covariance that a share of the tokens of each sign, outermost first, reaches."""
    rows = []
    for name, members in methods.items():
        values = pooled(members)["covariance"].to_numpy(dtype=float)
        if values.any():
            positive, negative = (at_top_shares(side, none=np.nan) for side in (values[values > 0], values[values < 0]))
            rows += [{"method": name, "Percentile": f"{100 * share:.2f}%", "Positive Covariance": positive[top],
                      "Negative Covariance": negative[top]} for top, share in TOP_SHARES.items()]  # fmt: skip
    return pd.DataFrame(rows)


def quadrants(records: pd.DataFrame) -> pd.DataFrame:
    """Tokens with an advantage, by its sign and by log-prob against the response's mean: their share, mean weight, and
    what the weights keep of |advantage|.

    Args:
        records: what :func:`pooled` returned.
    """
    tokens = records[records["advantage"] != 0]
    mean = tokens.groupby(["run", "step", "response"])["old_log_prob"].transform("mean")
    tokens = tokens.assign(above=tokens["old_log_prob"] > mean, positive=tokens["advantage"] > 0)
    rows = []
    for (positive, above), cell in tokens.groupby(["positive", "above"]):
        size = cell["advantage"].abs()
        rows.append({"advantage": "positive" if positive else "negative", "log-prob": "above" if above else "below",
                     "share of tokens": len(cell) / len(tokens), "mean weight": cell["weight"].mean(),
                     "kept": (cell["weight"] * size).sum() / size.sum()})  # fmt: skip
    return pd.DataFrame(rows)


def pass_rates(records: pd.DataFrame) -> pd.DataFrame:
    """By the group's share of responses with the highest reward: tokens, and what each sign keeps of |advantage|.

    Args:
        records: what :func:`pooled` returned.
    """
    group = ["run", "step", "group"]
    responses = records.groupby([*group, "response"])["reward"].first()
    best = responses.groupby(group).transform("max")
    rate = (responses == best).groupby(group).mean().rename("rate")
    tokens = records[records["advantage"] != 0].join(rate, on=group)
    edges = [0, 0.25, 0.5, 0.75, 1.0]
    tokens = tokens.assign(bin=pd.cut(tokens["rate"].astype(float), edges), size=tokens["advantage"].abs())
    tokens = tokens.assign(left=tokens["size"] * tokens["weight"], positive=tokens["advantage"] > 0)
    rows = []
    for interval, part in tokens.groupby("bin", observed=True):
        row = {"pass rate": f"{interval.left:g} to {interval.right:g}", "share of tokens": len(part) / len(tokens)}
        for side, name in ((True, "positive"), (False, "negative")):
            own = part[part["positive"] == side]
            row[f"kept, {name} advantage"] = own["left"].sum() / own["size"].sum() if len(own) else float("nan")
        rows.append(row)
    return pd.DataFrame(rows)


def by_method(methods: Methods, table: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """The rows of ``table``, a function of pooled records, for each method."""
    frames = {name: table(pooled(members)) for name, members in methods.items()}
    frames = {name: frame for name, frame in frames.items() if len(frame)}
    return pd.concat(frames, names=["method"]).reset_index("method") if frames else pd.DataFrame()


def entropy_changes(methods: Methods) -> pd.DataFrame:
    """Section 2.2, measured: ``change`` of entropy to the next step, and ``predicted``, -eta Cov(log pi, w A) over the
    recorded tokens; w = 1 where the method applies no weights.

    Returns:
        one row per recorded step whose entropy, next entropy and learning rate are in the run's metrics.
    """
    frames = [pd.DataFrame(columns=["method", "run", "step", "predicted", "change"])]
    for name, members in methods.items():
        for run in members:
            if not len(run.records) or not {"actor/entropy", "actor/lr"} <= set(run.metrics):
                continue
            records = run.records
            if run.applies_weights:
                records = records.assign(advantage=records["advantage"] * records["weight"])
            covariance = records.groupby("step")[["old_log_prob", "advantage"]].apply(
                lambda step: step["old_log_prob"].cov(step["advantage"], ddof=0)
            )
            entropy = run.metrics["actor/entropy"]
            change = entropy.reindex(entropy.index + 1).set_axis(entropy.index) - entropy
            frame = pd.DataFrame({"predicted": -run.metrics["actor/lr"] * covariance, "change": change}).dropna()
            frames.append(frame.rename_axis("step").reset_index().assign(method=name, run=run.name))
    return pd.concat([frame for frame in frames if len(frame)] or frames, ignore_index=True)


def entropy_fits(changes: pd.DataFrame) -> pd.DataFrame:
    """A line through each method's points of :func:`entropy_changes`, from :data:`MIN_POINTS` different ones on."""
    rows = []
    for name, points in changes.groupby("method", sort=False):
        if points["predicted"].nunique() >= MIN_POINTS:
            fit = stats.linregress(points["predicted"].astype(float), points["change"].astype(float))
            rows.append({"method": name, "slope": fit.slope, "intercept": fit.intercept, "R^2": fit.rvalue**2,
                         "points": len(points)})  # fmt: skip
    return pd.DataFrame(rows, columns=["method", "slope", "intercept", "R^2", "points"])
