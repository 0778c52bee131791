# SPDX-License-Identifier: Apache-2.0
"""vLLM itself under verl, in its build for CPUs: it answers, and has the trainer's weights after each update."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from main_job import ACTOR, Run
from stock import ROOT

from cw_grpo.metrics import PREFIX

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the pins of .venv-vllm are for Python 3.11"),
    pytest.mark.skipif(
        not torch.__version__.endswith("+cpu"),
        reason="pip finds no torch built for CPUs here, and vLLM's build for CPUs needs it",
    ),
]


STEPS = ("cluster=cpu_vllm", "method=cw_grpo", "trainer.total_training_steps=3")


@pytest.fixture(scope="module")
def python() -> Path:
    """Of the environment with vLLM."""
    done = subprocess.run(["bash", ROOT / "scripts/setup.sh", "vllm"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / ".venv-vllm/bin/python"


@pytest.fixture(scope="module")
def run(python: Path, home: Path, tmp_path_factory) -> Run:
    """Three steps whose rate changes the policy enough to tell one step's weights from another's."""
    made = Run(tmp_path_factory.mktemp("vllm") / "run", home, *STEPS, "trainer.save_freq=3", python=python)
    made.finish()
    return made


def assert_vllm_has_the_trainers_weights(run: Run) -> None:
    """In float32 both give a sampled token the same probability; with the weights of the step before, .2 is missing."""
    metrics = run.metrics
    differences = metrics["training/rollout_probs_diff_max"]
    assert list(metrics.index) == [1, 2, 3] and "vLLMHttpServer" in run.log
    assert differences.notna().all() and differences.max() < 1e-4
    assert metrics["actor/entropy"].diff().abs().dropna().min() > 1e-3, "the policy does not change"
    assert metrics["training/rollout_actor_probs_pearson_corr"].min() > 0.9999
    assert (metrics["actor/grad_norm"] > 0).all() and (metrics["response_length/mean"] > 1).all()
    assert (metrics[PREFIX + "effective_token_fraction"] < 1).all()
    assert "the advantage estimator cw_grpo applies the weights" in run.log


def test_vllm_answers_with_the_trainers_weights(run: Run) -> None:
    assert_vllm_has_the_trainers_weights(run)


def test_an_adapter_is_trained_and_the_model_is_split(python: Path, home: Path, tmp_path) -> None:
    """LoRA: vLLM has the first weights and takes the adapter; it and FSDP have two processes each."""
    lora = ("actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.model.target_modules=all-linear")
    two = ("trainer.n_gpus_per_node=2", "actor_rollout_ref.rollout.tensor_model_parallel_size=2")
    run = Run(
        tmp_path / "run", home, *STEPS, *lora, f"{ACTOR}.optim.lr=0.01", *two, "trainer.save_freq=-1", python=python
    )
    run.finish()
    assert_vllm_has_the_trainers_weights(run)


def test_vllm_evaluates_the_checkpoint(run: Run, python: Path, home: Path, tmp_path) -> None:
    questions = tmp_path / "sums.parquet"
    pd.read_parquet(next(home.glob("data/chain_sum-val-*.parquet"))).head(16).to_parquet(questions)
    command = [python.with_name("cw-grpo"), "eval", run.folder, f"--benchmarks={questions}", "--samples=1"]
    options = ["--max-tokens=32", "--set=cluster=cpu_vllm", f"--out={tmp_path / 'eval'}"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (scores,) = pd.read_csv(tmp_path / "eval/scores.csv").to_dict("records")
    assert (scores["step"], scores["questions"], scores["samples"]) == (3, 16, 1) and scores["pass@1"] > 0


def test_a_job_whose_vllm_died_is_stopped(python: Path, home: Path, tmp_path, monkeypatch) -> None:
    """verl would wait for it without end."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    dies = "launcher.env.VERL_USE_EXTERNAL_MODULES='cw_grpo.cpu,dying_vllm'"
    overrides = (dies, "+launcher.idle_warning_s=20", "trainer.save_freq=1")
    run = Run(tmp_path / "run", home, *STEPS, *overrides, python=python)
    process = run.start()
    output = run.finish(process)
    assert process.returncode == 1, output
    assert re.search(r"stopped: vLLM failed, and no step has ended in \d+ s since.*\n.*EngineDeadError", output, re.S)
    assert "step 1 was saved, but its metrics were not" in output
    assert run.processes() == []


def test_the_check_of_a_gpu_needs_what_a_user_installs(python: Path, tmp_path) -> None:
    """Without the packages of the tests, such as hypothesis. The steps after these are jobs as above."""
    command = ["bash", ROOT / "scripts/gpu_check.sh", "--small", f"--out={tmp_path}"]
    env = os.environ | {
        "PATH": os.pathsep.join([str(python.parent), os.environ["PATH"]]),
        "CW_GRPO_HOME": str(tmp_path),
    }
    steps = ("numerics", "bench")
    done = subprocess.run([*command, *steps], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    table = [line.split()[:2] for line in done.stdout.splitlines()[-len(steps) :]]
    assert table == [[step, "pass"] for step in steps]
