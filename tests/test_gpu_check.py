# SPDX-License-Identifier: Apache-2.0
"""`scripts/gpu_check.sh`: to its end without a GPU; and its steps find what is wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch

from cw_grpo.checks.layout import layout_problem
from cw_grpo.settings import check_job

ROOT = Path(__file__).parents[1]
CORRELATION = "training/rollout_actor_probs_pearson_corr"
ON_THE_CPU = ("doctor", "numerics", "bench")

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@pytest.fixture(scope="module")
def gpu_check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "scripts" / "gpu_check.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # for its dataclasses
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def check(gpu_check, tmp_path):
    return gpu_check.Check("cpu", tmp_path, small=True)


def run_script(tmp_path: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "CW_GRPO_HOME": str(tmp_path)} | env
    command = ["bash", str(ROOT / "scripts" / "gpu_check.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@without_gpu
@pytest.mark.slow
def test_the_script_runs_to_its_end_without_a_gpu_and_repeats_nothing_that_passed(tmp_path, gpu_check) -> None:
    done = run_script(tmp_path, "--small")
    assert done.returncode == 0, done.stdout + done.stderr
    results = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "gpu_check").glob("*.json")}
    expected = {step: "pass" if step in ON_THE_CPU else "no GPU" for step in gpu_check.STEPS}
    assert {step: result["status"] for step, result in results.items()} == expected
    assert all(result["device"] == "no GPU" and "verl" in result["versions"] for result in results.values())
    table = done.stdout.splitlines()[-len(expected) :]
    assert [line.split()[0] for line in table] == list(expected)
    assert {"estimator", "weights", "loss"} == {
        what.split()[0].strip(",") for what in pd.read_csv(tmp_path / "gpu_check" / "bench.csv")["what"]
    }

    broken = tmp_path / "gpu_check" / "numerics.json"
    broken.write_text("{")
    again = run_script(tmp_path, "--small", "numerics", "bench")
    started = [line for line in again.stdout.splitlines() if line.endswith(" ...")]
    assert (again.returncode, started) == (0, ["numerics ..."])
    assert json.loads(broken.read_text())["status"] == "pass"


@without_gpu
def test_a_rehearsal_is_not_taken_for_a_check(tmp_path) -> None:
    """Its results name it, and are elsewhere."""
    for options, folder in (([], "gpu_check"), (["--rehearse"], "gpu_rehearsal")):
        assert run_script(tmp_path, *options, "numerics", "--small").returncode == 0
        result = json.loads((tmp_path / folder / "numerics.json").read_text())
        assert result["device"] == ("CPU, a rehearsal" if options else "no GPU")


def test_an_unknown_step_and_a_python_without_the_package_are_one_line_each(tmp_path) -> None:
    done = run_script(tmp_path, "traning")
    assert done.returncode == 2 and "traning is not a step" in done.stderr
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(shutil.which("false"))
    done = run_script(tmp_path, PATH=os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]]))
    assert done.returncode == 2
    assert (
        done.stderr.startswith("error: cw-grpo is not installed in this environment") and ".[vllm]" not in done.stdout
    )


def test_wrong_weights_are_found(gpu_check, check, monkeypatch) -> None:
    """Of one thousandth: more than float32 may differ."""
    import cw_grpo

    right = cw_grpo.covariance_weights

    def wrong(*arguments, **options):
        result = right(*arguments, **options)
        result.weights.mul_(1.001)
        return result

    monkeypatch.setattr(cw_grpo, "covariance_weights", wrong)
    result = gpu_check.run_step("numerics", check, "no GPU", {})
    assert result.status == "fail" and result.detail.startswith("weights, 12 x 40, torch.float32")


def test_a_gradient_that_is_not_a_number_is_found(gpu_check) -> None:
    got = torch.tensor([[1.0, float("nan")]])
    assert not gpu_check.relative_error(got, [[1.0, 2.0]]) <= 1e-2
    assert gpu_check.relative_error(torch.tensor([[1.0, 2.02]]), [[1.0, 2.0]]) == pytest.approx(0.01)


def test_a_command_that_fails_is_its_first_error(gpu_check, check) -> None:
    code = "print('line'); raise RuntimeError('CUDA error: no kernel image is available')"
    with pytest.raises(gpu_check.StepFailed, match=r"^RuntimeError: CUDA error: no kernel image is available$"):
        check.run("some", sys.executable, "-c", code)
    with pytest.raises(gpu_check.StepFailed, match=r"^exit status 3$"):
        check.run("some", sys.executable, "-c", "raise SystemExit(3)")
    assert check.run("some", sys.executable, "-c", "print('well')").splitlines()[-1] == "well"


@without_gpu
def test_a_job_without_a_gpu_fails_with_the_launchers_own_line(gpu_check, check, monkeypatch) -> None:
    monkeypatch.setattr(gpu_check, "HOME", check.out)
    result = gpu_check.run_step("job", gpu_check.Check("cuda", check.out), "pretended", {})
    assert result.status == "fail"
    assert result.detail.startswith("error: ") and "torch sees 0 GPUs" in result.detail


def metrics(**columns: list[float]) -> pd.DataFrame:
    frame = pd.DataFrame({"actor/grad_norm": [1.0, 2.0], "critic/score/mean": [0.2, 0.4], "timing_s/step": [3.0, 1.0]})
    frame[CORRELATION] = [0.999, 0.998]
    return frame.assign(**columns).set_axis([1, 2])


def test_a_job_that_stops_early_or_diverges_has_not_passed(gpu_check) -> None:
    told = "2.0 s per step, reward 0.20 to 0.40, correlation with vLLM's probabilities 0.9980"
    assert gpu_check.steps_of(metrics(), 2) == told
    with pytest.raises(gpu_check.StepFailed, match="ends after step 2 of 3"):
        gpu_check.steps_of(metrics(), 3)
    with pytest.raises(gpu_check.StepFailed, match="not finite"):
        gpu_check.steps_of(metrics(**{"actor/grad_norm": [1.0, float("nan")]}), 2)
    for correlation in (0.2, float("nan")):
        with pytest.raises(gpu_check.StepFailed, match="lacks the trainer's weights"):
            gpu_check.steps_of(metrics(**{CORRELATION: [0.999, correlation]}), 2)


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        ({"actor/grad_norm": [2.0, 2.0]}, "gradient norm 1 with one group in a micro-batch, 2 with three"),
        ({"critic/score/mean": [0.3, 0.3]}, "did not train on the first one's responses"),
        ({"response_length/mean": 2.0}, "did not train on the first one's responses"),
    ],
)
def test_micro_batches_that_change_the_update_are_found(gpu_check, check, monkeypatch, second, problem) -> None:
    runs = [metrics(**{"response_length/mean": 1.0}), metrics(**{"response_length/mean": 1.0} | second)]
    monkeypatch.setattr(type(check), "train", lambda self, *arguments, **options: runs.pop(0))
    with pytest.raises(gpu_check.StepFailed, match=problem):
        gpu_check.micro_batches(check)
    runs += [metrics(**{"response_length/mean": 1.0, "actor/grad_norm": 0.0})] * 2
    with pytest.raises(gpu_check.StepFailed, match="gradient norm 0 with"):
        gpu_check.micro_batches(check)


@pytest.mark.parametrize("rehearsal", [False, True])
def test_the_overrides_of_every_job_compose(gpu_check, tmp_path, monkeypatch, rehearsal) -> None:
    """On verl's own configuration; the jobs themselves need a GPU, or in the rehearsal vLLM's build for CPUs."""
    check, composed = gpu_check.Check("cpu", tmp_path, rehearsal=rehearsal), []

    def compose(step: str, run_dir: Path, *overrides: str, **options) -> pd.DataFrame:
        config = gpu_check.make_plan([*check.job, *overrides]).config
        assert config.actor_rollout_ref.rollout.name == "vllm"
        assert layout_problem(config) is None
        check_job(config)
        composed.append((step, config.trainer.total_training_steps, config.data.train_batch_size))
        rows = metrics(**{"response_length/mean": 1.0})
        return rows.set_axis([check.steps, config.trainer.total_training_steps])

    monkeypatch.setattr(type(check), "train", lambda self, *arguments, **options: compose(*arguments, **options))
    for step in ("job", "training", "micro_batches"):
        gpu_check.STEPS[step][0](check)
    training = ("training", 4 if rehearsal else 24, 8)
    assert composed == [("job", 3, 8), training, training] + [("micro_batches", 1, 6)] * 2
