# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cw_grpo.job.plan import make_plan
from cw_grpo.job.precision import OVERRIDES, bfloat16_instructions, choose_precision


@pytest.fixture
def cpuinfo(tmp_path: Path):
    def write(flags: str) -> Path:
        path = tmp_path / "cpuinfo"
        path.write_text(f"processor\t: 0\nmodel name\t: avx512_bf16 in a name\nflags\t\t: fpu {flags}\n\n")
        return path

    return write


def test_bfloat16_where_the_processor_multiplies_it(cpuinfo) -> None:
    plan = make_plan(["scale=smollm2"])
    chosen, note = choose_precision(plan, cpuinfo("avx2 avx512_bf16"))
    assert "bfloat16" in note and "AVX512_BF16" in note
    assert {key: OmegaConf.select(chosen.config, key) for key in OVERRIDES} == OVERRIDES
    # What verl's process composes from the overrides is what the run's directory keeps.
    assert make_plan(chosen.overrides).config == chosen.config
    assert OmegaConf.select(plan.config, "actor_rollout_ref.rollout.dtype") == "float32"
    assert OmegaConf.select(chosen.config, "actor_rollout_ref.actor.fsdp_config.model_dtype") == "fp32"


def test_float32_elsewhere_and_the_line_says_so(cpuinfo, tmp_path: Path) -> None:
    plan = make_plan(["scale=smollm2"])
    for path in (cpuinfo("avx2 avx512f"), tmp_path / "none"):
        chosen, note = choose_precision(plan, path)
        assert chosen == plan and "float32" in note


@pytest.mark.parametrize("overrides", [["scale=tiny"], ["scale=smollm2", "prepare.bfloat16=false"]])
def test_a_job_that_does_not_ask_stays_as_it_is(cpuinfo, overrides: list[str]) -> None:
    plan = make_plan(overrides)
    assert choose_precision(plan, cpuinfo("avx512_bf16")) == (plan, None)


def test_the_users_own_value_wins(cpuinfo) -> None:
    key = "actor_rollout_ref.rollout.dtype"
    chosen, _ = choose_precision(make_plan(["scale=smollm2", f"{key}=float32"]), cpuinfo("amx_bf16"))
    assert OmegaConf.select(chosen.config, key) == "float32"
    assert chosen.overrides.count(f"{key}=float32") == 1 and f"{key}=bfloat16" not in chosen.overrides


def test_of_this_machine_torch_agrees() -> None:
    import torch

    capabilities = torch.cpu.get_capabilities()
    known = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    assert (bfloat16_instructions(Path("/proc/cpuinfo")) is not None) == known
