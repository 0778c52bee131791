# SPDX-License-Identifier: Apache-2.0
"""Runs with made-up numbers, as `cw-grpo train` leaves them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from batches import make_batch

from cw_grpo import covariance_weights
from cw_grpo.hooks.samples import METADATA, SCHEMA
from cw_grpo.report.collect import Run, read_runs


def make_run(
    folder: Path, steps: int, method: str = "cw_grpo", seed: int = 0, record: bool = False, **more: float
) -> str:
    """A run's directory as `cw-grpo train` leaves it, with made-up numbers; ``more``: metrics of every step."""
    rng = np.random.default_rng(seed)
    (folder / "metrics").mkdir(parents=True)
    lines = []
    for step in range(1, steps + 1):
        data = {
            "training/global_step": step,
            "actor/entropy": 0.3 / step + 0.01 * rng.random(),
            "critic/score/mean": step / steps,
            "response_length/mean": 20.0,
            "actor/lr": 1e-3,
            "actor/grad_norm": 1.0 + rng.random(),
            "timing_s/step": 2.0,
            **more,
        }
        if method == "cw_grpo":
            names = ("kept_positive", "kept_negative", "effective_token_fraction", "zero_sigma_fraction")
            data |= {f"actor/cw_grpo/{name}": 0.5 + 0.5 * rng.random() for name in names}
        lines.append(json.dumps({"step": step, "data": data}))
        if record:
            write_record(folder / "record", step, seed + step)
    (folder / "metrics" / "attempt-001.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "config.yaml").write_text(f"algorithm: {{adv_estimator: {method}}}\n")
    return str(folder)


def write_record(folder: Path, step: int, seed: int, model: str = "/no/such/model", applied: str = "none") -> Path:
    folder.mkdir(exist_ok=True)
    batch = make_batch(seed)
    advantages = batch.rewards - batch.rewards.view(-1, 4).mean(1).repeat_interleave(4)
    result = covariance_weights(batch.log_probs, advantages, batch.mask, batch.index)
    row, token = (places.numpy() for places in batch.mask.nonzero(as_tuple=True))
    columns = [
        np.full(len(row), step), batch.index[row], row, token, row * 100 + token, batch.log_probs.numpy()[row, token],
        advantages.numpy()[row], result.covariance.numpy()[row, token], result.weights.numpy()[row, token],
        batch.rewards.numpy()[row],
    ]  # fmt: skip
    about = {METADATA: json.dumps({"model": model, "applied": applied, "prompts": {"uid-0": [7]}}).encode()}
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], SCHEMA.with_metadata(about))
    pq.write_table(table, folder / f"step-{step:06d}.parquet")
    return folder / f"step-{step:06d}.parquet"


def read(argument: str | Path) -> Run:
    """The one run of an argument."""
    [run], _ = read_runs([str(argument)])
    return run


def spoil(run: Path, step: int, metric: str, value: str) -> None:
    """Write another value of a metric into a run's file."""
    file = run / "metrics/attempt-001.jsonl"
    lines = file.read_text().splitlines()
    lines[step - 1] = re.sub(rf'"{metric}": [-+.e0-9]+', f'"{metric}": {value}', lines[step - 1])
    file.write_text("\n".join(lines) + "\n")


def seeded(folder: Path, data: object, rollout: object, number: int) -> str:
    """A run of grpo with these seeds in its configuration, and numbers that depend on ``number``."""
    run = make_run(folder, 12, "grpo", number)
    Path(run, "config.yaml").write_text(
        f"data: {{seed: {data}}}\nactor_rollout_ref: {{rollout: {{seed: {rollout}}}}}\n"
    )
    return run
