#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the weights cost, as ratios to verl's own functions on the same batch, each in one process: results/bench.csv.

    python scripts/bench.py [--rounds 15] [--out results/bench.csv] [--page docs/performance.md]
    python scripts/bench.py --device cuda --out results/bench-gpu.csv

Medians of rounds in which the two take turns; the processor time of all threads beside the wall time, which other work
on the machine does not stretch as much. What large tensors cost depends on where their memory comes from, so the
estimator is measured with glibc as it is, with memory that is always new, and with memory that is always kept: see
:func:`set_memory`. ``--device cuda`` measures estimator, weights and losses on a GPU instead, against verl's functions
and against the bytes that must move. It was run with ``--device cpu`` alone.
"""

from __future__ import annotations

import ctypes
import datetime
import logging
import os
import platform
import re
import statistics
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from pages import write_table
from torch.profiler import ProfilerActivity, profile

logging.disable(logging.WARNING)

from verl.protocol import DataProto  # noqa: E402
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, get_policy_loss_fn  # noqa: E402
from verl.trainer.ppo.ray_trainer import compute_advantage  # noqa: E402
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories  # noqa: E402
from verl.workers.config import ActorConfig, OptimizerConfig  # noqa: E402

from cw_grpo import covariance_weights  # noqa: E402
from cw_grpo.advantage import compute_cw_grpo_outcome_advantage, take_metrics  # noqa: E402

# What the loss is measured against, and the ratios that must and that should be reached.
LOSSES = (("vanilla", 1.3, 1.1), ("clip_cov", 1.0, 0.7), ("kl_cov", 1.0, 0.7))
ROWS: list[dict[str, object]] = []
MEMORY = ("as it is", "new", "kept")


def batch(
    rows: int, tokens: int, group: int = 12, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, np.ndarray]:
    """Log-probs, token-level rewards, mask and group ids; lengths uniform from 1 to ``tokens``."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, tokens + 1, (rows,), generator=generator)
    mask = (torch.arange(tokens) < lengths.unsqueeze(-1)).long()
    log_probs = -0.5 * torch.empty(rows, tokens).exponential_(generator=generator) * mask
    rewards = torch.zeros(rows, tokens)
    rewards[torch.arange(rows), lengths - 1] = (torch.rand(rows, generator=generator) < 0.4).float()
    return log_probs, rewards, mask, np.repeat([f"uid-{i}" for i in range(rows // group)], group).astype(object)


def estimator(given: tuple) -> tuple[torch.Tensor, dict]:
    log_probs, rewards, mask, index = given
    advantages, _ = compute_cw_grpo_outcome_advantage(rewards, mask, index, old_log_probs=log_probs)
    return advantages, take_metrics()


def advantage_step(name: str, v1: bool, given: tuple) -> tuple[torch.Tensor, dict]:
    """What a job's trainer calls for its advantages, with the plugin's hooks: verl's V1, or the trainers before it."""
    log_probs, rewards, mask, index = given
    data = DataProto.from_dict(
        tensors={"token_level_rewards": rewards, "response_mask": mask, "old_log_probs": log_probs},
        non_tensors={"uid": index},
    )
    if v1:
        keys = [f"{uid}_{row}_0" for row, uid in enumerate(index)]
        data = compute_advantage_for_multi_trajectories(data, keys, name, config={})
    else:
        data = compute_advantage(data, name, config={})
    return data.batch["advantages"], take_metrics()


def loss_step(name: str, log_probs: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor) -> Callable[[], None]:
    """A policy loss on a micro-batch of 12 a group, and its backward."""
    loss, current = get_policy_loss_fn(name), log_probs.clone().requires_grad_()
    config = ActorConfig(
        strategy="fsdp2", rollout_n=12, ppo_micro_batch_size_per_gpu=12, optim=OptimizerConfig(lr=1e-6)
    )

    def run() -> None:
        current.grad = None
        loss(log_probs, current, advantages, mask, "seq-mean-token-mean", config)[0].backward()

    return run


def set_memory(kind: str) -> None:
    """Where this process takes the memory of large tensors from, by glibc's mallopt (3); to be set before any.

    ``as it is``: glibc decides, by what happens to be free. ``new``: each tensor above 1 MB is new pages of the
    kernel's, which clears them at the first touch. ``kept``: what was freed is used again.
    """
    m_trim_threshold, m_mmap_threshold, m_mmap_max = -1, -3, -4
    settings = {
        "as it is": {},
        "new": {m_mmap_threshold: 1 << 20},
        "kept": {m_mmap_max: 0, m_trim_threshold: (1 << 31) - 1},
    }
    for name, value in settings[kind].items():
        if not ctypes.CDLL(None).mallopt(name, value):
            raise RuntimeError(f"mallopt({name}, {value}) failed: this needs glibc")


def wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def compare(
    what: str, ours: Callable, against: str, theirs: Callable, rounds: int, must: float | None, aim: float | None
) -> None:
    """Time both in turns and keep the ratio of the medians."""
    seconds: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    for _ in range(rounds + 1):
        for name, function in (("ours", ours), ("theirs", theirs)):
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            wait()
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    medians = {
        name: [statistics.median(column) for column in zip(*times[1:], strict=True)] for name, times in seconds.items()
    }
    report(
        what,
        against,
        medians["ours"][0] / medians["theirs"][0],
        must,
        aim,
        cpu=medians["ours"][1] / medians["theirs"][1],
        ours_ms=1e3 * medians["ours"][0],
        theirs_ms=1e3 * medians["theirs"][0],
    )


def flatness(what: str, sizes: list[tuple[int, int, int]], rounds: int) -> None:
    """The estimator's time per token at these rows, tokens and rows a group, which take turns: largest / smallest.

    Of a small size there are several batches: one alone would be in the processor's cache, as no step's is.
    """
    given = [[batch(*size, seed=seed) for seed in range(max(1, (1 << 24) // (size[0] * size[1])))] for size in sizes]
    seconds: list[list[float]] = [[] for _ in sizes]
    for _ in range(rounds + 1):
        for times, batches in zip(seconds, given, strict=True):
            start = time.perf_counter()
            for each in batches:
                estimator(each)
            times.append((time.perf_counter() - start) / sum(each[0].numel() for each in batches))
    per_token = [statistics.median(times[1:]) for times in seconds]
    ns = ", ".join(f"{1e9 * each:.2f}" for each in per_token)
    report(what, f"largest / smallest ({ns} ns)", max(per_token) / min(per_token), 1.2, 1.0)


def report(what: str, against: str, ratio: float, must: float | None, aim: float | None, **more: float) -> None:
    if aim is not None and ratio <= aim:
        verdict = "aim"
    elif must is not None:
        verdict = "must" if ratio <= must else "MISSED"
    else:
        verdict = "" if aim is None else "aim missed"
    ROWS.append(
        {"what": what, "against": against, "ratio": ratio, "must": must, "aim": aim, "reached": verdict, **more}
    )
    print(f"{what:58} / {against:42} {ratio:6.2f}   must {must}  aim {aim}  {verdict}", flush=True)


def peak_bytes(function: Callable) -> int:
    """The most memory that torch holds at once during a call, beyond what it held before, and that numpy does."""
    tracemalloc.start()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        kept = function()
    numpys = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    held = highest = 0
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    del kept
    return highest + numpys


def on_device(device: str, sizes: tuple[tuple[int, int], ...], rounds: int) -> None:
    """Estimator, weights and losses on a device, and the weights against the least that must move in its memory."""
    for rows, tokens in sizes:
        _, rewards, mask, index = batch(rows, tokens)
        rewards, mask = rewards.to(device), mask.to(device)
        valid = mask.bool()
        advantages = compute_grpo_outcome_advantage(rewards, mask, index)[0]
        for dtype in (torch.float32, torch.bfloat16):
            log_probs = batch(rows, tokens)[0].to(device, dtype)
            # Log-probs, advantages and mask are read, weights are written: a copy reads and writes half as many.
            moved = torch.empty(rows * tokens * (dtype.itemsize + 4 + 1 + 4) // 2, dtype=torch.uint8, device=device)
            size = f"{device}, {rows} x {tokens}, {dtype}".replace("torch.", "")
            compare(
                f"estimator, {size}",
                lambda x=log_probs, r=rewards, m=mask, i=index: estimator((x, r, m, i)),
                "verl's grpo",
                lambda r=rewards, m=mask, i=index: compute_grpo_outcome_advantage(r, m, i),
                rounds,
                None,
                None,
            )
            compare(
                f"weights, {size}",
                lambda x=log_probs, a=advantages, m=valid, i=index: covariance_weights(x, a, m, i),
                "a copy of as many bytes",
                moved.clone,
                rounds,
                None,
                None,
            )
            for ours in ("cw_grpo_live", "cw_grpo_released"):
                for against, must, aim in LOSSES:
                    compare(
                        f"loss {ours} and backward, {size}",
                        loss_step(ours, log_probs, advantages, valid),
                        f"verl's {against}",
                        loss_step(against, log_probs, advantages, valid),
                        rounds,
                        must if ours == "cw_grpo_live" else None,
                        aim if ours == "cw_grpo_live" else None,
                    )


def of_estimator(tokens: int, size: str, rounds: int) -> None:
    """The estimator by itself, and as a job comes to it, on 1536 responses."""
    given = batch(1536, tokens)
    log_probs, rewards, mask, index = given

    def grpo() -> tuple[torch.Tensor, torch.Tensor]:
        return compute_grpo_outcome_advantage(rewards, mask, index)

    compare(f"estimator, {size}", lambda: estimator(given), "verl's grpo", grpo, rounds, 1.5, 1.0)
    compare(f"estimator, {size}", lambda: estimator(given), "a float32 copy", log_probs.clone, rounds, None, 6)
    for trainer, v1 in (("V1", True), ("V0", False)):
        compare(
            f"advantages in a job ({trainer}), {size}",
            lambda v1=v1: advantage_step("cw_grpo", v1, given),
            "the same with grpo",
            lambda v1=v1: advantage_step("grpo", v1, given),
            rounds,
            None,
            None,
        )


def estimators(kind: str, rounds: int) -> list[dict[str, object]]:
    """The rows of the estimator with this kind of memory, for a process of its own."""
    set_memory(kind)
    for tokens in (4096, 8192):
        of_estimator(tokens, f"1536 x {tokens}, memory {kind}", rounds)
    sizes = [(rows, 4096, 12) for rows in (252, 1536, 15624)]
    flatness(f"time per token, 1M, 6M and 64M tokens, memory {kind}", sizes, rounds)
    sizes = [(1536, 4096, group) for group in (2, 12, 64)]
    flatness(f"time per token, 2, 12 and 64 a group, memory {kind}", sizes, rounds)
    return ROWS


def table(rows: pd.DataFrame) -> str:
    """The rows of a CSV of this script as a Markdown table; ratios that miss their limit are bold."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows.itertuples():
        what, _, memory = row.what.partition(", memory ")
        cells = lines.setdefault((what, re.sub(r" \(.* ns\)$", "", row.against)), {})
        cells[memory or MEMORY[0]] = (
            f"**{row.ratio:.2f}**" if "missed" in str(row.reached).lower() else f"{row.ratio:.2f}"
        )
        limit = row.aim if pd.isna(row.must) else row.must
        cells["limit"] = "" if pd.isna(limit) else f"{limit:g}"
        if memory in ("", MEMORY[0]) and not pd.isna(row.ours_ms):
            cells["ms"] = f"{row.ours_ms:.1f} / {row.theirs_ms:.1f}"
    columns = (*MEMORY, "limit", "ms")
    first = rows.iloc[0]
    return "\n".join(
        [
            f"Measured {first['date']}: {first.machine}, GPU {first.gpu}, torch {first.torch}, verl {first.verl}.",
            "",
            f"| what | against | {' | '.join(columns)} |",
            "|---" * (2 + len(columns)) + "|",
            *(f"| {' | '.join([*key, *(cells.get(each, '') for each in columns)])} |" for key, cells in lines.items()),
        ]
    )


def on_host(rounds: int) -> None:
    """All comparisons on the CPU: the estimator with each kind of memory, in a process of its own; and a loss."""
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes:
        for kind in MEMORY:
            ROWS.extend(processes.submit(estimators, kind, rounds).result())
    for tokens in (4096, 8192):
        given = batch(1536, tokens)
        size = given[0].numel() * 4
        beyond = (peak_bytes(lambda g=given: estimator(g)) - 2 * size) / size
        report(f"memory beyond inputs and output, {tokens}", "one (B, T) float32", beyond, 1.0, 0.25)

    log_probs, rewards, mask, index = batch(12, 4096)
    advantages, _ = compute_grpo_outcome_advantage(rewards, mask, index)
    valid = mask.bool()  # as verl hands it to a policy loss
    for against, must, aim in LOSSES:
        compare(
            "loss cw_grpo_live, 12 x 4096, and backward",
            loss_step("cw_grpo_live", log_probs, advantages, valid),
            f"verl's {against}",
            loss_step(against, log_probs, advantages, valid),
            4 * rounds,
            must,
            aim,
        )


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each comparison.")] = 15,
    out: Annotated[Path, typer.Option(help="CSV to write.")] = Path("results/bench.csv"),
    page: Annotated[Path | None, typer.Option(help="Markdown page whose table is written anew.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cuda: the comparisons on a GPU, in place of the host's; cpu: the same here.")
    ] = None,
    sizes: Annotated[str, typer.Option(help="Rows x tokens of the comparisons on a device.")] = "12x4096,48x8192",
) -> None:
    """Print the ratios and write them."""
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("torch sees no GPU here", param_hint="--device")
    if device is None:
        on_host(rounds)
    else:
        on_device(device, tuple(tuple(map(int, size.split("x"))) for size in sizes.split(",")), 4 * rounds)

    where = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads",
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "none",
        "torch": torch.__version__,
        "verl": version("verl"),
        "cw_grpo": version("cw-grpo"),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(ROWS).assign(**where).to_csv(out, index=False, float_format="%.4g")
    print(f"written: {out}")
    if page is not None:
        write_table(page, "results/bench.csv", table(pd.read_csv(out)))


if __name__ == "__main__":
    typer.run(main)
