# SPDX-License-Identifier: Apache-2.0
"""How runs are drawn: one style for `run.png` and for the report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cw_grpo.files import new_file

STYLE: Any = {
    "font.size": 11.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.xmargin": 0.02,
    "grid.color": "#000000",
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}
PANEL_INCHES = (4.8, 3.5)
"""At :data:`DPI` 768 pixels wide: the labels can still be read on a screen of 390."""
DPI = 160

RUN_PANELS = (("critic/score/mean", "reward", "#0072B2"), ("actor/entropy", "entropy (nats)", "#D55E00"))


def smoothing_window(rows: int) -> int:
    """Over how many of ``rows`` steps a moving average goes: a tenth of them, at least 3."""
    return max(3, rows // 10)


def moving_average(values: pd.Series | pd.DataFrame) -> pd.Series | pd.DataFrame:
    """The mean over the :func:`smoothing_window` around each row; centred, so that it does not lag."""
    return values.rolling(smoothing_window(len(values)), center=True, min_periods=1).mean()


@contextmanager
def picture(out: Path, panels: int = 1) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure with panels side by side, saved to the PNG ``out`` when the block ends."""
    with matplotlib.rc_context(STYLE):
        width, height = PANEL_INCHES
        figure = Figure(figsize=(width * panels, height), layout="constrained")
        yield figure, list(figure.subplots(1, panels, squeeze=False)[0])
        with new_file(out) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI)


def step_axis(axis: Axes, label: str) -> None:
    """Label an axis of training steps."""
    axis.set(xlabel="step", ylabel=label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def plot_run(metrics: pd.DataFrame, out: Path, *, title: str = "") -> Path:
    """Draw a run's reward and entropy: single steps thin, their moving average bold.

    Args:
        metrics: what :func:`cw_grpo.runs.load_metrics` returns.
        out: the PNG.
        title: above the panels.
    """
    with picture(out, len(RUN_PANELS)) as (figure, axes):
        for axis, (column, label, colour) in zip(axes, RUN_PANELS, strict=True):
            series = metrics[column].dropna() if column in metrics else pd.Series(dtype=float)
            axis.plot(series.index, series, color=colour, alpha=0.35, linewidth=0.8)
            smooth = moving_average(series)
            axis.plot(smooth.index, smooth, color=colour, linewidth=2.2)
            step_axis(axis, label)
            axis.set_ylim(bottom=0)
        window = f"bold: moving average over {smoothing_window(len(metrics))} steps"
        figure.suptitle(f"{title} ({window})" if title else window, fontsize=11)
    return out
