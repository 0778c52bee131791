# SPDX-License-Identifier: Apache-2.0
"""The command, environment and names of a job."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from jobs import cached_plan
from ray.runtime_env.runtime_env import _merge_runtime_env

from cw_grpo.job.attempt import (
    experiment_name,
    job_command,
    job_environment,
    launcher_env,
    ray_overrides,
    run_environment,
)
from cw_grpo.job.directory import RunDirectory
from cw_grpo.job.plan import LaunchError, LauncherSettings, Plan, make_plan

TINY = ("scale=tiny", "cluster=cpu")


def command(plan: Plan, run: Path, env: dict[str, str] | None = None) -> list[str]:
    return job_command(plan, RunDirectory(run), [], Path("/tmp/ray"), env or {})


def value(arguments: list[str], key: str) -> str | None:
    """What the last override of a key sets, as hydra reads it."""
    parsed = OverridesParser.create().parse_overrides(arguments[5:])
    return next((override.value() for override in reversed(parsed) if override.key_or_group == key), None)


def test_the_job_has_a_ray_cluster_of_its_own_and_the_users_environment(tmp_path) -> None:
    plan = make_plan(TINY)
    user = {"RAY_ADDRESS": "10.0.0.1:6379", "WANDB_API_KEY": "a key"}
    env = job_environment(user, plan.launcher, run_environment(user, tmp_path, tmp_path / "metrics"))
    assert "RAY_ADDRESS" not in env and env["WANDB_API_KEY"] == "a key"
    assert (env["VERL_PLATFORM"], env["VERL_USE_EXTERNAL_MODULES"]) == ("cpu", "cw_grpo.cpu")
    arguments = command(plan, tmp_path)
    assert value(arguments, "ray_kwargs.ray_init.address") == "local"
    assert arguments[-2:] == list(TINY)


@pytest.mark.parametrize("visible", ["", "NoDevFiles", "0,1"])
def test_the_cpu_job_is_not_stopped_by_a_list_of_visible_gpus(visible: str) -> None:
    """Ray compares the "GPUs" that the CPU job declares with these."""
    names = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
    env = job_environment(dict.fromkeys(names, visible), cached_plan(*TINY).launcher, {})
    assert not env.keys() & set(names)
    gpus = cached_plan("scale=qwen7b", "cluster=1node").launcher
    assert job_environment({"CUDA_VISIBLE_DEVICES": visible}, gpus, {})["CUDA_VISIBLE_DEVICES"] == visible


def test_null_in_the_launchers_environment_removes_a_variable() -> None:
    settings = LauncherSettings(env={"A": None, "B": 2})
    env = job_environment({"A": "1", "B": "1", "C": "1"}, settings, {"D": "1"})
    assert "A" not in env and (env["B"], env["C"], env["D"]) == ("2", "1", "1")
    assert launcher_env(settings) == {"B": "2"}


def test_nnodes_joins_a_cluster_and_hands_its_environment_to_the_nodes(tmp_path, monkeypatch) -> None:
    with pytest.raises(LaunchError, match="Environment variable 'NNODES' not found"):
        make_plan(["scale=qwen7b", "cluster=nnodes"])
    for name, setting in {"NNODES": "4", "CW_GRPO_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, setting)
    plan = make_plan(["scale=qwen7b", "cluster=nnodes"])
    own = {"VERL_FILE_LOGGER_PATH": "/metrics"}
    assert job_environment({"RAY_ADDRESS": "10.0.0.1:6379"}, plan.launcher, own)["RAY_ADDRESS"] == "10.0.0.1:6379"
    arguments = command(plan, tmp_path, launcher_env(plan.launcher) | own)
    assert value(arguments, "ray_kwargs.ray_init.address") == "auto"
    assert not [part for part in arguments if "_temp_dir" in part]
    handed = "++ray_kwargs.ray_init.runtime_env.env_vars."
    given = dict(part.removeprefix(handed).split("=", 1) for part in arguments if part.startswith(handed))
    assert given == {
        "NNODES": "'4'",
        "GPUS_PER_NODE": "'4'",
        "CW_GRPO_HOME": f"'{tmp_path}'",
        "VERL_FILE_LOGGER_PATH": "'/metrics'",
    }


def test_variables_of_a_ray_job_are_not_named_once_more(tmp_path, monkeypatch) -> None:
    """As in a RayJob with `runtimeEnvYAML`, or `ray job submit --runtime-env-json`."""
    of_the_job = {"NNODES": "4", "CW_GRPO_HOME": str(tmp_path)}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {"env_vars": of_the_job}}))
    for name, setting in of_the_job.items():
        monkeypatch.setenv(name, setting)
    plan = make_plan(["scale=qwen7b", "cluster=nnodes"])
    overrides = ray_overrides(False, tmp_path, launcher_env(plan.launcher) | {"VERL_FILE_LOGGER_PATH": "/metrics"})
    handed = "ray_kwargs.ray_init.runtime_env.env_vars."
    given = {key.removeprefix(handed): to for key, to in overrides.items() if key.startswith(handed)}
    assert given == {"GPUS_PER_NODE": "4", "VERL_FILE_LOGGER_PATH": "/metrics"}
    merged = _merge_runtime_env({"env_vars": of_the_job}, {"env_vars": given})
    assert merged == {"env_vars": of_the_job | given}
    # Another value is for Ray to reject, not to be lost in silence.
    assert f"{handed}NNODES" in ray_overrides(False, tmp_path, {"NNODES": "2"})


def test_the_users_own_variable_for_the_nodes_stays(tmp_path) -> None:
    key = "ray_kwargs.ray_init.runtime_env.env_vars.WANDB_DIR"
    plan = make_plan([*TINY, "launcher.start_ray=false", f"+{key}=/mine"])
    named = [part for part in command(plan, tmp_path, {"WANDB_DIR": "/ours"}) if key in part]
    assert named == [f"+{key}=/mine"]


def test_loggers_write_into_the_runs_directory_unless_the_user_says_where(tmp_path) -> None:
    env = run_environment({}, tmp_path, tmp_path / "metrics/attempt-001.jsonl")
    assert {Path(path).relative_to(tmp_path).parts[:1] for path in env.values()} == {
        ("tensorboard",),
        (),  # wandb makes a directory of its own in it
        ("swanlab",),
        ("metrics",),
    }
    # Named, for the nodes of a cluster that runs already do not know this process's environment.
    assert run_environment({"TENSORBOARD_DIR": "/mine"}, tmp_path, tmp_path / "m")["TENSORBOARD_DIR"] == "/mine"


@pytest.mark.parametrize("setting", [(), ("+launcher.env.TENSORBOARD_DIR=/mine",)])
def test_a_loggers_directory_of_the_jobs_own_environment_stays(
    run, fake_verl, run_dir, monkeypatch, setting: tuple[str, ...]
) -> None:
    monkeypatch.delenv("TENSORBOARD_DIR", raising=False)
    fake_verl("print('directory:', os.environ['TENSORBOARD_DIR'])")
    run(*setting)
    expected = "/mine" if setting else run_dir / "tensorboard"
    assert f"directory: {expected}\n" in (run_dir / "verl.log").read_text()


@pytest.mark.parametrize(
    ("directory", "name"),
    [("tiny-grpo", "tiny-grpo"), ("tiny-grpo-seed2", "tiny-grpo-seed2"), ("second", "tiny-grpo-second")],
)
def test_runs_have_names_of_their_own(tmp_path, directory: str, name: str) -> None:
    plan = cached_plan(*TINY, "method=grpo")
    assert experiment_name(plan, tmp_path / directory) == name
    assert value(command(plan, tmp_path / directory), "trainer.experiment_name") == name
    own = make_plan([*TINY, "method=grpo", "trainer.experiment_name=mine"])
    assert value(command(own, tmp_path / directory), "trainer.experiment_name") == "mine"


def test_stock_verl_keeps_the_methods_checkpoints_apart() -> None:
    places = {make_plan([*TINY, f"method={m}"]).config.trainer.default_local_dir for m in ("grpo", "cw_grpo", "kl_cov")}
    assert len(places) == 3 and all(Path(place).name.startswith("tiny-") for place in places)


def test_the_sockets_of_ray_have_room(tmp_path) -> None:
    from cw_grpo.job.processes import short_temporary_root

    assert len(os.fspath(short_temporary_root())) < 30 or not os.access("/tmp", os.W_OK)
