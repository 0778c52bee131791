# SPDX-License-Identifier: Apache-2.0
"""The configuration and the command, without servers: `tests/e2e/test_eval.py` runs it with verl's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from made_scores import benchmark
from typer.testing import CliRunner

from cw_grpo.cli import app
from cw_grpo.job.plan import make_plan


def command(*arguments: object):
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


@pytest.mark.parametrize(("cluster", "name"), [("cpu", "transformers"), ("1node", "vllm")])
def test_verl_takes_the_configuration(cluster: str, name: str) -> None:
    from verl.utils.config import omega_conf_to_dataclass

    config = make_plan([f"cluster={cluster}"], config_name="eval").config
    rollout = omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    assert (rollout.name, rollout.load_format, rollout.nnodes) == (name, "auto", 1)
    assert rollout.n_gpus_per_node == config.trainer.n_gpus_per_node
    assert not rollout.free_cache_engine and not rollout.enable_sleep_mode


def test_the_help_shows_the_defaults_of_the_configuration() -> None:
    from typer.main import get_command

    rollout = make_plan([], config_name="eval").config.actor_rollout_ref.rollout
    options = {option.name: option.show_default for option in get_command(app).commands["eval"].params}
    assert options["samples"] == str(rollout.n)
    assert options["max_tokens"] == str(rollout.response_length)
    assert options["temperature"] == str(rollout.temperature)
    text = re.sub(r"\s+", " ", command("--help").output)
    for shown in ("default: (4)", "default: (4096)", "default: (0.6)", "default: (eval in --home)"):
        assert shown in text


def test_the_command_rejects_settings_without_writing_anything(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_text("{}")
    file, out = benchmark(tmp_path / "b.parquet", ["1"]), tmp_path / "out"
    for options, message in {
        ("--samples", "0"): "--samples must be at least 1, got 0",
        ("--max-tokens", "0"): "--max-tokens must be at least 1",
        ("--temperature", "-1"): "--temperature must be 0 or more",
        ("--temperature", "0"): "use --samples 1 instead of 4",
        ("--set", "cluster=9nodes"): "1node",
        ("--set", "reward.custom_reward_function.path=mine.py"): "scored with the recipe's reward",
        ("--set", "cluster=1node"): "trainer.n_gpus_per_node=4, but torch sees 0 GPUs",
    }.items():
        result = command(tmp_path / "m", "--benchmarks", file, "--out", out, *options)
        assert result.exit_code == 2 and message in result.output, result.output
    result = command(tmp_path / "m", tmp_path / "m", "--benchmarks", file, "--out", out)
    assert "two models are called m: tell them apart with NAME=PATH" in result.output
    assert not out.exists()
