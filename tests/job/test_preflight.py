# SPDX-License-Identifier: Apache-2.0
"""What a machine or a setting lacks is named before anything is started, all of it at once."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from jobs import cached_plan, validate
from omegaconf import OmegaConf

from cw_grpo.checks.layout import layout_problem
from cw_grpo.job.machine import Gpu
from cw_grpo.job.plan import LaunchError, make_plan
from cw_grpo.job.preflight import check_job_can_run, known_size, missing_model, size_problems, unknown_to_nodes
from cw_grpo.job.setting_checks import logger_problems, lora_problems, packing_problems, setting_notes

TINY = ("scale=tiny", "cluster=cpu")
ROOT = Path(__file__).parents[2]


def test_what_the_machine_lacks_is_named_before_anything_starts(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CW_GRPO_HOME", str(tmp_path))
    plan = make_plan(["scale=qwen7b", "cluster=1node", "method=grpo", f"actor_rollout_ref.model.path={tmp_path}/model"])

    def check(**changes) -> None:
        config = plan.config.copy()
        for key, value in changes.items():
            OmegaConf.update(config, key, value)
        check_job_can_run(replace(plan, config=config))

    actor, model = "actor_rollout_ref.actor.", "actor_rollout_ref.model."
    with pytest.raises(LaunchError, match=r"trainer\.n_gpus_per_node=48, but torch sees \d+ GPUs"):
        check(**{"trainer.n_gpus_per_node": 48})
    with pytest.raises(LaunchError, match="8 data-parallel ranks.*ulysses_sequence_parallel_size of 2, 4 or 8"):
        check(**{"trainer.n_gpus_per_node": 8, "parallel.ulysses": 1})
    with pytest.raises(LaunchError, match="on this machine alone.*as cluster=nnodes does"):
        check(**{"trainer.nnodes": 2})
    with pytest.raises(LaunchError, match="verl reserves 22 CPUs for this job"):
        check(**{"ray_kwargs.ray_init.num_cpus": 21})
    here = {"trainer.device": "cpu", "ray_kwargs.ray_init.num_cpus": 22}
    with pytest.raises(LaunchError, match=r"vllm is not installed in this Python: .*setup.sh vllm"):
        check(**here)
    here["actor_rollout_ref.rollout.name"] = "transformers"
    with pytest.raises(LaunchError, match=r"flash-attn, which is not installed here: .* attention=sdpa"):
        check(**here)
    here[model + "override_config.attn_implementation"] = "sdpa"
    megatron = {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1, "context_parallel_size": 1}
    with pytest.raises(LaunchError, match=r'pip install "verl\[megatron\]"'):
        check(**here, **{actor + "strategy": "megatron", actor + "megatron": megatron})
    with pytest.raises(LaunchError, match=f"{tmp_path}/model does not exist"):
        check(**here)
    (tmp_path / "model").mkdir()
    with pytest.raises(LaunchError, match=r"model has no config\.json: not a model"):
        check(**here)
    (tmp_path / "model" / "config.json").touch()
    with pytest.raises(LaunchError, match="open-rs.parquet does not exist; `cw-grpo data paper open-rs --out .*`"):
        check(**here)
    (tmp_path / "data").mkdir()
    for name in ("open-rs", "aime24", "amc23", "math500", "minerva"):
        (tmp_path / "data" / f"{name}.parquet").touch()
    with pytest.raises(LaunchError, match=r"data\.val_files: .*olympiadbench\.parquet does not exist"):
        check(**here)
    (tmp_path / "data/olympiadbench.parquet").touch()
    check(**here)
    with pytest.raises(LaunchError, match="mine.parquet does not exist; set data.train_files"):
        check(**here, **{"data.train_files": "mine.parquet"})
    check(**here, **{"data.train_files": "hdfs://some/where.parquet"})


def test_the_users_file_is_checked_if_one_would_be_made(tmp_path) -> None:
    check_job_can_run(cached_plan(*TINY))
    with pytest.raises(LaunchError, match="mine.parquet does not exist; set data.val_files"):
        check_job_can_run(cached_plan(*TINY, "data.val_files=mine.parquet"))
    with pytest.raises(LaunchError, match=f"model.path: {tmp_path}/mine does not exist"):
        check_job_can_run(cached_plan(*TINY, f"actor_rollout_ref.model.path={tmp_path}/mine"))


def test_a_model_that_is_not_available_is_named_with_what_to_do(tmp_path) -> None:
    name = "Qwen/Qwen2.5-Math-7B-Instruct"
    env = {"HF_HUB_OFFLINE": 1, "HF_HOME": str(tmp_path)}
    config = OmegaConf.create({"actor_rollout_ref": {"model": {"path": name}}, "launcher": {"env": env}})
    line = missing_model(config, set())
    assert f"{name} is neither a directory here nor available on the Hugging Face hub (LocalEntryNotFoundError)" in line
    assert "--local-dir DIRECTORY" in line
    snapshots = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
    (snapshots / "snapshots" / "0123").mkdir(parents=True)
    (snapshots / "snapshots" / "0123" / "config.json").write_text("{}")
    (snapshots / "refs").mkdir()
    (snapshots / "refs" / "main").write_text("0123")
    assert missing_model(config, set()) is None


def problems(*overrides: str) -> list[str]:
    with pytest.raises(LaunchError) as caught:
        check_job_can_run(cached_plan(*TINY, *overrides))
    lines = str(caught.value).splitlines()
    return [line.removeprefix("  - ") for line in lines if not line.endswith("problems:")]


def test_all_problems_are_named_at_once(tmp_path) -> None:
    found = problems(
        "actor_rollout_ref.rollout.n=-1",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=0",
        "actor_rollout_ref.model.path=/nowhere",
        "data.val_files=mine.parquet",
        "trainer.logger=console",
        f"++algorithm.cw_grpo.record={tmp_path}/x",
    )
    assert [problem.split("=")[0].split(":")[0] for problem in found] == [
        "actor_rollout_ref.rollout.n",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
        "trainer.logger",
        "actor_rollout_ref.model.path",
        "data.val_files",
    ]


ACTOR = "actor_rollout_ref.actor"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # verl knows these only when models and servers are up.
        ("algorithm.adv_estimator=cw-grpo", "algorithm.adv_estimator=cw-grpo does not exist; did you mean cw_grpo?"),
        (f"{ACTOR}.policy_loss.loss_mode=cw_grpo_liv", "cw_grpo_liv does not exist; did you mean cw_grpo_live?"),
        (f"{ACTOR}.policy_loss.loss_mode=gpso", "loss_mode=gpso does not exist; did you mean gspo?"),
        (f"{ACTOR}.policy_loss.loss_mode=cw_grpo", "loss_mode=cw_grpo is the name of an advantage estimator"),
        ("algorithm.adv_estimator=cw_grpo_live", "is the name of a policy loss"),
        (f"{ACTOR}.ppo_micro_batch_size_per_gpu=0", "per_gpu=0 must be a whole number of at least 1"),
        ("actor_rollout_ref.rollout.n=0", "rollout.n=0 must be a whole number of at least 1"),
        ("trainer.n_gpus_per_node=null", "trainer.n_gpus_per_node=null must be a whole number of at least 1"),
        ("data.train_batch_size=null", "data.train_batch_size=null must be a whole number of at least 1"),
        ("data.train_batch_size=-2", "data.train_batch_size=-2 must be"),
        ("data.max_response_length=1.5", "data.max_response_length=1.5 must be"),
        ("actor_rollout_ref.model.path='~/model'", f"=~/model: verl does not expand ~; write {Path.home()}/model"),
        ("data.train_files=['~/a.parquet']", "data.train_files=~/a.parquet: verl does not expand ~"),
        ("trainer.default_local_dir='~/c'", "trainer.default_local_dir=~/c: verl does not expand ~"),
        ("trainer.logger=[file,tensorbord]", "trainer.logger: tensorbord does not exist; did you mean tensorboard?"),
        ("trainer.logger=[file,mlflow]", "trainer.logger has mlflow, which is not installed here: pip install mlflow"),
        ("trainer.logger=[console,tensorboard]", "has no `file`"),
        ("++algorithm.cw_grpo.record=/dev/null/rec", "/dev/null/rec cannot be written: /dev/null: Not a directory"),
        ("++algorithm.cw_grpo.record=/proc/rec", "record=/proc/rec cannot be written: /proc"),
        ("trainer.rollout_data_dir=/dev/null/x", "trainer.rollout_data_dir=/dev/null/x cannot be written"),
        ("++algorithm.cw_grpo.record=rec", "algorithm.cw_grpo.record=rec must be an absolute path"),
        ("++algorithm.cw_grpo.recrod=/tmp/x", "algorithm.cw_grpo.recrod is not an option"),
    ],
)  # fmt: skip
def test_a_setting_that_verl_would_find_late_is_found_at_once(override: str, message: str) -> None:
    assert any(message in problem for problem in problems(override)), problems(override)


@pytest.mark.parametrize("method", ["grpo", "cw_grpo"])
def test_equal_responses_are_rejected_for_the_baseline_too(method: str) -> None:
    rollout = "actor_rollout_ref.rollout"
    found = problems(f"method={method}", f"{rollout}.name=vllm", f"{rollout}.full_determinism=true")
    assert sum("the same seed: the responses of a group are equal" in problem for problem in found) == 1


def test_what_a_jobs_own_modules_register_is_not_rejected() -> None:
    own = [*TINY, "algorithm.adv_estimator=mine", "actor_rollout_ref.model.external_lib=my.losses"]
    assert check_job_can_run(make_plan(own)) == []


NETRC = "machine api.wandb.ai login user password " + "0" * 40


@pytest.mark.parametrize(
    ("env", "accepted"),
    [
        ({}, False),
        ({"WANDB_MODE": "offline"}, True),
        ({"WANDB_API_KEY": "0" * 40}, True),
        ({"NETRC": "{}/netrc"}, True),
        ({"NETRC": "{}/netrc", "WANDB_BASE_URL": "https://wandb.example"}, False),
    ],
    ids=["nothing", "offline", "a key", "logged in", "logged in elsewhere"],
)
def test_wandb_needs_a_key_or_to_be_offline(tmp_path, monkeypatch, env: dict[str, str], accepted: bool) -> None:
    for key in [*os.environ]:
        if key.startswith("WANDB_"):
            monkeypatch.delenv(key)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "netrc").write_text(NETRC)
    for key, value in env.items():
        monkeypatch.setenv(key, value.format(tmp_path))

    def found(launcher: dict[str, str | None]) -> list[str]:
        config = {"trainer": {"logger": ["file", "wandb"]}, "launcher": {"env": launcher}}
        return list(logger_problems(OmegaConf.create(config)))

    wanted = [] if accepted else [True]
    assert ["has no API key here" in problem for problem in found({})] == wanted
    given = {key: os.environ[key] for key in env}
    for key in env:
        monkeypatch.delenv(key)
    assert ["has no API key here" in problem for problem in found(given)] == wanted


def test_a_job_without_entropy_says_so() -> None:
    (note,) = check_job_can_run(cached_plan(*TINY, "algorithm.rollout_correction.bypass_mode=true"))
    assert "no metric actor/entropy" in note
    assert check_job_can_run(cached_plan(*TINY)) == []


def test_what_a_micro_batch_costs_and_changes_on_gpus_is_said() -> None:
    def notes(*overrides: str) -> list[str]:
        return list(setting_notes(cached_plan("scale=qwen1_5b", *overrides).config))

    (note,) = notes("cluster=1node")
    assert "12 rows" in note and "use_dynamic_bsz=true actor_rollout_ref.actor.ppo_max_token_len_per_gpu=13824" in note
    assert notes("cluster=1node", "actor_rollout_ref.actor.use_dynamic_bsz=true") == []
    assert notes("cluster=1node", "method=cw_grpo_live") == []
    assert notes("cluster=1node", "method=clip_cov") == []
    (note,) = notes("cluster=1gpu", "method=clip_cov")
    assert "loss_mode=clip_cov: verl takes its means over a micro-batch, here of 2 rows; with the 12 of a group" in note


def test_a_model_whose_size_is_not_known_is_not_checked(tmp_path, caplog) -> None:
    caplog.set_level("INFO", "cw_grpo")
    model = tmp_path / "model"
    model.mkdir()
    settings = (f"actor_rollout_ref.model.path={model}", f"+launcher.env.HF_HOME={tmp_path}/cache")
    config = make_plan(["scale=qwen1_5b", "cluster=1gpu", *settings]).config
    (model / "config.json").write_text('{"model_type": "mine"}')
    assert known_size(config, set()) is None
    assert known_size(config, {"actor_rollout_ref.model.path"}) is None
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "configuration_mine.MineConfig"}}
    (model / "config.json").write_text(json.dumps(own))
    (model / "configuration_mine.py").write_text("import not_installed")
    config.actor_rollout_ref.model.trust_remote_code = True
    assert known_size(config, set()) is None
    head = f"memory and disk are not checked: the size of {model} is not known: "
    unknown, not_importable = (message.removeprefix(head) for message in caplog.messages)
    assert unknown.startswith("ValueError: ") and "mine" in unknown
    assert not_importable.startswith("ImportError: ") and "\n" not in not_importable


def test_a_gpu_that_others_hold_is_found_for_a_model_that_is_made(tmp_path) -> None:
    config = make_plan(["scale=smollm2", "cluster=1gpu"]).config
    gpu = Gpu("NVIDIA H100 80GB HBM3", "0", free=30_000_000_000, total=85_000_000_000)
    (line,) = size_problems(config, None, [gpu], tmp_path, 0)
    assert "has 30 of 85 GB free, and the job needs 42" in line
    assert size_problems(config, None, [replace(gpu, free=gpu.total)], tmp_path, 0) == []


@pytest.mark.parametrize("cluster", ["1node", "1node_h200", "1node8"])
def test_gpus_do_not_share_a_padded_sequence(cluster: str) -> None:
    """verl rejects it; with what `docs/gpus.md` says, it does not, and its workers can cut the batch."""
    config = cached_plan("scale=qwen1_5b", f"cluster={cluster}", "attention=sdpa").config
    with pytest.raises(ValueError, match="you must enable `use_remove_padding`"):
        validate(config)
    (line,) = packing_problems(config)
    assert line.startswith("actor_rollout_ref.actor.ulysses_sequence_parallel_size=") and "parallel.ulysses=1" in line
    way_out = "attention=sdpa parallel.ulysses=1 rows_per_micro_batch=2"
    assert way_out in (ROOT / "docs" / "gpus.md").read_text(encoding="utf-8")
    config = make_plan(["scale=qwen1_5b", f"cluster={cluster}", *way_out.split()]).config
    validate(config)
    assert list(packing_problems(config)) == [] and layout_problem(config) is None


def test_keys_of_lora_that_fsdp_does_not_read() -> None:
    model = "actor_rollout_ref.model"
    for key, value in (("lora.rank", 8), ("lora_adapter_path", "somewhere")):
        (line,) = lora_problems(cached_plan("scale=qwen7b", "cluster=1node", f"{model}.{key}={value}").config)
        assert line.startswith(f"{model}.{key}={value} has no effect in verl's FSDP without {model}.lora_rank")
    adapter = (f"{model}.lora_rank=8", f"{model}.lora_adapter_path=somewhere")
    for right in ((), adapter, (f"{model}.lora.rank=8", "model_engine=megatron")):
        assert list(lora_problems(cached_plan("scale=qwen7b", "cluster=1node", *right).config)) == []


def test_the_papers_settings_alone_need_a_model() -> None:
    with pytest.raises(LaunchError, match="actor_rollout_ref.model.path is not set"):
        check_job_can_run(make_plan(["scale=paper", "cluster=cpu"]))


@pytest.fixture
def no_logger_variables(monkeypatch) -> None:
    """None of the variables that the launcher would name for a joined cluster."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "HF_", "SWANLAB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("no_logger_variables")
def test_the_ray_cluster_that_a_job_joins_is_named(monkeypatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    notes = check_job_can_run(cached_plan(*TINY, "launcher.start_ray=false"))
    assert notes == ["joining the Ray cluster at 10.0.0.1:6379"]
    own = "+launcher.env.RAY_ADDRESS='10.0.0.2:6379'"
    notes = check_job_can_run(cached_plan(*TINY, "launcher.start_ray=false", own))
    assert notes == ["joining the Ray cluster at 10.0.0.2:6379"]


@pytest.mark.usefixtures("no_logger_variables")
def test_variables_that_the_nodes_of_a_joined_cluster_do_not_have_are_named(monkeypatch) -> None:
    assert unknown_to_nodes(cached_plan(*TINY)) == []
    for name, setting in {"WANDB_API_KEY": "secret", "HF_HOME": "/mine", "WANDB_DIR": "/mine"}.items():
        monkeypatch.setenv(name, setting)
    (line,) = unknown_to_nodes(cached_plan(*TINY))  # WANDB_DIR is handed over
    assert line.startswith("HF_HOME, WANDB_API_KEY: set here") and "secret" not in line
    own = "+ray_kwargs.ray_init.runtime_env.env_vars.WANDB_API_KEY=mine"
    assert unknown_to_nodes(cached_plan(*TINY, own))[0].startswith("HF_HOME: set here")
    (line,) = unknown_to_nodes(cached_plan(*TINY, "+launcher.env.HF_HOME=/ours"))
    assert line.startswith("WANDB_API_KEY: set here")
    of_the_job = {"runtime_env": {"env_vars": {"WANDB_API_KEY": "secret", "HF_HOME": "/mine"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(of_the_job))
    assert unknown_to_nodes(cached_plan(*TINY)) == []
