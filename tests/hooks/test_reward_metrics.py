"""cw_grpo/reward_metrics.py: the reward's parts in the training log."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf

from cw_grpo.hooks import reward_metrics


def test_means_of_the_parts():
    infos = {"acc": [1.0, 0.0, None, 1.0], "format": np.array([True, False]), "pred": ["5", "6"], "timeout": [None]}
    assert reward_metrics.summarise(infos) == {"reward/acc": pytest.approx(2 / 3), "reward/format": 0.5}
    assert reward_metrics.summarise({}) == {}


def test_names_are_no_prey_of_verls_reducers():
    names = reward_metrics.summarise({part: [1.0] for part in reward_metrics.PARTS})
    assert not [name for name in names for word in ("min", "max", "sum", "total") if word in name]


def info(acc: float) -> dict:
    return {"reward_extra_info": {"score": acc, "acc": acc, "format": 1.0, "timeout": 0.0, "pred": "x"}}


def test_v1_counts_each_response_once_and_no_padding(monkeypatch):
    tq = pytest.importorskip("transfer_queue")
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    stored = {
        "u_0_0": info(0.0),  # first of two outputs of one agent session
        "u_0_1": info(1.0),
        "u_1_0": info(0.0),
        "v_0_0": {},
        "pad1_0_0": info(1.0),
    }
    batch = SimpleNamespace(
        keys=list(stored), tags=[{"is_padding": key.startswith("pad")} for key in stored], partition_id="train"
    )
    asked = []

    def kv_batch_get(keys, partition_id, select_fields):
        asked.append((keys, partition_id, select_fields))
        return list_of_dict_to_tensordict([{"extra_fields": stored[key]} for key in keys])

    monkeypatch.setattr(tq, "kv_batch_get", kv_batch_get)

    def _compute_metrics(self, batch, metrics, timing_raw, global_steps, epoch):
        metrics["seen"] = 1.0

    metrics = {}
    config = OmegaConf.create({"reward": {"custom_reward_function": {"path": "reward.py"}}})
    args = (SimpleNamespace(config=config), batch, metrics, {})
    reward_metrics.add_reward_metrics_v1(_compute_metrics, args, {"global_steps": 1, "epoch": 0})
    assert asked == [(["u_0_1", "u_1_0", "v_0_0"], "train", ["extra_fields"])]
    assert metrics == {"seen": 1.0, "reward/acc": 0.5, "reward/format": 1.0, "reward/timeout": 0.0}

    config.reward.custom_reward_function.path = None
    asked.clear()
    reward_metrics.add_reward_metrics_v1(_compute_metrics, args, {"global_steps": 2, "epoch": 0})
    assert asked == []


def test_v0_reads_the_batch():
    batch = SimpleNamespace(non_tensor_batch={"acc": np.array([1.0, 0.0]), "uid": np.array(["a", "b"])})

    def compute_data_metrics(batch, use_critic=True):
        return {"critic/score/mean": 0.5}

    result = reward_metrics.add_reward_metrics_v0(compute_data_metrics, (), {"batch": batch, "use_critic": False})
    assert result == {"critic/score/mean": 0.5, "reward/acc": 0.5}


def test_verl_has_what_the_hooks_hold_on_to():
    import inspect

    from verl.trainer.ppo import metric_utils
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    assert {"batch", "metrics"} <= set(inspect.signature(PPOTrainer._compute_metrics).parameters)
    assert "batch" in inspect.signature(metric_utils.compute_data_metrics).parameters


def test_a_job_is_checked_before_it_starts(tmp_path):
    from test_reward_loop import byte_tokenizer, job_config

    path = byte_tokenizer(tmp_path / "tokenizer")
    reward_metrics.check_reward(job_config(path, format_weight=0))
    with pytest.raises(ValueError, match="unknown"):
        reward_metrics.check_reward(job_config(path, wieght=0))
