#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whether everything that a job needs of a GPU works here, step by step: what `scripts/gpu_check.sh` starts.

Each step is a function below; most of them run one of the repository's own commands. A step's result is in
OUT/<step>.json, its output in OUT/<step>.log. A step that passed on this device with these versions is not repeated.
The steps that need a GPU were never run on one; `--rehearse` runs them without, with vLLM's build for CPUs.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet as pq
import torch
import typer
from omegaconf import OmegaConf

from cw_grpo import runs
from cw_grpo.doctor.local import versions
from cw_grpo.job.failure import error_lines
from cw_grpo.job.plan import make_plan, quote
from cw_grpo.job.prepare import prepare_inputs
from cw_grpo.job.processes import supervise
from cw_grpo.verl_versions import installed

ROOT = Path(__file__).resolve().parents[1]
HOME = Path(os.environ.get("CW_GRPO_HOME", ROOT / "outputs"))
CONFIG = f"--config-path={ROOT}/recipe/cw_grpo/config"
SIZES = ((12, 4096), (48, 8192))
SMALL_SIZES = ((12, 40), (24, 64))
EAGER = "actor_rollout_ref.rollout.enforce_eager=true"
"""Where CUDA graphs are not what is checked: verl has vLLM compile them anew at each start."""
MOST_SECONDS = 420
"""Of one command on a GPU."""
LEAST_CORRELATION = 0.95
"""Of the probabilities that vLLM and the trainer give the sampled tokens; a vLLM without the weights has about 0."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
"""Largest difference to the reference, as a share of its largest value."""
VLLM = """
import json, sys
from vllm import LLM, SamplingParams
model = LLM(sys.argv[1], gpu_memory_utilization=0.3, max_model_len=512, enforce_eager=True)
chats = [[{"role": "user", "content": f"What is {number} + 2?"}] for number in range(8)]
outputs = model.chat(chats, SamplingParams(temperature=0, max_tokens=24))
print("ANSWERS " + json.dumps([output.outputs[0].text for output in outputs]))
"""


class StepFailed(Exception):
    """What a step found wrong, in one line."""


@dataclass(frozen=True)
class Check:
    """What the steps have in common."""

    device: str
    out: Path
    again: bool = False
    """Start runs anew, which else resume."""
    small: bool = False
    """Small batches: a test of this script."""
    rehearsal: bool = False
    """The jobs of the steps that need a GPU run on the CPU, with vLLM, and are short."""

    @property
    def cluster(self) -> str:
        return "cluster=cpu_vllm" if self.rehearsal else "cluster=1gpu"

    @property
    def job(self) -> tuple[str, ...]:
        """The overrides that all jobs have."""
        return ("scale=smollm2", self.cluster, self.startup)

    @property
    def startup(self) -> str:
        return f"launcher.startup_timeout_s={900 if self.rehearsal else 300}"

    @property
    def most_seconds(self) -> int:
        """Of one command."""
        return 4 * MOST_SECONDS if self.rehearsal else MOST_SECONDS

    @property
    def steps(self) -> int:
        """Of the step `training`."""
        return 4 if self.rehearsal else 24

    def run(self, step: str, *command: str) -> str:
        """Run a command to its end; its output.

        Raises:
            StepFailed: it fails, or takes too long.
        """
        log = self.out / f"{step}.log"
        start = log.stat().st_size if log.exists() else 0
        env = os.environ | {"CW_GRPO_HOME": str(HOME)}

        def too_long(seconds: float) -> str | None:
            return f"takes more than {self.most_seconds} s" if seconds > self.most_seconds else None

        outcome = supervise(command, env, log, marker=f"{step}-{os.getpid()}-{time.time()}", on_tick=too_long)
        if outcome.received is not None:
            raise KeyboardInterrupt
        text = log.read_bytes()[start:].decode(errors="replace")
        if outcome.problem is not None:
            raise StepFailed(outcome.problem)
        if outcome.status != 0:
            raise StepFailed(first_error(text) or f"exit status {outcome.status}")
        return text

    def cw_grpo(self, step: str, *arguments: str) -> str:
        """Run the `cw-grpo` of this Python."""
        return self.run(step, sys.executable, "-c", "from cw_grpo.cli import app; app()", *arguments)

    def train(self, step: str, run_dir: Path, *overrides: str, resume: bool = False) -> Any:
        """Run a job, or resume it; its metrics, one row per step."""
        # A longer run has another schedule of the learning rate.
        options = ["--accept-changes"] if resume else ["--fresh"] if self.again else []
        self.cw_grpo(step, "train", CONFIG, "--no-report", f"--run-dir={run_dir}", *options, *self.job, *overrides)
        metrics = runs.load_metrics(run_dir)
        return metrics[metrics[runs.TRAINED].notna()]

    def run_dir(self, name: str) -> Path:
        return self.out / "runs" / name


def first_error(text: str) -> str | None:
    """The line of an output that says what went wrong: the command's own `error: ...`, else the first exception.

    Ray's report of an exception may come before the log of the process that raised it.
    """
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith(("error: ", "FAILED ", "stopped: ")):
            listed = itertools.takewhile(lambda each: each.startswith("  - "), lines[number + 1 :])
            return " ".join([line, *map(str.strip, listed)])[:500]
    return min(error_lines(text, limit=1000), key=lambda line: line.startswith("ray.exceptions."), default=None)


def doctor(check: Check) -> str:
    """verl here applies CW-GRPO."""
    check.cw_grpo("doctor", "doctor")
    return "verl applies the weights"


def numerics(check: Check) -> str:
    """Weights and the gradients of both losses are those of the paper's formulas in float64 (`tests/reference.py`)."""
    sys.path.insert(0, str(ROOT / "tests"))
    import reference
    from batches import make_batch

    from cw_grpo import covariance_weights

    n, worst, waits = 12, 0.0, 0
    for rows, tokens in SMALL_SIZES if check.small else SIZES:
        batch = make_batch(seed=0, groups=rows // n, n=n, tokens=tokens)
        mask, index = batch.mask.tolist(), batch.index.tolist()
        a, longest = reference.advantages(batch.rewards.tolist(), index), max(map(sum, mask))
        for dtype, tolerance in TOLERANCE.items():
            log_probs = batch.log_probs.to(dtype)
            values = log_probs.double().tolist()
            expected = reference.weights(values, a, mask, index).weights
            released = [
                [value / (rows // n) for value in row]
                for first in range(0, rows, n)
                for row in reference.released_gradient(*(x[first : first + n] for x in (values, a, mask)), longest)
            ]
            given = [x.to(check.device) for x in (log_probs, torch.tensor(a), batch.mask)]
            with CountedSyncs(check.device) as counted:
                weights = covariance_weights(*given, batch.index).weights
            waits = max(waits, counted.number)
            found = {
                "weights": (weights, expected),
                "cw_grpo_live": (loss_gradient("cw_grpo_live", *given), reference.live_gradient(expected, a, mask)),
                "cw_grpo_released": (loss_gradient("cw_grpo_released", *given), released),
            }
            for name, (got, want) in found.items():
                error = relative_error(got, want)
                if not error <= tolerance:
                    raise StepFailed(f"{name}, {rows} x {tokens}, {dtype}: {error:.1e} of the largest value off")
                worst = max(worst, error / tolerance)
            parts = [
                loss_gradient("cw_grpo_live", *(x[first : first + n] for x in given)) * (n / rows)
                for first in range(0, rows, n)
            ]
            if (error := relative_error(torch.cat(parts), found["cw_grpo_live"][0].tolist())) > tolerance:
                raise StepFailed(
                    f"cw_grpo_live differs between micro-batches of one and of {rows // n} groups: {error:.1e}"
                )
    if waits > 1:
        raise StepFailed(f"the weights wait for the GPU {waits} times: once is enough")
    counted_waits = f"; {waits} waits for the GPU" if check.device == "cuda" else ""
    return f"at most {worst:.0%} of the tolerance{counted_waits}"


class CountedSyncs:
    """Counts how often the code waits for the GPU, as `torch.cuda.set_sync_debug_mode` warns of it."""

    number = 0

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._caught = warnings.catch_warnings(record=True)

    def __enter__(self) -> CountedSyncs:
        self._warnings = self._caught.__enter__()
        warnings.simplefilter("always")
        if self._cuda:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._cuda:
            torch.cuda.set_sync_debug_mode("default")
        self._caught.__exit__(*exception)
        self.number = sum("synchronizing CUDA operation" in str(warning.message) for warning in self._warnings)


def loss_gradient(name: str, log_probs: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The gradient of a policy loss of groups of 12, on policy."""
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.workers.config import FSDPActorConfig, FSDPOptimizerConfig

    config = FSDPActorConfig(
        strategy="fsdp2", rollout_n=12, ppo_micro_batch_size_per_gpu=12, optim=FSDPOptimizerConfig(lr=1e-6)
    )
    current = log_probs.clone().requires_grad_()
    per_token = advantages.unsqueeze(-1) * mask
    get_policy_loss_fn(name)(log_probs, current, per_token, mask, "seq-mean-token-mean", config)[0].backward()
    return current.grad


def relative_error(got: torch.Tensor, want: list[list[float]]) -> float:
    """The largest difference, as a share of the largest value; NaN if one is not a number."""
    reference = np.array(want)
    return float(np.abs(got.double().cpu().numpy() - reference).max() / np.abs(reference).max())


def bench(check: Check) -> str:
    """`scripts/bench.py` on the device, in OUT/bench.csv."""
    table = check.out / "bench.csv"
    sizes = ",".join(f"{rows}x{tokens}" for rows, tokens in SMALL_SIZES if check.small)
    options = ["--rounds", "1", "--sizes", sizes] if check.small else []
    script = [
        sys.executable,
        str(ROOT / "scripts" / "bench.py"),
        "--device",
        check.device,
        "--out",
        str(table),
        *options,
    ]
    check.run("bench", *script)
    return f"ratios in {table}"


def vllm(check: Check) -> str:
    """vLLM alone answers eight prompts with SmolLM2-135M-Instruct."""
    check.cw_grpo("vllm", "train", CONFIG, *check.job, "--prepare-only")
    model = made_inputs(check).actor_rollout_ref.model.path
    output = check.run("vllm", sys.executable, "-c", VLLM, model)
    (line,) = [line for line in output.splitlines() if line.startswith("ANSWERS ")]
    answers = json.loads(line.removeprefix("ANSWERS "))
    if not all(answers):
        raise StepFailed(f"{sum(not answer for answer in answers)} of 8 answers are empty")
    return f"answers such as {answers[0][:40]!r}"


def made_inputs(check: Check) -> Any:
    """The model and the data of the jobs, by verl's keys; those that are missing are made."""
    plan = make_plan(check.job, config_dir=ROOT / "recipe" / "cw_grpo" / "config")
    return OmegaConf.from_dotlist(prepare_inputs(plan, HOME, check.run_dir("cw_grpo")))


def job(check: Check) -> str:
    """Three steps of a job, without CUDA graphs."""
    return steps_of(check.train("job", check.run_dir("eager"), "trainer.total_training_steps=3", EAGER), 3)


def training(check: Check) -> str:
    """24 steps with CUDA graphs, of cw_grpo and of grpo."""
    told = []
    for method in ("cw_grpo", "grpo"):
        own = (f"method={method}", f"trainer.total_training_steps={check.steps}")
        told.append(f"{method}: {steps_of(check.train('training', check.run_dir(method), *own), check.steps)}")
    return "; ".join(told)


def steps_of(metrics: Any, wanted: int) -> str:
    """A job's step time, reward, and how well the rollout's probabilities correlate with the trainer's.

    Raises:
        StepFailed: steps are missing, the gradient is not finite, or vLLM has other weights than the trainer.
    """
    if metrics.index.max() < wanted:
        raise StepFailed(f"ends after step {metrics.index.max()} of {wanted}")
    if not np.isfinite(metrics["actor/grad_norm"]).all():
        raise StepFailed("the gradient is not finite")
    correlation = metrics["training/rollout_actor_probs_pearson_corr"].min(skipna=False)
    if not correlation >= LEAST_CORRELATION:
        raise StepFailed(
            f"vLLM's probabilities of the sampled tokens correlate with the trainer's by {correlation:.3f} only: it "
            "lacks the trainer's weights"
        )
    reward, seconds = metrics["critic/score/mean"], metrics["timing_s/step"].median()
    return (
        f"{seconds:.1f} s per step, reward {reward.iloc[0]:.2f} to {reward.iloc[-1]:.2f}, correlation with vLLM's "
        f"probabilities {correlation:.4f}"
    )


def resume(check: Check) -> str:
    """Two more steps, from the last checkpoint of cw_grpo."""
    run_dir = check.run_dir("cw_grpo")
    if (last := runs.last_checkpoint(run_dir / "checkpoints")) is None:
        raise StepFailed("there is no checkpoint of the step `training`")
    more = ("method=cw_grpo", f"trainer.total_training_steps={last + 2}", EAGER)
    metrics = check.train("resume", run_dir, *more, resume=True)
    resumed = runs.attempt_files(run_dir)[-1].read_text(encoding="utf-8").splitlines()
    first = min(json.loads(line)["step"] for line in resumed)
    if first != last + 1:
        raise StepFailed(f"the checkpoint is of step {last}, and the run resumed with step {first}")
    return f"from step {last}; {steps_of(metrics, last + 2)}"


def evaluation(check: Check) -> str:
    """`cw-grpo eval` of that run on 64 sums."""
    plan = make_plan(check.job, config_dir=ROOT / "recipe" / "cw_grpo" / "config")
    questions = check.out / "sums.parquet"
    pq.write_table(pq.read_table(made_inputs(check).data.val_files).slice(0, 64), questions)
    options = ["--samples=1", f"--max-tokens={plan.config.data.max_response_length}"]
    options += [f"--set={override}" for override in (check.cluster, check.startup, EAGER)]
    out = check.out / "eval"
    check.cw_grpo(
        "evaluation", "eval", str(check.run_dir("cw_grpo")), f"--benchmarks={questions}", f"--out={out}", *options
    )
    return f"scores in {out}/scores.csv"


def micro_batches(check: Check) -> str:
    """The update of cw_grpo_live does not depend on whether a micro-batch has one group or three.

    Both runs train on the same responses: verl keeps those of the first (`skip.rollout_tq`).
    """
    rollouts = check.out / "runs" / "micro_rollouts"
    if check.again:
        shutil.rmtree(rollouts, ignore_errors=True)
    own = (
        *("method=cw_grpo_live", "data.train_batch_size=6", "trainer.total_training_steps=1", "trainer.save_freq=-1"),
        *("skip.rollout_tq.enable=true", f"skip.rollout_tq.dump_dir={quote(rollouts)}", "skip.rollout_tq.steps=[1]"),
        *("trainer.experiment_name=micro_batches", "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=12"),
        EAGER,
    )
    micro = "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"
    one, three = (
        check.train("micro_batches", check.run_dir(f"micro{rows}"), *own, f"{micro}={rows}").iloc[0] for rows in (4, 12)
    )
    if any(one[key] != three[key] for key in ("critic/score/mean", "response_length/mean")):
        raise StepFailed("the second run did not train on the first one's responses (skip.rollout_tq)")
    norms = one["actor/grad_norm"], three["actor/grad_norm"]
    if not (min(norms) > 0 and math.isclose(*norms, rel_tol=0.02)):
        raise StepFailed(f"gradient norm {norms[0]:.4g} with one group in a micro-batch, {norms[1]:.4g} with three")
    return f"gradient norms {norms[0]:.4g} and {norms[1]:.4g}"


STEPS: dict[str, tuple[Callable[[Check], str], bool]] = {
    "doctor": (doctor, False),
    "numerics": (numerics, False),
    "bench": (bench, False),
    "vllm": (vllm, True),
    "job": (job, True),
    "training": (training, True),
    "resume": (resume, True),
    "evaluation": (evaluation, True),
    "micro_batches": (micro_batches, True),
}
"""Each step, and whether it needs a GPU."""


@dataclass
class Result:
    """Of a step."""

    step: str
    status: str
    """pass, fail, or no GPU."""
    detail: str
    """What it found; the first line of the error if it failed."""
    seconds: float
    device: str
    versions: dict[str, str]


def environment() -> tuple[str, dict[str, str]]:
    """The device's name, and the versions that a result depends on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return device, versions() | {"flash-attn": installed("flash-attn"), "cuda": torch.version.cuda or "none"}


def read_result(path: Path) -> Result | None:
    """A step's earlier result; None if there is none that can be read."""
    try:
        return Result(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):
        return None


def run_step(name: str, check: Check, device: str, found_versions: dict[str, str]) -> Result:
    """Run a step; never raises but for an interrupt."""
    function, needs_gpu = STEPS[name]
    started = time.monotonic()
    if needs_gpu and check.device != "cuda" and not check.rehearsal:
        status, detail = "no GPU", (function.__doc__ or "").strip().splitlines()[0]
    else:
        try:
            status, detail = "pass", function(check)
        except Exception as error:  # the steps after it may still tell something
            text = str(error) if isinstance(error, StepFailed) else f"{type(error).__name__}: {error}"
            status, detail = "fail", text.strip().splitlines()[0]
    return Result(name, status, detail, round(time.monotonic() - started, 1), device, found_versions)


def table(results: list[Result]) -> str:
    """The results, one line each."""
    width = max(len(result.step) for result in results)
    return "\n".join(
        f"{result.step:{width}}  {result.status:6}  {result.seconds:6.1f} s  {result.detail}" for result in results
    )


def main(
    steps: Annotated[
        list[str] | None, typer.Argument(metavar="STEP...", help=f"By default all: {', '.join(STEPS)}.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Of the results; by default gpu_check or gpu_rehearsal in outputs.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Repeat what has passed, too.")] = False,
    small: Annotated[bool, typer.Option("--small", help="Small batches, to test this script.")] = False,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Without a GPU: short jobs on the CPU, with vLLM's build for CPUs.")
    ] = False,
) -> None:
    """Check everything that a job needs of a GPU; exit 1 if a step fails."""
    if unknown := sorted(set(steps or ()) - set(STEPS)):
        raise typer.BadParameter(f"{unknown[0]} is not a step: {', '.join(STEPS)}")
    device, found_versions = environment()
    if rehearse and torch.cuda.is_available():
        raise typer.BadParameter("--rehearse is for a machine without a GPU; this one has one")
    if rehearse:
        device = "CPU, a rehearsal"
    out = (out or HOME / ("gpu_rehearsal" if rehearse else "gpu_check")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    check = Check("cuda" if torch.cuda.is_available() else "cpu", out, again, small, rehearse)
    print(f"{device}; " + ", ".join(f"{name} {version}" for name, version in found_versions.items()), flush=True)
    results = []
    for name in steps or STEPS:
        path = out / f"{name}.json"
        result = read_result(path)
        if (
            again
            or result is None
            or (result.status, result.device, result.versions) != ("pass", device, found_versions)
        ):
            print(f"{name} ...", flush=True)
            result = run_step(name, check, device, found_versions)
            path.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
        results.append(result)
    print(table(results))
    if any(result.status == "fail" for result in results):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
