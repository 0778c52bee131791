# SPDX-License-Identifier: Apache-2.0
"""Runs of the main job with `scale=tiny`, by the command that a user types, and how two of their updates compare."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from cw_grpo import runs
from cw_grpo.metrics import PREFIX

ACTOR = "actor_rollout_ref.actor"
# Plain gradient descent, so that the step's update is the gradient; the same responses in every run, of few prompts.
COMPARABLE = (
    "data.train_batch_size=6",
    f"{ACTOR}.ppo_mini_batch_size=6",
    f"{ACTOR}.optim.optimizer=SGD",
    f"{ACTOR}.optim.lr=0.1",
    f"{ACTOR}.optim.lr_scheduler_type=constant",
    f"{ACTOR}.checkpoint.save_contents=[hf_model]",
    "actor_rollout_ref.rollout.full_determinism=true",
    "actor_rollout_ref.rollout.seed=1",
    "trainer.total_training_steps=2",
    "trainer.save_freq=1",
    "trainer.max_actor_ckpt_to_keep=null",
)


class Run:
    """A run of the main job in a folder of its own; its report, which takes ten seconds, only if asked for."""

    def __init__(
        self,
        folder: Path,
        home: Path,
        *overrides: str,
        report: bool = False,
        env: Mapping[str, str] | None = None,
        python: Path = Path(sys.executable),
    ) -> None:
        self.folder = folder
        self.env = env
        command = (str(python.with_name("cw-grpo")), "train")
        options = (f"--home={home}", f"--run-dir={folder}", "--report" if report else "--no-report")
        self.command = [*command, *options, "scale=tiny", "cluster=cpu", *overrides]

    def start(self) -> subprocess.Popen:
        return subprocess.Popen(self.command, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def finish(self, process: subprocess.Popen | None = None) -> str:
        """Wait for the end; what it printed."""
        output, _ = (process or self.start()).communicate(timeout=600)
        assert process is not None or self.finished(), f"{output}\n{self.log[-3000:]}"
        return output

    def finished(self) -> bool:
        return (self.folder / "run.png").exists()

    def processes(self) -> list[psutil.Process]:
        """Its processes: they name its folder in their environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and str(self.folder) in " ".join(process.environ().values()):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    @property
    def log(self) -> str:
        return (self.folder / "verl.log").read_text(errors="replace")

    @property
    def metrics(self):
        return runs.load_metrics(self.folder)

    def parameters(self, step: int) -> torch.Tensor:
        tensors = load_file(self.folder / f"checkpoints/global_step_{step}/actor/huggingface/model.safetensors")
        return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])

    def update(self) -> torch.Tensor:
        """The second step's change of the parameters: both of its ends are in checkpoints."""
        return self.parameters(2) - self.parameters(1)


def micro(rows: int) -> str:
    return f"{ACTOR}.ppo_micro_batch_size_per_gpu={rows}"


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def assert_same_updates(run: Run, other: Run) -> None:
    """One seed: the same responses, and the same updates but for rounding.

    verl draws the uids, and they order the rows that are summed.
    """
    for name in ("critic/score/mean", "response_length/mean"):
        assert run.metrics[name].equals(other.metrics[name])
    assert relative(run.update(), other.update()) < 1e-4
    for name, tolerance in (("actor/grad_norm", 1e-4), (PREFIX + "sigma", 1e-6)):
        assert run.metrics[name].to_list() == pytest.approx(other.metrics[name].to_list(), rel=tolerance)
