# SPDX-License-Identifier: Apache-2.0
"""Composing a job: hydra's grammar, and mistakes that are named with what was meant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import given
from hypothesis import strategies as st
from jobs import cached_plan
from omegaconf import OmegaConf

from cw_grpo.job.plan import LaunchError, added_keys_like_others, make_plan, quote


@given(st.text(st.characters(blacklist_categories=["Cs", "Cc"])).filter(lambda text: "${" not in text))
def test_any_path_reaches_verls_config_whole(text: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"data.train_files={quote(text)}"])
    config = OmegaConf.create({"a": override.value()})
    assert config.a == text
    assert OmegaConf.to_container(config, resolve=True) == {"a": text}


@pytest.mark.parametrize("text", ["it's a, folder={x}", "back\\slash", "at\\the\\'quote", "end\\", "\\\\'\\"])
def test_odd_paths_reach_verls_config_whole(text: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"a={quote(Path(text))}"])
    assert override.value() == text


def test_a_job_is_composed_without_importing_verl_or_torch() -> None:
    """They take seconds, and the launcher needs neither."""
    code = "import sys; from cw_grpo.job import launch; launch.make_plan(['scale=tiny']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"verl", "torch", "transformers", "ray"} & set(done.stdout.split())


def test_the_jobs_of_other_tests_are_what_is_composed() -> None:
    """These set values in a copy of what was composed before (`tests/jobs.py`)."""
    own = ["trainer.save_freq=7", "+data.own={a: [1]}", "++actor_rollout_ref.actor.policy_loss.loss_mode=gspo"]
    for overrides in (own, ["~data.seed", "method=grpo", "parallel.ulysses=2"]):
        overrides = ["scale=qwen1_5b", "cluster=1node", *overrides]
        assert cached_plan(*overrides).config == make_plan(overrides).config
    with pytest.raises(HydraException, match="Could not override 'data.batch'"):
        cached_plan("scale=tiny", "data.batch=3")


def test_a_search_path_may_name_what_is_not_installed_and_directories(tmp_path: Path) -> None:
    (tmp_path / "more" / "extra").mkdir(parents=True)
    (tmp_path / "more" / "extra" / "one.yaml").write_text("value: 7\n")
    (tmp_path / "job.yaml").write_text(
        f"hydra:\n  searchpath: ['file://{tmp_path}/more', 'pkg://verl.trainer.config']\n"
        "defaults: [extra: one, ppo_trainer, _self_]\n"
    )
    config = make_plan([], config_dir=tmp_path, config_name="job").config
    assert config.extra.value == 7 and "actor_rollout_ref" in config
    (tmp_path / "bare.yaml").write_text("hydra:\n  searchpath: ['pkg://no_such_package.config']\nvalue: 3\n")
    assert make_plan([], config_dir=tmp_path, config_name="bare").config.value == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method=grop", "Could not find 'method/grop'(.|\n)*did you mean grpo"),
        ("data.train_batchsize=3", "there is no key data.train_batchsize; did you mean data.train_batch_size"),
        ("data.frobnicate=3", "there is no key data.frobnicate. To add a key that verl does not have, write \\+data"),
        ("data.train_files=~/x", "hydra cannot read 'data.train_files=~/x'.* quotes of its own within the shell's"),
        ("--freshh", "hydra cannot read '--freshh'. An override is key=value"),
    ],
)
def test_a_mistake_is_named_with_what_was_meant(override: str, message: str) -> None:
    with pytest.raises(LaunchError, match=message) as caught:
        make_plan([override])
    assert "Exception" not in str(caught.value)


@pytest.mark.parametrize("added", ["+data.train_batchsize=3", "++data.train_batchsize=3"])
def test_an_added_key_beside_one_of_a_similar_name_is_warned_of(added: str) -> None:
    (warning,) = added_keys_like_others(make_plan([added]))
    assert "data.train_batchsize is a new key, which verl may ignore; did you mean train_batch_size?" in warning


@pytest.mark.parametrize(
    "override",
    [
        "++data.train_batch_size=3",
        "++algorithm.cw_grpo.record=/tmp/x",
        "+data.apply_chat_template_kwargs.enable_thinking=false",
        "+ray_kwargs.ray_init.log_to_driver=false",
    ],
)
def test_other_added_keys_are_not_warned_of(override: str) -> None:
    assert added_keys_like_others(make_plan([override])) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+launcher.start_limit=60", "launcher.start_limit is not a setting; the settings are: env, start_ray"),
        ("+launcher.startup_timeout=60", "launcher.startup_timeout is not a setting; did you mean startup_timeout_s"),
        ("launcher.startup_timeout_s=long", "launcher.startup_timeout_s: Value 'long' of type 'str'"),
        ("launcher.start_ray=2.5", "launcher.start_ray: Value '2.5'"),
    ],
)
def test_the_launchers_settings_are_checked(override: str, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        _ = make_plan(["cluster=cpu", override]).launcher
