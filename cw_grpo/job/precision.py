# SPDX-License-Identifier: Apache-2.0
"""bfloat16 for a job on CPU cores that multiply it, float32 on others: `prepare.bfloat16`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from omegaconf import OmegaConf

from cw_grpo.job.plan import Plan

INSTRUCTIONS = {"avx512_bf16": "AVX512_BF16", "amx_bf16": "AMX"}
"""What multiplies bfloat16 faster than float32, by its name in /proc/cpuinfo."""

OVERRIDES = {
    "actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype": "bf16",
    "actor_rollout_ref.ref.fsdp_config.mixed_precision.param_dtype": "bf16",
    "actor_rollout_ref.rollout.dtype": "bfloat16",
    # Faster in bfloat16 than torch's attention for CPUs, at sequences of 65 tokens (docs/performance.md).
    "actor_rollout_ref.model.override_config.attn_implementation": "eager",
}
"""verl's mixed precision, as on GPUs, and the attention that suits it.

The weights that the optimiser updates, the gradients and Adam stay float32.
"""


def choose_precision(plan: Plan, cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[Plan, str | None]:
    """The plan with bfloat16 if it asks for it and this machine multiplies it, and a line that says which it is.

    The values become part of the job's configuration: a run that resumes on another kind of processor is rejected as
    one with other settings. The user's own values win.

    Args:
        plan: the job; without `prepare.bfloat16`, or not for a CPU, it stays as it is, and there is no line.
        cpuinfo: Linux's description of the processor.
    """
    prepare = plan.config.get("prepare") or {}
    if not prepare.get("bfloat16", False) or OmegaConf.select(plan.config, "trainer.device") != "cpu":
        return plan, None
    instructions = bfloat16_instructions(cpuinfo)
    if instructions is None:
        return plan, f"precision: float32 (this processor has none of {', '.join(INSTRUCTIONS.values())})"
    values = {key: value for key, value in OVERRIDES.items() if not plan.sets(key)}
    config = plan.config.copy()
    for key, value in values.items():
        OmegaConf.update(config, key, value)
    overrides = (*(f"{key}={value}" for key, value in values.items()), *plan.overrides)
    note = f"precision: bfloat16 with float32 weights, by {instructions}; prepare.bfloat16=false for float32"
    return dataclasses.replace(plan, overrides=overrides, config=config), note


def bfloat16_instructions(cpuinfo: Path) -> str | None:
    """The instructions with which this processor multiplies bfloat16; None without, or where nothing says so."""
    try:
        text = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        return None
    flags = {flag for line in text.splitlines() if line.startswith("flags") for flag in line.split()}
    return next((name for flag, name in INSTRUCTIONS.items() if flag in flags), None)
