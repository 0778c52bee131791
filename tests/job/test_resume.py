# SPDX-License-Identifier: Apache-2.0
"""Resuming: from the checkpoint that verl will take, with settings that do not change the training."""

from __future__ import annotations

import re

import pytest
from jobs import cached_plan

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
    "trainer.total_training_steps=4",
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


def test_every_free_setting_exists() -> None:
    """In the job of one engine or the other, but for those that a job adds."""
    from omegaconf import OmegaConf

    from cw_grpo.run_config import MICRO_BATCH_SETTINGS, SETTINGS_FREE_TO_CHANGE

    jobs = [cached_plan("scale=tiny", "cluster=cpu", f"model_engine={engine}").config for engine in ("dp", "megatron")]

    def exists(key: str) -> bool:
        parent, _, name = key.rpartition(".")
        nodes = [OmegaConf.select(job, parent) if parent else job for job in jobs]
        return any(node is not None and name in node for node in nodes)

    missing = [key for key in (*SETTINGS_FREE_TO_CHANGE, *MICRO_BATCH_SETTINGS) if not exists(key)]
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
