# SPDX-License-Identifier: Apache-2.0
"""vLLM itself under verl, in its build for CPUs: it answers, and has the trainer's weights after each update."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from main_job import Run
from stock import ROOT

from cw_grpo.metrics import PREFIX

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def python() -> Path:
    """Of the environment with vLLM."""
    env = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    done = subprocess.run(["bash", ROOT / "scripts/setup.sh", "vllm"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / ".venv-vllm/bin/python"


@pytest.fixture(scope="module")
def run(python: Path, home: Path, tmp_path_factory) -> Run:
    """Three steps whose rate changes the policy enough to tell one step's weights from another's."""
    made = Run(
        tmp_path_factory.mktemp("vllm") / "run",
        home,
        "cluster=cpu_vllm",
        "method=cw_grpo",
        "trainer.total_training_steps=3",
        "trainer.save_freq=3",
        python=python,
    )
    made.finish()
    return made


def test_vllm_answers_with_the_trainers_weights_and_they_are_weighted(run: Run) -> None:
    """In float32 both give a sampled token the same probability; the weights of the step before differ by far more."""
    metrics = run.metrics
    assert list(metrics.index) == [1, 2, 3] and "vLLMHttpServer" in run.log
    assert metrics["training/rollout_probs_diff_max"].max() < 1e-4
    assert metrics["training/rollout_actor_probs_pearson_corr"].min() > 0.9999
    assert (metrics["actor/grad_norm"] > 0).all() and (metrics["response_length/mean"] > 1).all()
    assert (metrics[PREFIX + "effective_token_fraction"] < 1).all()
    assert "the advantage estimator cw_grpo applies the weights" in run.log


def test_vllm_evaluates_the_checkpoint(run: Run, python: Path, sums: Path, tmp_path) -> None:
    command = [python.with_name("cw-grpo"), "eval", run.folder, f"--benchmarks={sums}", "--samples=4"]
    options = ["--max-tokens=32", "--set=cluster=cpu_vllm", f"--out={tmp_path / 'eval'}"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (scores,) = pd.read_csv(tmp_path / "eval/scores.csv").to_dict("records")
    assert (scores["step"], scores["questions"], scores["samples"]) == (3, 6, 4) and scores["pass@1"] > 0
