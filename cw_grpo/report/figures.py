# SPDX-License-Identifier: Apache-2.0
"""Drawing the report's frames. One colour per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from cw_grpo.plot import step_axis

# Okabe and Ito's palette, but one of its blues and one of its oranges: as thin lines, those are too much alike.
COLOURS = {
    "grpo": "#000000",
    "cw_grpo": "#D55E00",
    "cw_grpo_live": "#009E73",
    "cw_grpo_released": "#CC79A7",
    "clip_cov": "#0072B2",
    "kl_cov": "#A6A000",
}
Colours = Mapping[str, object]


def colours_of(methods: Sequence[str]) -> Colours:
    """A colour for each method: its own, else one that no method of this report has."""
    spare = [colour for name, colour in COLOURS.items() if name not in methods] + list(
        map(to_hex, colormaps["tab20"](range(20)))
    )
    unknown = [name for name in methods if name not in COLOURS]
    return COLOURS | {name: spare[i % len(spare)] for i, name in enumerate(unknown)}


def curves(axis: Axes, runs: pd.DataFrame, means: pd.DataFrame, colours: Colours, label: str) -> None:
    """A metric over steps.

    The one run of a method: single steps thin, their moving average bold. Several: each run's moving average thin,
    their mean bold, its interval a band.

    Args:
        axis: to draw on.
        runs: what :func:`cw_grpo.report.step_frames.of_runs` returned.
        means: what :func:`cw_grpo.report.step_frames.of_methods` returned.
        colours: by method.
        label: of the metric.
    """
    drawn = []
    for method, part in runs.groupby("method", sort=False):
        single = part["run"].nunique() == 1
        for _, run in part.groupby("run", sort=False):
            values = run["value" if single else "smoothed"]
            axis.plot(run["step"], values, color=colours[method], alpha=0.3 if single else 0.55, linewidth=0.8)
            drawn.append(values)
        mean = means[means["method"] == method]
        axis.plot(mean["step"], mean["mean"], color=colours[method], label=method, linewidth=2.2)
        axis.fill_between(mean["step"], mean["low"], mean["high"], color=colours[method], alpha=0.13, linewidth=0)
        drawn.append(mean["mean"])
    low, high = (float(end) for end in np.nanpercentile(pd.concat(drawn), [0, 100]))
    margin = 0.05 * (high - low or abs(high) or 1)
    axis.set_ylim(low - margin, high + margin)  # an interval of three seeds may be far wider than the runs
    step_axis(axis, label)


def entropy_reward(axis: Axes, paths: pd.DataFrame, colours: Colours) -> None:
    """One path per method: entropy against reward."""
    for method, path in paths.groupby("method", sort=False):
        axis.plot(path["reward"], path["entropy"], color=colours[method], label=method)
        axis.plot(*path[["reward", "entropy"]].iloc[0], "o", color=colours[method])
        axis.plot(*path[["reward", "entropy"]].iloc[-1], "x", color=colours[method], markeredgewidth=2)
    axis.set(xlabel="reward (smoothed)", ylabel="entropy (nats, smoothed)")


def covariance_shares(axis: Axes, shares: pd.DataFrame, colours: Colours) -> None:
    """Share of all |covariance| by share of tokens."""
    for method, part in shares.groupby("method", sort=False):
        axis.plot(part["tokens"], part["share"], color=colours[method], label=method)
    axis.set(xscale="log", xlabel="tokens, largest |covariance| first (%)", ylabel="share of |covariance| (%)")


def entropy_changes(axis: Axes, changes: pd.DataFrame, fits: pd.DataFrame, colours: Colours) -> None:
    """Measured against predicted change of entropy, with the fitted lines."""
    for method, points in changes.groupby("method", sort=False):
        axis.plot(
            points["predicted"], points["change"], "o", color=colours[method], alpha=0.4, markersize=4, label=method
        )
    for fit in fits.to_dict("records"):
        predicted = changes.loc[changes["method"] == fit["method"], "predicted"]
        ends = np.array([predicted.min(), predicted.max()], dtype=float)
        axis.plot(ends, fit["intercept"] + fit["slope"] * ends, color=colours[fit["method"]], linewidth=1.6)
    axis.set(xlabel="predicted: -eta Cov(log pi, w A)", ylabel="entropy change to next step")
    axis.ticklabel_format(scilimits=(-2, 3))
