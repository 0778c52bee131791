# SPDX-License-Identifier: Apache-2.0
"""The numbers that a reward function returns, in the training log."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf
from verl.protocol import DataProto

from cw_grpo import hooks
from cw_grpo.hooks import Observer, reward_metrics


def test_means_of_numbers_alone() -> None:
    infos = [
        {"score": 1.0, "acc": 1.0, "format": np.True_, "pred": "5", "parts": [1, 2], "length": 7, "none": None},
        {"score": 0.0, "acc": 0.0, "format": np.False_, "pred": "", "parts": {}, "length": np.int64(8), "odd": 1},
        {"score": 0.0, "acc": None, "pred": None, "odd": "boxed", "huge": float("inf"), "none": None},
    ]
    assert reward_metrics.summarise(infos) == {
        "reward/acc": pytest.approx(1 / 2),
        "reward/format": 0.5,
        "reward/length": 7.5,
    }
    assert reward_metrics.summarise([]) == {}


def info(acc: float) -> dict:
    return {"reward_extra_info": {"score": acc, "acc": acc, "format": "boxed", "timeout": 0.0, "pred": "x"}}


def test_v1_counts_each_response_once_and_no_padding(monkeypatch) -> None:
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
    metrics = {"seen": 1.0}
    config = OmegaConf.create({"reward": {"custom_reward_function": {"path": "reward.py"}}})
    arguments = {"self": SimpleNamespace(config=config), "batch": batch, "metrics": metrics}
    reward_metrics.add_v1(arguments, None)
    assert asked == [(["u_0_1", "u_1_0", "v_0_0"], "train", ["extra_fields"])]
    assert metrics == {"seen": 1.0, "reward/acc": 0.5, "reward/timeout": 0.0}

    config.reward.custom_reward_function.path = None
    asked.clear()
    reward_metrics.add_v1(arguments, None)
    assert asked == []


def test_v0_reads_the_keys_that_the_batch_names() -> None:
    columns = {"acc": np.array([1.0, 0.0]), "pred": np.array(["5", "6"], dtype=object), "uid": np.array(["a", "b"])}
    batch = DataProto.from_dict(non_tensors=columns, meta_info={"reward_extra_keys": ["acc", "pred"]})
    metrics = {"critic/score/mean": 0.5}
    reward_metrics.add_v0({"batch": batch}, metrics)
    assert metrics == {"critic/score/mean": 0.5, "reward/acc": 0.5}


@pytest.mark.parametrize("error", [ValueError("odd"), OSError(28, "No space left on device"), KeyError("x")])
def test_an_observer_that_fails_says_so_once_and_the_job_goes_on(error: Exception, monkeypatch, caplog) -> None:
    monkeypatch.setattr(hooks, "_warned", set())

    def observe(arguments, result):
        raise error

    observer = Observer("m", "f", observe, feature="metrics of the reward")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as some users run Python: it must not stop the job either
        assert [observer.call(lambda x: x + 1, (step,), {}) for step in range(3)] == [1, 2, 3]
    (line,) = caplog.messages
    assert "CW-GRPO: no metrics of the reward" in line and type(error).__name__ in line


def test_errors_of_verl_itself_pass_through_an_observer() -> None:
    def fail(x):
        raise RuntimeError("verl's own")

    with pytest.raises(RuntimeError, match="verl's own"):
        Observer("m", "f", lambda *_: None, feature="metrics").call(fail, (1,), {})
