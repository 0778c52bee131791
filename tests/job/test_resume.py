# SPDX-License-Identifier: Apache-2.0
"""Resuming: from the checkpoint that verl will take, with settings that do not change the training."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jobs import cached_plan

from cw_grpo.job.footprint import ModelSize, checkpoint_bytes
from cw_grpo.job.machine import missing_disk
from cw_grpo.job.plan import LaunchError
from cw_grpo.run_config import MICRO_BATCH_LOSSES, is_free_to_change
from cw_grpo.runs import load_metrics

STEPS = """
config = " ".join(sys.argv)
start = int(os.environ.get("START", 0))
for step in range(start + 1, 4):
    log(step, **{"critic/score/mean": step / 4})
    if step == 2 and start == 0:
        sys.exit(1)
"""


@pytest.fixture
def stopped(run, fake_verl, checkpoint, monkeypatch):
    """A run that stopped in step 2 with the checkpoints of steps 1 and 2."""
    fake_verl(STEPS)
    assert run()[0] == 1
    checkpoint(1, 2)
    monkeypatch.setenv("START", "2")
    return run


FREE = (
    "actor_rollout_ref.rollout.gpu_memory_utilization=0.4",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2",
    "trainer.save_freq=1",
    "+trainer.max_actor_ckpt_to_keep=3",
    "trainer.logger=[file]",
    "+ray_kwargs.ray_init.num_cpus=8",
    "launcher.startup_timeout_s=50",
    "+prepare.record.every=2",
)


@pytest.mark.parametrize("override", FREE)
def test_a_run_resumes_with_other_resources_which_are_noted(stopped, run_dir, override: str) -> None:
    status, lines = stopped(override)
    assert status == 0 and "resuming from the checkpoint of step 2" in lines
    key = override.lstrip("+").partition("=")[0]
    assert any(line.startswith(f"changed: {key}: ") for line in lines)
    assert re.search(rf"attempt-002, from step 2:\n  {re.escape(key)}: .* -> ", (run_dir / "changes.txt").read_text())


def test_a_run_does_not_resume_with_other_training_unless_the_user_insists(stopped, run_dir) -> None:
    changed = ("lr=2", "actor_rollout_ref.rollout.gpu_memory_utilization=0.4")
    with pytest.raises(LaunchError, match=r"change the training:\n  lr: 1 -> 2\n.*--fresh.*--accept-changes"):
        stopped(*changed)
    assert not (run_dir / "changes.txt").exists()
    status, lines = stopped(*changed, accept_changes=True)
    assert status == 0 and "changed, and accepted although it changes the training: lr: 1 -> 2" in lines
    assert (run_dir / "changes.txt").read_text().splitlines() == [
        "attempt-002, from step 2:",
        "  actor_rollout_ref.rollout.gpu_memory_utilization: 0.5 -> 0.4",
        "  lr: 1 -> 2  (changes the training, accepted)",
    ]
    # They are the run's settings from now on.
    status, lines = stopped(*changed)
    assert status == 0 and not [line for line in lines if "changed" in line]


def test_a_check_before_the_start_is_free_to_change() -> None:
    """A run of an earlier recipe has no such key."""
    assert is_free_to_change("check_reward", cached_plan("scale=tiny").config)


@pytest.mark.parametrize("loss", [*MICRO_BATCH_LOSSES, "vanilla", "cw_grpo_live"])
def test_micro_batches_are_free_unless_the_loss_depends_on_them(loss: str) -> None:
    config = cached_plan("scale=tiny").config.copy()
    config.actor_rollout_ref.actor.policy_loss.loss_mode = loss
    key = "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"
    assert is_free_to_change(key, config) == (loss not in MICRO_BATCH_LOSSES)


@pytest.mark.parametrize(
    "key",
    [
        "actor_rollout_ref.actor.optim.lr",
        "actor_rollout_ref.actor.ppo_mini_batch_size",
        "actor_rollout_ref.rollout.temperature",
        "actor_rollout_ref.rollout.n",
        "actor_rollout_ref.rollout.name",
        "actor_rollout_ref.model.path",
        "actor_rollout_ref.actor.checkpoint.load_contents",
        "actor_rollout_ref.actor.fsdp_config.model_dtype",
        "algorithm.adv_estimator",
        "algorithm.cw_grpo.log_prob_mean",
        "data.train_files",
        "data.seed",
        "reward.custom_reward_function.reward_kwargs.format_weight",
        "trainer.n_gpus_per_node",
        "seed",
    ],
)
def test_what_changes_the_training_is_not_free(key: str) -> None:
    assert not is_free_to_change(key, cached_plan("scale=tiny").config)


def rates(steps: int, **optim: Any) -> list[float]:
    """The learning rate at each of so many steps, by verl's FSDP engine."""
    from verl.workers.config import FSDPOptimizerConfig
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    config = FSDPOptimizerConfig(lr=1.0, total_training_steps=steps, **optim)
    schedule = FSDPEngine._build_lr_scheduler(SimpleNamespace(optimizer_config=config, rank=1), optimizer)
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("step", [0, 4, 8, 9, 12, 40])
@pytest.mark.parametrize(
    "optim",
    [
        {"lr_scheduler_type": "constant"},
        {"lr_scheduler_type": "constant", "lr_warmup_steps_ratio": 0.1},
        {"lr_scheduler_type": "constant", "lr_warmup_steps_ratio": 0.1, "lr_warmup_steps": 9},
        {"lr_scheduler_type": "cosine", "lr_warmup_steps_ratio": 0.1, "min_lr_ratio": 0.1},
        {"lr_scheduler_type": "cosine", "lr_warmup_steps": 9},
    ],
)
def test_the_length_is_free_where_verls_learning_rate_does_not_depend_on_it(optim: dict[str, Any], step: int) -> None:
    short, longer = (cached_plan("scale=tiny").config.copy() for _ in range(2))
    for config, steps in ((short, 80), (longer, 120)):
        config.trainer.total_training_steps = steps
        config.actor_rollout_ref.actor.optim.update({"lr_warmup_steps_ratio": 0.0, **optim})
    # From the beginning there is no rate that could jump.
    same = step == 0 or rates(80, **optim)[step:] == rates(120, **optim)[step:80]
    free = [is_free_to_change("trainer.total_training_steps", config, step) for config in (short, longer)]
    assert all(free) == same


def test_the_length_by_epochs_is_that_of_a_run_without_a_number_of_steps() -> None:
    config = cached_plan("scale=smollm2").config.copy()
    assert is_free_to_change("trainer.total_epochs", config)
    config.trainer.total_training_steps = None
    assert not is_free_to_change("trainer.total_epochs", config, 8)
    config.actor_rollout_ref.actor.optim.update({"lr_scheduler_type": "constant", "lr_warmup_steps_ratio": 0})
    assert is_free_to_change("trainer.total_epochs", config, 8)


def test_a_longer_run_with_another_learning_rate_says_so(stopped) -> None:
    longer = "trainer.total_training_steps=4"
    line = r"trainer.total_training_steps: 3 -> 4 \(the learning rate depends on it, and would jump on resuming\)"
    with pytest.raises(LaunchError, match=rf"change the training:\n  {line}\n.*--accept-changes"):
        stopped(longer)
    assert stopped(longer, accept_changes=True)[0] == 0


@pytest.mark.parametrize(("saved", "loaded"), [(0, 1), (1, 0), (1, 2)])
def test_a_data_loaders_state_is_not_loaded_by_other_workers(saved: int, loaded: int) -> None:
    """verl saves and loads that of torchdata's, in `data.pt`."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    def loader(workers: int) -> StatefulDataLoader:
        return StatefulDataLoader(list(range(8)), batch_size=2, num_workers=workers)

    first = loader(saved)
    next(iter(first))
    same, other = loader(saved), loader(loaded)
    for each in (same, other):
        each.load_state_dict(first.state_dict())
    assert next(iter(same)).tolist() == [2, 3]
    with pytest.raises(AssertionError):
        next(iter(other))


def test_the_data_loaders_workers_cannot_change_with_a_checkpoint(run, stopped, run_dir) -> None:
    workers = "+data.dataloader_num_workers=2"
    message = r"cannot load the run's checkpoint with data.dataloader_num_workers: \(absent\) -> 2: set it back, or"
    for accept in (False, True):
        with pytest.raises(LaunchError, match=message):
            stopped(workers, accept_changes=accept)
    shutil.rmtree(run_dir / "checkpoints")
    assert "changed: data.dataloader_num_workers: (absent) -> 2" in run(workers)[1]


@pytest.fixture
def one_rank() -> Any:
    """torch.distributed with one process, which verl's checkpoints need."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def save(one_rank) -> Callable[..., None]:
    """Saves checkpoints of a small model by verl's FSDP manager, as one start of a job: of which the last is kept."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, **size))

    def start(to: Path, *steps: int) -> None:
        optimizer = torch.optim.AdamW(model.parameters())
        manager = FSDPCheckpointManager(model, optimizer, processing_class=SimpleNamespace(save_pretrained=str))
        for step in steps:
            manager.save_checkpoint(str(to / f"global_step_{step}/actor"), global_step=step, max_ckpt_to_keep=1)

    return start


def test_another_number_of_ranks_than_a_checkpoint_has_is_rejected_before_anything_starts(
    stopped, run_dir, save
) -> None:
    save(run_dir / "checkpoints", 2)
    step = run_dir / "checkpoints/global_step_2"
    ranks = ("+trainer.nnodes=2", "+trainer.n_gpus_per_node=4")
    message = f"{step} is of 1 ranks and cannot be resumed with 8: trainer.nnodes x trainer.n_gpus_per_node must"
    named = ("trainer.resume_mode=resume_path", f"trainer.resume_from_path={step}")
    for overrides in (ranks, (*ranks, *named)):
        with pytest.raises(LaunchError) as caught:
            stopped(*overrides, accept_changes=True)
        assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    one = ("+trainer.nnodes=1", "+trainer.n_gpus_per_node=1", "+ray_kwargs.ray_init.num_cpus=5")
    assert stopped(*one, accept_changes=True)[0] == 0


def test_a_resumed_start_needs_room_beside_the_checkpoint_that_it_resumes_from(tmp_path, save) -> None:
    """verl forgets the checkpoints of an earlier start, and never deletes them."""
    save(tmp_path, 50, 100), save(tmp_path, 150)
    assert sorted(actor.parent.name for actor in tmp_path.glob("*/actor")) == ["global_step_100", "global_step_150"]

    # Room for one and a half: enough for the last one of a run, not for two.
    config = cached_plan("scale=qwen1_5b", "cluster=1gpu", "trainer.total_training_steps=150").config
    parameters = int(shutil.disk_usage(tmp_path).free / checkpoint_bytes(1, config) / 1.5)
    size = ModelSize(parameters, 28, 1536, 8960, 151_936, 131_072)
    assert missing_disk(config, size, tmp_path, step=100) is None
    line = missing_disk(config, size, tmp_path, step=50)
    assert "2 lie on the disk at once" in line and "beside that of step 50, which stays until you remove it" in line


def test_checkpoints_of_another_run_are_not_continued(run, fake_verl, checkpoint, tmp_path, monkeypatch) -> None:
    """A `trainer.default_local_dir` that runs share."""
    fake_verl(STEPS)
    place, first, second = (tmp_path / name for name in ("shared", "first", "second"))
    shared = f"trainer.default_local_dir={place}"
    run(shared, run_dir=first)
    checkpoint(2, to=place)
    monkeypatch.setenv("START", "2")
    message = rf"^verl would resume from {place}/global_step_2, which no earlier start of this run made: .*resume_path"
    for options in ({"run_dir": second}, {"run_dir": first, "fresh": True}):
        with pytest.raises(LaunchError, match=message):
            run(shared, **options)
    assert not second.exists() and [path.name for path in tmp_path.glob("first*")] == ["first"]
    # Its own run resumes, and so does who names the checkpoint.
    assert "resuming from the checkpoint of step 2" in run(shared, run_dir=first)[1]
    named = ("trainer.resume_mode=resume_path", f"trainer.resume_from_path={place}/global_step_2")
    assert "resuming from the checkpoint of step 2" in run(shared, *named, run_dir=second)[1]
    status, lines = run(shared, "trainer.resume_mode=disable", run_dir=tmp_path / "third")
    assert status == 0 and not [line for line in lines if "resuming" in line]


def test_fresh_needs_no_other_directory_within_the_runs_own(stopped, run_dir, monkeypatch) -> None:
    monkeypatch.delenv("START")
    for number, within in enumerate((f"{run_dir}/checkpoints", f"{run_dir}"), start=1):
        _, lines = stopped(f"trainer.default_local_dir={within}", fresh=True)
        assert lines[0] == f"the earlier run is kept in {run_dir}.{number}"


def test_every_free_setting_exists() -> None:
    """In the job of one engine or the other, but for those that a job adds."""
    from omegaconf import OmegaConf

    from cw_grpo.run_config import FIXED_BY_CHECKPOINT, LENGTH_SETTINGS, MICRO_BATCH_SETTINGS, SETTINGS_FREE_TO_CHANGE

    jobs = [cached_plan("scale=tiny", "cluster=cpu", f"model_engine={engine}").config for engine in ("dp", "megatron")]

    def exists(key: str) -> bool:
        parent, _, name = key.rpartition(".")
        nodes = [OmegaConf.select(job, parent) if parent else job for job in jobs]
        return any(node is not None and name in node for node in nodes)

    free = (*SETTINGS_FREE_TO_CHANGE, *MICRO_BATCH_SETTINGS, *LENGTH_SETTINGS, *FIXED_BY_CHECKPOINT)
    missing = [key for key in free if not exists(key)]
    assert [key for key in missing if not key.startswith("algorithm.cw_grpo.")] == []


def test_the_same_command_resumes_and_keeps_the_earlier_steps(stopped, run_dir) -> None:
    status, lines = stopped()
    assert status == 0 and "resuming from the checkpoint of step 2" in lines
    assert list(load_metrics(run_dir).index) == [1, 2, 3]
    assert sorted(path.name for path in (run_dir / "metrics").iterdir()) == [f"attempt-00{i}.jsonl" for i in (1, 2)]


def test_an_earlier_checkpoint_can_be_named(stopped, run_dir, monkeypatch) -> None:
    monkeypatch.setenv("START", "1")
    earlier = f"trainer.resume_from_path={run_dir}/checkpoints/global_step_1"
    status, lines = stopped("trainer.resume_mode=resume_path", earlier)
    assert status == 0 and "resuming from the checkpoint of step 1" in lines
    assert list(load_metrics(run_dir).index) == [1, 2, 3]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("trainer.resume_mode=resume_path",), "=None must end in global_step_N.*Checkpoints in .*: 1, 2"),
        (("trainer.resume_mode=resume_path", "trainer.resume_from_path={}/global_step_7"), "step_7 has no checkp"),
        (("trainer.resume_mode=resume_path", "trainer.resume_from_path={}/global_step_1/"), "no slash after it"),
        (("trainer.resume_mode=resume_path", "trainer.resume_from_path={}"), "must end in global_step_N"),
        (("trainer.resume_mode=atuo",), "resume_mode=atuo does not exist; did you mean auto"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_verl_cannot_take_is_rejected(stopped, run_dir, overrides, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        stopped(*(override.format(run_dir / "checkpoints") for override in overrides))


def test_a_tracker_without_its_checkpoint_is_not_believed(stopped, run_dir) -> None:
    """verl would start from the beginning, over what is there."""
    (run_dir / "checkpoints/global_step_2/actor").rmdir()
    with pytest.raises(
        LaunchError, match="names step 2, but .*global_step_2 has no checkpoint.*: 1. To resume from one"
    ):
        stopped()


def test_a_tracker_that_was_cut_off_is_named(run, run_dir) -> None:
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "checkpoints/latest_checkpointed_iteration.txt").touch()
    with pytest.raises(LaunchError, match="latest_checkpointed_iteration.txt holds no step number"):
        run()


def test_other_settings_are_rejected_without_a_checkpoint_too(run, fake_verl) -> None:
    fake_verl(STEPS)
    run()
    with pytest.raises(LaunchError, match=r"change the training:\n  lr: 1 -> 2\n"):
        run("lr=2")
