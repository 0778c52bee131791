# SPDX-License-Identifier: Apache-2.0
"""The times that a first user of the CPU job waits for, in seconds and as multiples of a fixed matrix product.

    .venv/bin/python scripts/bench_cpu_job.py [--scale tiny --scale smollm2] [--steps 6]

The product is of two 2048 x 2048 float32 matrices on two threads, timed between the measurements (the median), so that
machines, and hours on one machine, can be compared. Nothing else should run.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from cw_grpo import runs

CW_GRPO = str(Path(sys.executable).with_name("cw-grpo"))


def product_seconds(dtype: torch.dtype = torch.float32) -> list[float]:
    """Seconds of a product of 2048 x 2048 matrices, five times."""
    torch.set_num_threads(2)
    left = torch.ones(2048, 2048, dtype=dtype)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        left @ left
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def help_seconds() -> float:
    """`cw-grpo --help`, the third time, when all is in the file cache."""
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([CW_GRPO, "--help"], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
    return seconds


def job_seconds(scale: str, steps: int, home: Path, directory: Path) -> tuple[float, dict[str, float]]:
    """From the command to the first step, and the medians of a step and its parts without the first step."""
    command = [CW_GRPO, "train", f"--home={home}", f"--run-dir={directory}", f"scale={scale}", "cluster=cpu"]
    command += [f"trainer.total_training_steps={steps}", "trainer.save_freq=-1"]
    start, ready = time.perf_counter(), None
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        output = []
        for line in process.stdout:
            output.append(line)
            if ready is None and re.search("waiting for the first step", line):
                ready = time.perf_counter() - start
    if process.returncode or ready is None:
        raise RuntimeError("".join(output))
    metrics = runs.load_metrics(directory).iloc[1:]
    parts = [name for name in metrics if name.startswith("timing_s/")]
    return ready, metrics[parts].median().to_dict()


def main(
    scale: Annotated[list[str] | None, typer.Option(help="Scales of the recipe to run.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of each run, at least 2.")] = 6,
    home: Annotated[Path, typer.Option(envvar="CW_GRPO_HOME", help="Where models and data are.")] = Path("outputs"),
) -> None:
    """Print a line for each time."""
    from cw_grpo.job.plan import make_plan
    from cw_grpo.job.prepare import prepare_inputs

    rows: list[tuple[str, float]] = []
    products = product_seconds()
    rows.append(("cw-grpo --help", help_seconds()))
    with tempfile.TemporaryDirectory() as temporary:
        for name in scale or ["tiny", "smollm2"]:
            directory = Path(temporary) / name
            prepare_inputs(make_plan([f"scale={name}", "cluster=cpu"]), home, directory)
            products += product_seconds()
            ready, parts = job_seconds(name, steps, home, directory)
            products += product_seconds()
            rows.append((f"{name}: command to first step", ready))
            rows += [(f"{name}: {part.removeprefix('timing_s/')}", value) for part, value in parts.items()]
    unit = statistics.median(products)
    speeds = [f"{kind} {2 * 2048**3 / 1e9 / value:.0f} GFLOP/s" for kind, value in (("float32", unit), *_bfloat16())]
    print(f"{os.cpu_count()} processors; products: {', '.join(speeds)}")
    for what, seconds in rows:
        print(f"{what:36} {seconds:8.2f} s {seconds / unit:8.0f} products")


def _bfloat16() -> list[tuple[str, float]]:
    """The same in bfloat16, where the processor has it: without, a product takes seconds."""
    capabilities = torch.cpu.get_capabilities()
    known = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return [("bfloat16", statistics.median(product_seconds(torch.bfloat16)))] if known else []


if __name__ == "__main__":
    typer.run(main)
