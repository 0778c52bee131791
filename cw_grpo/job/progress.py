# SPDX-License-Identifier: Apache-2.0
"""The progress of a job on the terminal, read from verl's log and metrics: stages, one line per step, silence."""

from __future__ import annotations

import logging
import re
import statistics
from collections import deque
from pathlib import Path
from typing import Any

from cw_grpo import runs
from cw_grpo.job.failure import error_lines
from cw_grpo.job.plan import LauncherSettings

logger = logging.getLogger(__name__)

STAGES = (
    ("Started a local Ray instance|Connected to Ray cluster", "Ray is up", "the trainer's process and the data"),
    ("dataloader initialized", "data is loaded", "the trainer to load the model"),
    ("actor and ref model engine initialized", "the trainer has the model", "the rollout server and the agents"),
    ("ready to fit", "the rollout server has the model", "the first step"),
)
"""What verl's log says while it starts (a pattern), in order, what that means, and what the job then waits for."""

DEAD = re.compile("EngineDeadError|Invocation of collective_rpc method failed")
"""What vLLM logs when its engine died, or when one of its processes failed in a call from verl.

verl 0.9.1 goes on with the responses that were finished, then sends weights and waits for an answer without a limit
(`bucketed_weight_transfer.py`); its asynchronous trainers ask for new responses again and again.
"""

PROGRESS_COLUMNS = (
    ("reward", "critic/score/mean", "{:.3f}"),
    ("entropy", "actor/entropy", "{:.3f}"),
    ("length", "response_length/mean", "{:.1f}"),
    ("effective tokens", "actor/cw_grpo/effective_token_fraction", "{:.3f}"),
)
"""The columns of a progress line; a metric that the job does not have is left out."""

ACCURACY = re.compile(r"val-core/(.+)/acc/mean@\d+")
"""verl's name for the accuracy on a validation set."""


class Progress:
    """Shows what a job does; called again and again while it runs. An error of its own is said once and ends nothing.

    Args:
        log: verl's output.
        start: where this job's output begins in it.
        metrics: the file of verl's file logger.
        steps: of the whole run, if known.
        settings: the limits on starting and on silence.
    """

    def __init__(self, log: Path, start: int, metrics: Path, steps: int | None, settings: LauncherSettings) -> None:
        self.log, self.metrics = Follower(log, start), Follower(metrics)
        self.steps, self.settings = steps, settings
        self.last_step = 0
        """The last training step with metrics."""
        self.started = False
        """Whether there were metrics, of training or of a validation."""
        self._stages = list(STAGES)
        self._last_line, self._last_seen = "", 0.0
        self.vllm_died: float | None = None
        """After how many seconds, if no step has ended since."""
        self._last_error = ""  # since the last step
        self._warn_after = settings.idle_warning_s
        # The first step takes longer than the others; the latest ones tell best.
        self._durations: deque[float] = deque(maxlen=5)
        self._errors: set[str] = set()

    def __call__(self, seconds: float) -> str | None:
        """Show what is new after so many seconds; why the job must be stopped, or None."""
        try:
            return self._show(seconds)
        except Exception as error:  # the next call tries again: a file system may give later what it does not give now
            text = f"{type(error).__name__}: {error}"
            if text not in self._errors:
                logger.warning("lines of progress are missing (%s); the job goes on", text)
            self._errors.add(text)
            return None

    def _show(self, seconds: float) -> str | None:
        lines = self.log.lines()
        if lines:
            self._last_line, self._last_seen, self._warn_after = lines[-1], seconds, self.settings.idle_warning_s
        for index, (text, meaning, awaited) in enumerate(self._stages):
            if any(re.search(text, line) for line in lines):
                logger.info("%5.0f s  %s; waiting for %s", seconds, meaning, awaited)
                self._stages = self._stages[index + 1 :]
                break
        for line in self.metrics.lines():
            self._show_step(line, seconds)
        # After the steps: what is in both since the last call may have come after them.
        if self.vllm_died is None and any(map(DEAD.search, lines)):
            self.vllm_died = seconds
        self._last_error = "".join(error_lines("\n".join(lines), limit=1)) or self._last_error
        limit = self.settings.startup_timeout_s
        if limit is not None and not self.started and seconds > limit:
            return self._startup_problem(seconds, limit)
        silence = seconds - self._last_seen
        if self.vllm_died is not None and self.last_step != self.steps:  # else it is vLLM's own end
            patience = max(self.settings.idle_warning_s, 3 * statistics.median(self._durations or [0]))
            waited = seconds - self.vllm_died
            if silence > self.settings.idle_warning_s or waited > patience:
                return f"vLLM failed, and no step has ended in {waited:.0f} s since"
        if silence > self._warn_after:
            error = f". The last error in its log: {self._last_error}" if self._last_error else ""
            logger.info("%5.0f s  no output from verl for %.0f s%s", seconds, silence, error)
            self._warn_after *= 2
        return None

    def _startup_problem(self, seconds: float, limit: float) -> str:
        waits = f'; its log does not yet say "{self._stages[0][1]}"' if self._stages else ""
        text = f"no metrics after {limit:.0f} s (launcher.startup_timeout_s){waits}. "
        if seconds - self._last_seen < min(self.settings.idle_warning_s, limit / 2):
            return (
                f"{text}verl is still at work, its last line is: {self._last_line.strip()[:200]}. A long validation "
                "(trainer.val_before_train, trainer.val_only) or a slow machine needs a higher limit"
            )
        return (
            f"{text}Its last output is {seconds - self._last_seen:.0f} s old. Ray waits in silence for resources that "
            "were not declared: check ray_kwargs.ray_init.num_cpus and num_gpus"
        )

    def _show_step(self, line: str, seconds: float) -> None:
        """Show the metrics of a training step, and the accuracies of a validation."""
        try:
            step, data = runs.parse_line(line)
        except ValueError:
            return
        shown = [f"{name} {_number(form, data[key])}" for name, key, form in PROGRESS_COLUMNS if key in data]
        for key, value in data.items():
            if found := ACCURACY.fullmatch(key):
                shown.append(f"{found[1]} {_number('{:.3f}', value)}")
        training = runs.TRAINED in data
        self.started = True
        if training:
            self.last_step = max(self.last_step, step)
            self.vllm_died, self._last_error = None, ""
        elif not shown:
            return
        if (duration := data.get("timing_s/step")) is not None:
            shown.append(_number("{:.1f} s", duration))
            if training and isinstance(duration, int | float) and self.steps is not None and step < self.steps:
                self._durations.append(duration)
                shown.append(f"{_rounded(statistics.median(self._durations) * (self.steps - step))} left")
        width = len(str(self.steps or 0))
        of = f"/{self.steps}" if self.steps else ""
        logger.info("%5.0f s  step %*d%s  %s", seconds, width, step, of, "  ".join(shown))


class Follower:
    """Reads the whole lines that are added to a file, which need not exist yet."""

    def __init__(self, path: Path, start: int = 0) -> None:
        self.path, self.position = path, start

    def lines(self) -> list[str]:
        """The lines that were finished since the last call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.position)
                added = file.read()
        except FileNotFoundError:
            return []
        whole = added[: added.rfind(b"\n") + 1]
        self.position += len(whole)
        return whole.decode(errors="replace").splitlines()


def size(path: Path) -> int:
    """Bytes of a file, 0 if it does not exist: where what is added to it will begin."""
    return path.stat().st_size if path.exists() else 0


def _rounded(seconds: float) -> str:
    """A duration as a guess: whole minutes from two on, else tens of seconds."""
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{max(10, round(seconds, -1)):.0f} s"


def _number(form: str, value: Any) -> str:
    """A metric for the terminal: verl's file logger writes a NaN as null."""
    return form.format(value) if isinstance(value, int | float) else "-"
