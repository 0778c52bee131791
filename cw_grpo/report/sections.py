# SPDX-License-Identifier: Apache-2.0
"""The sections of numbers over steps and of recorded tokens: their text, pictures and tables.

The text promises what is drawn, and no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from cw_grpo.metrics import PREFIX
from cw_grpo.plot import smoothing_window
from cw_grpo.report import figures, step_frames, token_frames
from cw_grpo.report.collect import Run, seeds
from cw_grpo.report.figures import Colours
from cw_grpo.report.section import ReportSection

Methods = Mapping[str, Sequence[Run]]
"""Runs by method."""

CURVES = {
    "entropy": ("actor/entropy", "entropy (nats)"),
    "reward": ("critic/score/mean", "reward"),
    "length": ("response_length/mean", "response length (tokens)"),
    "kl": ("actor/kl_loss", "KL loss"),
    "kept_positive": (f"{PREFIX}kept_positive", "kept of positive advantages"),
    "kept_negative": (f"{PREFIX}kept_negative", "kept of negative advantages"),
    "effective_tokens": (f"{PREFIX}effective_token_fraction", "effective tokens (share)"),
    "zero_sigma": (f"{PREFIX}zero_sigma_fraction", "responses without signal (share)"),
    "grad_norm": ("actor/grad_norm", "gradient norm"),
    "lr": ("actor/lr", "learning rate"),
}
"""Metric and label of each panel, by the name of its picture."""


def summary(methods: Methods, notes: list[str], out: Path) -> ReportSection:
    """Reward and entropy at the start and at the end of each method, and what a reader must know of the runs."""
    section = ReportSection("Summary", "Means over seeds of the first and the last tenth of each run's steps"
                            f"{_with_intervals(methods, ', with 95% t intervals')}.", notes)  # fmt: skip
    section.table(out, "summary", step_frames.summary(methods), "Reward and entropy")
    if len({len(run.metrics) for members in methods.values() for run in members}) > 1:
        section.notes.append("The runs differ in their number of steps: their last tenths are of different steps.")
    return section


def over_steps(methods: Methods, colours: Colours, out: Path) -> ReportSection:
    """The paper's Figure 1, entropy over steps, and what helps to read it."""
    section = ReportSection("Over steps (Figure 1)", _curves_text(methods))
    runs, means = [], []
    for name, (metric, label) in CURVES.items():
        of_runs = step_frames.of_runs(methods, metric)
        if of_runs.empty:
            section.notes.append(f"Not shown: {label}. No run has {metric} in its metrics.")
            continue
        of_methods = step_frames.of_methods(of_runs)
        lacking = [method for method in methods if method not in set(of_runs["method"])]
        caption = f"{metric}; not in the metrics of {', '.join(lacking)}" if lacking else metric
        with section.picture(out, f"curves_{name}", caption) as axis:
            figures.curves(axis, of_runs, of_methods, colours, label)
        runs.append(of_runs)
        means.append(of_methods)
    if runs:
        section.file(out, "curves", pd.concat(means))
        section.file(out, "curves_of_runs", pd.concat(runs))
    return section


def _curves_text(methods: Methods) -> str:
    windows = sorted({smoothing_window(len(run.metrics)) for members in methods.values() for run in members})
    over = f"{windows[0]} steps" if len(windows) == 1 else f"{windows[0]} to {windows[-1]} steps, a tenth of each run"
    kinds = []
    if any(len(members) == 1 for members in methods.values()):
        kinds.append("A method with one run: single steps thin, their moving average bold.")
    if any(len(members) > 1 for members in methods.values()):
        band = _with_intervals(methods, "; its 95% t interval as a band")
        kinds.append(f"A method with several: the runs' moving averages thin, the mean over seeds bold{band}.")
    return f"{' '.join(kinds)} Moving averages are over {over}."


def _with_intervals(methods: Methods, text: str) -> str:
    """The text if every method has an interval; with "from three seeds on" if some have; else nothing."""
    enough = [len(seeds(members)) >= step_frames.MIN_SEEDS for members in methods.values()]
    return text if all(enough) else f"{text} from {step_frames.MIN_SEEDS} seeds on" if any(enough) else ""


def entropy_against_reward(methods: Methods, colours: Colours, out: Path) -> ReportSection:
    """One path per method, and entropy at equal reward."""
    section = ReportSection(
        "Entropy against reward",
        "A method that only learns more slowly moves along the same path. Means over seeds of moving averages; "
        "o is the start, x the end.",
    )
    paths = step_frames.entropy_reward(methods)
    if lacking := [name for name in methods if name not in set(paths["method"])]:
        section.notes.append(f"Not shown: {', '.join(lacking)}. Reward or entropy is not in the metrics.")
    if len(paths):
        with section.picture(out, "entropy_reward", "Entropy against reward") as axis:
            figures.entropy_reward(axis, paths, colours)
        section.file(out, "entropy_reward", paths)
        equal = step_frames.entropy_at_equal_reward(methods)
        if equal.empty:
            section.notes.append("Not shown: entropy at equal reward. There is no reward that all runs reach.")
        section.table(out, "entropy_at_equal_reward", equal, "Entropy where the smoothed reward first reaches a level"
                      f"{_with_intervals(methods, ', with 95% t intervals')}")  # fmt: skip
    return section


def covariance(methods: Methods, colours: Colours, out: Path) -> ReportSection:
    """The paper's Figure 3 and Table 1."""
    section = ReportSection("Covariance (Figure 3, Table 1)", "From recorded tokens, all runs of a method together.")
    shares = token_frames.covariance_shares(methods)
    _note_lacking(section, methods, shares, "no recorded covariance other than zero")
    if len(shares):
        with section.picture(out, "covariance", "Share of all |covariance| that the largest tokens hold") as axis:
            figures.covariance_shares(axis, shares, colours)
        section.file(out, "covariance_shares", shares)
        section.table(out, "covariance", token_frames.covariance_percentiles(methods),
                      "The covariance that the given share of a sign's tokens, outermost first, reaches")  # fmt: skip
    return section


def who_is_attenuated(methods: Methods, out: Path) -> ReportSection:
    """What the weights leave, by quadrant and by the pass rate of the group."""
    section = ReportSection(
        "Who is attenuated",
        "Recorded tokens whose advantage is not 0, all runs of a method together. Kept is sum(w|A|)/sum|A|, with the "
        "weights of CW-GRPO, applied or not.",
    )
    quadrants = token_frames.by_method(methods, token_frames.quadrants)
    _note_lacking(section, methods, quadrants, "no recorded token has an advantage other than zero")
    section.table(
        out, "quadrants", quadrants, "By the advantage's sign, and by log-prob against the mean of the response"
    )
    by_rate = token_frames.by_method(methods, token_frames.pass_rates)
    section.table(out, "pass_rates", by_rate, "By the share of a group's responses that have its highest reward")
    return section


def theory(methods: Methods, colours: Colours, out: Path) -> ReportSection:
    """Section 2.2 of the paper against what was measured."""
    section = ReportSection(
        "The theory checked (section 2.2)",
        "Change of entropy to the next step against -eta Cov(log pi, w A) over the recorded tokens of a step; w = 1 "
        "where the method applies no weights. The theory is about one plain gradient step, and Adam takes another one: "
        "it predicts the sign and the order here, not the scale.",
    )
    changes = token_frames.entropy_changes(methods)
    fits = token_frames.entropy_fits(changes)
    _note_lacking(section, methods, changes, "no recorded step with entropy and learning rate")
    for name in changes["method"].unique():
        if name not in set(fits["method"]):
            section.notes.append(f"No line for {name}: it has fewer than {token_frames.MIN_POINTS} different points.")
    if len(changes):
        with section.picture(out, "theory", "One point per recorded step") as axis:
            figures.entropy_changes(axis, changes, fits, colours)
        section.file(out, "theory_points", changes)
        section.table(out, "theory", fits.drop(columns="intercept"), "Fitted lines")
    return section


def _note_lacking(section: ReportSection, methods: Methods, frame: pd.DataFrame, why: str) -> None:
    present = set(frame["method"]) if len(frame) else set()
    if lacking := [name for name in methods if name not in present]:
        section.notes.append(f"Not shown: {', '.join(lacking)}; {why}.")
