# SPDX-License-Identifier: Apache-2.0
"""What a run did, in a few lines and a picture, when it ends."""

from __future__ import annotations

import logging

from cw_grpo import runs
from cw_grpo.job.directory import RunDirectory
from cw_grpo.job.progress import PROGRESS_COLUMNS

logger = logging.getLogger(__name__)


def summarize(directory: RunDirectory, title: str) -> bool:
    """Show how reward and entropy went, and draw them; False if the run has no training step."""
    # matplotlib takes a second, which a job's start need not wait for.
    from cw_grpo.plot import plot_run, smoothing_window

    try:
        metrics = runs.load_metrics(directory.path)
    except FileNotFoundError:
        return False
    if runs.TRAINED not in metrics:
        return False
    metrics = metrics[metrics[runs.TRAINED].notna()]
    window = max(1, min(smoothing_window(len(metrics)), len(metrics) // 2))
    logger.info("%d steps, %.1f s per step (median)", len(metrics), metrics["timing_s/step"].median())
    average = f"mean of {window}" if window > 1 else "step"
    for name, key, form in PROGRESS_COLUMNS:
        if key in metrics:
            first, last = (form.format(part.mean()) for part in (metrics[key][:window], metrics[key][-window:]))
            logger.info("  %-17s first %s %s   last %s %s", name, average, first, average, last)
    logger.info("picture: %s", plot_run(metrics, directory.picture, title=title))
    return True
